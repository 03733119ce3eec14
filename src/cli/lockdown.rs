//! `cepa lockdown`: nothing leaves this machine but cells.
//!
//! In: the client's settings and state. Out: rules in the kernel, their status.
//! Called by: the command line, the unit that stands before the network.

use std::io::{BufRead, IsTerminal, stdin};

use serde::Serialize;

use super::{
    ExitCode, Failure,
    output::{self, OutputFlags, say},
    settings_flags::SettingsFlags,
    table::{count, seconds},
};
use crate::{
    config::{ClientConfig, Settings},
    node::{
        gateway,
        lock::{self, Planned},
    },
    telemetry::LockdownStatus,
};

/// Arguments of `cepa lockdown`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Let nothing leave but cells to the network's members; works before any network, and stays
    On(Box<OnArgs>),
    /// Say whether it holds, and what it held back
    Status(StatusArgs),
    /// Remove it: packets leave in clear again
    Off(OffArgs),
}

#[derive(clap::Args)]
struct OnArgs {
    #[command(flatten)]
    settings: SettingsFlags<ClientConfig>,
    #[command(flatten)]
    output: OutputFlags,
}

#[derive(clap::Args)]
struct StatusArgs {
    #[command(flatten)]
    output: OutputFlags,
}

#[derive(clap::Args)]
struct OffArgs {
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Serialize)]
struct Answer<'a> {
    lockdown: &'a LockdownStatus,
    warnings: &'a [String],
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self.action {
            Action::On(args) => args.run(),
            Action::Status(args) => status(args.output),
            Action::Off(args) => off(args.yes),
        }
    }
}

impl OnArgs {
    /// Locks whatever the settings and the state are like; what is wrong with them is said.
    fn run(self) -> anyhow::Result<()> {
        let (state, Planned { plan, warnings }) = match self.settings.load() {
            Ok(loaded) => (loaded.settings.state.clone(), lock::plan(&loaded.settings)),
            Err(error) => {
                let state = self
                    .settings
                    .given("state")
                    .or_else(|| std::env::var("CEPA_STATE").ok())
                    .map_or_else(|| ClientConfig::default().state, Into::into);
                let planned = lock::plan_without_settings(&state, &error.to_string());
                (state, planned)
            }
        };
        lock::turn_on(&plan)?;
        for warning in &warnings {
            eprintln!("cepa: {warning}");
        }
        if warnings.is_empty()
            && let Err(error) = plan.save(&state)
        {
            eprintln!("cepa: the plan is not kept for a start with broken settings: {error}");
        }
        let status = lock::status()?;
        if self.output.json {
            return output::print_json(
                "lockdown",
                &Answer { lockdown: &status, warnings: &warnings },
            );
        }
        say!(
            "The lockdown is on: only {} may send, as user {}, to {}.",
            ClientConfig::ROLE,
            status.uid.map_or_else(|| "nobody".to_owned(), |uid| uid.to_string()),
            count(status.endpoints, "endpoint")
        );
        Ok(())
    }
}

fn status(flags: OutputFlags) -> anyhow::Result<()> {
    let status = lock::status()?;
    if flags.json {
        output::print_json("lockdown", &Answer { lockdown: &status, warnings: &[] })?;
    } else {
        for line in lines(&status) {
            say!("{line}");
        }
    }
    if status.leaked_packets > 0 {
        return Err(Failure::answered(
            ExitCode::Leak,
            format!("{} packets left in clear since the lockdown began", status.leaked_packets),
        )
        .into());
    }
    Ok(())
}

/// The lines of a status, for people.
fn lines(status: &LockdownStatus) -> Vec<String> {
    if !status.on {
        return vec!["lockdown: off".to_owned(), "  next       sudo cepa lockdown on".to_owned()];
    }
    let mut lines = vec![format!("lockdown: {}", status.words())];
    let mut line = |name: &str, value: String| lines.push(format!("  {name:<11}{value}"));
    let daemon = status.uid.map_or_else(|| "nobody".to_owned(), |uid| format!("user {uid}"));
    line("may send", format!("{daemon}, to {}", count(status.endpoints, "endpoint")));
    let inside = if status.lan.is_empty() { "none".to_owned() } else { status.lan.join(" ") };
    line("inside", inside);
    if let Some(left) = status.unlocked_for_s {
        line("unlocked", format!("for {} more", seconds(left)));
    }
    line("leaked", count(status.leaked_packets as usize, "packet"));
    line(
        "held back",
        format!(
            "{} of this machine, {} of the inside, {} from outside",
            status.blocked_own, status.blocked_lan, status.blocked_in
        ),
    );
    if status.endpoints == 0 || status.uid.is_none() {
        line(
            "next",
            "give the client its controller's link, then: sudo cepa lockdown on".to_owned(),
        );
    }
    lines
}

fn off(yes: bool) -> anyhow::Result<()> {
    if !yes {
        if !stdin().is_terminal() {
            let text = "expected a person to confirm that packets leave in clear, got no terminal; \
                        give --yes";
            return Err(Failure::new(ExitCode::Usage, text).into());
        }
        eprint!("Without the lockdown packets leave this machine in clear. Remove it? [y/N] ");
        let mut line = String::new();
        stdin().lock().read_line(&mut line)?;
        if !matches!(line.trim(), "y" | "Y" | "yes") {
            say!("The lockdown stays.");
            return Ok(());
        }
    }
    let was_on = lock::turn_off()?;
    gateway::forget()?;
    if was_on {
        say!("The lockdown is off: packets leave in clear.");
    } else {
        say!("There was no lockdown.");
    }
    Ok(())
}
