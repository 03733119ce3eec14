//! `cepa bugreport`: what a person who helps needs to know, and nothing of who and where.
//!
//! In: the running daemons, checks, rules, routes, the journal. Out: text, shown before it is
//! written. Called by: the command line.

use std::{
    fmt::Write as _,
    fs::File,
    io::{BufRead, IsTerminal, Write as _, stdin},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    process::Command,
};

use jiff::Timestamp;

use super::{
    ExitCode, Failure, daemon,
    doctor::{self, lines},
    output::{self, say},
    settings_flags::SettingsFlags,
};
use crate::{
    capture::nft,
    client::{gateway, lockdown},
    config::ClientConfig,
    telemetry::{
        Status,
        control::{Request, command},
        redact::Redactor,
    },
};

/// Arguments of `cepa bugreport`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Where to write it [default: cepa-bugreport-TIME.txt here]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write it without asking
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    settings: SettingsFlags<ClientConfig>,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let mut redactor = Redactor::default();
        let report = self.collect(&mut redactor);
        let report = redactor.text(&report);
        output::print(format_args!("{report}"));
        let now = Timestamp::now();
        let file = self.output.unwrap_or_else(|| {
            PathBuf::from(format!("cepa-bugreport-{}.txt", now.strftime("%Y%m%d-%H%M%S")))
        });
        if !self.yes {
            if !stdin().is_terminal() {
                eprintln!("cepa: nothing is written; give --yes to write {}", file.display());
                return Ok(());
            }
            eprint!("\nThis is all of it. Write it to {}? [y/N] ", file.display());
            let mut line = String::new();
            stdin().lock().read_line(&mut line)?;
            if !matches!(line.trim(), "y" | "Y" | "yes") {
                say!("Nothing is written.");
                return Ok(());
            }
        }
        let mut out =
            File::options().write(true).create_new(true).mode(0o600).open(&file).map_err(
                |error| {
                    let text = format!(
                        "expected to make {}, got {error}; name another with --output",
                        file.display()
                    );
                    Failure::new(ExitCode::Failed, text)
                },
            )?;
        out.write_all(report.as_bytes())?;
        eprintln!("cepa: written to {}", file.display());
        Ok(())
    }

    /// Everything, with names that the redactor is told of.
    fn collect(&self, redactor: &mut Redactor) -> String {
        let mut text = format!("cepa {} bug report\n", env!("CARGO_PKG_VERSION"));
        let mut section = |title: &str, body: &str| {
            // Writing into a string cannot fail.
            let _ = write!(text, "\n== {title}\n{}\n", body.trim_end());
        };
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let system = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let pretty = system.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
        section(
            "system",
            &format!(
                "{} {}, {}",
                kernel.trim(),
                std::env::consts::ARCH,
                pretty.unwrap_or("unknown").trim_matches('"')
            ),
        );
        if let Ok(host) = std::fs::read_to_string("/proc/sys/kernel/hostname") {
            redactor.name(host.trim(), "host name");
        }
        section("daemons", &daemons(redactor));
        let settings = self.settings.load();
        if let Ok(loaded) = &settings {
            for node in &loaded.settings.path {
                redactor.name(node, "node");
            }
            if let Some(link) = &loaded.settings.controller {
                redactor.name(link.host(), "controller");
            }
        }
        section(
            "checks",
            &lines(&doctor::examine(settings.map(|loaded| loaded.settings))).join("\n"),
        );
        for (title, table) in [("lockdown", lockdown::TABLE), ("gateway", gateway::TABLE)] {
            let rules = nft::text("inet", table).unwrap_or_else(|error| error.to_string());
            section(title, &rules);
        }
        for (title, words) in [
            ("interfaces", "ip -brief address"),
            ("rules", "ip rule"),
            ("routes IPv4", "ip route show table all"),
            ("routes IPv6", "ip -6 route show table all"),
            (
                "log of the client",
                "journalctl --no-pager --lines 200 --output short-monotonic -t cepa-client",
            ),
            (
                "log of the node",
                "journalctl --no-pager --lines 200 --output short-monotonic -t cepa-node",
            ),
        ] {
            section(title, &said(words));
        }
        text
    }
}

/// What the daemons say of themselves; names of nodes are told to the redactor.
fn daemons(redactor: &mut Redactor) -> String {
    let mut text = String::new();
    for place in daemon::every_place().unwrap_or_default() {
        let request = Request::plain(command::STATUS);
        match daemon::ask_place::<Status>(&place, &request, daemon::PATIENCE) {
            Ok(status) => {
                match &status {
                    Status::Client(client) => {
                        for hop in client.circuits.iter().flat_map(|circuit| &circuit.hops) {
                            redactor.name(&hop.name, "node");
                        }
                    }
                    Status::Node(node) => redactor.name(&node.name, "node"),
                    Status::Tracker(tracker) => redactor.name(&tracker.name, "tracker"),
                    Status::Controller(_) => {}
                }
                text.push_str(&serde_json::to_string_pretty(&status).unwrap_or_default());
                text.push('\n');
            }
            Err(error) => text.push_str(&format!("{error:#}\n")),
        }
    }
    text
}

/// What a program of the system says; that there is none, is said, too.
fn said(words: &str) -> String {
    let mut words = words.split(' ');
    let program = words.next().unwrap_or_default();
    match Command::new(program).args(words).output() {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => format!("{program}: {error}"),
    }
}
