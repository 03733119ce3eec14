//! `cepa client`: runs the client.
//!
//! In: flags and settings. Out: a daemon until it is stopped. Called by: the command line.

use super::settings_flags::SettingsFlags;
use crate::{
    config::{ClientConfig, Settings},
    node::run_client,
    telemetry::logs,
};

/// Arguments of `cepa client`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    settings: SettingsFlags<ClientConfig>,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let loaded = self.settings.load()?;
        let link = loaded.required("controller", &loaded.settings.controller)?;
        logs::init(ClientConfig::ROLE, loaded.settings.log_level())?;
        Ok(run_client(&loaded.settings, link)?)
    }
}
