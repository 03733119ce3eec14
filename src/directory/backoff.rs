//! How long to wait before the next attempt.
//!
//! In: a random source. Out: growing, jittered delays. Called by: node, the HTTP client's users.

use std::time::Duration;

use rand::{Rng, RngExt};

/// Doubling delays between two bounds, each shortened by up to a half at random, so that many
/// nodes do not come back at once.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
    attempts: u32,
}

impl Default for Backoff {
    /// 1 s to 15 s: half of the time after which an unseen node counts as down.
    fn default() -> Self {
        Self::new(Duration::from_secs(1), Duration::from_secs(15))
    }
}

impl Backoff {
    /// Delays from `first` to `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first, attempts: 0 }
    }

    /// The delay before the next attempt.
    pub fn next_delay(&mut self, rng: &mut impl Rng) -> Duration {
        let full = self.next;
        self.next = full.saturating_mul(2).min(self.longest);
        self.attempts = self.attempts.saturating_add(1);
        full.mul_f64(rng.random_range(0.5..=1.0))
    }

    /// Failed attempts in a row, for status.
    pub const fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Starts over after a success.
    pub const fn reset(&mut self) {
        self.next = self.first;
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn delays_grow_to_the_bound_and_start_over() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let mut backoff = Backoff::default();
        for full in [1, 2, 4, 8, 15, 15, 15] {
            let full = Duration::from_secs(full);
            let delay = backoff.next_delay(&mut rng);
            assert!(delay <= full && delay >= full / 2, "{delay:?} of {full:?}");
        }
        assert_eq!(backoff.attempts(), 7);
        backoff.reset();
        assert!(backoff.next_delay(&mut rng) <= Duration::from_secs(1));
    }
}
