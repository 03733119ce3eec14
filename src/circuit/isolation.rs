//! Circuits of their own for those who must not be seen together: one per isolation group.
//!
//! In: groups of new flows, spares of the pool, the time. Out: the circuit of a group.
//! Called by: the client's event loop.
//!
//! A group takes the pool's spare, which never carried anybody's flow, so it need not wait; the
//! pool then builds another spare. Those who asked for nothing share the pool's active circuit.

use std::time::{Duration, Instant};

use rand::Rng;

use super::Pool;
use crate::model::CircuitKey;

/// Groups of one kind at once: each holds a circuit on three nodes.
const MOST_GROUPS: usize = 32;
/// A group without flows keeps its circuit for so long.
const IDLE: Duration = Duration::from_secs(120);

/// Who must not be seen together with anybody else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Group {
    /// Everybody who asked for nothing.
    Shared,
    /// A login at the proxies, by number.
    Login(u32),
    /// A device of a gateway, by number.
    Device(u8),
}

impl Group {
    /// The group of a login; 0 is everybody.
    pub const fn of_login(number: u32) -> Self {
        if number == 0 { Self::Shared } else { Self::Login(number) }
    }
}

/// The circuits of isolation groups.
#[derive(Debug, Default)]
pub struct Isolation {
    groups: Vec<Held>,
}

#[derive(Debug)]
struct Held {
    group: Group,
    circuit: CircuitKey,
    rotate_at: Instant,
    last_used: Instant,
}

impl Isolation {
    /// The circuit for a new flow of a group; none while the pool has no spare, or when there are
    /// too many groups.
    pub fn choose(
        &mut self,
        now: Instant,
        group: Group,
        pool: &mut Pool,
        rng: &mut impl Rng,
    ) -> Option<CircuitKey> {
        if group == Group::Shared {
            return pool.active();
        }
        if let Some(known) = self.groups.iter_mut().find(|known| known.group == group) {
            known.last_used = now;
            if now >= known.rotate_at
                && let Some((fresh, rotate_at)) = pool.give_away_spare(now, rng)
            {
                pool.drain(now, known.circuit);
                known.circuit = fresh;
                known.rotate_at = rotate_at;
            }
            return Some(known.circuit);
        }
        let kind = std::mem::discriminant(&group);
        let alike = |held: &&Held| std::mem::discriminant(&held.group) == kind;
        if self.groups.iter().filter(alike).count() >= MOST_GROUPS {
            return None;
        }
        let (circuit, rotate_at) = pool.give_away_spare(now, rng)?;
        self.groups.push(Held { group, circuit, rotate_at, last_used: now });
        Some(circuit)
    }

    /// Whether a circuit belongs to a group.
    pub fn holds(&self, circuit: CircuitKey) -> bool {
        self.groups.iter().any(|group| group.circuit == circuit)
    }

    /// How many groups there are.
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// A circuit is gone; its group takes another with its next flow.
    pub fn on_closed(&mut self, circuit: CircuitKey) {
        self.groups.retain(|group| group.circuit != circuit);
    }

    /// Lets go of the circuits of groups that are silent: the pool closes them.
    pub fn handle_timeout(
        &mut self,
        now: Instant,
        pool: &mut Pool,
        flows: impl Fn(CircuitKey) -> usize,
    ) {
        self.groups.retain(|group| {
            let is_silent =
                now.saturating_duration_since(group.last_used) >= IDLE && flows(group.circuit) == 0;
            if is_silent {
                pool.drain(now, group.circuit);
            }
            !is_silent
        });
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::circuit::PoolSettings;

    fn ready(pool: &mut Pool, now: Instant, number: u32) {
        pool.on_building(now, CircuitKey(number));
        pool.on_ready(now, CircuitKey(number), &mut StdRng::seed_from_u64(1));
    }

    #[test]
    fn no_two_groups_share_a_circuit_and_each_keeps_its_own() {
        let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(2));
        let (mut pool, mut isolation) = (Pool::new(PoolSettings::default()), Isolation::default());
        assert_eq!(isolation.choose(now, Group::of_login(7), &mut pool, &mut rng), None);
        ready(&mut pool, now, 0);
        assert_eq!(
            isolation.choose(now, Group::of_login(7), &mut pool, &mut rng),
            None,
            "the active is for all"
        );
        ready(&mut pool, now, 1);
        assert_eq!(
            isolation.choose(now, Group::of_login(7), &mut pool, &mut rng),
            Some(CircuitKey(1))
        );
        assert!(pool.wants_circuit(now), "the spare is gone");
        assert_eq!(isolation.choose(now, Group::of_login(8), &mut pool, &mut rng), None);
        ready(&mut pool, now, 2);
        assert_eq!(
            isolation.choose(now, Group::of_login(8), &mut pool, &mut rng),
            Some(CircuitKey(2))
        );
        assert_eq!(
            isolation.choose(now, Group::of_login(7), &mut pool, &mut rng),
            Some(CircuitKey(1))
        );
        assert_eq!(
            isolation.choose(now, Group::of_login(0), &mut pool, &mut rng),
            Some(CircuitKey(0))
        );
        ready(&mut pool, now, 3);
        let later = now + Duration::from_secs(721);
        assert_eq!(
            isolation.choose(later, Group::of_login(7), &mut pool, &mut rng),
            Some(CircuitKey(3))
        );
        assert!(pool.is_draining(CircuitKey(1)));
    }

    #[test]
    fn a_silent_group_lets_go_and_a_broken_circuit_is_replaced() {
        let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(2));
        let (mut pool, mut isolation) = (Pool::new(PoolSettings::default()), Isolation::default());
        ready(&mut pool, now, 0);
        ready(&mut pool, now, 1);
        isolation.choose(now, Group::of_login(7), &mut pool, &mut rng);
        isolation.handle_timeout(now + IDLE, &mut pool, |_| 1);
        assert!(isolation.holds(CircuitKey(1)));
        isolation.handle_timeout(now + IDLE, &mut pool, |_| 0);
        assert!(isolation.is_empty() && pool.is_draining(CircuitKey(1)));
        ready(&mut pool, now, 2);
        isolation.choose(now, Group::of_login(7), &mut pool, &mut rng);
        isolation.on_closed(CircuitKey(2));
        ready(&mut pool, now, 3);
        assert_eq!(
            isolation.choose(now, Group::of_login(7), &mut pool, &mut rng),
            Some(CircuitKey(3))
        );
    }

    #[test]
    fn there_are_not_more_groups_than_circuits_can_be_held() {
        let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(2));
        let (mut pool, mut isolation) = (Pool::new(PoolSettings::default()), Isolation::default());
        ready(&mut pool, now, 0);
        for group in 1..=MOST_GROUPS as u32 + 1 {
            ready(&mut pool, now, group);
            let got = isolation.choose(now, Group::Login(group), &mut pool, &mut rng);
            assert_eq!(got.is_some(), group <= MOST_GROUPS as u32, "{group}");
        }
        assert_eq!(isolation.len(), MOST_GROUPS);
        // Logins do not take what devices need.
        let device = isolation.choose(now, Group::Device(1), &mut pool, &mut rng);
        assert!(device.is_some());
    }
}
