//! What CREATEs cost: how fast a circuit is built, and what a flood of forged ones takes from the
//! circuits that are open.
//!
//! In: a rate and a duration. Out: times and goodput. Called by: `cepa rig flood`.
//!
//! The same flood goes to the guard's port, and to a socket of the same host that throws it away:
//! what differs is what the node does with it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::{
    agent::{BulkAnswer, Direction, HostileAnswer, Manner, Tool},
    daemons::{Daemons, Extra, PORT},
    network::Network,
    plan::{Plan, RECEIVER_V4},
    rootless,
    run::Run,
};
use crate::keys::{Identity, OAEP_LABEL, PublicIdentity};

const PATH: [&str; 3] = ["n1", "n2", "n4"];
/// Where the discarding socket listens.
const DISCARD: u16 = 5999;
/// Clients that are started to see how long a circuit takes.
const BUILDS: usize = 7;

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct FloodOptions {
    /// Forged CREATEs per second.
    pub rate: u32,
    /// How long each flow of TCP lasts.
    pub duration: Duration,
    /// Both floods alternate so often; the medians count.
    pub rounds: usize,
}

/// The result.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Flood {
    /// One RSA-3072 private operation on this machine, in milliseconds.
    pub rsa_ms: f64,
    /// From the first CREATE to an open circuit of three nodes, in milliseconds, the median.
    pub build_ms: f64,
    /// What that takes beside three private operations, in milliseconds.
    pub build_beside_rsa_ms: f64,
    /// Datagrams that left per second.
    pub sent_per_s: f64,
    /// TCP goodput, up and down together, in Gb/s: while a socket discards the flood.
    pub discarded_gbps: f64,
    /// The same while the guard gets it.
    pub forged_gbps: f64,
    /// The second as a share of the first.
    pub ratio: f64,
    /// What the guard counted as forged.
    pub counted: u64,
}

/// Measures.
///
/// # Errors
/// When the network or a daemon does not come up, or a tool fails.
pub fn flood(options: &FloodOptions, say: &mut dyn FnMut(&str)) -> Result<Flood> {
    rootless::ensure_privilege()?;
    let network = Network::up(Run::begin()?, Plan::full(), &BTreeMap::new())?;
    let receiver = network.host("receiver")?;
    let mut server = receiver.start(&Tool::Serve { seen: receiver.dir.join("seen") })?;
    server.ready()?;
    let mut discard = network.host(PATH[0])?.start(&Tool::Discard { port: DISCARD })?;
    discard.ready()?;
    let mut daemons = Daemons::default();
    let extra = Extra { log: "info", ..Extra::default() };
    daemons.start_all(&network, &PATH, &extra)?;
    for number in 1..=BUILDS {
        say(&format!("circuit {number} of {BUILDS}"));
        daemons.stop_client();
        daemons.start_client(&network, &["--path", &PATH.join(",")])?;
        daemons.wait_connected(&network, Duration::from_secs(30))?;
    }
    let build_ms = median(build_times(&network)?);
    let rsa_ms = rsa_operation()?;

    let (mut discarded, mut forged, mut sent) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        for (port, goodput) in [(DISCARD, &mut discarded), (PORT, &mut forged)] {
            say(&format!("round {round} of {}: flood to port {port}", options.rounds));
            let (gbps, per_s) = under_flood(&network, port, options)?;
            goodput.push(gbps);
            sent.push(per_s);
        }
    }
    let status = daemons.node_status(&network, PATH[0])?;
    let counted = status.drops.0.get("bad_create").copied().unwrap_or(0);
    let (discarded_gbps, forged_gbps) = (median(discarded), median(forged));
    Ok(Flood {
        rsa_ms,
        build_ms,
        build_beside_rsa_ms: build_ms - 3.0 * rsa_ms,
        sent_per_s: median(sent),
        discarded_gbps,
        forged_gbps,
        ratio: forged_gbps / discarded_gbps,
        counted,
    })
}

/// Goodput while a stranger floods a port of the guard, and what left per second.
fn under_flood(network: &Network, port: u16, options: &FloodOptions) -> Result<(f64, f64)> {
    let guard = network.host(PATH[0])?.plan.v4();
    let time = 2 * options.duration + Duration::from_secs(2);
    let flood = Tool::Hostile {
        to: SocketAddr::from((guard, port)),
        capture: None,
        count: (f64::from(options.rate) * time.as_secs_f64()) as u64,
        manner: Manner::Forged,
        seed: 1,
        rate: Some(options.rate),
    };
    let started = Instant::now();
    let flood = network.host("stranger")?.start(&flood)?;
    std::thread::sleep(Duration::from_millis(500));
    let mut gbps = 0.0;
    for direction in [Direction::Up, Direction::Down] {
        let tool = Tool::Bulk {
            to: IpAddr::V4(RECEIVER_V4),
            direction,
            flows: 1,
            time: options.duration,
            bytes: 0,
            proxy: None,
        };
        let answer: BulkAnswer =
            network.host("sender")?.ask(&tool, options.duration + Duration::from_secs(30))?;
        ensure!(answer.right, "the bytes that arrived are not those that were sent");
        gbps += answer.rate() / 2e9;
    }
    let sent: HostileAnswer = flood.answer(time + Duration::from_secs(30))?;
    Ok((gbps, sent.sent as f64 / started.elapsed().as_secs_f64()))
}

/// What the client's log says of every circuit that it built first.
fn build_times(network: &Network) -> Result<Vec<f64>> {
    let log = std::fs::read_to_string(network.host("sender")?.dir.join("client.log"))?;
    let times: Vec<f64> = log
        .lines()
        .filter_map(|line| line.split_once("built in ")?.1.split(' ').next()?.parse().ok())
        .collect();
    ensure!(times.len() >= BUILDS, "expected {BUILDS} circuits in the log, got {}", times.len());
    Ok(times)
}

fn rsa_operation() -> Result<f64> {
    let identity = Identity::generate()?;
    let public = PublicIdentity::from_spki_der(identity.spki_der())?;
    let block = public.encrypt_oaep(&[1; 66], OAEP_LABEL)?;
    let mut times = Vec::new();
    for _ in 0..50 {
        let at = Instant::now();
        identity.decrypt_oaep(&block, OAEP_LABEL).context("opening our own block")?;
        times.push(at.elapsed().as_secs_f64() * 1e3);
    }
    Ok(median(times))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
