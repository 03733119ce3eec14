//! `cepa client`: runs the client, or ends the one that runs.
//!
//! In: flags and settings. Out: a daemon until it is stopped. Called by: the command line.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{
    ExitCode, Failure,
    daemon::{self, PATIENCE},
    output::say,
    settings_flags::SettingsFlags,
};
use crate::{
    config::{ClientConfig, Settings},
    node::{lock, run_client},
    telemetry::{
        control::{ControlError, Place, Request, command},
        logs,
    },
};

/// Arguments of `cepa client`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    settings: SettingsFlags<ClientConfig>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(clap::Subcommand)]
enum Command {
    /// End the running client; a lockdown stays, so nothing leaves in clear
    Down,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let loaded = self.settings.load()?;
        if let Some(Command::Down) = self.command {
            return down(&loaded.settings);
        }
        let link = loaded.required("controller", &loaded.settings.controller)?;
        logs::init(ClientConfig::ROLE, loaded.settings.log_level())?;
        Ok(run_client(&loaded.settings, link)?)
    }
}

fn down(settings: &ClientConfig) -> anyhow::Result<()> {
    let own = (settings.state != ClientConfig::default().state).then_some(&*settings.state);
    let place = Place::new(ClientConfig::ROLE, own);
    daemon::ask_place::<()>(&place, &Request::plain(command::STOP), PATIENCE)?;
    let deadline = Instant::now() + Duration::from_secs(10);
    // A daemon that is ending still listens, and refuses.
    let is_gone = || {
        let asked = daemon::ask_place::<serde_json::Value>(
            &place,
            &Request::plain(command::STATUS),
            PATIENCE,
        );
        asked
            .is_err_and(|error| matches!(error.downcast_ref(), Some(ControlError::NoDaemon { .. })))
    };
    while !is_gone() {
        if Instant::now() > deadline {
            let text = "expected the client to end within 10 s, got an answer still; its log says \
                        what it waits for";
            return Err(Failure::new(ExitCode::Failed, text).into());
        }
        thread::sleep(Duration::from_millis(50));
    }
    match lock::status() {
        Ok(status) if status.on => {
            say!("The client is down. The lockdown stays: nothing leaves in clear.");
            say!("To go online in clear for a while: sudo cepa unlock --for 10m");
        }
        Ok(_) => {
            say!("The client is down. There is no lockdown: packets leave in clear.");
            say!("To prevent that: sudo cepa lockdown on");
        }
        Err(error) => say!("The client is down. Whether a lockdown holds is not known: {error}"),
    }
    Ok(())
}
