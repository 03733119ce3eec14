//! `cepa status`: what the daemons of this machine are doing.
//!
//! In: snapshots. Out: a few lines per daemon, with one next step when something is wrong.
//! Called by: the command line.

use std::{
    fmt::Write as _,
    io::{IsTerminal, stdout},
    path::PathBuf,
    thread,
    time::Duration,
};

use serde::Serialize;

use super::{
    daemon::{self, PATIENCE},
    output::{self, OutputFlags, say},
    status_text,
};
use crate::telemetry::{
    Status,
    control::{ControlError, Place, Request, command},
};

/// Arguments of `cepa status`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The state directory of the daemon to ask [default: every role's, by its settings]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Show it again every second, with rates, until interrupted
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    output: OutputFlags,
}

#[derive(Serialize)]
struct Answer {
    daemons: Vec<Status>,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let places = match &self.state {
            Some(dir) => vec![daemon::place_in(dir)],
            None => daemon::every_place()?,
        };
        let mut before = Vec::new();
        loop {
            let daemons = ask_all(&places)?;
            if self.output.json {
                let answer = Answer { daemons };
                if self.watch {
                    say!("{}", output::json_line("status", &answer)?);
                } else {
                    output::print_json("status", &answer)?;
                }
            } else {
                let mut text = String::new();
                if self.watch && stdout().is_terminal() {
                    text.push_str("\x1b[2J\x1b[H");
                }
                for (index, daemon) in daemons.iter().enumerate() {
                    if index > 0 {
                        text.push('\n');
                    }
                    text.push_str(&status_text::of(daemon, before.get(index)));
                }
                if self.watch {
                    // Writing into a string cannot fail.
                    let _ = writeln!(text);
                }
                output::print(format_args!("{text}"));
                before = daemons;
            }
            if !self.watch {
                return Ok(());
            }
            thread::sleep(Duration::from_secs(1));
        }
    }
}

/// The daemons that run; an error if none does.
fn ask_all(places: &[Place]) -> anyhow::Result<Vec<Status>> {
    let mut daemons = Vec::new();
    let mut nobody = None;
    for place in places {
        match daemon::ask_place(place, &Request::plain(command::STATUS), PATIENCE) {
            Ok(status) => daemons.push(status),
            Err(error) => match error.downcast_ref::<ControlError>() {
                Some(ControlError::NoDaemon { .. }) => nobody = nobody.or(Some(error)),
                _ => return Err(error),
            },
        }
    }
    match nobody {
        Some(error) if daemons.is_empty() => Err(error),
        _ => Ok(daemons),
    }
}
