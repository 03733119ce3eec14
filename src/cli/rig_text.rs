//! What `cepa rig` prints for people.
//!
//! In: promises, reports, figures. Out: lines. Called by: `cepa rig`.

use std::{
    fmt::Write,
    io::{IsTerminal, stderr, stdout},
};

use crate::rig::{
    bench::{Bench, PathFigures},
    promise::Promise,
    report::Report,
    stage::Watcher,
};

/// Tells each promise as it is decided; on the error stream if standard output is for a program.
pub(super) struct Progress {
    quiet_output: bool,
    colour: bool,
}

impl Progress {
    pub(super) fn new(quiet_output: bool) -> Self {
        let terminal = if quiet_output { stderr().is_terminal() } else { stdout().is_terminal() };
        Self { quiet_output, colour: terminal && std::env::var_os("NO_COLOR").is_none() }
    }

    fn line(&self, text: &str) {
        if self.quiet_output {
            eprintln!("{text}");
        } else {
            super::output::print(format_args!("{text}\n"));
        }
    }
}

impl Watcher for Progress {
    fn begins(&mut self, scenario: &str) {
        self.line(&format!("\n{scenario}"));
    }

    fn decided(&mut self, promise: &Promise) {
        let mark = match (promise.kept, self.colour) {
            (true, true) => "\x1b[32mPASS\x1b[0m",
            (true, false) => "PASS",
            (false, true) => "\x1b[31mFAIL\x1b[0m",
            (false, false) => "FAIL",
        };
        let evidence = promise.evidence.replace('\n', "\n       ");
        self.line(&format!("  {mark} {}\n       {evidence}", promise.name));
    }
}

/// The end of a run.
pub(super) fn summary(report: &Report) -> String {
    let mut text = String::new();
    let picture = report.picture();
    if !picture.is_empty() {
        let _ = write!(text, "\nWho meets whom\n\n{picture}");
    }
    if !report.parties.is_empty() {
        let _ = writeln!(text, "\nWhat each party saw of the files\n");
    }
    for party in &report.parties {
        let _ = writeln!(text, "  {:<8} {}", party.who, party.saw);
    }
    let (kept, all) = report.count();
    let _ = writeln!(text, "\n{kept} of {all} promises are kept.");
    for promise in report.promises.iter().filter(|promise| !promise.kept) {
        let _ = writeln!(text, "  FAIL {}: {}", promise.scenario, promise.name);
    }
    for (what, place) in [("Captures: ", &report.captures), ("Logs:     ", &report.logs)] {
        if let Some(place) = place {
            let _ = writeln!(text, "{what}{}", place.display());
        }
    }
    text
}

/// The figures of a benchmark.
pub(super) fn bench(bench: &Bench) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "sender - {} - receiver, {} connection(s), {} s each, on {} processor(s){}",
        bench.path.join(" - "),
        bench.flows,
        bench.duration_s,
        bench.processors,
        if bench.optimised { "" } else { "; built without optimisation, so this says little" }
    );
    let _ = writeln!(text, "{:<30}{:>12}{:>12}", "", "bare", "cepa");
    type Row = (&'static str, fn(&PathFigures) -> f64);
    let rows: [Row; 6] = [
        ("TCP up, Gb/s", |path| path.tcp_up_gbps),
        ("TCP down, Gb/s", |path| path.tcp_down_gbps),
        ("UDP arrived, Gb/s", |path| path.udp_gbps),
        ("UDP lost, %", |path| path.udp_loss * 100.0),
        ("round trip median, ms", |path| path.rtt_p50_ms),
        ("round trip 99 %, ms", |path| path.rtt_p99_ms),
    ];
    for (name, field) in rows {
        let _ =
            writeln!(text, "{name:<30}{:>12.3}{:>12.3}", field(&bench.bare), field(&bench.cepa));
    }
    let _ = writeln!(
        text,
        "ratio {:.3} (up {:.3}, down {:.3}); added round trip {:.3} ms median, {:.3} ms at 99 %",
        bench.ratio,
        bench.ratio_up,
        bench.ratio_down,
        bench.added_rtt_p50_ms,
        bench.added_rtt_p99_ms
    );
    let _ = writeln!(
        text,
        "{:<14}{:>14}{:>16}{:>16}",
        "daemon", "CPU share", "CPU s per GB", "MiB resident"
    );
    for (host, cost) in &bench.hosts {
        let _ = writeln!(
            text,
            "{host:<14}{:>14.2}{:>16.3}{:>16.1}",
            cost.cpu_share, cost.cpu_s_per_gb, cost.resident_mib
        );
    }
    text
}
