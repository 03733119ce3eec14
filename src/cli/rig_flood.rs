//! `cepa rig flood`: what CREATEs cost.
//!
//! In: a rate. Out: times and goodput. Called by: `cepa rig`.

use super::output::{self, OutputFlags, say};
use crate::rig::flood::{self, FloodOptions};

/// Arguments of `cepa rig flood`.
#[derive(clap::Args)]
pub(super) struct FloodArgs {
    /// Forged CREATEs per second
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    rate: u32,
    /// How long each flow of TCP lasts, such as 5s
    #[arg(long, value_name = "DURATION", default_value = "3s")]
    duration: String,
    /// Both floods alternate so often; the medians count
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=20))]
    rounds: u8,
    #[command(flatten)]
    output: OutputFlags,
}

impl FloodArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let options = FloodOptions {
            rate: self.rate,
            duration: crate::rig::link::duration(&self.duration)?,
            rounds: usize::from(self.rounds),
        };
        let found = flood::flood(&options, &mut |line| eprintln!("{line}"))?;
        if self.output.json {
            return output::print_json("rig-flood", &found);
        }
        say!("RSA-3072 private operation    {:8.3} ms", found.rsa_ms);
        say!(
            "circuit of 3 nodes            {:8.3} ms: three such operations and {:.3} ms",
            found.build_ms,
            found.build_beside_rsa_ms
        );
        say!(
            "flood                         {:8.0} forged CREATEs/s; the guard counted {}",
            found.sent_per_s,
            found.counted
        );
        say!("TCP while it is discarded     {:8.3} Gb/s", found.discarded_gbps);
        say!("TCP while the guard gets it   {:8.3} Gb/s", found.forged_gbps);
        say!("ratio                         {:8.3}", found.ratio);
        Ok(())
    }
}
