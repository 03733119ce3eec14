//! What a machine's network card sent since its power came on, by a capture from outside.
//!
//! In: captures that something else recorded, such as the emulator. Out: promises.
//! Called by: rig::remote.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context, Result, ensure};

use super::{
    Field,
    hosts::{Hosts, Machine, MachineRole},
};
use crate::{
    capture::pcap::PcapReader,
    rig::{frame::Frame, promise::Evidence},
};

/// ICMPv6, for neighbour discovery.
const ICMPV6: u8 = 58;
/// TCP, to the controller.
const TCP: u8 = 6;

/// Nothing left a locked machine's card but cells and what has to be there before any cell.
pub(super) fn nothing_in_clear(field: &mut Field<'_>) {
    for machine in &field.hosts.machines {
        if let Some(capture) = &machine.capture {
            field.promise(format!("nothing left {} in clear", machine.name), |hosts| {
                let bytes = std::fs::read(capture)
                    .with_context(|| format!("reading {}", capture.display()))?;
                look(hosts, machine, &bytes)
            });
        }
    }
}

fn look(hosts: &Hosts, machine: &Machine, capture: &[u8]) -> Result<Evidence> {
    let reader = PcapReader::new(capture).context("expected a capture file")?;
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    let mut clear: Vec<String> = Vec::new();
    let mut frames = 0u64;
    for (_, bytes) in reader {
        let Some(frame) = Frame::parse(bytes) else { continue };
        // What others sent is theirs to answer for.
        let foreign = hosts
            .machines
            .iter()
            .any(|other| other.name != machine.name && other.addresses.contains(&frame.from));
        if foreign {
            continue;
        }
        frames += 1;
        match kind(hosts, &frame) {
            Some(kind) => *counts.entry(kind).or_default() += 1,
            None => {
                clear.push(format!("{} to {}, protocol {}", frame.from, frame.to, frame.protocol))
            }
        }
    }
    ensure!(
        clear.is_empty(),
        "expected none, got {} of {frames} packets, the first: {}",
        clear.len(),
        clear[0]
    );
    ensure!(
        counts.contains_key("cells"),
        "expected cells in the capture, got {frames} other packets"
    );
    let words: Vec<String> = counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    Ok(Evidence::new(format!("0 of {frames} packets since power-on; {}", words.join(", ")))
        .with("packets", frames))
}

/// What a packet that may leave is; none for one that may not.
fn kind(hosts: &Hosts, frame: &Frame<'_>) -> Option<&'static str> {
    let reaches =
        |role: MachineRole| hosts.with(role).any(|host| host.addresses.contains(&frame.to));
    let node = reaches(MachineRole::Node) || reaches(MachineRole::Exit);
    if let Some(datagram) = frame.udp() {
        return match (datagram.from.port(), datagram.to.port()) {
            (68, 67) | (546, 547) => Some("of DHCP"),
            _ if node => Some("cells"),
            _ => None,
        };
    }
    let neighbours =
        matches!(frame.to, IpAddr::V6(to) if to.is_multicast() || to.is_unicast_link_local());
    match frame.protocol {
        // Multicast listener reports stand behind a hop-by-hop header.
        ICMPV6 | 0 if neighbours => Some("of neighbour discovery"),
        TCP if reaches(MachineRole::Controller) => Some("to the controller"),
        // Announcements of multicast groups on the link.
        2 if frame.to.is_multicast() => Some("of IGMP"),
        _ => None,
    }
}
