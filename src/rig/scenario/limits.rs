//! What one circuit may use at the exit, and how much memory circuits take.
//!
//! In: nodes with tight limits, a crowd of circuits. Out: promises. Called by: rig::suite.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::refusals::restart;
use crate::{
    model::DropReason,
    rig::{
        agent::{CrowdAnswer, EchoAnswer, Tool},
        promise::Evidence,
        stage::{PATIENCE, RECEIVERS, Stage},
    },
};

/// The exit with limits, and the path that ends at it.
const EXIT: &str = "n6";
const PATH: &str = "n1,n2,n6";
/// Bytes a second and connections that one circuit may have there.
const RATE: u64 = 1_000_000;
const CONNECTIONS: usize = 6;
/// A circuit may save up a quarter of a second; and timers are not exact.
const TOLERANCE: f64 = 1.5;

/// Idle circuits of one node, and the most memory that it may have taken.
const IDLE: usize = 1_000;
const MOST_MIB: u64 = 40;

/// An exit that allows little, and a client that wants much.
pub fn one_circuit_at_the_exit(stage: &mut Stage<'_>) {
    let prepared = stage.promise("an exit with limits for each circuit is in use", |stage| {
        restart(stage, EXIT, |arguments| {
            for (flag, value) in [
                ("--circuit-byte-rate", RATE.to_string()),
                ("--circuit-connections", CONNECTIONS.to_string()),
            ] {
                arguments.extend([flag.to_owned(), value]);
            }
        })?;
        stage.daemons.stop_client();
        stage.daemons.start_client(stage.network, &["--path", PATH])?;
        stage.daemons.wait_connected(stage.network, PATIENCE)?;
        Ok(Evidence::new(format!("{EXIT}: {RATE} bytes a second, {CONNECTIONS} connections")))
    });
    if prepared {
        stage.promise("a circuit sends out no faster than its rate, and the rest is counted", rate);
        stage.promise(
            "a circuit has no more connections than it may, and the rest is counted",
            connections,
        );
    }
    stage.promise("the exit without limits is back", |stage| {
        restart(stage, EXIT, |_| {})?;
        stage.daemons.stop_client();
        Ok(Evidence::default())
    });
}

fn rate(stage: &mut Stage<'_>) -> Result<Evidence> {
    let time = Duration::from_secs(3);
    let before = drops(stage, DropReason::ExitRate)?;
    let tool = Tool::Flood { to: RECEIVERS[0], rate: 40_000_000, time, size: 1000 };
    let answer: EchoAnswer = stage.sender(&tool)?;
    let dropped = drops(stage, DropReason::ExitRate)? - before;
    // The datagram's headers count too.
    let let_out = answer.received * (1000 + 28);
    let allowed = RATE as f64 * time.as_secs_f64();
    let share = let_out as f64 / allowed;
    ensure!(
        (0.5..TOLERANCE).contains(&share),
        "expected about {allowed:.0} bytes in {time:?}, got {let_out}"
    );
    ensure!(dropped > 0, "nothing is counted as over the rate");
    Ok(Evidence::new(format!(
        "{} of {} datagrams arrived, {:.2} MB/s; {dropped} counted as over the rate",
        answer.received,
        answer.sent,
        let_out as f64 / time.as_secs_f64() / 1e6
    ))
    .with("let_out_bytes_per_second", let_out as f64 / time.as_secs_f64())
    .with("dropped", dropped))
}

fn connections(stage: &mut Stage<'_>) -> Result<Evidence> {
    let before = drops(stage, DropReason::ExitConnections)?;
    let mut answered = 0;
    for _ in 0..2 * CONNECTIONS {
        // A socket of its own each, as TCP connections have; of the old ones the exit still knows.
        let every = Duration::from_millis(1);
        let tool = Tool::Echo { to: RECEIVERS[1], count: 1, size: 64, every, proxy: None };
        let answer: Result<EchoAnswer> = stage.sender(&tool);
        answered += answer.map_or(0, |answer| answer.received);
    }
    let refused = drops(stage, DropReason::ExitConnections)? - before;
    let status = stage.daemons.node_status(stage.network, EXIT)?;
    let held = status.exit.context("expected an exit")?.connections;
    ensure!(held <= CONNECTIONS, "the exit holds {held} connections");
    ensure!(answered <= CONNECTIONS as u64, "{answered} conversations were answered");
    ensure!(refused > 0, "nothing is counted as over the number of connections");
    Ok(Evidence::new(format!(
        "{answered} of {} conversations were answered, {refused} packets refused with ICMP; the \
         exit holds {held}",
        2 * CONNECTIONS
    ))
    .with("refused", refused))
}

fn drops(stage: &Stage<'_>, reason: DropReason) -> Result<u64> {
    let status = stage.daemons.node_status(stage.network, EXIT)?;
    Ok(status.drops.0.get(reason.name()).copied().unwrap_or(0))
}

/// A thousand circuits that nobody uses.
pub fn idle_circuits_are_small(stage: &mut Stage<'_>) {
    const PATH: [&str; 2] = ["n1", "n2"];
    stage.promise(
        format!("a node with {IDLE} idle circuits has never had more than {MOST_MIB} MiB resident"),
        |stage| {
            stage.daemons.stop_client();
            for name in PATH {
                restart(stage, name, |arguments| {
                    // All come from one address here.
                    arguments.extend(["--create-rate".to_owned(), "100000".to_owned()]);
                })?;
            }
            let bare = PATH.map(|name| {
                let pid = stage.daemons.nodes.get(name).context("expected a node")?.pid();
                kib(pid, "VmRSS:")
            });
            let tool = Tool::Crowd {
                link: stage.daemons.link.clone(),
                path: PATH.map(str::to_owned).to_vec(),
                count: IDLE,
            };
            let stranger = stage.network.host("stranger")?;
            let crowd: CrowdAnswer = stranger.ask(&tool, Duration::from_secs(120))?;
            let mut words = Vec::new();
            let mut evidence = Evidence::default();
            for (name, bare) in PATH.into_iter().zip(bare) {
                let circuits = stage.daemons.node_status(stage.network, name)?.circuits;
                ensure!(circuits >= IDLE, "{name} holds {circuits} circuits");
                let pid = stage.daemons.nodes.get(name).context("expected a node")?.pid();
                let peak = kib(pid, "VmHWM:")?;
                let each = kib(pid, "VmRSS:")?.saturating_sub(bare?) as f64 / circuits as f64;
                ensure!(
                    peak < MOST_MIB << 10,
                    "{name} with {circuits} circuits has had {:.1} MiB resident",
                    peak as f64 / 1024.0
                );
                words.push(format!(
                    "{name}: {:.1} MiB with {circuits} circuits, {each:.1} KiB each",
                    peak as f64 / 1024.0
                ));
                evidence = evidence
                    .with(&format!("{name}_peak_kib"), peak)
                    .with(&format!("{name}_circuit_kib"), each);
            }
            ensure!(crowd.ready == IDLE, "{} circuits stand", crowd.ready);
            evidence.text = format!("{} (VmHWM)", words.join("; "));
            for name in PATH {
                restart(stage, name, |_| {})?;
            }
            Ok(evidence)
        },
    );
}

/// What the kernel says of a process's memory: `VmHWM:` the most that was resident, `VmRSS:` what is.
fn kib(pid: u32, what: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(what));
    let word = line.and_then(|line| line.split_whitespace().next());
    word.and_then(|word| word.parse().ok()).with_context(|| format!("reading {what}"))
}
