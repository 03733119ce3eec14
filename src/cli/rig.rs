//! `cepa rig`: the whole network on this machine.
//!
//! In: a scenario. Out: a report. Called by: the command line.

use std::{ffi::OsString, path::PathBuf};

use crate::rig::{agent, network};

/// Arguments of `cepa rig`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Run one of the rig's tools in this host
    #[command(hide = true)]
    Agent {
        /// What to do, as JSON
        tool: String,
    },
    /// Become a program in a host
    #[command(hide = true)]
    Inside {
        /// The file of the host's namespace
        namespace: PathBuf,
        /// The host's name
        host: String,
        /// The program and its arguments
        #[arg(last = true)]
        program: Vec<OsString>,
    },
    /// Clean up behind a rig that was killed
    #[command(hide = true)]
    Guardian {
        /// The run's directory
        dir: PathBuf,
    },
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self.action {
            Action::Agent { tool } => agent::run(&tool),
            Action::Inside { namespace, host, program } => {
                network::inside(&namespace, &host, &program)
            }
            Action::Guardian { dir } => network::guardian(&dir),
        }
    }
}
