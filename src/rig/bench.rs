//! How fast cepa is beside bare kernel forwarding over the same hosts, and what it costs.
//!
//! In: flows, duration, round trip, loss, datagram size. Out: figures and ratios.
//! Called by: `cepa rig bench`.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde::Serialize;

use super::{
    agent::{BulkAnswer, Direction, EchoAnswer, Tool},
    daemons::{Daemons, Extra},
    network::Network,
    options::NetworkOptions,
    plan::{BARE_V4, Plan, RECEIVER_V4},
    rootless,
    run::Run,
};
use crate::capture::process;

/// What is measured.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// The network's options; the round trip and loss of the path are in there.
    pub network: NetworkOptions,
    /// Connections at once.
    pub flows: usize,
    /// How long each measurement takes.
    pub duration: Duration,
    /// The size of a UDP datagram.
    pub size: usize,
    /// The rate at which UDP is sent; none: TCP's goodput and a half.
    pub udp_rate: Option<u64>,
    /// Bare and cepa alternate so often; the medians count.
    pub rounds: usize,
}

/// One path's figures.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct PathFigures {
    /// TCP goodput towards the receiver, in gigabits per second.
    pub tcp_up_gbps: f64,
    /// TCP goodput towards the sender.
    pub tcp_down_gbps: f64,
    /// UDP that arrived, in gigabits of payload per second.
    pub udp_gbps: f64,
    /// The share of UDP datagrams that did not arrive.
    pub udp_loss: f64,
    /// Half of the round trips were shorter, in milliseconds.
    pub rtt_p50_ms: f64,
    /// One in a hundred was longer.
    pub rtt_p99_ms: f64,
}

/// What a host's daemon used while TCP flowed.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct HostCost {
    /// Processor seconds per second, in both directions of TCP.
    pub cpu_share: f64,
    /// Processor seconds per gigabyte of goodput.
    pub cpu_s_per_gb: f64,
    /// Memory in RAM at the end, in MiB.
    pub resident_mib: f64,
}

/// The result.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Bench {
    /// The nodes both paths pass.
    pub path: Vec<String>,
    /// Connections at once.
    pub flows: usize,
    /// Seconds of each measurement.
    pub duration_s: f64,
    /// Processors of this machine.
    pub processors: usize,
    /// Whether this program was built with optimisation.
    pub optimised: bool,
    /// Kernel forwarding over the same hosts.
    pub bare: PathFigures,
    /// Through the circuit.
    pub cepa: PathFigures,
    /// cepa's TCP goodput as a share of bare, the slower direction.
    pub ratio: f64,
    /// Each direction by itself.
    pub ratio_up: f64,
    /// Each direction by itself.
    pub ratio_down: f64,
    /// What the circuit adds to the median round trip, in milliseconds.
    pub added_rtt_p50_ms: f64,
    /// What it adds to the slowest in a hundred.
    pub added_rtt_p99_ms: f64,
    /// What each daemon used.
    pub hosts: BTreeMap<String, HostCost>,
}

/// The nodes of both paths.
const PATHS: [&[&str]; 5] =
    [&[], &["n4"], &["n1", "n4"], &["n1", "n2", "n4"], &["n1", "n2", "n3", "n4"]];

/// Measures.
///
/// # Errors
/// When the network or a daemon does not come up, or a tool fails.
pub fn bench(options: &BenchOptions, say: &mut dyn FnMut(&str)) -> Result<Bench> {
    rootless::ensure_privilege()?;
    let path = *PATHS.get(usize::from(options.network.hops)).context("expected 1 to 4 hops")?;
    let network = Network::up(Run::begin()?, Plan::full(), &options.network.links)?;
    let receiver = network.host("receiver")?;
    let mut server = receiver.start(&Tool::Serve { seen: receiver.dir.join("seen") })?;
    server.ready()?;
    let mut daemons = Daemons::default();
    let extra = Extra { log: "info", ..Extra::default() };
    daemons.start_all(&network, path, &extra)?;
    daemons.start_client(&network, &["--path", &path.join(",")])?;
    daemons.wait_connected(&network, Duration::from_secs(30))?;

    let (mut bare, mut cepa, mut costs) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        say(&format!("round {round} of {}: bare kernel forwarding", options.rounds));
        let forwarding = network.bare_path(path)?;
        let figures = figures(&network, BARE_V4.into(), options);
        network.remove_bare_path(forwarding)?;
        bare.push(figures?);
        say(&format!("round {round} of {}: cepa", options.rounds));
        let (figures, cost) = with_cost(&network, &daemons, options)?;
        cepa.push(figures);
        costs.push(cost);
    }
    let (bare, cepa) = (median(&bare), median(&cepa));
    let (up, down) = (cepa.tcp_up_gbps / bare.tcp_up_gbps, cepa.tcp_down_gbps / bare.tcp_down_gbps);
    Ok(Bench {
        path: path.iter().map(|name| (*name).to_owned()).collect(),
        flows: options.flows,
        duration_s: options.duration.as_secs_f64(),
        processors: std::thread::available_parallelism().map_or(0, usize::from),
        optimised: !cfg!(debug_assertions),
        ratio: up.min(down),
        ratio_up: up,
        ratio_down: down,
        added_rtt_p50_ms: cepa.rtt_p50_ms - bare.rtt_p50_ms,
        added_rtt_p99_ms: cepa.rtt_p99_ms - bare.rtt_p99_ms,
        hosts: costs.pop().unwrap_or_default(),
        bare,
        cepa,
    })
}

fn tcp(
    network: &Network,
    to: IpAddr,
    direction: Direction,
    options: &BenchOptions,
) -> Result<BulkAnswer> {
    let tool = Tool::Bulk {
        to,
        direction,
        flows: options.flows,
        time: options.duration,
        bytes: 0,
        proxy: None,
    };
    network.host("sender")?.ask(&tool, options.duration + Duration::from_secs(30))
}

fn figures(network: &Network, to: IpAddr, options: &BenchOptions) -> Result<PathFigures> {
    let up = tcp(network, to, Direction::Up, options)?.rate();
    let down = tcp(network, to, Direction::Down, options)?.rate();
    rest(network, to, options, up, down)
}

fn rest(
    network: &Network,
    to: IpAddr,
    options: &BenchOptions,
    up: f64,
    down: f64,
) -> Result<PathFigures> {
    let sender = network.host("sender")?;
    let patience = options.duration + Duration::from_secs(30);
    let count = (options.duration.as_secs_f64() * 500.0) as u32;
    let every = Duration::from_millis(2);
    let echo: EchoAnswer =
        sender.ask(&Tool::Echo { to, count, size: 64, every, proxy: None }, patience)?;
    let rate = options.udp_rate.unwrap_or((up * 1.5) as u64).max(1_000_000);
    let time = options.duration / 2;
    let udp: EchoAnswer =
        sender.ask(&Tool::Flood { to, rate, time, size: options.size }, patience)?;
    Ok(PathFigures {
        tcp_up_gbps: up / 1e9,
        tcp_down_gbps: down / 1e9,
        udp_gbps: udp.rate / 1e9,
        udp_loss: 1.0 - udp.received as f64 / udp.sent.max(1) as f64,
        rtt_p50_ms: echo.median_ms.unwrap_or(0.0),
        rtt_p99_ms: echo.p99_ms.unwrap_or(0.0),
    })
}

/// Measures cepa, and what its daemons used while TCP flowed.
fn with_cost(
    network: &Network,
    daemons: &Daemons,
    options: &BenchOptions,
) -> Result<(PathFigures, BTreeMap<String, HostCost>)> {
    let to = IpAddr::V4(RECEIVER_V4);
    let processes: Vec<(String, u32)> = daemons
        .nodes
        .iter()
        .map(|(name, node)| (name.clone(), node.pid()))
        .chain(daemons.client.as_ref().map(|client| ("sender".to_owned(), client.pid())))
        .collect();
    let read = || -> Vec<process::Usage> {
        processes.iter().map(|(_, pid)| process::usage(*pid).unwrap_or_default()).collect()
    };
    let (before, started) = (read(), Instant::now());
    let up = tcp(network, to, Direction::Up, options)?;
    let down = tcp(network, to, Direction::Down, options)?;
    let (after, seconds) = (read(), started.elapsed().as_secs_f64());
    let gigabytes = (up.up + down.down) as f64 / 1e9;
    let costs = processes
        .into_iter()
        .zip(before.into_iter().zip(after))
        .map(|((name, _), (before, after))| {
            let cpu = (after.cpu - before.cpu).as_secs_f64();
            let cost = HostCost {
                cpu_share: cpu / seconds,
                cpu_s_per_gb: cpu / gigabytes,
                resident_mib: after.resident as f64 / f64::from(1 << 20),
            };
            (name, cost)
        })
        .collect();
    Ok((rest(network, to, options, up.rate(), down.rate())?, costs))
}

fn median(rounds: &[PathFigures]) -> PathFigures {
    let middle = |field: fn(&PathFigures) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(field).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(0.0)
    };
    PathFigures {
        tcp_up_gbps: middle(|figures| figures.tcp_up_gbps),
        tcp_down_gbps: middle(|figures| figures.tcp_down_gbps),
        udp_gbps: middle(|figures| figures.udp_gbps),
        udp_loss: middle(|figures| figures.udp_loss),
        rtt_p50_ms: middle(|figures| figures.rtt_p50_ms),
        rtt_p99_ms: middle(|figures| figures.rtt_p99_ms),
    }
}
