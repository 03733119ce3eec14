//! Every kind of traffic, IPv4 and IPv6, through a circuit.
//!
//! In: a connected client. Out: one promise per kind. Called by: rig::suite.

use std::{net::IpAddr, time::Duration};

use anyhow::{Result, ensure};

use crate::rig::{
    agent::{
        BulkAnswer, Direction, DnsAnswer, EchoAnswer, HttpAnswer, IcmpError, PingAnswer, Tool, port,
    },
    daemons::PROHIBITED,
    plan::NODES,
    promise::Evidence,
    stage::{PATIENCE, RECEIVERS, Stage},
};

/// Bytes of a download, and of a bulk transfer each way.
const BYTES: u64 = 3 << 20;

/// Starts the client on a fixed path; says whether it connected.
pub fn connect(stage: &mut Stage<'_>, path: &[&str]) -> bool {
    let list = path.join(",");
    stage.promise(format!("a circuit through {}", path.join(", ")), |stage| {
        stage.daemons.stop_client();
        let started = std::time::Instant::now();
        stage.daemons.start_client(stage.network, &["--path", &list])?;
        let circuit = stage.daemons.wait_connected(stage.network, PATIENCE)?;
        let names: Vec<&str> = circuit.hops.iter().map(|hop| hop.name.as_str()).collect();
        ensure!(names == path, "expected the path {list}, got {}", names.join(","));
        let seconds = started.elapsed().as_secs_f64();
        Ok(Evidence::new(format!("built {:.0} ms after the client's start", seconds * 1e3))
            .with("connected_s", seconds))
    })
}

/// All kinds of traffic to the receiver.
pub fn all_kinds(stage: &mut Stage<'_>, exit: &str) {
    for to in RECEIVERS {
        let family = if to.is_ipv4() { "IPv4" } else { "IPv6" };
        stage.promise(format!("ping over {family}"), |stage| ping(stage, to, 84, 20));
        stage.promise(
            format!("packets of 1500 bytes that may not be fragmented, over {family}"),
            |stage| ping(stage, to, 1500, 5),
        );
        stage.promise(format!("HTTP download over {family}"), |stage| download(stage, to));
        stage.promise(format!("bulk TCP up over {family}"), |stage| bulk(stage, to, Direction::Up));
        stage.promise(format!("bulk TCP down over {family}"), |stage| {
            bulk(stage, to, Direction::Down)
        });
        stage.promise(format!("UDP over {family}"), |stage| udp(stage, to));
        stage.promise(format!("DNS over {family}"), |stage| dns(stage, to));
        stage.promise(format!("ICMP errors over {family}"), |stage| errors(stage, to, exit));
    }
    stage.promise("the receiver sees the exit and nobody else", |stage| only_exit(stage, exit));
}

fn ping(stage: &Stage<'_>, to: IpAddr, packet: usize, count: u16) -> Result<Evidence> {
    let every = Duration::from_millis(20);
    let answer: PingAnswer = stage.sender(&Tool::Ping { to, count, packet, every })?;
    let (sent, received) = (answer.sent, answer.received);
    ensure!(received == sent, "expected {sent} answers, got {received}");
    let median = answer.median_ms.unwrap_or_default();
    Ok(Evidence::new(format!("{received} of {sent} came back, median {median:.2} ms"))
        .with("median_ms", answer.median_ms)
        .with("p99_ms", answer.p99_ms))
}

fn download(stage: &Stage<'_>, to: IpAddr) -> Result<Evidence> {
    let patience = Duration::from_secs(10);
    let answer: HttpAnswer = stage.sender(&Tool::HttpGet { to, bytes: BYTES, patience })?;
    ensure!(answer.right, "the bytes that arrived are not those that were sent");
    Ok(Evidence::new(format!(
        "{} MiB in {:.2} s, first byte after {:.1} ms, every byte right",
        BYTES >> 20,
        answer.seconds,
        answer.first_byte_ms
    ))
    .with("seconds", answer.seconds)
    .with("first_byte_ms", answer.first_byte_ms))
}

fn bulk(stage: &Stage<'_>, to: IpAddr, direction: Direction) -> Result<Evidence> {
    let tool =
        Tool::Bulk { to, direction, flows: 2, time: Duration::ZERO, bytes: BYTES / 2, proxy: None };
    let answer: BulkAnswer = stage.sender(&tool)?;
    ensure!(answer.right, "the bytes that arrived are not those that were sent");
    Ok(Evidence::new(format!(
        "{} MiB in two connections in {:.2} s, every byte right",
        BYTES >> 20,
        answer.seconds
    ))
    .with("seconds", answer.seconds))
}

fn udp(stage: &Stage<'_>, to: IpAddr) -> Result<Evidence> {
    let headers = if to.is_ipv4() { 28 } else { 48 };
    let mut words = Vec::new();
    for size in [64, 1200, 1500 - headers] {
        let every = Duration::from_millis(2);
        let answer: EchoAnswer =
            stage.sender(&Tool::Echo { to, count: 100, size, every, proxy: None })?;
        let (sent, received) = (answer.sent, answer.received);
        ensure!(received == sent, "expected {sent} echoes of {size} bytes, got {received}");
        words.push(format!("{received}/{sent} of {size}"));
    }
    Ok(Evidence::new(format!("came back unchanged: {} bytes", words.join(", "))))
}

fn dns(stage: &Stage<'_>, to: IpAddr) -> Result<Evidence> {
    let answer: DnsAnswer = stage.sender(&Tool::Dns { to })?;
    ensure!(
        answer.address.octets() == [192, 0, 2, 53],
        "expected 192.0.2.53, got {}",
        answer.address
    );
    Ok(Evidence::new(format!("the name was resolved in {:.1} ms", answer.milliseconds))
        .with("milliseconds", answer.milliseconds))
}

/// Port unreachable comes from the receiver, hop limit exceeded from the exit's kernel,
/// prohibited from the exit's policy.
fn errors(stage: &Stage<'_>, to: IpAddr, exit: &str) -> Result<Evidence> {
    let v4 = to.is_ipv4();
    let provoke = |port, hops| -> Result<Option<IcmpError>> {
        stage.sender(&Tool::Provoke { to: (to, port).into(), hops })
    };
    let unreachable = provoke(port::CLOSED, 64)?;
    let expected =
        IcmpError { from: to, kind: if v4 { 3 } else { 1 }, code: if v4 { 3 } else { 4 } };
    ensure!(
        unreachable == Some(expected),
        "expected port unreachable from {to}, got {unreachable:?}"
    );
    let exceeded = provoke(port::CLOSED, 1)?;
    ensure!(
        exceeded.is_some_and(|error| (error.kind, error.code) == (if v4 { 11 } else { 3 }, 0)),
        "expected hop limit exceeded from {exit}, got {exceeded:?}"
    );
    let prohibited = provoke(PROHIBITED, 64)?;
    let (kind, code) = if v4 { (3, 13) } else { (1, 1) };
    ensure!(
        prohibited.is_some_and(|error| (error.kind, error.code) == (kind, code)),
        "expected administratively prohibited from {exit}, got {prohibited:?}"
    );
    Ok(Evidence::new(format!(
        "port unreachable from {to}, hop limit exceeded and prohibited from {exit}"
    )))
}

fn only_exit(stage: &Stage<'_>, exit: &str) -> Result<Evidence> {
    let seen = stage.seen_by_receiver();
    ensure!(!seen.is_empty(), "the receiver saw nobody");
    for address in &seen {
        let host = stage.network.plan.host_of(*address).map(|host| host.name);
        ensure!(host == Some(exit), "expected {exit} only, got {address} ({host:?})");
    }
    let words: Vec<String> = seen.iter().map(ToString::to_string).collect();
    Ok(Evidence::new(format!("it was asked by {}", words.join(" and "))))
}

/// The controller and all nodes.
pub fn start(stage: &mut Stage<'_>) -> bool {
    stage.promise("controller and six nodes come up and list each other", |stage| {
        let extra = stage.extra.clone();
        let started = std::time::Instant::now();
        stage.daemons.start_all(stage.network, &NODES, &extra)?;
        let seconds = started.elapsed().as_secs_f64();
        let status = stage.daemons.controller_status(stage.network)?;
        Ok(Evidence::new(format!(
            "{} nodes, {} of them exits, listed after {seconds:.1} s",
            status.directory.nodes, status.directory.exits
        ))
        .with("listed_s", seconds))
    })
}
