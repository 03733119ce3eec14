//! Which sequence numbers of a sender were seen.
//!
//! In: authenticated numbers. Out: fresh or not. Called by: the tables of this folder.
//!
//! A sliding bitmap in the manner of RFC 6479: the window moves by whole words, so that no bits
//! are shifted.

use crate::model::prefetch;

/// Words of the bitmap: one more than the window needs, because the newest word is partly ahead.
const WORDS: usize = 33;
const BITS: u32 = u64::BITS;

/// The last 2,048 sequence numbers of one sender, and whether each was seen.
#[derive(Clone)]
pub struct ReplayWindow {
    newest: Option<u32>,
    seen: [u64; WORDS],
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self { newest: None, seen: [0; WORDS] }
    }
}

impl ReplayWindow {
    /// How far behind the newest number a number may be.
    pub const WINDOW: u32 = (WORDS as u32 - 1) * BITS;

    /// The newest number marked, if any.
    pub const fn newest(&self) -> Option<u32> {
        self.newest
    }

    /// Has what [`Self::is_fresh`] looks at fetched.
    pub fn prefetch(&self, seq: u32) {
        prefetch(&self.newest);
        prefetch(&self.seen[word(seq)]);
    }

    /// Whether `seq` is neither seen nor too old. Marks nothing: the cell is not authenticated yet.
    pub fn is_fresh(&self, seq: u32) -> bool {
        match self.newest {
            None => true,
            Some(newest) if seq > newest => true,
            Some(newest) if newest - seq >= Self::WINDOW => false,
            Some(_) => self.seen[word(seq)] & bit(seq) == 0,
        }
    }

    /// Marks an authenticated number; true when it is the newest so far.
    pub fn mark(&mut self, seq: u32) -> bool {
        let newest = match self.newest {
            None => {
                self.newest = Some(seq);
                self.seen[word(seq)] |= bit(seq);
                return true;
            }
            Some(newest) => newest,
        };
        if seq > newest {
            let steps = (seq / BITS - newest / BITS).min(WORDS as u32);
            for step in 1..=steps {
                self.seen[((newest / BITS + step) as usize) % WORDS] = 0;
            }
            self.newest = Some(seq);
        }
        self.seen[word(seq)] |= bit(seq);
        seq > newest
    }
}

const fn word(seq: u32) -> usize {
    (seq / BITS) as usize % WORDS
}

const fn bit(seq: u32) -> u64 {
    1 << (seq % BITS)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The window agrees with a set that remembers everything.
        #[test]
        fn agrees_with_a_perfect_memory(start in 0u32..1 << 30, steps in prop::collection::vec(-3000i64..3000, 1..600)) {
            let mut window = ReplayWindow::default();
            let mut seen = HashSet::new();
            let mut newest = None::<u32>;
            let mut at = i64::from(start) + 4000;
            for step in steps {
                at = (at + step).max(0);
                let seq = at as u32;
                let expected = !seen.contains(&seq)
                    && newest.is_none_or(|newest| seq > newest || newest - seq < ReplayWindow::WINDOW);
                prop_assert_eq!(window.is_fresh(seq), expected);
                if expected {
                    let is_newest = window.mark(seq);
                    prop_assert_eq!(is_newest, newest.is_none_or(|newest| seq > newest));
                    seen.insert(seq);
                    newest = Some(newest.map_or(seq, |newest| newest.max(seq)));
                }
            }
        }
    }

    #[test]
    fn a_jump_over_the_whole_window_forgets_it() {
        let mut window = ReplayWindow::default();
        window.mark(5);
        window.mark(5 + 10 * ReplayWindow::WINDOW);
        assert!(!window.is_fresh(5), "too old");
        assert!(window.is_fresh(4 + 10 * ReplayWindow::WINDOW));
    }
}
