//! How far a starting client has come: a line per phase, and a bar on a terminal.
//!
//! In: directories, snapshots. Out: log records with the event `phase`, a bar.
//! Called by: the client's service.
//!
//! No name and no address: the log may be read by others.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{
    client::{ClientCommand, ClientSnapshot},
    contact::Contact,
    data_thread::Handle,
};
use crate::{
    config::ClientConfig,
    directory::Directory,
    telemetry::{CircuitInfo, CircuitState, control::PingArgs, progress::PhaseBar},
};

const LOOK_EVERY: Duration = Duration::from_millis(100);
/// After so long a phase that does not end is named once more, with its reason.
const PATIENCE: Duration = Duration::from_secs(10);

/// A phase: its name, what it waits for, and what to do when it takes long.
struct Phase {
    name: &'static str,
    waits_for: &'static str,
    way_out: &'static str,
}

const IDENTITY: usize = 0;
const DIRECTORY: usize = 1;
const GUARD: usize = 2;
const CIRCUIT: usize = 3;
const DNS: usize = 4;
const SELF_TEST: usize = 5;
const PHASES: [Phase; 6] = [
    Phase { name: "identity", waits_for: "state and devices", way_out: "cepa doctor" },
    Phase {
        name: "directory",
        waits_for: "the controller's list of nodes",
        way_out: "cepa doctor looks at everything else",
    },
    Phase {
        name: "guard",
        waits_for: "an answer of the first node",
        way_out: "see that UDP leaves this network (cepa doctor) and which nodes live (cepa nodes)",
    },
    Phase { name: "circuit", waits_for: "every hop", way_out: "see which nodes live: cepa nodes" },
    Phase { name: "DNS", waits_for: "the resolver", way_out: "cepa doctor" },
    Phase {
        name: "self-test",
        waits_for: "an echo of the exit",
        way_out: "build another circuit: cepa circuits new",
    },
];

/// Tells each phase once it is done, until all are.
pub(super) async fn tell(
    config: ClientConfig,
    mut directories: watch::Receiver<Option<Arc<Directory>>>,
    contact: Contact,
    data: Handle<ClientCommand>,
) {
    let teller = Teller { started: Instant::now(), bar: PhaseBar::new(PHASES.len()) };
    teller.done(IDENTITY, "state opened, devices and control socket ready");
    let listed = teller
        .wait(DIRECTORY, || {
            let directory = directories.borrow_and_update().clone();
            let reason = contact.status().last_error;
            std::future::ready(Some(directory.ok_or(reason)))
        })
        .await;
    let Some(directory) = listed else { return };
    teller.done(DIRECTORY, &format!("{} nodes", directory.nodes().len()));
    let snapshot = |is_done: fn(&ClientSnapshot) -> bool| {
        let data = data.clone();
        move || {
            let data = data.clone();
            async move {
                let snapshot = data.ask(ClientCommand::Snapshot).await.ok()?;
                let reason = snapshot.reason.clone();
                Some(if is_done(&snapshot) { Ok(snapshot) } else { Err(reason) })
            }
        }
    };
    // A hop of a circuit that is in use or waits for it has answered, and so has the guard.
    let guarded = |snapshot: &ClientSnapshot| {
        snapshot.connected || snapshot.circuits.iter().any(|circuit| circuit.hops_built > 0)
    };
    if teller.wait(GUARD, snapshot(guarded)).await.is_none() {
        return;
    }
    teller.done(GUARD, "answers");
    let connected = snapshot(|snapshot| snapshot.connected);
    let Some(snapshot) = teller.wait(CIRCUIT, connected).await else { return };
    let active = snapshot.circuits.iter().find(|circuit| circuit.state == CircuitState::Active);
    teller.done(CIRCUIT, &circuit_words(active));
    teller.done(DNS, &dns_words(&config));
    let Some(exit) = active.and_then(|circuit| circuit.hops.last()) else { return };
    let args = PingArgs { node: exit.id.clone(), timeout_ms: 5000 };
    match data.ask(|reply| ClientCommand::Ping(args, reply)).await {
        Ok(Ok(answer)) => match answer.rtt_ms {
            Some(ms) => {
                teller.done(SELF_TEST, &format!("the exit answered an echo in {ms:.1} ms"));
            }
            None => takes_long(SELF_TEST, "the exit answered no echo within 5 s"),
        },
        Ok(Err(why)) | Err(why) => takes_long(SELF_TEST, &why.message),
    }
}

/// Where phases are told.
struct Teller {
    started: Instant,
    bar: PhaseBar,
}

impl Teller {
    fn done(&self, phase: usize, words: &str) {
        let (number, name) = (phase + 1, PHASES[phase].name);
        if let Some(next) = PHASES.get(number) {
            self.bar.show(number, &format!("{}: waiting for {}", next.name, next.waits_for));
        }
        log::info!(
            event = "phase", phase = name, milliseconds = self.started.elapsed().as_millis() as u64;
            "[{number}/{}] {name}: {words}", PHASES.len()
        );
    }

    /// Looks again and again; none when the data path has ended. An error is the reason why not
    /// yet, if one is known.
    async fn wait<T, F>(&self, phase: usize, mut look: impl FnMut() -> F) -> Option<T>
    where
        F: Future<Output = Option<Result<T, Option<String>>>>,
    {
        let begun = Instant::now();
        let mut told = false;
        loop {
            let reason = match look().await? {
                Ok(found) => return Some(found),
                Err(reason) => reason,
            };
            let Phase { name, waits_for, .. } = PHASES[phase];
            let reason = reason.unwrap_or_else(|| format!("waiting for {waits_for}"));
            self.bar.show(phase, &format!("{name}: {reason}"));
            if !told && begun.elapsed() > PATIENCE {
                told = true;
                takes_long(phase, &reason);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

fn takes_long(phase: usize, reason: &str) {
    let Phase { name, way_out, .. } = PHASES[phase];
    log::warn!(
        event = "phase", phase = name;
        "[{}/{}] {name} takes long: {reason}; {way_out}", phase + 1, PHASES.len()
    );
}

fn dns_words(config: &ClientConfig) -> String {
    match config.dns {
        Some(addr) => format!("a resolver listens on port {}; it asks at the exit", addr.port()),
        None if config.tun_name().is_none() => {
            "names of the proxies resolve at the exit".to_owned()
        }
        None => "no resolver of its own; questions go through the circuit as they are".to_owned(),
    }
}

fn circuit_words(circuit: Option<&CircuitInfo>) -> String {
    let hops = circuit.map_or(0, |circuit| circuit.hops.len());
    match circuit.and_then(|circuit| circuit.build_ms) {
        Some(took) => format!("{hops} hops, built in {took:.0} ms"),
        None => format!("{hops} hops"),
    }
}
