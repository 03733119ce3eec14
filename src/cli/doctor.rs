//! `cepa doctor`: looks at everything that has to be right, and says how to put right what is not.
//!
//! In: settings, state, the kernel, the running client. Out: a line per check, with its fix.
//! Called by: the command line, `cepa bugreport`.

mod checks;

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{
    ExitCode, Failure,
    output::{self, OutputFlags, say},
    settings_flags::SettingsFlags,
    table::count,
};
use crate::config::ClientConfig;

/// What all checks together may take.
const PATIENCE: Duration = Duration::from_millis(4500);

/// Arguments of `cepa doctor`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    settings: SettingsFlags<ClientConfig>,
    #[command(flatten)]
    output: OutputFlags,
}

/// How a check came out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Ok,
    /// It does not apply here.
    Skip,
    Warn,
    Fail,
}

impl Verdict {
    const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Skip => "-",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
        }
    }
}

/// One check, done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Finding {
    pub(super) check: &'static str,
    pub(super) verdict: Verdict,
    /// What was found.
    pub(super) found: String,
    /// What to do about it.
    pub(super) fix: Option<String>,
    /// Whether a leak was seen.
    #[serde(skip)]
    pub(super) leak: bool,
}

impl Finding {
    fn new(check: &'static str, verdict: Verdict, found: impl Into<String>) -> Self {
        Self { check, verdict, found: found.into(), fix: None, leak: false }
    }

    fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

#[derive(Serialize)]
struct Answer<'a> {
    ok: bool,
    seconds: f64,
    checks: &'a [Finding],
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let started = Instant::now();
        let loaded = self.settings.load();
        let findings = examine(loaded.map(|loaded| loaded.settings));
        let failed = findings.iter().filter(|found| found.verdict == Verdict::Fail).count();
        let warned = findings.iter().filter(|found| found.verdict == Verdict::Warn).count();
        if self.output.json {
            let seconds = started.elapsed().as_secs_f64();
            output::print_json("doctor", &Answer { ok: failed == 0, seconds, checks: &findings })?;
        } else {
            for line in lines(&findings) {
                say!("{line}");
            }
            say!(
                "\n{} in {:.1} s: {failed} failed, {}",
                count(findings.len(), "check"),
                started.elapsed().as_secs_f64(),
                count(warned, "warning")
            );
        }
        if failed == 0 {
            return Ok(());
        }
        let leak = findings.iter().any(|found| found.leak);
        let code = if leak { ExitCode::Leak } else { ExitCode::Failed };
        Err(Failure::answered(code, format!("{} failed", count(failed, "check"))).into())
    }
}

/// Every check, at once, within the time; what is not done by then has failed.
pub(super) fn examine(settings: Result<ClientConfig, crate::config::ConfigError>) -> Vec<Finding> {
    let (settings, first) = match settings {
        Ok(settings) => (settings, Finding::new("settings", Verdict::Ok, "can be read")),
        Err(error) => {
            let found = Finding::new("settings", Verdict::Fail, error.to_string());
            let fix = "correct the file; deploy/config/client.toml lists every key";
            (ClientConfig::default(), found.fix(fix))
        }
    };
    let deadline = Instant::now() + PATIENCE;
    let (sender, results) = mpsc::channel();
    for (number, (_, check)) in checks::ALL.iter().enumerate() {
        let (sender, settings) = (sender.clone(), settings.clone());
        // A check that hangs is left behind; the process ends soon.
        thread::spawn(move || {
            let _ = sender.send((number, check(&settings)));
        });
    }
    drop(sender);
    let mut findings: Vec<Option<Vec<Finding>>> = vec![None; checks::ALL.len()];
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        match results.recv_timeout(left) {
            Ok((number, found)) => findings[number] = Some(found),
            Err(_) => break,
        }
    }
    let done = findings.into_iter().zip(checks::ALL).flat_map(|(found, (name, _))| {
        found.unwrap_or_else(|| {
            let late = format!("no result within {PATIENCE:?}");
            vec![
                Finding::new(name, Verdict::Fail, late)
                    .fix("see whether this machine is overloaded"),
            ]
        })
    });
    std::iter::once(first).chain(done).collect()
}

/// The lines of a report, for people.
pub(super) fn lines(findings: &[Finding]) -> Vec<String> {
    let mut lines = Vec::new();
    for Finding { check, verdict, found, fix, .. } in findings {
        lines.push(format!("{:<5}{check:<12}{found}", verdict.word()));
        if let Some(fix) = fix
            && *verdict >= Verdict::Warn
        {
            lines.push(format!("     {:<12}{fix}", "fix:"));
        }
    }
    lines
}
