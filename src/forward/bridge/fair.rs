//! Equal shares of a full link for all bridges.
//!
//! In: cells of bridges, and how many cells the link refused. Out: whether a cell may go.
//! Called by: the exit's bridges.
//!
//! A bridge holds no queue at an exit: its cells go on from where they lie, and what waits is the
//! kernel's bounded socket buffer. While that is full, each bridge may send its share of what the
//! link took in the tick before; what is above is dropped here, before it takes another's place.

/// How much more than the last tick's share a bridge may try, so that a freed link is filled.
const GROWTH_PERCENT: u64 = 125;
/// No share is smaller than this, in cells a tick.
const LEAST_SHARE: u64 = 16;

/// The state of one link's shares.
#[derive(Debug, Default)]
pub(super) struct Shares {
    /// Cells a bridge may send in this tick; none: as many as it likes.
    most: Option<u64>,
    /// Cells of all bridges in this tick.
    sent: u64,
}

/// What one bridge has sent in this tick.
#[derive(Debug, Default)]
pub(super) struct Share(u64);

impl Shares {
    /// Whether a bridge may send one more cell.
    pub(super) fn take(&mut self, share: &mut Share) -> bool {
        if self.most.is_some_and(|most| share.0 >= most) {
            return false;
        }
        share.0 += 1;
        self.sent += 1;
        true
    }

    /// A tick is over: `refused` cells did not fit the link, and `shares` are those of all bridges.
    pub(super) fn tick<'a>(&mut self, refused: u64, shares: impl Iterator<Item = &'a mut Share>) {
        let mut active = 0;
        for share in shares {
            active += u64::from(share.0 > 0);
            share.0 = 0;
        }
        let taken = self.sent.saturating_sub(refused);
        self.most = (refused > 0 && active > 1)
            .then(|| (taken * GROWTH_PERCENT / 100 / active).max(LEAST_SHARE));
        self.sent = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link that takes `capacity` cells a tick, offered `demand` cells of each bridge in turns
    /// of unequal length.
    fn run(demand: [u64; 3], capacity: u64, ticks: usize) -> [u64; 3] {
        let (mut shares, mut state) = (Shares::default(), [(); 3].map(|()| Share::default()));
        let mut through = [0; 3];
        for tick in 0..ticks {
            let (mut left, mut refused) = (capacity, 0);
            for (index, demand) in demand.iter().enumerate() {
                for _ in 0..*demand {
                    if shares.take(&mut state[index]) {
                        if left > 0 {
                            left -= 1;
                            // The first tick finds the link unaware.
                            through[index] += u64::from(tick > 0);
                        } else {
                            refused += 1;
                        }
                    }
                }
            }
            shares.tick(refused, state.iter_mut());
        }
        through
    }

    #[test]
    fn an_idle_link_limits_nobody() {
        assert_eq!(run([1000, 10, 500], 10_000, 11), [10_000, 100, 5_000]);
    }

    #[test]
    fn a_greedy_bridge_leaves_the_others_their_share_of_a_full_link() {
        let through = run([100_000, 2_000, 2_000], 3_000, 101);
        assert!(through[0] >= 90_000, "{through:?}");
        assert!(through[1] >= 80_000 && through[2] >= 40_000, "{through:?}");
    }
}
