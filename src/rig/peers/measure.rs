//! One round of one network: goodput, small datagrams, latency, cost.
//!
//! In: a way to the receiver. Out: figures. Called by: rig::peers.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde::Serialize;

use super::Way;
use crate::{
    capture::process,
    rig::{
        agent::{BulkAnswer, Direction, EchoAnswer, Tool},
        network::Network,
    },
};

/// Connections at once in the second measurement of goodput.
const FLOWS: usize = 8;
/// The payload of a small datagram, in bytes.
const SMALL: usize = 64;
/// What counts as without loss: one in a thousand is noise of a machine that is all hosts.
const LOSSLESS: f64 = 0.001;
/// One trial of a rate.
const TRIAL: Duration = Duration::from_millis(500);

/// What one host's daemons cost.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Cost {
    /// Processor seconds per gigabyte of TCP goodput, of the network's own processes.
    pub cpu_s_per_gb: f64,
    /// Memory in RAM after the flows, in MiB.
    pub resident_mib: f64,
}

/// One round's figures. None where a network cannot carry what is measured, or did not.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Figures {
    /// TCP goodput towards the receiver in Gb/s, one connection.
    pub up_gbps: Option<f64>,
    /// TCP goodput towards the sender, one connection.
    pub down_gbps: Option<f64>,
    /// TCP goodput towards the receiver, eight connections.
    pub up8_gbps: Option<f64>,
    /// TCP goodput towards the sender, eight connections.
    pub down8_gbps: Option<f64>,
    /// The highest rate of 64-byte UDP datagrams of which one in a thousand is lost at most.
    pub small_pps: Option<f64>,
    /// Half of the round trips of 64 bytes were shorter, in milliseconds.
    pub idle_p50_ms: Option<f64>,
    /// One in a hundred was longer.
    pub idle_p99_ms: Option<f64>,
    /// The same while one connection sends as fast as it can.
    pub loaded_p50_ms: Option<f64>,
    /// The same while one connection sends as fast as it can.
    pub loaded_p99_ms: Option<f64>,
    /// The same while one connection receives as fast as it can.
    pub loaded_down_p99_ms: Option<f64>,
    /// Processor seconds of the whole machine per gigabyte of goodput, one connection each way.
    pub machine_cpu_s_per_gb: Option<f64>,
    /// What the daemons of each host cost.
    pub hosts: BTreeMap<String, Cost>,
    /// What went wrong where a figure is missing.
    pub failed: Vec<String>,
}

/// One figure, for tables and ratios.
pub struct Field {
    /// Its name in JSON.
    pub key: &'static str,
    /// Its name for people.
    pub name: &'static str,
    /// Reads it.
    pub get: fn(&Figures) -> Option<f64>,
    set: fn(&mut Figures, Option<f64>),
}

macro_rules! field {
    ($key:ident, $name:literal) => {
        Field {
            key: stringify!($key),
            name: $name,
            get: |figures| figures.$key,
            set: |figures, value| figures.$key = value,
        }
    };
}

impl Figures {
    /// All figures but those of single hosts.
    pub const FIELDS: [Field; 11] = [
        field!(up_gbps, "TCP up, 1 flow, Gb/s"),
        field!(down_gbps, "TCP down, 1 flow, Gb/s"),
        field!(up8_gbps, "TCP up, 8 flows, Gb/s"),
        field!(down8_gbps, "TCP down, 8 flows, Gb/s"),
        field!(small_pps, "64-byte UDP without loss, packets/s"),
        field!(idle_p50_ms, "round trip idle, median, ms"),
        field!(idle_p99_ms, "round trip idle, 99 %, ms"),
        field!(loaded_p50_ms, "round trip under upload, median, ms"),
        field!(loaded_p99_ms, "round trip under upload, 99 %, ms"),
        field!(loaded_down_p99_ms, "round trip under download, 99 %, ms"),
        field!(machine_cpu_s_per_gb, "machine, CPU s per GB"),
    ];

    /// The medians, figure by figure.
    pub fn median(rounds: &[Self]) -> Self {
        let mut median = Self::default();
        for field in &Self::FIELDS {
            (field.set)(&mut median, middle(rounds.iter().filter_map(field.get).collect()));
        }
        let hosts = rounds.iter().flat_map(|round| round.hosts.keys().cloned());
        for host in hosts.collect::<std::collections::BTreeSet<_>>() {
            let of = |get: fn(&Cost) -> f64| {
                middle(rounds.iter().filter_map(|round| round.hosts.get(&host)).map(get).collect())
            };
            let cost = Cost {
                cpu_s_per_gb: of(|cost| cost.cpu_s_per_gb).unwrap_or_default(),
                resident_mib: of(|cost| cost.resident_mib).unwrap_or_default(),
            };
            median.hosts.insert(host, cost);
        }
        median
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
        write!(
            f,
            "up {} down {}, 8 flows up {} down {} Gb/s, {} small/s, round trip {}/{} ms, loaded \
             {}/{}/{} ms",
            of(self.up_gbps),
            of(self.down_gbps),
            of(self.up8_gbps),
            of(self.down8_gbps),
            self.small_pps.map_or("-".to_owned(), |rate| format!("{rate:.0}")),
            of(self.idle_p50_ms),
            of(self.idle_p99_ms),
            of(self.loaded_p50_ms),
            of(self.loaded_p99_ms),
            of(self.loaded_down_p99_ms)
        )
    }
}

fn middle(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Measures one round. A measurement that fails leaves its figure out and says why.
pub(super) fn measure(
    network: &Network,
    way: Way,
    processes: &[(String, u32)],
    duration: Duration,
) -> Figures {
    let mut failed = Vec::new();
    let mut figures = Figures::default();
    if let Some(idle) = kept(&mut failed, "idle", echo(network, way, duration)) {
        (figures.idle_p50_ms, figures.idle_p99_ms) = (idle.median_ms, idle.p99_ms);
    }
    let usage = || -> Vec<process::Usage> {
        processes.iter().map(|(_, pid)| process::usage(*pid).unwrap_or_default()).collect()
    };
    let mut flow = |direction, flows, what| {
        let answer = bulk(network, way, direction, flows, duration);
        kept(&mut failed, what, answer)
    };
    let (mut before, mut machine) = (usage(), machine_cpu());
    let up = flow(Direction::Up, 1, "upload");
    if up.is_none() {
        (before, machine) = (usage(), machine_cpu());
    }
    let down = flow(Direction::Down, 1, "download");
    let (after, machine) = (usage(), machine_cpu() - machine);
    let bytes = up.as_ref().map_or(0, |up| up.up) + down.as_ref().map_or(0, |down| down.down);
    let gigabytes = bytes as f64 / 1e9;
    if down.is_some() {
        figures.machine_cpu_s_per_gb = Some(machine / gigabytes);
        for ((host, _), (before, after)) in processes.iter().zip(before.iter().zip(&after)) {
            let cost = figures.hosts.entry(host.clone()).or_default();
            cost.cpu_s_per_gb += (after.cpu.saturating_sub(before.cpu)).as_secs_f64() / gigabytes;
            cost.resident_mib += after.resident as f64 / f64::from(1 << 20);
        }
    }
    let rate = |answer: Option<BulkAnswer>| answer.map(|answer| answer.rate() / 1e9);
    (figures.up_gbps, figures.down_gbps) = (rate(up), rate(down));
    figures.up8_gbps = rate(flow(Direction::Up, FLOWS, "eight uploads"));
    figures.down8_gbps = rate(flow(Direction::Down, FLOWS, "eight downloads"));

    let loaded = echo_under(network, way, Direction::Up, duration);
    if let Some(loaded) = kept(&mut failed, "a round trip under upload", loaded) {
        (figures.loaded_p50_ms, figures.loaded_p99_ms) = (loaded.median_ms, loaded.p99_ms);
    }
    let loaded = echo_under(network, way, Direction::Down, duration);
    figures.loaded_down_p99_ms =
        kept(&mut failed, "a round trip under download", loaded).and_then(|loaded| loaded.p99_ms);
    if way.proxy.is_none() {
        figures.small_pps = kept(&mut failed, "small datagrams", lossless_rate(network, way));
    }
    Figures { failed, ..figures }
}

fn kept<T>(failed: &mut Vec<String>, what: &str, result: Result<T>) -> Option<T> {
    result.map_err(|error| failed.push(format!("{what}: {error:#}"))).ok()
}

fn bulk(
    network: &Network,
    way: Way,
    direction: Direction,
    flows: usize,
    time: Duration,
) -> Result<BulkAnswer> {
    let tool = Tool::Bulk { to: way.to, direction, flows, time, bytes: 0, proxy: way.proxy };
    let answer: BulkAnswer = network.host("sender")?.ask(&tool, time + Duration::from_secs(60))?;
    ensure!(answer.right, "the bytes that arrived are not those that were sent");
    Ok(answer)
}

/// Round trips of small datagrams, or of small writes where a network has only streams.
fn echo(network: &Network, way: Way, time: Duration) -> Result<EchoAnswer> {
    let every = Duration::from_millis(2);
    let count = (time.as_millis() / every.as_millis()).max(100) as u32;
    let tool = Tool::Echo { to: way.to, count, size: SMALL, every, proxy: way.proxy };
    let answer: EchoAnswer = network.host("sender")?.ask(&tool, time + Duration::from_secs(60))?;
    // What a full queue drops is no round trip, but most must come back for the rest to count.
    ensure!(answer.received * 2 > answer.sent, "most of the echoes were lost");
    Ok(answer)
}

fn echo_under(
    network: &Network,
    way: Way,
    direction: Direction,
    time: Duration,
) -> Result<EchoAnswer> {
    let (to, proxy) = (way.to, way.proxy);
    let load = time + Duration::from_secs(2);
    let tool = Tool::Bulk { to, direction, flows: 1, time: load, bytes: 0, proxy };
    let running = network.host("sender")?.start(&tool)?;
    std::thread::sleep(Duration::from_secs(1));
    let echo = echo(network, way, time);
    let _: BulkAnswer = running.answer(load + Duration::from_secs(60))?;
    echo
}

/// Doubles the rate until datagrams are lost, then halves the gap. A rate that fails is tried
/// twice: a machine that is all hosts loses some for reasons of its own.
fn lossless_rate(network: &Network, way: Way) -> Result<f64> {
    let deadline = Instant::now() + Duration::from_secs(40);
    let passes = |pps: f64| -> Result<Option<f64>> {
        for _ in 0..2 {
            let rate = (pps * SMALL as f64 * 8.0) as u64;
            let tool = Tool::Flood { to: way.to, rate, time: TRIAL, size: SMALL };
            let flood: EchoAnswer =
                network.host("sender")?.ask(&tool, TRIAL + Duration::from_secs(30))?;
            let lost = 1.0 - flood.received as f64 / flood.sent.max(1) as f64;
            if lost <= LOSSLESS {
                // What was really sent: at some rate the sender is the limit.
                return Ok(Some(flood.sent as f64 / TRIAL.as_secs_f64()));
            }
        }
        Ok(None)
    };
    let (mut good, mut bad) = (0.0f64, 20_000.0f64);
    while Instant::now() < deadline {
        match passes(bad)? {
            // The sender cannot send more.
            Some(sent) if sent < bad * 0.9 => return Ok(sent),
            Some(sent) => {
                good = sent;
                bad *= 2.0;
            }
            None => break,
        }
    }
    for _ in 0..5 {
        let middle = f64::midpoint(good, bad);
        match passes(middle)? {
            Some(sent) => good = sent.max(good),
            None => bad = middle,
        }
    }
    Ok(good)
}

/// Seconds that all processors were busy since the start.
fn machine_cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: u64 = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .enumerate()
        // user nice system [idle iowait] irq softirq
        .filter(|(at, _)| matches!(at, 0..=2 | 5 | 6))
        .filter_map(|(_, word)| word.parse::<u64>().ok())
        .sum();
    ticks as f64 / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_taken_figure_by_figure() {
        let round = |up, pps| Figures { up_gbps: Some(up), small_pps: pps, ..Figures::default() };
        let rounds = [round(1.0, Some(30.0)), round(3.0, Some(10.0)), round(2.0, Some(20.0))];
        let median = Figures::median(&rounds);
        assert_eq!((median.up_gbps, median.small_pps), (Some(2.0), Some(20.0)));
        assert_eq!(Figures::median(&[round(1.0, None)]).small_pps, None);
    }
}
