//! `cepa node`: runs the node.
//!
//! In: flags and settings. Out: a daemon until it is stopped. Called by: the command line.

use super::{ExitCode, Failure, settings_flags::SettingsFlags};
use crate::config::NodeConfig;

/// Arguments of `cepa node`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    settings: SettingsFlags<NodeConfig>,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let loaded = self.settings.load()?;
        loaded.required("controller", &loaded.settings.controller)?;
        Err(Failure::new(ExitCode::Failed, "this version cannot run a node").into())
    }
}
