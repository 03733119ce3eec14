//! `cepa unlock`: packets leave in clear for a while, and the kernel ends it.
//!
//! In: a time. Out: an element of the lockdown's sets that times out. Called by: the command line.

use super::{ExitCode, Failure, output::say, table::seconds};
use crate::{config::Period, node::lock};

/// A day: whoever needs longer wants `cepa lockdown off`.
const LONGEST_S: u64 = 86_400;

/// Arguments of `cepa unlock`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// For how long, such as 10m; at most a day
    #[arg(long = "for", value_name = "DURATION")]
    period: Period,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let amount = self.period.get().as_secs();
        if !(1..=LONGEST_S).contains(&amount) {
            let text = format!("expected 1s to 1d, got {}", self.period);
            return Err(Failure::new(ExitCode::Usage, text).into());
        }
        if !lock::status()?.on {
            let text = "expected a lockdown, got none: packets leave in clear already";
            return Err(Failure::new(ExitCode::Failed, text).into());
        }
        lock::unlock(amount)?;
        say!(
            "Packets of this machine may leave in clear for {}; those of the inside",
            seconds(amount)
        );
        say!("still may not. The kernel ends it, and so does a reboot. To end it now:");
        say!("  sudo cepa lockdown on");
        Ok(())
    }
}
