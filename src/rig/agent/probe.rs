//! One packet of every kind that leaks.
//!
//! In: destinations. Out: which the kernel took, and which it refused. Called by: rig::agent.

use std::{net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::client::probe::KINDS;

/// How probes went, on the side that sent them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ProbeAnswer {
    /// Packets that were handed to the kernel.
    pub tried: u32,
    /// What it refused, and why.
    pub refused: Vec<String>,
}

pub(super) fn probe(to: &[IpAddr], device: Option<&str>) -> ProbeAnswer {
    let mut answer = ProbeAnswer::default();
    for to in to {
        for kind in KINDS {
            answer.tried += 1;
            if let Err(error) = kind.fire(*to, device) {
                let family = if to.is_ipv4() { "v4" } else { "v6" };
                answer.refused.push(format!("{} {family}: {error}", kind.words()));
            }
        }
    }
    // What waits for a neighbour's address is sent once that is known.
    std::thread::sleep(Duration::from_millis(100));
    answer
}
