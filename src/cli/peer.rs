//! `cepa peer`: shares files, gets files, shows the page.
//!
//! In: flags and settings. Out: a running peer, or one that was asked to do it.
//! Called by: the command line.

mod access;
mod commands;
mod progress;
mod serve;

use std::{path::PathBuf, time::Duration};

use clap::Subcommand;

use self::access::Access;
use super::{output::OutputFlags, settings_flags::SettingsFlags};
use crate::{
    config::{Loaded, PeerConfig, Settings},
    telemetry::logs,
};

/// Arguments of `cepa peer`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    settings: SettingsFlags<PeerConfig>,
    #[command(flatten)]
    output: OutputFlags,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Share files or directories; prints a link for each
    Share(ShareArgs),
    /// Get a file or directory by its link, name or id
    Get(GetArgs),
    /// List the catalogue, or with --mine what this peer shares and gets
    Ls(LsArgs),
    /// Stop sharing, by name or id
    Unshare(UnshareArgs),
    /// Keep sharing and getting, with a page in the browser
    Serve,
}

#[derive(clap::Args)]
struct ShareArgs {
    /// Files or directories
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Put the name into the catalogue, for everybody to see; without this, only who has the link
    /// can ask for it
    #[arg(long)]
    public: bool,
}

#[derive(clap::Args)]
struct GetArgs {
    /// A link (cepa:?...), a name of the catalogue, or an id that `ls` shows
    #[arg(value_name = "NAME|LINK")]
    what: String,
    /// Where to put it [default: the current directory]
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// Let the exits find each other by tracking code instead of a bridge
    #[arg(long)]
    via_code: bool,
    /// Give up when nothing arrived for so long, in seconds; without this, wait for a source
    #[arg(long, value_name = "SECONDS")]
    give_up: Option<u64>,
}

#[derive(clap::Args)]
struct LsArgs {
    /// Only names that contain this
    #[arg(default_value = "")]
    filter: String,
    /// What this peer shares and gets, instead of the catalogue
    #[arg(long)]
    mine: bool,
}

#[derive(clap::Args)]
struct UnshareArgs {
    /// The name or id of a share
    what: String,
}

/// How long the tracker has for an answer.
const PATIENCE: Duration = Duration::from_secs(40);

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let loaded = self.settings.load()?;
        let level = loaded.settings.log_level();
        logs::init(PeerConfig::ROLE, level)?;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let json = self.output.json;
        let result = runtime.block_on(self.command.run(&loaded, json));
        // A thread may be in the middle of a long read; nothing waits for it.
        runtime.shutdown_timeout(Duration::from_millis(300));
        result
    }
}

impl Command {
    async fn run(self, loaded: &Loaded<PeerConfig>, json: bool) -> anyhow::Result<()> {
        match &self {
            Self::Serve => return serve::run(loaded).await,
            Self::Get(args) => commands::check_what(args)?,
            _ => {}
        }
        let access = Access::open(loaded).await?;
        let result = match self {
            Self::Share(args) => commands::share(&access, args, json).await,
            Self::Get(args) => commands::get(&access, loaded, args, json).await,
            Self::Ls(args) => commands::ls(&access, args, json).await,
            Self::Unshare(args) => commands::unshare(&access, &args.what).await,
            Self::Serve => Ok(()),
        };
        access.end().await;
        result
    }
}
