//! `cepa rig files`: how fast a file is, from one and from four uploaders.
//!
//! In: a size, a rate. Out: MB/s, beside ipv8's tunnels. Called by: `cepa rig`.

use std::path::PathBuf;

use super::output::{self, OutputFlags, say};
use crate::rig::{
    files::{self, FilesOptions},
    link::LinkOptions,
};

/// Arguments of `cepa rig files`.
#[derive(clap::Args)]
pub(super) struct FilesArgs {
    /// The size of the file in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    size: u64,
    /// The rate of each uploader's cable, such as 100mbit [default: as fast as it goes]
    #[arg(long, value_name = "RATE")]
    rate: Option<String>,
    /// How often; the medians count
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=20))]
    rounds: u8,
    /// A Python with pyipv8 and ipv8-rust-tunnels, to measure beside it
    #[arg(long, value_name = "PYTHON")]
    ipv8: Option<PathBuf>,
    #[command(flatten)]
    output: OutputFlags,
}

impl FilesArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let rate = match &self.rate {
            Some(rate) => format!("rate={rate}").parse::<LinkOptions>()?.rate,
            None => None,
        };
        let options = FilesOptions {
            size: self.size << 20,
            rounds: usize::from(self.rounds),
            rate,
            ipv8: self.ipv8,
        };
        let found = files::measure(&options, &mut |line| eprintln!("{line}"))?;
        if self.output.json {
            return output::print_json("rig-files", &found);
        }
        if !found.optimised {
            say!("built without optimisation, so this says little");
        }
        let cables = self.rate.map_or_else(String::new, |rate| format!(", uploaders at {rate}"));
        say!(
            "{} MiB over 3 nodes on either side{cables}; medians of {} rounds",
            self.size,
            self.rounds
        );
        say!(
            "  1 uploader     {:8.1} MB/s, first verified byte after {} ms",
            found.median.one / 1e6,
            found.median.first_byte_ms
        );
        say!("  4 uploaders    {:8.1} MB/s", found.median.four / 1e6);
        if let (Some(ipv8), Some(ratio)) = (found.median.ipv8, found.ratio) {
            say!("  ipv8, 3 hops   {:8.1} MB/s; 1 uploader is {ratio:.1} times that", ipv8 / 1e6);
        }
        Ok(())
    }
}
