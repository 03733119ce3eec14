//! `cepa node`: runs the node.
//!
//! In: flags and settings. Out: a daemon until it is stopped. Called by: the command line.

use super::settings_flags::SettingsFlags;
use crate::{
    config::{NodeConfig, Settings},
    node::run_node,
    telemetry::logs,
};

/// Arguments of `cepa node`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    settings: SettingsFlags<NodeConfig>,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let loaded = self.settings.load()?;
        let link = loaded.required("controller", &loaded.settings.controller)?;
        let name = loaded.required("name", &loaded.settings.name)?;
        logs::init(NodeConfig::ROLE, loaded.settings.log_level())?;
        Ok(run_node(&loaded.settings, link, name)?)
    }
}
