//! Which clients' ephemeral keys were seen, so that a CREATE is answered once.
//!
//! In: ephemeral keys. Out: seen or not. Called by: the node's circuits, once per onion key.
//!
//! The memory is bounded: when half of it is full, the older half is forgotten. A CREATE that is
//! replayed after that costs an RSA operation and a circuit that nobody has the keys of; turning
//! clients away instead would give anybody who sends enough CREATEs the node's day.

use std::collections::HashSet;

/// An ephemeral as it is remembered: the start of its hash.
pub(super) type Ephemeral = [u8; 16];

/// The ephemerals seen under one onion key, or the newest of them.
#[derive(Default)]
pub(super) struct Ephemerals {
    young: HashSet<Ephemeral>,
    old: HashSet<Ephemeral>,
}

impl Ephemerals {
    /// The form in which a key is remembered.
    pub(super) fn of(key: &[u8; 32]) -> Ephemeral {
        let mut short = Ephemeral::default();
        short.copy_from_slice(&blake3::hash(key).as_bytes()[..16]);
        short
    }

    /// Whether it was seen.
    pub(super) fn contains(&self, ephemeral: &Ephemeral) -> bool {
        self.young.contains(ephemeral) || self.old.contains(ephemeral)
    }

    /// Remembers it, and at most `most` in all.
    pub(super) fn insert(&mut self, ephemeral: Ephemeral, most: usize) {
        if self.young.len() >= (most / 2).max(1) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(ephemeral);
    }

    /// Forgets one whose CREATE was not answered after all.
    pub(super) fn forget(&mut self, ephemeral: &Ephemeral) {
        self.young.remove(ephemeral);
        self.old.remove(ephemeral);
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_half_is_known_and_no_more_than_all_is_kept() {
        let mut seen = Ephemerals::default();
        let number = |number: u32| Ephemerals::of(&[(number % 251) as u8; 32]);
        for now in 0..200u32 {
            assert!(!seen.contains(&number(now)));
            seen.insert(number(now), 20);
            assert!(seen.young.len() + seen.old.len() <= 20);
            assert!((now.saturating_sub(9)..=now).all(|recent| seen.contains(&number(recent))));
        }
        seen.forget(&number(199));
        assert!(!seen.contains(&number(199)));
        seen.clear();
        assert!(!seen.contains(&number(198)));
    }
}
