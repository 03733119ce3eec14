//! `cepa controller key`: changes the controller's key, or keeps it after its database was lost.
//!
//! In: flags, the state directory. Out: the new link. Called by: `cepa controller`.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::{
    cli::{
        output::{OutputFlags, print_json, say},
        table::seconds,
    },
    config::Period,
    controller::{Administration, KEY_OVERLAP, Settings, adopt_key},
};

/// Arguments of `cepa controller key`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Make a new key, let the old one sign it over, and remove the old one
    Rotate(RotateArgs),
    /// Start without nodes and tokens, with the key whose database was lost
    Adopt(AdoptArgs),
}

#[derive(clap::Args)]
struct RotateArgs {
    /// How long those who know the old key can follow to the new one [default: 30d]
    #[arg(long, value_name = "DURATION")]
    overlap: Option<Period>,
    #[command(flatten)]
    output: OutputFlags,
}

#[derive(clap::Args)]
struct AdoptArgs {
    #[command(flatten)]
    output: OutputFlags,
}

#[derive(Serialize)]
struct RotateAnswer {
    link: String,
}

#[derive(Serialize)]
struct AdoptAnswer {
    fingerprint: String,
}

impl Args {
    pub(super) fn run(self, settings: &Settings) -> anyhow::Result<()> {
        match self.command {
            Command::Rotate(args) => {
                let overlap = match args.overlap {
                    Some(period) => {
                        SignedDuration::try_from(period.get()).unwrap_or(SignedDuration::MAX)
                    }
                    None => KEY_OVERLAP,
                };
                let mut admin = Administration::open_existing(settings)?;
                let link = admin.rotate_key(Timestamp::now(), overlap)?.to_string();
                if args.output.json {
                    return print_json("controller-key-rotate", &RotateAnswer { link });
                }
                let overlap = seconds(u64::try_from(overlap.as_secs()).unwrap_or(0));
                say!("the controller has a new key; members that ask within {overlap} follow");
                say!("the new link, for those who join from now on:");
                say!("{link}");
                Ok(())
            }
            Command::Adopt(args) => {
                let fingerprint = adopt_key(settings)?.to_string();
                if args.output.json {
                    return print_json("controller-key-adopt", &AdoptAnswer { fingerprint });
                }
                say!("kept the key {fingerprint}; every node joins again with a new token");
                Ok(())
            }
        }
    }
}
