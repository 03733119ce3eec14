//! Counters, and their text for `/metrics`.
//!
//! In: events. Out: text. Called by: router, registration, the prober, the publisher.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use axum::http::StatusCode;

use crate::telemetry::metrics::text;

/// Counts since the start.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    answers: [AtomicU64; 5],
    pub(crate) rate_limited: AtomicU64,
    pub(crate) connections: AtomicU64,
    pub(crate) connections_refused: AtomicU64,
    pub(crate) admitted: AtomicU64,
    pub(crate) renewed: AtomicU64,
    pub(crate) not_admitted: AtomicU64,
    pub(crate) probes_sent: AtomicU64,
    pub(crate) probes_answered: AtomicU64,
    pub(crate) directories: AtomicU64,
}

/// What is measured rather than counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gauges {
    pub(crate) registered: usize,
    pub(crate) listed: usize,
    pub(crate) version: u64,
    pub(crate) uptime_s: u64,
}

/// Adds one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

impl Metrics {
    /// Counts an answer by the class of its status.
    pub(crate) fn answered(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100).clamp(1, 5) - 1;
        count(&self.answers[class]);
    }

    /// All of it as text.
    pub(crate) fn text(&self, gauges: Gauges) -> Option<String> {
        let answers = [1, 2, 3, 4, 5].map(|class| {
            (["1xx", "2xx", "3xx", "4xx", "5xx"][class - 1], self.answers[class - 1].load(Relaxed))
        });
        let counters = [
            ("rate_limited", "Requests refused with 429", &self.rate_limited),
            ("connections", "Connections accepted", &self.connections),
            ("connections_refused", "Connections over a limit", &self.connections_refused),
            ("admitted", "Nodes let in", &self.admitted),
            ("renewals", "Renewals of known nodes", &self.renewed),
            ("not_admitted", "Registrations refused with 401 or 403", &self.not_admitted),
            ("probes_sent", "Reachability probes sent", &self.probes_sent),
            ("probes_answered", "Reachability probes answered", &self.probes_answered),
            ("directories", "Directories signed", &self.directories),
        ]
        .map(|(name, help, counter)| (name, help, counter.load(Relaxed)));
        text("cepa_controller", move |families| {
            let answers = answers.map(|(class, count)| ([("class", class)], count));
            families.counters("answers", "HTTP answers by class of status", &answers)?;
            for (name, help, count) in counters {
                families.counter(name, help, count)?;
            }
            families.gauge("nodes_registered", "Nodes let in", gauges.registered as i64)?;
            families.gauge("nodes_listed", "Nodes in the directory", gauges.listed as i64)?;
            families.gauge(
                "directory_version",
                "Version of the directory",
                gauges.version as i64,
            )?;
            families.daemon("controller", gauges.uptime_s)
        })
        .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_has_a_help_and_a_type() {
        let metrics = Metrics::default();
        metrics.answered(StatusCode::NOT_FOUND);
        count(&metrics.admitted);
        let text =
            metrics.text(Gauges { registered: 3, listed: 2, version: 7, uptime_s: 1 }).unwrap();
        assert!(text.contains("cepa_controller_answers_total{class=\"4xx\"} 1\n"), "{text}");
        assert!(text.contains("cepa_controller_admitted_total 1\n"), "{text}");
        assert!(text.contains("cepa_controller_nodes_listed 2\n"), "{text}");
        let names = |prefix: &str| text.lines().filter(|line| line.starts_with(prefix)).count();
        assert_eq!(names("# HELP"), names("# TYPE"));
        assert_eq!(names("cepa_controller_"), names("# TYPE") + 4, "{text}");
    }
}
