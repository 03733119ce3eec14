//! The chunks that nobody was asked for yet, the rarest first.
//!
//! In: chunks that are missing, who has which. Out: the next chunk to ask a source for.
//! Called by: transfer.
//!
//! Sources that have everything change nothing about which chunk is rare, so only those that lack
//! something are counted; among equally rare chunks the first comes first.

use std::collections::BTreeSet;

use crate::peer::bitmap::Bitmap;

/// Chunks by the number of incomplete sources that have them.
#[derive(Debug)]
pub(super) struct Wanted {
    holders: Vec<u16>,
    by_holders: Vec<BTreeSet<u32>>,
    count: usize,
}

impl Wanted {
    pub(super) fn new(have: &Bitmap) -> Self {
        let chunks: BTreeSet<u32> = (0..have.limit()).filter(|&chunk| !have.has(chunk)).collect();
        Self {
            holders: vec![0; have.limit() as usize],
            count: chunks.len(),
            by_holders: vec![chunks],
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Puts a chunk back.
    pub(super) fn insert(&mut self, chunk: u32) {
        let Some(&holders) = self.holders.get(chunk as usize) else { return };
        self.count += usize::from(self.bucket(holders).insert(chunk));
    }

    /// Takes a chunk out: somebody is asked for it, or it is there.
    pub(super) fn remove(&mut self, chunk: u32) {
        let Some(&holders) = self.holders.get(chunk as usize) else { return };
        self.count -= usize::from(self.bucket(holders).remove(&chunk));
    }

    fn bucket(&mut self, holders: u16) -> &mut BTreeSet<u32> {
        let holders = usize::from(holders);
        if self.by_holders.len() <= holders {
            self.by_holders.resize_with(holders + 1, BTreeSet::new);
        }
        &mut self.by_holders[holders]
    }

    /// One more, or one fewer, incomplete source has `chunk`.
    pub(super) fn count_holder(&mut self, chunk: u32, comes: bool) {
        let Some(&before) = self.holders.get(chunk as usize) else { return };
        let after = if comes { before.saturating_add(1) } else { before.saturating_sub(1) };
        self.holders[chunk as usize] = after;
        if self.bucket(before).remove(&chunk) {
            self.bucket(after).insert(chunk);
        }
    }

    /// The rarest chunk below `limit` that a source has; `None`: it has all.
    pub(super) fn rarest_of(&self, have: Option<&Bitmap>, limit: u32) -> Option<u32> {
        self.by_holders
            .iter()
            .flat_map(|chunks| chunks.range(..limit))
            .find(|chunk| have.is_none_or(|have| have.has(**chunk)))
            .copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rarest_comes_first() {
        let mut wanted = Wanted::new(&Bitmap::new(4));
        for chunk in [0, 0, 1, 2, 2, 3] {
            wanted.count_holder(chunk, true);
        }
        assert_eq!(wanted.rarest_of(None, 4), Some(1));
        assert_eq!(wanted.rarest_of(None, 1), Some(0), "the list of a directory goes first");
        wanted.remove(1);
        assert_eq!(wanted.rarest_of(None, 4), Some(3));
        let mut have = Bitmap::new(4);
        have.insert(2);
        assert_eq!(wanted.rarest_of(Some(&have), 4), Some(2));
        wanted.count_holder(2, false);
        wanted.count_holder(2, false);
        assert_eq!(wanted.rarest_of(None, 4), Some(2));
    }
}
