//! What an interface sends in clear: everything that is not a cell, not for the controller, and not
//! what every host on a cable says.
//!
//! In: the frames of a cable. Out: counts by kind. Called by: rig::scenario::gateway, the tests of
//! the lockdown.
//!
//! The count is made at the other end of the cable and knows nothing of the rules it checks.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::{Result, anyhow};

use super::frame::Frame;
use crate::{
    capture::{netns::NetNs, raw::Sniffer},
    model::CELL_LEN,
};

/// Who may be talked to.
#[derive(Clone, Debug, Default)]
pub struct Members {
    /// Cells may go here.
    pub relays: Vec<SocketAddr>,
    /// TCP may go here.
    pub controller: Option<SocketAddr>,
}

/// What a host sent by one cable.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Cells to members.
    pub cells: u64,
    /// Segments to the controller.
    pub control: u64,
    /// ARP, neighbour discovery, DHCP.
    pub housekeeping: u64,
    /// Everything else, by kind.
    pub clear: BTreeMap<String, u64>,
    /// Frames that nobody looked at because they came too fast.
    pub lost: u64,
}

impl Tally {
    /// Packets in clear.
    pub fn clear_packets(&self) -> u64 {
        self.clear.values().sum()
    }

    fn count(&mut self, frame: &[u8], members: &Members) {
        match judge(frame, members) {
            Verdict::Cell => self.cells += 1,
            Verdict::Control => self.control += 1,
            Verdict::Housekeeping => self.housekeeping += 1,
            Verdict::Clear(kind) => *self.clear.entry(kind).or_default() += 1,
        }
    }
}

/// Whether a payload of this length is cells: one, or a train that the kernel has not cut yet.
const fn is_cells(len: usize) -> bool {
    len > 0 && len.is_multiple_of(CELL_LEN)
}

#[derive(PartialEq, Eq, Debug)]
enum Verdict {
    Cell,
    Control,
    Housekeeping,
    Clear(String),
}

fn judge(bytes: &[u8], members: &Members) -> Verdict {
    if bytes.get(12..14) == Some(&[0x08, 0x06]) {
        return Verdict::Housekeeping;
    }
    let Some(frame) = Frame::parse(bytes) else {
        return Verdict::Clear("no IP".to_owned());
    };
    let family = if frame.to.is_ipv4() { "v4" } else { "v6" };
    let port = |at: usize| {
        frame.body.get(at..at + 2).map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    };
    let to = SocketAddr::new(frame.to, port(2));
    match frame.protocol {
        6 if members.controller == Some(to) => Verdict::Control,
        6 => Verdict::Clear(format!("TCP {} {family}", to.port())),
        17 => match (frame.udp(), port(0), to.port()) {
            (Some(datagram), ..)
                if members.relays.contains(&to) && is_cells(datagram.payload.len()) =>
            {
                Verdict::Cell
            }
            (_, 68, 67) | (_, 546, 547) => Verdict::Housekeeping,
            _ => Verdict::Clear(format!("UDP {} {family}", to.port())),
        },
        // Multicast listener reports have a hop-by-hop header before the ICMP one.
        0 if frame.body.first() == Some(&58) && frame.body.get(8) == Some(&143) => {
            Verdict::Housekeeping
        }
        58 if matches!(frame.body.first(), Some(133 | 135 | 136)) => Verdict::Housekeeping,
        1 | 58 => Verdict::Clear(format!(
            "ICMP {} {family}",
            frame.body.first().copied().unwrap_or_default()
        )),
        other => Verdict::Clear(format!("IP protocol {other} {family}")),
    }
}

/// A count that goes on.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    worker: JoinHandle<Result<Tally>>,
}

impl Watch {
    /// Counts from now on what `mac` sends by the cable that ends in `interface` of `netns`.
    ///
    /// # Errors
    /// Without the privilege, or such an interface.
    pub fn start(netns: &NetNs, interface: &str, mac: [u8; 6], members: Members) -> Result<Self> {
        let mut sniffer = netns.run(|| Sniffer::open(interface))??;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let worker = std::thread::spawn(move || {
            let mut tally = Tally::default();
            loop {
                match sniffer.next_frame()? {
                    Some(frame) if frame.get(6..12) == Some(&mac) => tally.count(frame, &members),
                    Some(_) => {}
                    None if stopped.load(Ordering::Relaxed) => break,
                    None => {}
                }
            }
            tally.lost = u64::from(sniffer.lost());
            Ok(tally)
        });
        Ok(Self { stop, worker })
    }

    /// The count, once everything from before this call is in it.
    ///
    /// # Errors
    /// When the interface is gone.
    pub fn stop(self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        self.worker.join().map_err(|_| anyhow!("a watch's thread panicked"))?
    }
}

/// The hardware address of an interface of the namespace this runs in.
///
/// # Errors
/// When there is no such interface.
pub fn mac(netns: &NetNs, interface: &str) -> Result<[u8; 6]> {
    netns
        .run(pnet_datalink::interfaces)?
        .into_iter()
        .find(|found| found.name == interface)
        .and_then(|found| found.mac)
        .map(|mac| mac.octets())
        .ok_or_else(|| anyhow!("expected {interface} to have a hardware address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp(to: [u8; 4], port: u16, len: usize) -> Vec<u8> {
        let total = (28 + len) as u16;
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0]);
        frame.extend(total.to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1]);
        frame.extend(to);
        frame.extend([0x13, 0x88]);
        frame.extend(port.to_be_bytes());
        frame.extend((8 + len as u16).to_be_bytes());
        frame.extend([0, 0]);
        frame.resize(frame.len() + len, 0);
        frame
    }

    #[test]
    fn only_whole_cells_to_members_are_no_clear_text() {
        let members = Members { relays: vec!["10.0.0.2:5000".parse().unwrap()], controller: None };
        let verdict = |frame: &[u8]| judge(frame, &members);
        assert_eq!(verdict(&udp([10, 0, 0, 2], 5000, CELL_LEN)), Verdict::Cell);
        assert_eq!(verdict(&udp([10, 0, 0, 2], 5000, 3 * CELL_LEN)), Verdict::Cell);
        for (frame, kind) in [
            (udp([10, 0, 0, 2], 5000, CELL_LEN - 1), "UDP 5000 v4"),
            (udp([10, 0, 0, 2], 5000, 0), "UDP 5000 v4"),
            (udp([10, 0, 0, 3], 5000, CELL_LEN), "UDP 5000 v4"),
            (udp([10, 0, 0, 2], 53, 40), "UDP 53 v4"),
        ] {
            assert_eq!(verdict(&frame), Verdict::Clear(kind.to_owned()));
        }
        assert_eq!(verdict(&[0; 60]), Verdict::Clear("no IP".to_owned()));
    }
}
