//! Metrics for Prometheus: one shape for every role, on the loopback only.
//!
//! In: what a daemon knows of itself. Out: OpenMetrics text, answers at `/metrics`.
//! Called by: node, controller.
//!
//! Only aggregates: no address, no name of a node, no path of a circuit.

use std::{fmt, future::Future, io, net::SocketAddr};

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
    metrics::{TypedMetric, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use tokio::net::TcpListener;

use super::{ControllerContact, DirectoryStatus, Drops, Traffic};
use crate::model::DropReason;

/// The media type of [`text`].
pub const CONTENT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// One label of a sample, and its value.
pub type Label<'a> = [(&'a str, &'a str); 1];

/// Writes one family of metrics after the other.
#[derive(Debug)]
pub struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    /// A number that only grows; the text adds `_total` to its name.
    ///
    /// # Errors
    /// As all of these: when the text cannot grow.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.metric(name, help, &ConstCounter::new(value))
    }

    /// Numbers that only grow, told apart by a label.
    ///
    /// # Errors
    /// As above.
    pub fn counters(
        &mut self,
        name: &str,
        help: &str,
        samples: &[(Label<'_>, u64)],
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, ConstCounter::<u64>::TYPE)?;
        for (labels, value) in samples {
            ConstCounter::new(*value).encode(family.encode_family(labels)?)?;
        }
        Ok(())
    }

    /// A number that goes up and down.
    ///
    /// # Errors
    /// As above.
    pub fn gauge(&mut self, name: &str, help: &str, value: i64) -> fmt::Result {
        self.metric(name, help, &ConstGauge::new(value))
    }

    /// Numbers that go up and down, told apart by a label.
    ///
    /// # Errors
    /// As above.
    pub fn gauges(&mut self, name: &str, help: &str, samples: &[(Label<'_>, i64)]) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, ConstGauge::<i64>::TYPE)?;
        for (labels, value) in samples {
            ConstGauge::new(*value).encode(family.encode_family(labels)?)?;
        }
        Ok(())
    }

    /// Any metric, such as a histogram.
    ///
    /// # Errors
    /// As above.
    pub fn metric(
        &mut self,
        name: &str,
        help: &str,
        metric: &(impl EncodeMetric + TypedMetric),
    ) -> fmt::Result {
        metric.encode(self.0.encode_descriptor(name, help, None, metric.metric_type())?)
    }

    /// When something ends that has `left` seconds; 0 when it has none.
    ///
    /// # Errors
    /// As above.
    pub fn expiry(&mut self, name: &str, help: &str, left: u64) -> fmt::Result {
        let left = i64::try_from(left).unwrap_or(i64::MAX);
        let at = if left == 0 { 0 } else { Timestamp::now().as_second().saturating_add(left) };
        self.gauge(name, help, at)
    }

    /// Which role answers, of which version, since when.
    ///
    /// # Errors
    /// As above.
    pub fn daemon(&mut self, role: &str, uptime_s: u64) -> fmt::Result {
        let labels = [("role", role), ("version", env!("CARGO_PKG_VERSION"))];
        let help = "The role and the version of this daemon";
        let mut family =
            self.0.encode_descriptor("build_info", help, None, ConstGauge::<i64>::TYPE)?;
        ConstGauge::new(1i64).encode(family.encode_family(&labels)?)?;
        let uptime = i64::try_from(uptime_s).unwrap_or(i64::MAX);
        let started = Timestamp::now().as_second().saturating_sub(uptime);
        self.gauge("start_timestamp_seconds", "When the daemon started", started)
    }

    /// The controller and the directory, for every role that has them.
    ///
    /// # Errors
    /// As above.
    pub fn directory(
        &mut self,
        controller: &ControllerContact,
        directory: &DirectoryStatus,
    ) -> fmt::Result {
        self.gauge(
            "controller_reachable",
            "1 if the controller answered last",
            controller.reachable.into(),
        )?;
        let nodes = i64::try_from(directory.nodes).unwrap_or(i64::MAX);
        self.gauge("directory_nodes", "Nodes in the directory in use", nodes)?;
        self.expiry(
            "directory_expiry_timestamp_seconds",
            "When the directory in use, and every onion key in it, expires",
            directory.expires_in_s,
        )
    }

    /// The cells of a data path, and the inner packets where they end.
    ///
    /// # Errors
    /// As above.
    pub fn traffic(&mut self, traffic: &Traffic) -> fmt::Result {
        let cells = [
            ([("direction", "in")], traffic.cells_in),
            ([("direction", "out")], traffic.cells_out),
        ];
        self.counters("cells", "Cells received and sent", &cells)?;
        let both = |up, down| [([("direction", "up")], up), ([("direction", "down")], down)];
        self.counters(
            "inner_packets",
            "IP packets from and to the ends of circuits: up to the exit, down to the client",
            &both(traffic.packets_up, traffic.packets_down),
        )?;
        self.counters(
            "inner_bytes",
            "Bytes of these IP packets",
            &both(traffic.bytes_up, traffic.bytes_down),
        )
    }

    /// Every reason to drop a packet or a cell, also those that never occurred.
    ///
    /// # Errors
    /// As above.
    pub fn drops(&mut self, drops: &Drops) -> fmt::Result {
        let samples = DropReason::ALL.map(|reason| {
            let count = drops.0.get(reason.name()).copied().unwrap_or_default();
            ([("reason", reason.name())], count)
        });
        self.counters("drops", "Packets and cells that were dropped", &samples)
    }
}

/// What a scrape shows, as the library wants it.
struct Page<F>(F);

impl<F> fmt::Debug for Page<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Page")
    }
}

impl<F> Collector for Page<F>
where
    F: Fn(&mut Families<'_>) -> fmt::Result + Send + Sync + 'static,
{
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.0(&mut Families(encoder))
    }
}

/// The text of the families that `write` writes; their names begin with `prefix`.
///
/// # Errors
/// When the text cannot grow.
pub fn text(
    prefix: &str,
    write: impl Fn(&mut Families<'_>) -> fmt::Result + Send + Sync + 'static,
) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix(prefix);
    registry.register_collector(Box::new(Page(write)));
    let mut text = String::with_capacity(4096);
    encode(&mut text, &registry)?;
    Ok(text)
}

/// Opens the port; it is served by [`serve`].
///
/// # Errors
/// What the kernel says.
pub async fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(addr).await
}

/// Answers scrapes with `page` for as long as the returned future lives; without a page the daemon
/// is ending, and says so.
pub async fn serve<F>(listener: TcpListener, page: impl Fn() -> F + Clone + Send + Sync + 'static)
where
    F: Future<Output = Option<String>> + Send,
{
    let scrape = move || {
        let page = page.clone();
        async move {
            match page().await {
                Some(text) => ([(CONTENT_TYPE, CONTENT)], text).into_response(),
                None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
            }
        }
    };
    let app =
        Router::new().route("/metrics", get(scrape)).route("/healthz", get(|| async { "ok\n" }));
    if let Err(error) = axum::serve(listener, app).await {
        log::warn!(event = "metrics"; "no more metrics: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_has_its_help_its_type_and_its_samples() {
        let text = text("cepa", |families| {
            families.daemon("node", 5)?;
            families.traffic(&Traffic { cells_in: 7, ..Traffic::default() })?;
            families.drops(&Drops([("replay".to_owned(), 3)].into()))?;
            families.gauge("listed", "1 if it is", 1)?;
            families.expiry("key_expiry_timestamp_seconds", "Never", 0)
        })
        .unwrap();
        for line in [
            "# TYPE cepa_cells counter",
            "cepa_cells_total{direction=\"in\"} 7",
            "cepa_drops_total{reason=\"replay\"} 3",
            // A rate needs the zero that was before.
            "cepa_drops_total{reason=\"bad_tag\"} 0",
            "cepa_listed 1",
            "cepa_key_expiry_timestamp_seconds 0",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}:\n{text}");
        }
        let count = |prefix| text.lines().filter(|line| line.starts_with(prefix)).count();
        assert_eq!(count("# HELP"), count("# TYPE"), "{text}");
        assert_eq!(count("cepa_drops_total"), DropReason::ALL.len());
    }
}
