//! Counters, and their text for `/metrics` (Prometheus exposition format).
//!
//! In: events. Out: text. Called by: router, registration, the prober, the publisher.

use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use axum::http::StatusCode;

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
    pub(crate) fn text(&self, gauges: Gauges) -> String {
        let mut text = String::with_capacity(2048);
        let mut family = |name: &str, kind: &str, help: &str, samples: &[(&str, u64)]| {
            // Writing to a String does not fail.
            let _ = writeln!(text, "# HELP cepa_controller_{name} {help}");
            let _ = writeln!(text, "# TYPE cepa_controller_{name} {kind}");
            for (labels, value) in samples {
                let _ = writeln!(text, "cepa_controller_{name}{labels} {value}");
            }
        };
        let answers: Vec<(String, u64)> = (1..)
            .zip(&self.answers)
            .map(|(class, counter)| (format!("{{class=\"{class}xx\"}}"), counter.load(Relaxed)))
            .collect();
        let answers: Vec<(&str, u64)> =
            answers.iter().map(|(labels, value)| (labels.as_str(), *value)).collect();
        family("answers_total", "counter", "HTTP answers by class of status.", &answers);
        for (name, help, counter) in [
            ("rate_limited_total", "Requests refused with 429.", &self.rate_limited),
            ("connections_total", "Connections accepted.", &self.connections),
            ("connections_refused_total", "Connections over a limit.", &self.connections_refused),
            ("admitted_total", "Nodes let in.", &self.admitted),
            ("renewals_total", "Renewals of known nodes.", &self.renewed),
            ("not_admitted_total", "Registrations refused with 401 or 403.", &self.not_admitted),
            ("probes_sent_total", "Reachability probes sent.", &self.probes_sent),
            ("probes_answered_total", "Reachability probes answered.", &self.probes_answered),
            ("directories_total", "Directories signed.", &self.directories),
        ] {
            family(name, "counter", help, &[("", counter.load(Relaxed))]);
        }
        family("nodes_registered", "gauge", "Nodes let in.", &[("", gauges.registered as u64)]);
        family("nodes_listed", "gauge", "Nodes in the directory.", &[("", gauges.listed as u64)]);
        family("directory_version", "gauge", "Version of the directory.", &[("", gauges.version)]);
        text
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
        let text = metrics.text(Gauges { registered: 3, listed: 2, version: 7 });
        assert!(text.contains("cepa_controller_answers_total{class=\"4xx\"} 1\n"), "{text}");
        assert!(text.contains("cepa_controller_admitted_total 1\n"), "{text}");
        assert!(text.contains("cepa_controller_nodes_listed 2\n"), "{text}");
        let names = |prefix: &str| text.lines().filter(|line| line.starts_with(prefix)).count();
        assert_eq!(names("# HELP"), names("# TYPE"));
        assert_eq!(names("cepa_controller_"), names("# TYPE") + 4);
    }
}
