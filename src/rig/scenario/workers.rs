//! Daemons whose cells are worked on by two threads each.
//!
//! In: the network. Out: promises. Called by: rig::suite.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::refusals::restart;
use crate::{
    capture::process,
    model::Suite,
    rig::{
        agent::{BulkAnswer, Direction, EchoAnswer, Tool},
        promise::Evidence,
        stage::{PATIENCE, RECEIVERS, Stage},
    },
};

const PATH: [&str; 3] = ["n1", "n2", "n4"];
/// Datagrams that come back one by one, which are not worth a second thread.
const ECHOES: u32 = 200;
const TIME: Duration = Duration::from_secs(2);

/// A circuit without AES, as between boards that have no instructions for it.
pub fn on_a_path(stage: &mut Stage<'_>) {
    let prepared = stage.promise("a client and three nodes take two threads for cells", |stage| {
        stage.daemons.stop_client();
        let suite = Suite::ChaCha20Poly1305.name();
        for name in PATH {
            restart(stage, name, |arguments| {
                arguments.extend(["--workers", "2", "--suites", suite].map(str::to_owned));
            })?;
        }
        let path = PATH.join(",");
        let more = ["--path", &path, "--workers", "2", "--suites", suite];
        stage.daemons.start_client(stage.network, &more)?;
        stage.daemons.wait_connected(stage.network, PATIENCE)?;
        Ok(Evidence::default())
    });
    if prepared {
        stage.promise("TCP both ways arrives whole, and the second threads take part", both_ways);
        stage.promise("datagrams that come one by one come back", |stage| {
            let every = Duration::from_millis(2);
            let to = RECEIVERS[0];
            let tool = Tool::Echo { to, count: ECHOES, size: 64, every, proxy: None };
            let echo: EchoAnswer = stage.sender(&tool)?;
            ensure!(echo.received == u64::from(ECHOES), "{} of {ECHOES} came back", echo.received);
            Ok(Evidence::new(format!("{ECHOES} of {ECHOES}")))
        });
    }
    stage.promise("nodes with one thread are back", |stage| {
        stage.daemons.stop_client();
        for name in PATH {
            restart(stage, name, |_| {})?;
        }
        Ok(Evidence::default())
    });
}

fn both_ways(stage: &mut Stage<'_>) -> Result<Evidence> {
    let daemons = &stage.daemons;
    let client = daemons.client.as_ref().context("no client runs")?.pid();
    let pids: Vec<(&str, u32)> = PATH
        .iter()
        .map(|name| (*name, daemons.nodes[*name].pid()))
        .chain([("the client", client)])
        .collect();
    let second_threads = || {
        pids.iter()
            .map(|(name, pid)| {
                process::thread_cpu(*pid, "cells-1").with_context(|| format!("at {name}"))
            })
            .collect::<Result<Vec<_>>>()
    };
    let before = second_threads()?;
    let mut rates = Vec::new();
    for direction in [Direction::Up, Direction::Down] {
        let to = RECEIVERS[0];
        let tool = Tool::Bulk { to, direction, flows: 1, time: TIME, bytes: 0, proxy: None };
        let answer: BulkAnswer = stage.sender(&tool)?;
        ensure!(answer.right, "the bytes that arrived are not those that were sent");
        rates.push(answer.rate() / 1e9);
    }
    let mut shares = Vec::new();
    for ((name, _), (before, after)) in pids.iter().zip(before.into_iter().zip(second_threads()?)) {
        // A busy machine may let the first thread do nearly everything, but not all of it.
        ensure!(after > before, "the second thread of {name} did nothing");
        shares.push(format!("{name} {:.1} ms", (after - before).as_secs_f64() * 1e3));
    }
    Ok(Evidence::new(format!(
        "{:.2} Gb/s up, {:.2} down; second threads: {}",
        rates[0],
        rates[1],
        shares.join(", ")
    )))
}
