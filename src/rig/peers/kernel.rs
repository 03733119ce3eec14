//! Bare kernel forwarding: the limit of these hosts.
//!
//! In: the hosts. Out: a way through their kernels. Called by: rig::peers.

use anyhow::Result;

use super::{Contender, PATH, Way};
use crate::rig::{
    network::{BarePath, Network},
    plan::BARE_V4,
};

/// No daemon at all.
#[derive(Default)]
pub(super) struct Kernel(Option<BarePath>);

impl Contender for Kernel {
    fn name(&self) -> &'static str {
        "bare"
    }

    fn enter(&mut self, network: &Network) -> Result<Way> {
        self.0 = Some(network.bare_path(&PATH)?);
        Ok(Way { to: BARE_V4.into(), proxy: None })
    }

    fn leave(&mut self, network: &Network) -> Result<()> {
        self.0.take().map_or(Ok(()), |path| network.remove_bare_path(path))
    }

    fn processes(&self) -> Vec<(String, u32)> {
        Vec::new()
    }
}
