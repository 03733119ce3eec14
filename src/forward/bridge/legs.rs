//! The legs between an exit and trackers, one per circuit and tracker.
//!
//! In: frames of clients and of trackers. Out: whose they are. Called by: the exit's bridges.

use std::{collections::HashMap, time::Instant};

use rand::Rng;

use crate::model::{Cid, CircuitKey, DropReason, NodeId};

/// Trackers that one circuit may talk to.
const MOST_PER_CIRCUIT: usize = 4;
/// Frames that a circuit may send at once, and how many come back a second.
const BURST: u32 = 64;

/// A leg: its id stands for the circuit at the tracker (source 001).
pub(super) struct Leg {
    pub(super) circuit: CircuitKey,
    pub(super) tracker: NodeId,
}

struct Owner {
    legs: Vec<(NodeId, Cid)>,
    allowance: u32,
    refilled: Instant,
}

/// All legs of an exit.
#[derive(Default)]
pub(super) struct Legs {
    by_cid: HashMap<Cid, Leg>,
    owners: HashMap<CircuitKey, Owner>,
}

impl Legs {
    /// The leg of a circuit to a tracker, made when there is none; counts one frame.
    pub(super) fn of(
        &mut self,
        now: Instant,
        circuit: CircuitKey,
        tracker: NodeId,
        rng: &mut impl Rng,
    ) -> Result<Cid, DropReason> {
        let owner = self.owners.entry(circuit).or_insert_with(|| Owner {
            legs: Vec::new(),
            allowance: BURST,
            refilled: now,
        });
        let seconds = now.saturating_duration_since(owner.refilled).as_millis() as u32;
        let refill = seconds.saturating_mul(BURST) / 1000;
        if refill > 0 {
            owner.allowance = owner.allowance.saturating_add(refill).min(BURST);
            owner.refilled = now;
        }
        owner.allowance = owner.allowance.checked_sub(1).ok_or(DropReason::RateLimited)?;
        if let Some((_, cid)) = owner.legs.iter().find(|(known, _)| *known == tracker) {
            return Ok(*cid);
        }
        if owner.legs.len() >= MOST_PER_CIRCUIT {
            return Err(DropReason::RateLimited);
        }
        let cid = Cid::random(rng);
        owner.legs.push((tracker, cid));
        self.by_cid.insert(cid, Leg { circuit, tracker });
        Ok(cid)
    }

    /// Whose leg it is.
    pub(super) fn get(&self, cid: Cid) -> Option<&Leg> {
        self.by_cid.get(&cid)
    }

    /// Forgets the legs of a circuit.
    pub(super) fn remove(&mut self, circuit: CircuitKey) {
        for (_, cid) in self.owners.remove(&circuit).into_iter().flat_map(|owner| owner.legs) {
            self.by_cid.remove(&cid);
        }
    }
}
