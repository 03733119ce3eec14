//! How fast it is, against the same hosts without cepa.
//!
//! In: a connected client, and the bare path through the same hosts. Out: rates and round trips.
//! Called by: rig::suite, rig::bench.

use std::{net::IpAddr, time::Duration};

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::rig::{
    agent::{BulkAnswer, Direction, EchoAnswer, Tool},
    network::Network,
    plan::{BARE_V4, RECEIVER_V4},
    promise::Evidence,
    stage::Stage,
};

/// What is asked of the product: this share of bare forwarding, this much more median round trip.
const LEAST_RATIO: f64 = 0.10;
const MOST_ADDED_MS: f64 = 0.6;

/// A machine that others use, too, may be slow for a moment: the first of so many measurements counts
/// that shows what is asked, else the last.
const ATTEMPTS: usize = 3;

/// How a path did.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct PathSpeed {
    /// TCP goodput towards the receiver.
    pub up_gbps: f64,
    /// TCP goodput towards the sender.
    pub down_gbps: f64,
    /// Half of the round trips of a small UDP datagram were shorter.
    pub rtt_median_ms: f64,
    /// One in a hundred was longer.
    pub rtt_p99_ms: f64,
}

/// Measures a path for so long in each direction.
///
/// # Errors
/// What a tool says.
pub fn measure(network: &Network, to: IpAddr, flows: usize, time: Duration) -> Result<PathSpeed> {
    let sender = network.host("sender")?;
    let patience = time + Duration::from_secs(30);
    let every = Duration::from_millis(1);
    let echo: EchoAnswer =
        sender.ask(&Tool::Echo { to, count: 500, size: 64, every, proxy: None }, patience)?;
    let mut speed = PathSpeed {
        rtt_median_ms: echo.median_ms.unwrap_or(f64::INFINITY),
        rtt_p99_ms: echo.p99_ms.unwrap_or(f64::INFINITY),
        ..PathSpeed::default()
    };
    for direction in [Direction::Up, Direction::Down] {
        let tool = Tool::Bulk { to, direction, flows, time, bytes: 0, proxy: None };
        let answer: BulkAnswer = sender.ask(&tool, patience)?;
        ensure!(answer.right, "the bytes that arrived are not those that were sent");
        match direction {
            Direction::Up => speed.up_gbps = answer.rate() / 1e9,
            _ => speed.down_gbps = answer.rate() / 1e9,
        }
    }
    Ok(speed)
}

/// Both paths, one after the other, and what cepa costs.
pub fn against_bare(stage: &mut Stage<'_>, path: &[&str]) {
    let mut speeds = None;
    stage.promise("goodput and latency are measured against the bare path", |stage| {
        let (mut without, mut with) = (PathSpeed::default(), PathSpeed::default());
        for _ in 0..ATTEMPTS {
            (without, with) = both(stage, path)?;
            if cfg!(debug_assertions)
                || ratio(without, with) >= LEAST_RATIO && added(without, with) <= MOST_ADDED_MS
            {
                break;
            }
        }
        speeds = Some((without, with));
        Ok(Evidence::new(format!(
            "TCP up {:.2} of {:.2} Gb/s, down {:.2} of {:.2} Gb/s; round trip {:.3} against {:.3} ms",
            with.up_gbps,
            without.up_gbps,
            with.down_gbps,
            without.down_gbps,
            with.rtt_median_ms,
            without.rtt_median_ms
        ))
        .with("bare", serde_json::to_value(without)?)
        .with("cepa", serde_json::to_value(with)?))
    });
    let Some((without, with)) = speeds else { return };
    // A build without optimisation says nothing about speed.
    if cfg!(debug_assertions) {
        return;
    }
    stage.promise(format!("at least {LEAST_RATIO} of the goodput of bare forwarding"), |_| {
        let ratio = ratio(without, with);
        ensure!(ratio >= LEAST_RATIO, "got {ratio:.3}");
        Ok(Evidence::new(format!("{ratio:.3} in the slower direction")).with("ratio", ratio))
    });
    stage.promise(format!("at most {MOST_ADDED_MS} ms of added median round trip"), |_| {
        let added = added(without, with);
        ensure!(added <= MOST_ADDED_MS, "got {added:.3} ms");
        Ok(Evidence::new(format!("{added:.3} ms")).with("added_ms", added))
    });
}

/// The bare path, then cepa's.
fn both(stage: &mut Stage<'_>, path: &[&str]) -> Result<(PathSpeed, PathSpeed)> {
    let time = Duration::from_secs(2);
    let bare = stage.network.bare_path(path)?;
    let without = measure(stage.network, IpAddr::V4(BARE_V4), 1, time);
    stage.network.remove_bare_path(bare)?;
    Ok((without?, measure(stage.network, IpAddr::V4(RECEIVER_V4), 1, time)?))
}

/// The share of bare forwarding's goodput, in the slower direction.
fn ratio(without: PathSpeed, with: PathSpeed) -> f64 {
    (with.up_gbps / without.up_gbps).min(with.down_gbps / without.down_gbps)
}

fn added(without: PathSpeed, with: PathSpeed) -> f64 {
    with.rtt_median_ms - without.rtt_median_ms
}
