//! Which circuit new flows take: one active, one spare, the old ones draining.
//!
//! In: circuits that became ready, stalled or went away, flows per circuit, the time. Out: whether
//! to build, which to close. Called by: the client's event loop.
//!
//! ```text
//! building -> spare -> active -> draining -> closed
//!               stalled: takes no new flows and keeps those it has, until it is heard again or
//!                        another circuit has proved for a moment that this machine is online
//! ```

use std::time::{Duration, Instant};

use rand::{Rng, RngExt};

use crate::model::CircuitKey;

/// Circuits being built at once, at most.
const MAX_BUILDING: usize = 4;
/// How long a new circuit is in use before the stalled ones are given up.
const STALLED_GRACE: Duration = Duration::from_millis(1_500);

/// How circuits come and go.
#[derive(Clone, Debug)]
pub struct PoolSettings {
    /// New flows move to another circuit after this long, give or take a fifth.
    pub rotate_every: Duration,
    /// A draining circuit without flows is closed; one with flows after this long all the same.
    pub drain_at_most: Duration,
    /// A circuit not built after this long is raced by another.
    pub race_after: Duration,
    /// The first pause after a circuit could not be built; doubles up to [`Self::retry_at_most`].
    pub retry_after: Duration,
    /// The longest pause between attempts.
    pub retry_at_most: Duration,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            rotate_every: Duration::from_secs(600),
            drain_at_most: Duration::from_secs(3_600),
            race_after: Duration::from_millis(700),
            retry_after: Duration::from_millis(250),
            retry_at_most: Duration::from_secs(15),
        }
    }
}

/// The roles of a client's circuits.
pub struct Pool {
    settings: PoolSettings,
    active: Option<CircuitKey>,
    active_since: Option<Instant>,
    rotate_at: Option<Instant>,
    spare: Option<CircuitKey>,
    building: Vec<(CircuitKey, Instant)>,
    draining: Vec<(CircuitKey, Instant)>,
    stalled: Vec<CircuitKey>,
    failures: u32,
    retry_at: Option<Instant>,
}

impl Pool {
    /// A pool without circuits.
    pub fn new(settings: PoolSettings) -> Self {
        Self {
            settings,
            active: None,
            active_since: None,
            rotate_at: None,
            spare: None,
            building: Vec::new(),
            draining: Vec::new(),
            stalled: Vec::new(),
            failures: 0,
            retry_at: None,
        }
    }

    /// The circuit that new flows take.
    pub fn active(&self) -> Option<CircuitKey> {
        self.active
    }

    /// The circuit that is ready to take over.
    pub fn spare(&self) -> Option<CircuitKey> {
        self.spare
    }

    /// Whether the circuit only serves the flows it has.
    pub fn is_draining(&self, key: CircuitKey) -> bool {
        self.draining.iter().any(|(draining, _)| *draining == key)
    }

    /// Attempts that failed since the last that did not.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Whether a circuit should be built now. One that is slow to build is raced by another.
    pub fn wants_circuit(&self, now: Instant) -> bool {
        let have = usize::from(self.active.is_some()) + usize::from(self.spare.is_some());
        let slow =
            |since: Instant| now.saturating_duration_since(since) >= self.settings.race_after;
        let promising = self.building.iter().filter(|(_, since)| !slow(*since)).count();
        have + promising < 2
            && self.building.len() < MAX_BUILDING
            && self.retry_at.is_none_or(|at| now >= at)
    }

    /// A circuit is being built.
    pub fn on_building(&mut self, now: Instant, key: CircuitKey) {
        self.building.push((key, now));
    }

    /// No circuit could be started.
    pub fn on_no_path(&mut self, now: Instant) {
        self.back_off(now);
    }

    /// A circuit is ready: active if there is none, spare otherwise.
    pub fn on_ready(&mut self, now: Instant, key: CircuitKey, rng: &mut impl Rng) {
        self.building.retain(|(building, _)| *building != key);
        self.failures = 0;
        self.retry_at = None;
        if self.active.is_none() {
            self.activate(now, key, rng);
        } else if self.spare.is_none() {
            self.spare = Some(key);
        } else {
            self.draining.push((key, now));
        }
    }

    /// A circuit that was built for it takes the new flows; the active one drains.
    pub fn prefer(&mut self, now: Instant, key: CircuitKey, rng: &mut impl Rng) {
        if self.active == Some(key) {
            return;
        }
        self.draining.retain(|(draining, _)| *draining != key);
        if self.spare == Some(key) {
            self.spare = None;
        }
        self.draining.extend(self.active.take().map(|active| (active, now)));
        self.activate(now, key, rng);
    }

    /// A circuit's first hop is silent; the spare takes over at once if it was the active one.
    pub fn on_stalled(&mut self, now: Instant, key: CircuitKey, rng: &mut impl Rng) {
        self.leave(now, key, rng);
        self.stalled.push(key);
    }

    /// A stalled circuit is heard again.
    pub fn on_resumed(&mut self, now: Instant, key: CircuitKey, rng: &mut impl Rng) {
        if self.stalled.contains(&key) {
            self.stalled.retain(|stalled| *stalled != key);
            self.on_ready(now, key, rng);
        }
    }

    /// A circuit is gone; the spare takes over at once if it was the active one.
    pub fn on_closed(&mut self, now: Instant, key: CircuitKey, rng: &mut impl Rng) {
        if self.building.iter().any(|(building, _)| *building == key) {
            self.building.retain(|(building, _)| *building != key);
            self.back_off(now);
        }
        self.stalled.retain(|stalled| *stalled != key);
        self.leave(now, key, rng);
    }

    /// Takes a circuit out of its role.
    fn leave(&mut self, now: Instant, key: CircuitKey, rng: &mut impl Rng) {
        self.draining.retain(|(draining, _)| *draining != key);
        if self.spare == Some(key) {
            self.spare = None;
        }
        if self.active == Some(key) {
            self.active = None;
            self.active_since = None;
            if let Some(spare) = self.spare.take() {
                self.activate(now, spare, rng);
            }
        }
    }

    /// New flows take another circuit from here on; says whether there was one to take.
    pub fn rotate(&mut self, now: Instant, rng: &mut impl Rng) -> bool {
        let (Some(active), Some(spare)) = (self.active, self.spare) else { return false };
        self.spare = None;
        self.draining.push((active, now));
        self.activate(now, spare, rng);
        true
    }

    /// Gives the spare away for good, and says when whoever takes it should take another.
    pub fn give_away_spare(
        &mut self,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<(CircuitKey, Instant)> {
        let spare = self.spare.take()?;
        Some((spare, self.rotation(now, rng)))
    }

    /// Takes a circuit back that was given away: it serves the flows it has, and is closed.
    pub fn drain(&mut self, now: Instant, key: CircuitKey) {
        self.draining.push((key, now));
    }

    /// Rotates when it is time; returns the draining and stalled circuits that should be closed.
    pub fn handle_timeout(
        &mut self,
        now: Instant,
        flows: impl Fn(CircuitKey) -> usize,
        rng: &mut impl Rng,
    ) -> Vec<CircuitKey> {
        if self.rotate_at.is_some_and(|at| now >= at) {
            self.rotate(now, rng);
        }
        let limit = self.settings.drain_at_most;
        let is_online = self
            .active_since
            .is_some_and(|since| now.saturating_duration_since(since) >= STALLED_GRACE);
        let given_up = self.stalled.iter().copied().filter(|_| is_online);
        self.draining
            .iter()
            .filter(|(key, since)| {
                flows(*key) == 0 || now.saturating_duration_since(*since) >= limit
            })
            .map(|(key, _)| *key)
            .chain(given_up)
            .collect()
    }

    /// When something is to be done after `now` without an event, and what.
    pub fn poll_timeout(&self, now: Instant) -> Option<(Instant, &'static str)> {
        let retry = self.retry_at.map(|at| (at, "retry"));
        let rotate = self.rotate_at.map(|at| (at, "rotate"));
        let race =
            self.building.iter().map(|(_, since)| (*since + self.settings.race_after, "race"));
        retry
            .into_iter()
            .chain(rotate)
            .chain(race)
            .filter(|(at, _)| *at > now)
            .min_by_key(|(at, _)| *at)
    }

    fn activate(&mut self, now: Instant, key: CircuitKey, rng: &mut impl Rng) {
        self.active = Some(key);
        self.active_since = Some(now);
        self.rotate_at = Some(self.rotation(now, rng));
    }

    fn rotation(&self, now: Instant, rng: &mut impl Rng) -> Instant {
        now + self.settings.rotate_every.mul_f64(rng.random_range(0.8..1.2))
    }

    fn back_off(&mut self, now: Instant) {
        let pause = self.settings.retry_after * 2u32.pow(self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(now + pause.min(self.settings.retry_at_most));
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn pool() -> (Pool, Instant, StdRng) {
        (Pool::new(PoolSettings::default()), Instant::now(), StdRng::seed_from_u64(1))
    }

    #[test]
    fn the_spare_takes_over_and_another_is_wanted() {
        let (mut pool, now, mut rng) = pool();
        for number in 0..2 {
            assert!(pool.wants_circuit(now));
            pool.on_building(now, CircuitKey(number));
            pool.on_ready(now, CircuitKey(number), &mut rng);
        }
        assert!(!pool.wants_circuit(now));
        pool.on_closed(now, CircuitKey(0), &mut rng);
        assert_eq!((pool.active(), pool.spare()), (Some(CircuitKey(1)), None));
        assert!(pool.wants_circuit(now));
    }

    #[test]
    fn rotation_drains_the_old_circuit_until_its_flows_end() {
        let (mut pool, now, mut rng) = pool();
        pool.on_ready(now, CircuitKey(0), &mut rng);
        pool.on_ready(now, CircuitKey(1), &mut rng);
        assert_eq!(pool.handle_timeout(now + Duration::from_secs(479), |_| 1, &mut rng), []);
        assert_eq!(pool.active(), Some(CircuitKey(0)));
        let later = now + Duration::from_secs(721);
        assert_eq!(pool.handle_timeout(later, |_| 1, &mut rng), []);
        assert_eq!(pool.active(), Some(CircuitKey(1)));
        assert!(pool.is_draining(CircuitKey(0)));
        assert_eq!(pool.handle_timeout(later, |_| 0, &mut rng), [CircuitKey(0)]);
        assert_eq!(
            pool.handle_timeout(later + Duration::from_secs(3_601), |_| 1, &mut rng),
            [CircuitKey(0)]
        );
    }

    #[test]
    fn a_circuit_built_for_it_takes_the_new_flows() {
        let (mut pool, now, mut rng) = pool();
        for number in 0..3 {
            pool.on_ready(now, CircuitKey(number), &mut rng);
        }
        pool.prefer(now, CircuitKey(2), &mut rng);
        assert_eq!((pool.active(), pool.spare()), (Some(CircuitKey(2)), Some(CircuitKey(1))));
        assert!(pool.is_draining(CircuitKey(0)) && !pool.is_draining(CircuitKey(2)));
        pool.prefer(now, CircuitKey(1), &mut rng);
        assert_eq!((pool.active(), pool.spare()), (Some(CircuitKey(1)), None));
        pool.prefer(now, CircuitKey(1), &mut rng);
        assert!(!pool.is_draining(CircuitKey(1)), "it is active already");
    }

    #[test]
    fn stalled_circuits_wait_until_another_is_in_use_or_they_are_heard_again() {
        let (mut pool, now, mut rng) = pool();
        let later = |ms| now + Duration::from_millis(ms);
        pool.on_ready(now, CircuitKey(0), &mut rng);
        pool.on_ready(now, CircuitKey(1), &mut rng);
        for number in 0..2 {
            pool.on_stalled(later(1_000), CircuitKey(number), &mut rng);
        }
        assert_eq!((pool.active(), pool.spare()), (None, None));
        assert!(pool.wants_circuit(later(1_000)));
        assert_eq!(pool.handle_timeout(later(30_000), |_| 1, &mut rng), []);
        pool.on_resumed(later(31_000), CircuitKey(1), &mut rng);
        assert_eq!(pool.active(), Some(CircuitKey(1)));
        assert_eq!(pool.handle_timeout(later(32_000), |_| 1, &mut rng), []);
        assert_eq!(pool.handle_timeout(later(32_600), |_| 1, &mut rng), [CircuitKey(0)]);
        pool.on_closed(later(32_600), CircuitKey(0), &mut rng);
        pool.on_resumed(later(32_700), CircuitKey(0), &mut rng);
        assert_eq!(pool.spare(), None, "what is gone does not come back");
    }

    #[test]
    fn failures_pause_longer_and_longer() {
        let (mut pool, now, mut rng) = pool();
        pool.on_building(now, CircuitKey(0));
        pool.on_closed(now, CircuitKey(0), &mut rng);
        assert!(!pool.wants_circuit(now));
        assert!(pool.wants_circuit(now + Duration::from_millis(250)));
        for _ in 0..40 {
            pool.on_no_path(now);
        }
        assert!(!pool.wants_circuit(now + Duration::from_secs(14)));
        assert!(pool.wants_circuit(now + Duration::from_secs(15)));
    }
}
