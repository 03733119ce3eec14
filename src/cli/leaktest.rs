//! `cepa leaktest`: tries to leak, and looks whether it can.
//!
//! In: the client's settings. Out: a table of kinds and families; exit code 6 for a leak.
//! Called by: the command line.

use super::{
    ExitCode, Failure,
    output::{self, OutputFlags, say},
    settings_flags::SettingsFlags,
    table::Table,
};
use crate::{
    config::ClientConfig,
    node::{leaktest, lock},
    telemetry::LeakReport,
};

/// Arguments of `cepa leaktest`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    settings: SettingsFlags<ClientConfig>,
    #[command(flatten)]
    output: OutputFlags,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        // A leak test with broken settings is worth more than none; all is outside then.
        let settings = match self.settings.load() {
            Ok(loaded) => loaded.settings,
            Err(error) => {
                eprintln!("cepa: {error}; testing every interface");
                ClientConfig::default()
            }
        };
        let mut inside = settings.lan;
        inside.extend(lock::status()?.lan);
        let report = leaktest::run(&inside, &settings.tun)?;
        if self.output.json {
            output::print_json("leaktest", &report)?;
        } else {
            print(&report);
        }
        if report.leaked == 0 {
            return Ok(());
        }
        let text = format!(
            "{} of {} packets left in clear; lock this machine: sudo cepa lockdown on",
            report.leaked, report.tried
        );
        Err(Failure::answered(ExitCode::Leak, text).into())
    }
}

fn print(report: &LeakReport) {
    let word = |leaked: u64| {
        if leaked == 0 { "held back".to_owned() } else { format!("LEAKED {leaked}") }
    };
    let mut table = Table::new(&["packet", "IPv4", "IPv6"]);
    for v4 in report.probes.iter().filter(|probe| probe.family == 4) {
        let v6 = report
            .probes
            .iter()
            .find(|probe| probe.family == 6 && probe.kind == v4.kind)
            .map_or(0, |probe| probe.leaked);
        table.row([v4.kind.clone(), word(v4.leaked), word(v6)]);
    }
    for line in table.lines() {
        say!("{line}");
    }
    let watched = if report.interfaces.is_empty() {
        "no outside interface is up".to_owned()
    } else {
        format!("counted where {} takes packets", report.interfaces.join(" and "))
    };
    say!("{} packets tried, {} left in clear; {watched}.", report.tried, report.leaked);
}
