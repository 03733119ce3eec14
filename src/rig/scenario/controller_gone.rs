//! The controller stops, and comes back.
//!
//! In: a connected client. Out: promises. Called by: rig::suite.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::{
    rig::{
        agent::{HttpAnswer, Tool},
        daemons::state,
        plan::NODES,
        promise::Evidence,
        stage::{PATIENCE, RECEIVERS, Stage},
    },
    telemetry::control::{Place, Request, ask, command},
};

/// Stops the controller, uses the network without it, starts it again.
pub fn stopped_and_started(stage: &mut Stage<'_>) {
    let link = stage.daemons.link.clone();
    stage.promise("nodes stay listed for as long as they renew", still_listed);
    stage.promise("the controller ends when asked", |stage| {
        let controller = stage.daemons.controller.take().context("expected a controller")?;
        ensure!(controller.stop(), "it had to be killed, or ended with an error");
        Ok(Evidence::new("it ended by itself"))
    });
    stage.promise("traffic goes on without the controller", |stage| {
        let answer = download(stage, 1 << 20)?;
        Ok(Evidence::new(format!("1 MiB in {:.2} s", answer.seconds)))
    });
    stage.promise("a new circuit is built from the cached directory", |stage| {
        let before = stage.daemons.active_circuit(stage.network)?.number;
        new_circuit(stage)?;
        let circuit = stage.daemons.active_circuit(stage.network)?;
        ensure!(circuit.number != before, "the circuit in use is still number {before}");
        download(stage, 100_000)?;
        let names: Vec<&str> = circuit.hops.iter().map(|hop| hop.name.as_str()).collect();
        Ok(Evidence::new(format!("number {} through {}", circuit.number, names.join(", "))))
    });
    stage.promise("the client starts from its cached directory", |stage| {
        stage.daemons.stop_client();
        stage.daemons.start_client(stage.network, &[])?;
        stage.daemons.wait_connected(stage.network, PATIENCE)?;
        let contact = stage.daemons.client_status(stage.network)?.controller;
        ensure!(!contact.reachable, "its status says that the controller can be reached");
        Ok(Evidence::new("connected; its status says that the controller cannot be reached"))
    });
    stage.promise("one-shot commands exit with 3 while the controller is away", |stage| {
        let output =
            stage.network.host("sender")?.own(&["nodes", "--controller", &stage.daemons.link])?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        ensure!(
            output.status.code() == Some(3),
            "expected exit code 3, got {:?}: {said}",
            output.status.code()
        );
        Ok(Evidence::new(said.lines().next().unwrap_or_default()))
    });
    stage.promise("the controller is started again and has its state", |stage| {
        let started = Instant::now();
        let extra = stage.extra.clone();
        stage.daemons.start_controller(stage.network, &extra)?;
        ensure!(
            stage.daemons.link == link,
            "its link changed from {link} to {}",
            stage.daemons.link
        );
        stage.daemons.wait_listed(stage.network, NODES.len(), PATIENCE)?;
        let seconds = started.elapsed().as_secs_f64();
        Ok(Evidence::new(format!(
            "the same link, {} nodes listed after {seconds:.1} s",
            NODES.len()
        ))
        .with("listed_s", seconds))
    });
}

/// Asks the client to build a circuit and to use it.
pub fn new_circuit(stage: &Stage<'_>) -> Result<()> {
    let dir = state(stage.network.host("sender")?);
    let place = Place::new("client", Some(&dir));
    ask(&place, &Request::plain(command::CIRCUIT_NEW), Duration::from_secs(20))?;
    Ok(())
}

/// Past the time after which a node that did not renew is down.
fn still_listed(stage: &mut Stage<'_>) -> Result<Evidence> {
    const PAST: u64 = 35;
    loop {
        let status = stage.daemons.controller_status(stage.network)?;
        let listed = status.directory.nodes;
        ensure!(listed == NODES.len(), "after {} s {listed} nodes are listed", status.uptime_s);
        if status.uptime_s > PAST {
            return Ok(Evidence::new(format!("{listed} are, after {} s", status.uptime_s)));
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn download(stage: &Stage<'_>, bytes: u64) -> Result<HttpAnswer> {
    let patience = Duration::from_secs(10);
    let answer: HttpAnswer = stage.sender(&Tool::HttpGet { to: RECEIVERS[0], bytes, patience })?;
    ensure!(answer.right, "the bytes that arrived are not those that were sent");
    Ok(answer)
}
