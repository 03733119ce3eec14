//! What round trips were measured between nodes, and their use in the choice of a path.
//!
//! In: round trips per hop of circuits, pairs of paths. Out: which of two paths is taken.
//! Called by: node (client role).
//!
//! A choice draws two paths by the rules, each as random as one alone would be, and three times in
//! four takes the faster of the two. So no path is more than 1.75 times as likely as without
//! measurements and none less than a quarter as likely, whatever was measured and whoever lies:
//! `docs/path-choice.md` has the arithmetic.

use std::{
    collections::{HashMap, hash_map::Entry},
    time::Duration,
};

use rand::{Rng, RngExt};

use super::{Directory, PathError, PathRules, choose_path};
use crate::model::{Hop, NodeId};

/// Links remembered at once.
const MOST_LINKS: usize = 4096;
/// One choice of so many takes no notice of what was measured.
const BLIND: u32 = 4;
/// The share of a new measurement in the smoothed round trip, as one of so many.
const SMOOTHING: u32 = 4;

/// Round trips between neighbours of this client's circuits, smoothed.
#[derive(Debug, Default)]
pub struct LinkTimes {
    links: HashMap<(NodeId, NodeId), Duration>,
}

impl LinkTimes {
    /// Takes in the round trips from this client to each hop of a circuit; none where unknown.
    pub fn measured(&mut self, path: &[Hop], rtts: &[Option<Duration>]) {
        for (hops, rtts) in path.windows(2).zip(rtts.windows(2)) {
            if let (Some(near), Some(far)) = (rtts[0], rtts[1]) {
                self.add(link(hops[0].id, hops[1].id), far.saturating_sub(near));
            }
        }
    }

    fn add(&mut self, link: (NodeId, NodeId), rtt: Duration) {
        let full = self.links.len() >= MOST_LINKS;
        match self.links.entry(link) {
            Entry::Occupied(mut known) => {
                let known = known.get_mut();
                *known = (*known * (SMOOTHING - 1) + rtt) / SMOOTHING;
            }
            // What is in use is measured again soon; a full table starts over.
            Entry::Vacant(place) if !full => {
                place.insert(rtt);
            }
            Entry::Vacant(_) => {
                self.links.clear();
                self.links.insert(link, rtt);
            }
        }
    }

    /// What a path's links take together. A link that was never measured counts as the middle one
    /// of those that were, so that it is tried as often as others.
    pub fn estimate(&self, path: &[Hop]) -> Duration {
        let mut known: Vec<Duration> = self.links.values().copied().collect();
        if known.is_empty() {
            return Duration::ZERO;
        }
        let middle = known.len() / 2;
        let (_, usual, _) = known.select_nth_unstable(middle);
        let usual = *usual;
        path.windows(2)
            .map(|hops| self.links.get(&link(hops[0].id, hops[1].id)).copied().unwrap_or(usual))
            .sum()
    }

    /// Chooses a path by the rules, with a bounded preference for what was measured to be fast.
    ///
    /// # Errors
    /// Why there is none.
    pub fn choose(
        &self,
        directory: &Directory,
        rules: &PathRules<'_>,
        rng: &mut impl Rng,
    ) -> Result<Vec<Hop>, PathError> {
        let first = choose_path(directory, rules, rng)?;
        if rules.fixed.is_some() || self.links.is_empty() || rng.random_ratio(1, BLIND) {
            return Ok(first);
        }
        let second = choose_path(directory, rules, rng)?;
        let faster = self.estimate(&second) < self.estimate(&first);
        Ok(if faster { second } else { first })
    }
}

/// One key for both directions.
fn link(one: NodeId, other: NodeId) -> (NodeId, NodeId) {
    if one <= other { (one, other) } else { (other, one) }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::{
        directory::test_network::{fake_directory, fake_id},
        model::Role,
    };

    const DRAWS: usize = 60_000;

    fn network() -> Directory {
        // 3 relays and 3 exits, each in a network of its own: 60 paths of 3 nodes.
        fake_directory(6, |index, descriptor| {
            descriptor.addrs = vec![([10, index as u8, 0, 1], 5000).into()];
            descriptor.roles = vec![Role::Relay];
            if index >= 3 {
                descriptor.roles.push(Role::Exit);
            }
        })
    }

    fn counts(times: &LinkTimes, directory: &Directory) -> HashMap<Vec<NodeId>, usize> {
        let mut rng = StdRng::seed_from_u64(5);
        let mut counts = HashMap::new();
        for _ in 0..DRAWS {
            let path = times.choose(directory, &PathRules::default(), &mut rng).unwrap();
            let ids: Vec<NodeId> = path.iter().map(|hop| hop.id).collect();
            *counts.entry(ids).or_default() += 1;
        }
        counts
    }

    #[test]
    fn no_path_is_crowded_out_and_none_drowns_the_others() {
        let directory = network();
        let plain = counts(&LinkTimes::default(), &directory);
        let mut times = LinkTimes::default();
        for one in 0..6 {
            for other in 0..one {
                let rtt = if one == 5 { 1 } else { 20 * (one + other) };
                times.add(link(fake_id(one), fake_id(other)), Duration::from_millis(rtt as u64));
            }
        }
        let measured = counts(&times, &directory);
        assert_eq!(measured.len(), plain.len(), "every path is taken at times");
        for (path, before) in &plain {
            let share = measured[path] as f64 / *before as f64;
            assert!((0.2..2.0).contains(&share), "{share} times as often as before");
        }
    }

    #[test]
    fn fast_links_are_preferred() {
        let directory = network();
        let mut times = LinkTimes::default();
        for one in 0..6 {
            for other in 0..one {
                let fast = one == 5 && other == 1;
                let rtt = Duration::from_millis(if fast { 1 } else { 50 });
                times.add(link(fake_id(one), fake_id(other)), rtt);
            }
        }
        let over_it = |counts: &HashMap<Vec<NodeId>, usize>| {
            let ends = |path: &[NodeId]| path[1..] == [fake_id(1), fake_id(5)];
            counts.iter().filter(|(path, _)| ends(path)).map(|(_, count)| count).sum::<usize>()
        };
        let plain = over_it(&counts(&LinkTimes::default(), &directory));
        let measured = over_it(&counts(&times, &directory));
        let share = measured as f64 / plain as f64;
        assert!((1.5..1.8).contains(&share), "{share} times as often as before");
    }

    #[test]
    fn links_are_what_lies_between_two_hops() {
        let directory = network();
        let path: Vec<Hop> =
            (3..6).rev().map(|n| directory.hop(&fake_id(n), None).unwrap()).collect();
        let ms = Duration::from_millis;
        let mut times = LinkTimes::default();
        assert_eq!(times.estimate(&path), Duration::ZERO);
        times.measured(&path, &[Some(ms(10)), Some(ms(30)), None]);
        assert_eq!(times.estimate(&path[..2]), ms(20));
        assert_eq!(times.estimate(&path), ms(40), "the unknown link counts as a usual one");
        let back: Vec<Hop> = path.iter().rev().cloned().collect();
        times.measured(&back, &[Some(ms(1)), Some(ms(0)), Some(ms(28))]);
        assert_eq!(times.estimate(&path[..2]), ms(22), "either direction, smoothed");
        assert_eq!(times.estimate(&path), ms(22), "a nearer hop that is slower counts as nothing");
    }

    #[test]
    fn memory_is_bounded() {
        let mut times = LinkTimes::default();
        for number in 0..10_000u64 {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&number.to_be_bytes());
            times.add(link(NodeId::from_bytes(id), fake_id(0)), Duration::from_millis(1));
            assert!(times.links.len() <= MOST_LINKS);
        }
    }
}
