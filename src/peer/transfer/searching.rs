//! When to look for more sources.
//!
//! In: time, how searches went. Out: `Find` events. Called by: transfer.

use std::time::{Duration, Instant};

use super::{Transfer, TransferEvent};

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

    pub(super) fn search(&mut self, now: Instant) {
        let actives = self.actives();
        let left = (self.have.limit() - self.have.count()) as usize;
        // Chunks that nobody who is there has.
        let is_stuck = !self.wanted.is_empty()
            && self.sources.values().all(|source| !source.is_active() || source.owes.is_empty());
        let is_wanted =
            actives < self.config.sources && (actives == 0 || left > actives || is_stuck);
        if self.is_done || !is_wanted || self.search_until.is_some() || self.next_search > now {
            return;
        }
        self.search_until = Some(now + SEARCH);
        let wanted = self.config.sources - actives;
        self.events.push_back(TransferEvent::Find { wanted, is_fresh: false });
    }
}
