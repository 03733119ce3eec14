//! Metrics of a client for Prometheus, on the loopback only.
//!
//! In: snapshots. Out: text at `/metrics`. Called by: the client's service.
//!
//! Only aggregates: no address, no name, no path.

use std::{
    collections::BTreeSet,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use jiff::Timestamp;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text::encode},
    metrics::{TypedMetric, counter::ConstCounter, gauge::ConstGauge, histogram::Histogram},
    registry::Registry,
};
use tokio::net::TcpListener;

use super::{NodeError, client::ClientCommand, data_thread::Handle};
use crate::telemetry::{CircuitInfo, CircuitState, ClientState, ClientStatus};

/// Upper bounds of the histogram of build times, in seconds.
const BUCKETS: [f64; 10] = [0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];
/// Circuits live longer than this, or nobody used them.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const CONTENT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What a client measures of itself.
pub(super) struct Metrics {
    registry: Registry,
    latest: Arc<Latest>,
    builds: Histogram,
    /// Circuits whose build time is in the histogram.
    observed: Mutex<BTreeSet<u32>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("cepa");
        let builds = Histogram::new(BUCKETS);
        registry.register(
            "circuit_build_seconds",
            "How long circuits took from the first CREATE to the last hop",
            builds.clone(),
        );
        let latest = Arc::new(Latest::default());
        registry.register_collector(Box::new(Arc::clone(&latest)));
        Self { registry, latest, builds, observed: Mutex::default() }
    }
}

impl Metrics {
    /// Takes in the build times of circuits that were not there before.
    pub(super) fn observe(&self, circuits: &[CircuitInfo]) {
        let mut observed = self.observed.lock().unwrap_or_else(PoisonError::into_inner);
        for circuit in circuits {
            if let Some(took) = circuit.build_ms
                && observed.insert(circuit.number)
            {
                self.builds.observe(took / 1e3);
            }
        }
        // Numbers only grow, so those before the oldest circuit never come again.
        if let Some(oldest) = circuits.iter().map(|circuit| circuit.number).min() {
            *observed = observed.split_off(&oldest);
        }
    }

    /// The text of everything, as of this status.
    fn text(&self, status: ClientStatus) -> Result<String, fmt::Error> {
        self.observe(&status.circuits);
        *self.latest.0.lock().unwrap_or_else(PoisonError::into_inner) = status;
        let mut text = String::with_capacity(4096);
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// The status that is encoded.
#[derive(Debug, Default)]
struct Latest(Mutex<ClientStatus>);

/// Writes one family after the other.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn counter(
        &mut self,
        name: &str,
        help: &str,
        samples: &[([(&str, &str); 1], u64)],
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, ConstCounter::<u64>::TYPE)?;
        for (labels, value) in samples {
            ConstCounter::new(*value).encode(family.encode_family(labels)?)?;
        }
        Ok(())
    }

    fn total(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let counter = ConstCounter::new(value);
        counter.encode(self.0.encode_descriptor(name, help, None, ConstCounter::<u64>::TYPE)?)
    }

    fn gauge(&mut self, name: &str, help: &str, value: i64) -> fmt::Result {
        let gauge = ConstGauge::new(value);
        gauge.encode(self.0.encode_descriptor(name, help, None, ConstGauge::<i64>::TYPE)?)
    }

    fn gauges(
        &mut self,
        name: &str,
        help: &str,
        samples: &[([(&str, &str); 1], i64)],
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, ConstGauge::<i64>::TYPE)?;
        for (labels, value) in samples {
            ConstGauge::new(*value).encode(family.encode_family(labels)?)?;
        }
        Ok(())
    }
}

impl Collector for Latest {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut families = Families(encoder);
        let traffic = &status.traffic;
        let both = |up, down| [([("direction", "up")], up), ([("direction", "down")], down)];
        families.counter(
            "cells",
            "Cells sent to guards and received from them",
            &both(traffic.cells_out, traffic.cells_in),
        )?;
        families.counter(
            "inner_packets",
            "IP packets through circuits",
            &both(traffic.packets_up, traffic.packets_down),
        )?;
        families.counter(
            "inner_bytes",
            "Bytes of IP packets through circuits",
            &both(traffic.bytes_up, traffic.bytes_down),
        )?;
        let drops: Vec<_> = status
            .drops
            .0
            .iter()
            .map(|(reason, count)| ([("reason", &**reason)], *count))
            .collect();
        families.counter("drops", "Packets and cells that were dropped", &drops)?;
        let states = [
            CircuitState::Building,
            CircuitState::Active,
            CircuitState::Spare,
            CircuitState::Draining,
        ];
        let circuits = states.map(|state| {
            let count = status.circuits.iter().filter(|circuit| circuit.state == state).count();
            ([("state", state.word())], count as i64)
        });
        families.gauges("circuits", "Circuits by state", &circuits)?;
        let connected = i64::from(status.state == ClientState::Connected);
        families.gauge("connected", "1 while packets go through a circuit", connected)?;
        let reachable = i64::from(status.controller.reachable);
        families.gauge("controller_reachable", "1 if the controller answered last", reachable)?;
        let until = i64::try_from(status.directory.expires_in_s).unwrap_or(i64::MAX);
        families.gauge(
            "directory_expiry_timestamp_seconds",
            "When the directory in use, and every onion key in it, expires",
            if until == 0 { 0 } else { Timestamp::now().as_second().saturating_add(until) },
        )?;
        if let Some(lockdown) = &status.lockdown {
            let state = match (lockdown.on, lockdown.unlocked_for_s) {
                (false, _) => 0,
                (true, None) => 1,
                (true, Some(_)) => 2,
            };
            families.gauge("lockdown_state", "0 off, 1 on, 2 unlocked for a while", state)?;
            families.total(
                "leaked_packets",
                "Packets that left in clear since the lockdown began",
                lockdown.leaked_packets,
            )?;
            let held = [
                ([("origin", "own")], lockdown.blocked_own),
                ([("origin", "inside")], lockdown.blocked_lan),
                ([("origin", "outside")], lockdown.blocked_in),
            ];
            families.counter("blocked_packets", "Packets the lockdown held back", &held)?;
        }
        Ok(())
    }
}

/// Opens the port; it is served by [`serve`].
pub(super) async fn bind(addr: SocketAddr) -> Result<TcpListener, NodeError> {
    TcpListener::bind(addr).await.map_err(|source| NodeError::Metrics { addr, source })
}

/// Looks at circuits often enough to see each, for as long as the returned future lives.
pub(super) async fn follow(metrics: Arc<Metrics>, data: Handle<ClientCommand>) {
    while let Ok(snapshot) = data.ask(ClientCommand::Snapshot).await {
        metrics.observe(&snapshot.circuits);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Answers scrapes for as long as the returned future lives.
pub(super) async fn serve<F>(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    status: impl Fn() -> F + Clone + Send + Sync + 'static,
) where
    F: Future<Output = Option<ClientStatus>> + Send,
{
    let scrape = move || {
        let (metrics, status) = (Arc::clone(&metrics), status.clone());
        async move {
            let text = status().await.and_then(|status| metrics.text(status).ok());
            match text {
                Some(text) => ([(CONTENT_TYPE, CONTENT)], text).into_response(),
                None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
            }
        }
    };
    let app =
        Router::new().route("/metrics", get(scrape)).route("/healthz", get(|| async { "ok\n" }));
    if let Err(error) = axum::serve(listener, app).await {
        log::warn!("no more metrics: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{Drops, LockdownStatus};

    #[test]
    fn everything_that_was_promised_is_there() {
        let metrics = Metrics::default();
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
        let text = metrics.text(status.clone()).unwrap();
        for line in [
            "cepa_circuit_build_seconds_count 1",
            "cepa_circuit_build_seconds_bucket{le=\"0.3\"} 1",
            "cepa_cells_total{direction=\"up\"} 0",
            "cepa_drops_total{reason=\"replay\"} 3",
            "cepa_leaked_packets_total 2",
            "cepa_lockdown_state 1",
            "cepa_directory_expiry_timestamp_seconds 0",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}:\n{text}");
        }
        // The same circuit counts once.
        assert!(metrics.text(status).unwrap().contains("cepa_circuit_build_seconds_count 1\n"));
    }
}
