//! `cepa controller`: runs the main controller, or manages its link, tokens, nodes and key.
//!
//! In: flags and settings. Out: a daemon until it is stopped, or one answer.
//! Called by: the command line.

mod key;
mod nodes;
mod token;

use serde::Serialize;

use super::{
    output::{OutputFlags, print_json, say},
    settings_flags::SettingsFlags,
};
use crate::{
    config::{ControllerConfig, Settings as _},
    controller::{Administration, Controller, Settings},
    telemetry::{
        logs,
        service_manager::{ready, stop_signal},
    },
};

/// Arguments of `cepa controller`.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = false, subcommand_negates_reqs = true)]
pub(super) struct Args {
    #[command(flatten)]
    settings: SettingsFlags<ControllerConfig>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Print the link that nodes and clients are given
    Link(LinkArgs),
    /// Make, list and revoke the single-use tokens that let nodes in
    Token(token::Args),
    /// List the registered nodes, or take one out
    Nodes(nodes::Args),
    /// Change the controller's key, or keep it after its database was lost
    Key(key::Args),
}

#[derive(clap::Args)]
struct LinkArgs {
    #[command(flatten)]
    output: OutputFlags,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let loaded = self.settings.load()?;
        let settings = Settings::from(&loaded.settings);
        match self.command {
            None => {
                logs::init(ControllerConfig::ROLE, loaded.settings.log_level())?;
                run(settings)
            }
            Some(Command::Link(args)) => link(&settings, args.output),
            Some(Command::Token(args)) => args.run(&settings),
            Some(Command::Nodes(args)) => args.run(&settings),
            Some(Command::Key(args)) => args.run(&settings),
        }
    }
}

fn run(settings: Settings) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let controller = Controller::start(settings).await?;
        ready();
        controller.serve(stop_signal()).await;
        Ok(())
    })
}

#[derive(Serialize)]
struct LinkAnswer {
    link: String,
}

fn link(settings: &Settings, output: OutputFlags) -> anyhow::Result<()> {
    let link = Administration::open(settings)?.link()?.to_string();
    if output.json {
        return print_json("controller-link", &LinkAnswer { link });
    }
    say!("{link}");
    Ok(())
}
