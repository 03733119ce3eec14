//! `cepa nodes`: asks the controller which nodes there are.
//!
//! In: the controller's link. Out: a table or JSON. Called by: the command line.

use super::{ExitCode, Failure, output::OutputFlags};

/// Arguments of `cepa nodes`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    output: OutputFlags,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let _ = self.output.json;
        Err(Failure::new(ExitCode::Failed, "this version cannot list nodes").into())
    }
}
