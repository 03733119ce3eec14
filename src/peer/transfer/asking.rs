//! Which source is asked for which chunk next.
//!
//! In: what is missing, what each source owes and how fast it is. Out: `Want` events.
//! Called by: transfer.

use std::time::Instant;

use super::{SourceId, Transfer, TransferEvent};

impl Transfer {
    /// Asks every source for as much as it may owe, in turns.
    pub(super) fn ask_all(&mut self, now: Instant) {
        let mut asked = !self.is_done;
        while asked {
            asked = false;
            let ids: Vec<_> = self.sources.keys().copied().collect();
            for id in ids {
                asked |= self.ask_one(now, id);
            }
        }
    }

    fn ask_one(&mut self, now: Instant, id: SourceId) -> bool {
        let Some(source) = self.sources.get(&id) else { return false };
        if source.room(now) == 0 {
            return false;
        }
        let chunk = if self.wanted.is_empty() {
            self.slowest_owed(now, id)
        } else {
            let front_is_there = (0..self.front).all(|chunk| self.have.has(chunk));
            let limit = if front_is_there { self.have.limit() } else { self.front };
            self.wanted.rarest_of(source.have.as_ref(), limit)
        };
        let Some(chunk) = chunk else { return false };
        self.wanted.remove(chunk);
        if let Some(source) = self.sources.get_mut(&id) {
            source.ask(now, chunk);
        }
        self.events.push_back(TransferEvent::Want(id, chunk));
        true
    }

    /// At the end: a chunk that another source owes, and that this one would send much sooner.
    fn slowest_owed(&self, now: Instant, id: SourceId) -> Option<u32> {
        let own = self.sources.get(&id)?;
        let soon = own.seconds_for(now, own.owes.len() + 1);
        let (_, slowest) = self
            .sources
            .iter()
            .filter(|(other, source)| **other != id && !source.owes.is_empty())
            .map(|(_, source)| (source.seconds_for(now, source.owes.len()), source))
            .filter(|(seconds, _)| *seconds > soon * 1.5)
            .max_by(|(a, _), (b, _)| a.total_cmp(b))?;
        slowest.owes.iter().rev().copied().find(|chunk| {
            let asked = self.sources.values().filter(|source| source.owes.contains(chunk)).count();
            asked < 2 && own.has(*chunk) && !own.owes.contains(chunk)
        })
    }
}
