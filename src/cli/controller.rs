//! `cepa controller`: runs the main controller.
//!
//! In: flags and settings. Out: a daemon until it is stopped. Called by: the command line.

use super::{ExitCode, Failure, settings_flags::SettingsFlags};
use crate::config::ControllerConfig;

/// Arguments of `cepa controller`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    settings: SettingsFlags<ControllerConfig>,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        self.settings.load()?;
        Err(Failure::new(ExitCode::Failed, "this version cannot run a controller").into())
    }
}
