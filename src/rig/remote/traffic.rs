//! Traffic from the client machine to the receiver, through the circuit.
//!
//! In: machines with running daemons. Out: one promise per kind. Called by: rig::remote.

use std::{net::IpAddr, time::Duration};

use anyhow::{Result, ensure};

use super::{
    CONNECTING, Field,
    hosts::{Hosts, MachineRole},
    wait_connected,
};
use crate::rig::{
    agent::{BulkAnswer, Direction, DnsAnswer, EchoAnswer, HttpAnswer, PingAnswer, Tool},
    promise::Evidence,
};

/// Bytes of a download and of bulk each way: little, for emulated machines.
const BYTES: u64 = 256 << 10;
/// Where the receiver notes who asked.
const SEEN: &str = "/run/cepa-rig-seen";

/// All kinds of traffic to every address of the receiver, and who it saw.
pub(super) fn all_kinds(field: &mut Field<'_>) {
    let receiver = field.hosts.receiver();
    let server = match receiver.start(field.hosts, &Tool::Serve { seen: SEEN.into() }) {
        Ok(server) => server,
        Err(error) => {
            field.promise("the receiver serves", |_| Err(error));
            return;
        }
    };
    field.promise("the client is connected", |hosts| {
        let (path, seconds) = wait_connected(hosts, CONNECTING)?;
        Ok(Evidence::new(format!("through {}, after {seconds:.1} s", path.join(", "))))
    });
    for &to in &receiver.addresses {
        field.promise(format!("ping {to}"), |hosts| ping(hosts, to));
        field.promise(format!("UDP to {to}"), |hosts| udp(hosts, to));
        field.promise(format!("DNS from {to}"), |hosts| dns(hosts, to));
        field.promise(format!("HTTP download from {to}"), |hosts| download(hosts, to));
        for (word, direction) in [("to", Direction::Up), ("from", Direction::Down)] {
            let name = format!("bulk TCP {word} {to}");
            field.promise(name, |hosts| bulk(hosts, to, direction));
        }
    }
    field.promise("the receiver sees exits and nobody else", only_exits);
    drop(server);
}

/// Echoes to an address; how many came back is for the caller to judge.
pub(super) fn echoes(hosts: &Hosts, to: IpAddr, count: u16) -> Result<PingAnswer> {
    let every = Duration::from_millis(100);
    hosts.client().ask(hosts, &Tool::Ping { to, count, packet: 84, every })
}

fn ping(hosts: &Hosts, to: IpAddr) -> Result<Evidence> {
    let PingAnswer { sent, received, median_ms, .. } = echoes(hosts, to, 20)?;
    ensure!(most_of(received, sent), "expected most of {sent} answers, got {received}");
    let median = median_ms.unwrap_or_default();
    Ok(Evidence::new(format!("{received} of {sent} came back, median {median:.1} ms"))
        .with("median_ms", median_ms))
}

/// Cables between machines lose a datagram now and then; nine of ten are to arrive.
fn most_of<N: Into<u64>>(received: N, sent: N) -> bool {
    received.into() * 10 >= sent.into() * 9
}

fn udp(hosts: &Hosts, to: IpAddr) -> Result<Evidence> {
    let tool =
        Tool::Echo { to, count: 50, size: 1200, every: Duration::from_millis(20), proxy: None };
    let EchoAnswer { sent, received, .. } = hosts.client().ask(hosts, &tool)?;
    ensure!(most_of(received, sent), "expected most of {sent} echoes, got {received}");
    Ok(Evidence::new(format!("{received} of {sent} datagrams of 1200 bytes came back unchanged")))
}

fn dns(hosts: &Hosts, to: IpAddr) -> Result<Evidence> {
    let answer: DnsAnswer = hosts.client().ask(hosts, &Tool::Dns { to })?;
    ensure!(
        answer.address.octets() == [192, 0, 2, 53],
        "expected 192.0.2.53, got {}",
        answer.address
    );
    Ok(Evidence::new(format!("the name was resolved in {:.1} ms", answer.milliseconds)))
}

fn download(hosts: &Hosts, to: IpAddr) -> Result<Evidence> {
    let tool = Tool::HttpGet { to, bytes: BYTES, patience: Duration::from_secs(60) };
    let answer: HttpAnswer = hosts.client().ask(hosts, &tool)?;
    ensure!(answer.right, "the bytes that arrived are not those that were sent");
    Ok(Evidence::new(format!("{} KiB in {:.2} s, every byte right", BYTES >> 10, answer.seconds))
        .with("seconds", answer.seconds))
}

fn bulk(hosts: &Hosts, to: IpAddr, direction: Direction) -> Result<Evidence> {
    let tool =
        Tool::Bulk { to, direction, flows: 2, time: Duration::ZERO, bytes: BYTES / 2, proxy: None };
    let answer: BulkAnswer = hosts.client().ask(hosts, &tool)?;
    ensure!(answer.right, "the bytes that arrived are not those that were sent");
    Ok(Evidence::new(format!("{} KiB in {:.2} s, every byte right", BYTES >> 10, answer.seconds))
        .with("seconds", answer.seconds))
}

fn only_exits(hosts: &Hosts) -> Result<Evidence> {
    let said = hosts.receiver().sh(hosts, &format!("cat {SEEN}"))?;
    let seen: Vec<IpAddr> = said.lines().filter_map(|line| line.parse().ok()).collect();
    ensure!(!seen.is_empty(), "the receiver saw nobody");
    for address in &seen {
        let exit = hosts.with(MachineRole::Exit).any(|exit| exit.addresses.contains(address));
        ensure!(exit, "expected an exit, got {address}");
    }
    let words: Vec<String> = seen.iter().map(ToString::to_string).collect();
    Ok(Evidence::new(format!("it was asked by {}", words.join(" and "))))
}
