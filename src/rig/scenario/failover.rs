//! The middle node dies during a download.
//!
//! In: a client that chooses its own path. Out: how long new flows did not work.
//! Called by: rig::suite.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::rig::{
    agent::{HttpAnswer, Tool},
    promise::Evidence,
    stage::{PATIENCE, RECEIVERS, Stage},
};

/// How long new flows may not work.
const MOST: Duration = Duration::from_secs(3);

/// Kills the middle node of a random path and tries new connections until one works.
pub fn middle_node_dies(stage: &mut Stage<'_>, hops: u8) {
    let number = hops.to_string();
    let mut path = Vec::new();
    stage.promise(format!("a random path of {hops} distinct nodes, the last an exit"), |stage| {
        stage.daemons.stop_client();
        stage.daemons.start_client(stage.network, &["--hops", &number])?;
        let circuit = stage.daemons.wait_connected(stage.network, PATIENCE)?;
        path = circuit.hops.iter().map(|hop| hop.name.clone()).collect();
        let mut distinct = path.clone();
        distinct.sort();
        distinct.dedup();
        ensure!(
            distinct.len() == usize::from(hops),
            "expected {hops} nodes, got {}",
            path.join(", ")
        );
        let exit = path.last().map(String::as_str).unwrap_or_default();
        ensure!(crate::rig::daemons::is_exit(exit), "expected an exit last, got {exit}");
        Ok(Evidence::new(path.join(", ")))
    });
    let Some(middle) = path.get(1).cloned() else { return };
    stage.promise(
        "the middle node is killed during a download: new flows work within 3 s",
        |stage| kill(stage, &middle),
    );
    stage.promise("the killed node comes back and is listed again", |stage| {
        let extra = stage.extra.clone();
        stage.daemons.start_node(stage.network, &middle, &extra)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = stage.daemons.node_status(stage.network, &middle);
            if status.is_ok_and(|status| status.state == crate::telemetry::NodeState::Registered) {
                break;
            }
            ensure!(Instant::now() < deadline, "{middle} is not registered");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(Evidence::new(format!("{middle} is registered with the identity it had")))
    });
}

fn kill(stage: &mut Stage<'_>, middle: &str) -> Result<Evidence> {
    let sender = stage.network.host("sender")?;
    let patience = Duration::from_secs(15);
    let download = sender.start(&Tool::HttpGet { to: RECEIVERS[0], bytes: 4 << 30, patience })?;
    std::thread::sleep(Duration::from_millis(700));
    stage.daemons.nodes.remove(middle).context("expected a node")?.kill();
    let killed = Instant::now();
    let mut attempts = 0;
    let recovery = loop {
        attempts += 1;
        let patience = Duration::from_millis(250);
        let answer = sender.ask::<HttpAnswer>(
            &Tool::HttpGet { to: RECEIVERS[1], bytes: 1000, patience },
            PATIENCE,
        );
        if answer.is_ok_and(|answer| answer.right) {
            break killed.elapsed();
        }
        ensure!(killed.elapsed() < PATIENCE, "no new flow worked within {PATIENCE:?}");
    };
    drop(download);
    let circuit = stage.daemons.active_circuit(stage.network)?;
    let names: Vec<&str> = circuit.hops.iter().map(|hop| hop.name.as_str()).collect();
    ensure!(!names.contains(&middle), "the new path still has {middle}");
    ensure!(recovery <= MOST, "expected at most {MOST:?}, got {recovery:.2?}");
    Ok(Evidence::new(format!(
        "{middle} killed; a new flow worked {:.2} s later at attempt {attempts}, through {}",
        recovery.as_secs_f64(),
        names.join(", ")
    ))
    .with("recovery_s", recovery.as_secs_f64())
    .with("attempts", attempts))
}
