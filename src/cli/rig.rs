//! `cepa rig`: the whole network on this machine.
//!
//! In: a scenario. Out: a report. Called by: the command line.

use super::{ExitCode, Failure, output::OutputFlags};

/// Arguments of `cepa rig`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    output: OutputFlags,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let _ = self.output.json;
        Err(Failure::new(ExitCode::Failed, "this version cannot run the rig").into())
    }
}
