//! `cepa tracker`: runs the tracker.
//!
//! In: flags and settings. Out: a daemon until it is stopped. Called by: the command line.

use super::settings_flags::SettingsFlags;
use crate::{
    config::{Settings, TrackerConfig},
    node::run_tracker,
    telemetry::logs,
};

/// Arguments of `cepa tracker`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    settings: SettingsFlags<TrackerConfig>,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let loaded = self.settings.load()?;
        let link = loaded.required("controller", &loaded.settings.controller)?;
        let name = loaded.required("name", &loaded.settings.name)?;
        logs::init(TrackerConfig::ROLE, loaded.settings.log_level())?;
        Ok(run_tracker(&loaded.settings, link, name)?)
    }
}
