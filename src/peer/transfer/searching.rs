//! When to look for more sources.
//!
//! In: time, how searches went. Out: `Find` events. Called by: transfer.

use std::time::{Duration, Instant};

use super::{CloseReason, Transfer, TransferEvent};

/// A search that was begun counts as running for so long.
pub(super) const SEARCH: Duration = Duration::from_secs(6);
/// Pauses between searches without a source, and with some but not all.
pub(super) const SOON: Duration = Duration::from_secs(1);
const LATEST: Duration = Duration::from_secs(15);
const FOR_MORE: Duration = Duration::from_secs(20);

impl Transfer {
    /// The tracker asked so many sources; each that answers comes as a source.
    pub fn handle_found(&mut self, now: Instant, count: usize) {
        self.search_until = (count > 0).then_some(now + SEARCH);
        let pause = if self.actives() == 0 { self.pause } else { FOR_MORE };
        self.next_search = now + pause;
        self.pause = (self.pause * 2).min(LATEST);
    }

    /// The tracker knows nobody.
    pub fn handle_nobody(&mut self, now: Instant) {
        self.last_loss = None;
        self.handle_found(now, 0);
    }

    pub(super) fn search_soon(&mut self, now: Instant) {
        self.search_until = None;
        self.next_search = now;
    }

    /// Whether chunks are missing that nobody who is there has.
    pub(super) fn is_stuck(&self) -> bool {
        !self.wanted.is_empty()
            && self.sources.values().all(|source| !source.is_active() || source.owes.is_empty())
    }

    pub(super) fn search(&mut self, now: Instant) {
        if self.is_done || self.search_until.is_some() || self.next_search > now {
            return;
        }
        let is_stuck = self.is_stuck();
        if is_stuck && self.actives() >= self.config.sources {
            // Who has nothing more to give makes room for somebody who may.
            let spent = self.sources.iter().find(|(_, source)| source.is_active());
            if let Some(spent) = spent.map(|(id, _)| *id) {
                self.close(spent, CloseReason::Spare);
            }
        }
        let actives = self.actives();
        let left = (self.have.limit() - self.have.count()) as usize;
        let is_wanted =
            actives < self.config.sources && (actives == 0 || left > actives || is_stuck);
        if !is_wanted {
            return;
        }
        self.search_until = Some(now + SEARCH);
        let wanted = self.config.sources - actives;
        self.events.push_back(TransferEvent::Find { wanted, is_fresh: false });
    }
}
