//! How far a starting client has come, told line by line.
//!
//! In: directories, snapshots. Out: log records with the event `phase`. Called by: the client's
//! service.
//!
//! No name and no address: the log may be read by others.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{
    client::{ClientCommand, ClientSnapshot},
    data_thread::Handle,
};
use crate::{
    config::ClientConfig,
    directory::Directory,
    telemetry::{CircuitInfo, CircuitState, control::PingArgs},
};

const LOOK_EVERY: Duration = Duration::from_millis(100);
/// After so long a phase that does not end is named once more, with its reason.
const PATIENCE: Duration = Duration::from_secs(10);
const PHASES: [&str; 6] = ["identity", "directory", "guard", "circuit", "DNS", "self-test"];

/// Tells each phase once it is done, until all are.
pub(super) async fn tell(
    config: ClientConfig,
    mut directories: watch::Receiver<Option<Arc<Directory>>>,
    data: Handle<ClientCommand>,
) {
    let started = Instant::now();
    let done = |phase: usize, words: &str| {
        log::info!(
            event = "phase", phase = PHASES[phase], milliseconds = started.elapsed().as_millis() as u64;
            "[{}/{}] {}: {words}", phase + 1, PHASES.len(), PHASES[phase]
        );
    };
    done(0, "state opened, devices and control socket ready");
    let Ok(directory) = directories.wait_for(Option::is_some).await.map(|found| found.clone())
    else {
        return;
    };
    let nodes = directory.map_or(0, |directory| directory.nodes().len());
    done(1, &format!("{nodes} nodes"));
    let guarded = |snapshot: &ClientSnapshot| {
        // A hop of a circuit that is in use or waits for it has answered, and so has the guard.
        snapshot.connected || snapshot.circuits.iter().any(|circuit| circuit.hops_built > 0)
    };
    if wait(&data, 2, guarded).await.is_none() {
        return;
    }
    done(2, "answers");
    let Some(snapshot) = wait(&data, 3, |snapshot| snapshot.connected).await else { return };
    let active = snapshot.circuits.iter().find(|circuit| circuit.state == CircuitState::Active);
    done(3, &circuit_words(active));
    match config.dns {
        Some(addr) => done(4, &format!("a resolver listens on port {}", addr.port())),
        None => done(4, "no resolver of its own; questions go through the circuit as they are"),
    }
    let Some(exit) = active.and_then(|circuit| circuit.hops.last()) else { return };
    let args = PingArgs { node: exit.id.clone(), timeout_ms: 5000 };
    match data.ask(|reply| ClientCommand::Ping(args, reply)).await {
        Ok(Ok(answer)) => match answer.rtt_ms {
            Some(ms) => done(5, &format!("the exit answered an echo in {ms:.1} ms")),
            None => log::warn!(event = "phase"; "self-test: the exit answered no echo within 5 s"),
        },
        Ok(Err(why)) | Err(why) => log::warn!(event = "phase"; "self-test: {why}"),
    }
}

fn circuit_words(circuit: Option<&CircuitInfo>) -> String {
    let hops = circuit.map_or(0, |circuit| circuit.hops.len());
    match circuit.and_then(|circuit| circuit.build_ms) {
        Some(took) => format!("{hops} hops, built in {took:.0} ms"),
        None => format!("{hops} hops"),
    }
}

/// Waits for a snapshot that satisfies; none when the data path has ended.
async fn wait(
    data: &Handle<ClientCommand>,
    phase: usize,
    is_done: impl Fn(&ClientSnapshot) -> bool,
) -> Option<ClientSnapshot> {
    let begun = Instant::now();
    let mut told = false;
    loop {
        let snapshot = data.ask(ClientCommand::Snapshot).await.ok()?;
        if is_done(&snapshot) {
            return Some(snapshot);
        }
        if !told && begun.elapsed() > PATIENCE {
            told = true;
            let reason = snapshot.reason.as_deref().unwrap_or("no node has answered yet");
            log::warn!(
                event = "phase", phase = PHASES[phase];
                "[{}/{}] {} takes long: {reason}", phase + 1, PHASES.len(), PHASES[phase]
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
