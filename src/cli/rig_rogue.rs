//! `cepa rig rogue`: an uploader that lies or stalls, on a host of the rig.
//!
//! In: a file, a manner. Out: a peer that nobody should put up with. Called by: `cepa rig`, which the
//! rig's scenario of file sharing starts.

use std::{path::PathBuf, time::Duration};

use crate::{
    directory::ControllerLink,
    model::Carrier,
    node::ShareSettings,
    peer_run::{Manner, OnionNetwork, misbehave},
};

/// Arguments of `cepa rig rogue`.
#[derive(clap::Args)]
pub(super) struct RogueArgs {
    /// The controller's link
    #[arg(long, value_name = "LINK")]
    controller: ControllerLink,
    /// The directory of its state
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// What it does to whoever asks
    #[arg(long, value_parser = ["lies", "stalls"])]
    manner: String,
    /// The file that it offers
    file: PathBuf,
}

impl RogueArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let manner = if self.manner == "lies" { Manner::Lies } else { Manner::Stalls };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        runtime.block_on(async {
            let settings = ShareSettings {
                link: self.controller,
                state: self.state,
                listen: None,
                hops: 3,
                path: Vec::new(),
                lab: true,
                rotate_every: Duration::from_secs(600),
                tracker: None,
                suites: Vec::new(),
                workers: 1,
                carrier: Carrier::Udp,
            };
            let (network, events) = OnionNetwork::start(settings).await?;
            Ok(misbehave(network, events, &self.file, manner).await?)
        })
    }
}
