//! cepa itself, with its defaults.
//!
//! In: the hosts. Out: a circuit through them. Called by: rig::peers.

use std::time::Duration;

use anyhow::Result;

use super::{Contender, PATH, Way};
use crate::rig::{
    daemons::{Daemons, Extra},
    network::Network,
    plan::RECEIVER_V4,
};

/// The daemons of controller, nodes and client.
pub(super) struct Onion(Daemons);

impl Onion {
    pub(super) fn start(network: &Network) -> Result<Self> {
        let mut daemons = Daemons::default();
        let extra = Extra { log: "info", ..Extra::default() };
        daemons.start_all(network, &PATH, &extra)?;
        daemons.start_client(network, &["--path", &PATH.join(",")])?;
        daemons.wait_connected(network, Duration::from_secs(30))?;
        Ok(Self(daemons))
    }
}

impl Contender for Onion {
    fn name(&self) -> &'static str {
        "cepa"
    }

    fn enter(&mut self, network: &Network) -> Result<Way> {
        self.0.wait_connected(network, Duration::from_secs(30))?;
        Ok(Way { to: RECEIVER_V4.into(), proxy: None })
    }

    fn leave(&mut self, _: &Network) -> Result<()> {
        Ok(())
    }

    fn processes(&self) -> Vec<(String, u32)> {
        let nodes = self.0.nodes.iter().map(|(name, node)| (name.clone(), node.pid()));
        let client = self.0.client.iter().map(|client| ("sender".to_owned(), client.pid()));
        nodes.chain(client).collect()
    }
}
