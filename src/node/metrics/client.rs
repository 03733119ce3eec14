//! The metrics of a client.
//!
//! In: its status. Out: text. Called by: the client's service.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::metrics::histogram::Histogram;

use super::PREFIX;
use crate::{
    node::{client::ClientCommand, data_thread::Handle},
    telemetry::{
        CircuitInfo, CircuitState, ClientState, ClientStatus,
        metrics::{Families, text},
    },
};

/// Upper bounds of the histogram of build times, in seconds.
const BUCKETS: [f64; 10] = [0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];
/// Circuits live longer than this, or nobody used them.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How long circuits took to be built.
#[derive(Clone)]
pub(in crate::node) struct BuildTimes {
    histogram: Histogram,
    /// Circuits whose time is in the histogram.
    observed: Arc<Mutex<BTreeSet<u32>>>,
}

impl Default for BuildTimes {
    fn default() -> Self {
        Self { histogram: Histogram::new(BUCKETS), observed: Arc::default() }
    }
}

impl BuildTimes {
    /// Takes in the build times of circuits that were not there before.
    fn observe(&self, circuits: &[CircuitInfo]) {
        let mut observed = self.observed.lock().unwrap_or_else(PoisonError::into_inner);
        for circuit in circuits {
            if let Some(took) = circuit.build_ms
                && observed.insert(circuit.number)
            {
                self.histogram.observe(took / 1e3);
            }
        }
        // Numbers only grow, so those before the oldest circuit never come again.
        if let Some(oldest) = circuits.iter().map(|circuit| circuit.number).min() {
            *observed = observed.split_off(&oldest);
        }
    }

    /// The text of everything, as of this status.
    pub(in crate::node) fn page(&self, status: ClientStatus) -> Option<String> {
        self.observe(&status.circuits);
        let builds = self.histogram.clone();
        text(PREFIX, move |families| families_of(&status, &builds, families)).ok()
    }
}

/// Looks at circuits often enough to see each, for as long as the returned future lives.
pub(in crate::node) async fn follow(builds: BuildTimes, data: Handle<ClientCommand>) {
    while let Ok(snapshot) = data.ask(ClientCommand::Snapshot).await {
        builds.observe(&snapshot.circuits);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn families_of(
    status: &ClientStatus,
    builds: &Histogram,
    families: &mut Families<'_>,
) -> std::fmt::Result {
    families.daemon("client", status.uptime_s)?;
    families.metric(
        "circuit_build_seconds",
        "How long circuits took from the first CREATE to the last hop",
        builds,
    )?;
    families.traffic(&status.traffic)?;
    families.drops(&status.drops)?;
    let circuits = CircuitState::ALL.map(|state| {
        let count = status.circuits.iter().filter(|circuit| circuit.state == state).count();
        ([("state", state.word())], count as i64)
    });
    families.gauges("circuits", "Circuits by state", &circuits)?;
    let connected = i64::from(status.state == ClientState::Connected);
    families.gauge("connected", "1 while packets go through a circuit", connected)?;
    families.directory(&status.controller, &status.directory)?;
    let proxies = &status.proxies;
    let open: Vec<_> =
        proxies.iter().map(|proxy| ([("proxy", &*proxy.kind)], proxy.open as i64)).collect();
    families.gauges("proxy_open", "Connections of proxies, questions under way", &open)?;
    let total: Vec<_> =
        proxies.iter().map(|proxy| ([("proxy", &*proxy.kind)], proxy.total)).collect();
    families.counters("proxy_connections", "Connections and questions so far", &total)?;
    let refused: Vec<_> =
        proxies.iter().map(|proxy| ([("proxy", &*proxy.kind)], proxy.refused)).collect();
    families.counters("proxy_refused", "Those of them that were refused", &refused)?;
    let Some(lockdown) = &status.lockdown else { return Ok(()) };
    let state = match (lockdown.on, lockdown.unlocked_for_s) {
        (false, _) => 0,
        (true, None) => 1,
        (true, Some(_)) => 2,
    };
    families.gauge("lockdown_state", "0 off, 1 on, 2 unlocked for a while", state)?;
    families.counter(
        "leaked_packets",
        "Packets that left in clear since the lockdown began",
        lockdown.leaked_packets,
    )?;
    let held = [
        ([("origin", "own")], lockdown.blocked_own),
        ([("origin", "inside")], lockdown.blocked_lan),
        ([("origin", "outside")], lockdown.blocked_in),
    ];
    families.counters("blocked_packets", "Packets the lockdown held back", &held)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{Drops, LockdownStatus};

    #[test]
    fn everything_that_was_promised_is_there() {
        let builds = BuildTimes::default();
        let circuit = |number, build_ms| CircuitInfo { number, build_ms, ..CircuitInfo::default() };
        let status = ClientStatus {
            circuits: vec![circuit(1, Some(250.0)), circuit(2, None)],
            drops: Drops([("replay".to_owned(), 3)].into()),
            lockdown: Some(LockdownStatus {
                on: true,
                leaked_packets: 2,
                ..LockdownStatus::default()
            }),
            ..ClientStatus::default()
        };
        let text = builds.page(status.clone()).unwrap();
        for line in [
            "cepa_circuit_build_seconds_count 1",
            "cepa_circuit_build_seconds_bucket{le=\"0.3\"} 1",
            "cepa_cells_total{direction=\"out\"} 0",
            "cepa_drops_total{reason=\"replay\"} 3",
            "cepa_circuits{state=\"building\"} 2",
            "cepa_circuits{state=\"isolated\"} 0",
            "cepa_leaked_packets_total 2",
            "cepa_lockdown_state 1",
            "cepa_directory_expiry_timestamp_seconds 0",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}:\n{text}");
        }
        // The same circuit counts once.
        assert!(builds.page(status).unwrap().contains("cepa_circuit_build_seconds_count 1\n"));
    }
}
