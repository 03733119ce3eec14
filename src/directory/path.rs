//! The choice of a path: random, distinct, guard first, an exit last.
//!
//! In: a checked directory, rules, a random source. Out: hops in path order.
//! Called by: node (client role), cli.
//!
//! Outside a lab a path has at least 3 hops, and no two of its nodes share an IPv4 /16, an IPv6
//! /32 or an operator label.

use std::net::IpAddr;

use rand::{Rng, seq::SliceRandom};

use super::{Directory, view::Member};
use crate::model::{Hop, MIN_HOPS, NodeId, SLOTS, Suite};

/// How many nodes one choice looks at before it gives up: enough for any network where a path is
/// not a rare exception, and a few milliseconds at most.
const LOOKS: usize = 200_000;

/// What a path must be like.
#[derive(Clone, Debug)]
pub struct PathRules<'a> {
    /// How many nodes; 3 or 4, in a lab 1 to 4.
    pub hops: usize,
    /// The node that stands first, if one is pinned.
    pub guard: Option<NodeId>,
    /// Nodes not to be used.
    pub exclude: &'a [NodeId],
    /// Allows 1 to 4 hops, and nodes of one network or operator.
    pub lab: bool,
    /// The nodes in order, chosen by a person: neither guard nor exclusions apply.
    pub fixed: Option<Vec<NodeId>>,
    /// The suite to use with nodes that have it; each node's own preference otherwise.
    pub suite: Option<Suite>,
    /// A destination that the exit's policy must allow.
    pub target: Option<(IpAddr, Option<u16>)>,
}

impl Default for PathRules<'_> {
    fn default() -> Self {
        Self {
            hops: MIN_HOPS,
            guard: None,
            exclude: &[],
            lab: false,
            fixed: None,
            suite: None,
            target: None,
        }
    }
}

/// Why there is no path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Fewer hops than are safe, or more than a cell has room for.
    #[error("expected {least} to 4 hops, got {got}{}", if *least == 1 { "" } else { "; --lab allows fewer than 3" })]
    Hops {
        /// The fewest allowed here.
        least: usize,
        /// What was asked for.
        got: usize,
    },
    /// Too few live nodes.
    #[error("expected at least {needed} live nodes, got {live}; start more nodes")]
    TooFewNodes {
        /// The length of the path.
        needed: usize,
        /// Usable nodes in the directory.
        live: usize,
    },
    /// No live node may be the last one.
    #[error(
        "expected a live exit{}, got none; start a node with --exit",
        if *for_target { " whose policy allows the destination" } else { "" }
    )]
    NoExit {
        /// Whether a destination was given.
        for_target: bool,
    },
    /// The pinned guard is not there.
    #[error(
        "expected the pinned guard {guard} in the directory, got none: it is down, revoked or excluded"
    )]
    GuardGone {
        /// The short id.
        guard: String,
    },
    /// Nodes are there, but not far enough apart.
    #[error(
        "expected {hops} nodes of different networks (/16, for IPv6 /32) and operators, the last \
         one an exit, got none such among {live} live nodes; add nodes elsewhere, or use --lab"
    )]
    TooClose {
        /// The length of the path.
        hops: usize,
        /// Usable nodes in the directory.
        live: usize,
    },
    /// A node of a fixed path is not there.
    #[error("expected a live node, got {id}; list them: cepa nodes")]
    NotListed {
        /// The id.
        id: NodeId,
    },
    /// A node of a fixed path passes no cells on.
    #[error("expected a relay, got {name}, which is none")]
    NotARelay {
        /// The node's name.
        name: String,
    },
    /// A fixed path has one node twice.
    #[error("expected distinct nodes, got {name} twice")]
    Twice {
        /// The node's name.
        name: String,
    },
    /// A fixed path does not end at an exit.
    #[error("expected an exit as the last node, got {name}, which is none")]
    LastIsNoExit {
        /// The node's name.
        name: String,
    },
    /// Two nodes of a fixed path are too close.
    #[error("expected nodes of different {what}, got {first} and {second}; --lab allows it")]
    Close {
        /// What they share.
        what: &'static str,
        /// One node's name.
        first: String,
        /// The other's.
        second: String,
    },
}

/// Chooses a path.
///
/// # Errors
/// Why there is none.
pub fn choose_path(
    directory: &Directory,
    rules: &PathRules<'_>,
    rng: &mut impl Rng,
) -> Result<Vec<Hop>, PathError> {
    let chosen = match &rules.fixed {
        Some(ids) => fixed_path(directory, rules, ids)?,
        None => random_path(directory, rules, rng)?,
    };
    Ok(chosen.into_iter().map(|member| member.hop(rules.suite)).collect())
}

fn check_length(rules: &PathRules<'_>, got: usize) -> Result<(), PathError> {
    let least = if rules.lab { 1 } else { MIN_HOPS };
    if (least..=SLOTS).contains(&got) { Ok(()) } else { Err(PathError::Hops { least, got }) }
}

fn fixed_path<'d>(
    directory: &'d Directory,
    rules: &PathRules<'_>,
    ids: &[NodeId],
) -> Result<Vec<&'d Member>, PathError> {
    check_length(rules, ids.len())?;
    let mut chosen: Vec<&Member> = Vec::with_capacity(ids.len());
    for id in ids {
        let member = directory.get(id).ok_or(PathError::NotListed { id: *id })?;
        let name = || member.descriptor.name.clone();
        if !member.is_relay() {
            return Err(PathError::NotARelay { name: name() });
        }
        for earlier in &chosen {
            if earlier.id == member.id {
                return Err(PathError::Twice { name: name() });
            }
            if !rules.lab
                && let Some(what) = closeness(earlier, member)
            {
                let first = earlier.descriptor.name.clone();
                return Err(PathError::Close { what, first, second: name() });
            }
        }
        chosen.push(member);
    }
    match chosen.last() {
        Some(last) if !last.is_exit() => {
            Err(PathError::LastIsNoExit { name: last.descriptor.name.clone() })
        }
        _ => Ok(chosen),
    }
}

fn random_path<'d>(
    directory: &'d Directory,
    rules: &PathRules<'_>,
    rng: &mut impl Rng,
) -> Result<Vec<&'d Member>, PathError> {
    check_length(rules, rules.hops)?;
    let mut usable: Vec<&Member> = directory
        .nodes()
        .iter()
        .filter(|member| member.is_relay() && !rules.exclude.contains(&member.id))
        .collect();
    let live = usable.len();
    if live < rules.hops {
        return Err(PathError::TooFewNodes { needed: rules.hops, live });
    }
    usable.shuffle(rng);
    let mut exits: Vec<&Member> = usable
        .iter()
        .copied()
        .filter(|member| {
            member.is_exit()
                && rules
                    .target
                    .is_none_or(|(ip, port)| member.descriptor.exit_policy.allows(ip, port))
        })
        .collect();
    if exits.is_empty() {
        return Err(PathError::NoExit { for_target: rules.target.is_some() });
    }
    exits.shuffle(rng);
    let guards = match rules.guard {
        Some(guard) => {
            let found = usable.iter().copied().find(|member| member.id == guard);
            vec![found.ok_or_else(|| PathError::GuardGone { guard: guard.short() })?]
        }
        None => usable.clone(),
    };
    if rules.hops == 1 && rules.guard.is_some() {
        exits.retain(|exit| guards.iter().any(|guard| guard.id == exit.id));
    }
    usable.shuffle(rng);

    // Filled in the order of scarcity: the exit, the guard, then those between.
    let mut candidates = vec![exits.as_slice()];
    if rules.hops > 1 {
        candidates.push(&guards);
    }
    candidates.resize(rules.hops, &usable);
    let mut chosen = Vec::with_capacity(rules.hops);
    let mut looks = LOOKS;
    if !fill(&candidates, rules.lab, &mut chosen, &mut looks) {
        return Err(PathError::TooClose { hops: rules.hops, live });
    }
    // From [exit, guard, middle...] to path order.
    chosen.rotate_left(1);
    Ok(chosen)
}

/// Depth first: one candidate per place, none in conflict with an earlier one.
fn fill<'d>(
    candidates: &[&[&'d Member]],
    lab: bool,
    chosen: &mut Vec<&'d Member>,
    looks: &mut usize,
) -> bool {
    let Some((here, rest)) = candidates.split_first() else { return true };
    for member in *here {
        *looks = looks.saturating_sub(1);
        if *looks == 0 {
            return false;
        }
        let fits = chosen
            .iter()
            .all(|other| other.id != member.id && (lab || closeness(other, member).is_none()));
        if fits {
            chosen.push(member);
            if fill(rest, lab, chosen, looks) {
                return true;
            }
            chosen.pop();
        }
    }
    false
}

/// What two nodes share that nodes of one path must not.
fn closeness(one: &Member, other: &Member) -> Option<&'static str> {
    let (one, other) = (&one.descriptor, &other.descriptor);
    if let (Some(one), Some(other)) = (&one.operator, &other.operator)
        && one.eq_ignore_ascii_case(other)
    {
        return Some("operators");
    }
    let near = one.addrs.iter().any(|here| {
        other.addrs.iter().any(|there| Network::of(here.ip()) == Network::of(there.ip()))
    });
    near.then_some("networks")
}

/// The neighbourhood of an address.
#[derive(PartialEq, Eq, Clone, Copy)]
enum Network {
    V4([u8; 2]),
    V6([u8; 4]),
}

impl Network {
    fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => {
                let [a, b, ..] = ip.octets();
                Self::V4([a, b])
            }
            IpAddr::V6(ip) => {
                let [a, b, c, d, ..] = ip.octets();
                Self::V6([a, b, c, d])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::{
        directory::test_network::{fake_directory, fake_id},
        model::Role,
    };

    /// One node: its /16, its operator, whether it is a relay and an exit.
    type Plan = (u8, Option<u8>, bool, bool);

    fn plans() -> impl Strategy<Value = Vec<Plan>> {
        let plan = (
            0u8..8,
            prop::option::weighted(0.4, 0u8..4),
            prop::bool::weighted(0.9),
            prop::bool::weighted(0.5),
        );
        prop::collection::vec(plan, 0..9)
    }

    fn directory(plans: &[Plan]) -> Directory {
        fake_directory(plans.len(), |index, descriptor| {
            let (network, operator, relay, exit) = plans[index];
            descriptor.addrs = vec![([10, network, 0, index as u8], 5000).into()];
            descriptor.operator = operator.map(|label| format!("op-{label}"));
            descriptor.roles = Vec::new();
            if relay {
                descriptor.roles.push(Role::Relay);
            }
            if exit {
                descriptor.roles.push(Role::Exit);
            }
            if descriptor.roles.is_empty() {
                descriptor.roles.push(Role::Tracker);
            }
        })
    }

    /// Whether a path follows every rule, said a second time in the plainest way.
    fn is_good(path: &[NodeId], directory: &Directory, rules: &PathRules<'_>) -> bool {
        let members: Vec<&Member> = path.iter().map(|id| directory.get(id).unwrap()).collect();
        let distinct = path.iter().collect::<HashSet<_>>().len() == path.len();
        let relays = members
            .iter()
            .all(|member| member.descriptor.has(Role::Relay) || member.descriptor.has(Role::Exit));
        let apart = rules.lab
            || members.iter().enumerate().all(|(at, one)| {
                members[at + 1..].iter().all(|other| {
                    let (a, b) = (&one.descriptor, &other.descriptor);
                    let IpAddr::V4(ip_a) = a.addrs[0].ip() else { unreachable!() };
                    let IpAddr::V4(ip_b) = b.addrs[0].ip() else { unreachable!() };
                    ip_a.octets()[..2] != ip_b.octets()[..2]
                        && (a.operator.is_none() || a.operator != b.operator)
                })
            });
        path.len() == rules.hops
            && (rules.lab || path.len() >= 3)
            && distinct
            && relays
            && apart
            && members.last().is_some_and(|last| last.descriptor.has(Role::Exit))
            && rules.guard.is_none_or(|guard| path[0] == guard)
            && path.iter().all(|id| !rules.exclude.contains(id))
    }

    /// Every ordered choice of `hops` members.
    fn all_paths(directory: &Directory, hops: usize) -> Vec<Vec<NodeId>> {
        let mut paths = vec![Vec::new()];
        for _ in 0..hops {
            paths = paths
                .into_iter()
                .flat_map(|path| {
                    directory.nodes().iter().map(move |member| {
                        let mut longer = path.clone();
                        longer.push(member.id);
                        longer
                    })
                })
                .collect();
        }
        paths
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(600))]

        #[test]
        fn a_path_is_good_and_found_whenever_one_exists(
            plans in plans(), hops in 1usize..5, lab: bool, seed: u64,
            guard in prop::option::of(0usize..9), exclude in prop::collection::vec(0usize..9, 0..3),
        ) {
            let directory = directory(&plans);
            let exclude: Vec<NodeId> = exclude.into_iter().map(fake_id).collect();
            let rules = PathRules {
                hops, lab, exclude: &exclude, guard: guard.map(fake_id), ..PathRules::default()
            };
            let mut rng = StdRng::seed_from_u64(seed);
            match choose_path(&directory, &rules, &mut rng) {
                Ok(path) => {
                    let ids: Vec<NodeId> = path.iter().map(|hop| hop.id).collect();
                    prop_assert!(is_good(&ids, &directory, &rules), "{:?}", path);
                    prop_assert!(path.last().unwrap().is_exit);
                }
                Err(error) => {
                    let exists = all_paths(&directory, hops)
                        .iter()
                        .any(|path| is_good(path, &directory, &rules));
                    prop_assert!(!exists, "{error}");
                }
            }
        }

        #[test]
        fn a_fixed_path_is_taken_or_refused_by_the_same_rules(
            plans in plans(), lab: bool, picks in prop::collection::vec(0usize..9, 0..6),
        ) {
            let directory = directory(&plans);
            let ids: Vec<NodeId> = picks.iter().copied().map(fake_id).collect();
            let rules = PathRules {
                hops: ids.len(), lab, fixed: Some(ids.clone()), ..PathRules::default()
            };
            let listed = ids.iter().all(|id| directory.get(id).is_some());
            let good = (1..=4).contains(&ids.len()) && listed && is_good(&ids, &directory, &rules);
            let chosen = choose_path(&directory, &rules, &mut StdRng::seed_from_u64(0));
            prop_assert_eq!(chosen.is_ok(), good, "{:?}", chosen);
            if let Ok(path) = chosen {
                prop_assert_eq!(path.iter().map(|hop| hop.id).collect::<Vec<_>>(), ids);
            }
        }
    }

    #[test]
    fn every_node_gets_its_turn() {
        let directory = fake_directory(6, |index, descriptor| {
            descriptor.addrs = vec![([10, index as u8, 0, 1], 5000).into()];
            descriptor.roles = vec![Role::Relay, Role::Exit];
        });
        let mut rng = StdRng::seed_from_u64(1);
        let mut seen = [[0u32; 3]; 6];
        for _ in 0..6000 {
            let path = choose_path(&directory, &PathRules::default(), &mut rng).unwrap();
            for (place, hop) in path.iter().enumerate() {
                seen[usize::from(hop.id.as_bytes()[0])][place] += 1;
            }
        }
        for places in seen {
            assert!(places.iter().all(|count| (850..1150).contains(count)), "{seen:?}");
        }
    }

    #[test]
    fn errors_tell_what_is_missing() {
        let plain = |count| directory(&vec![(0, None, true, true); count]);
        let mut rng = StdRng::seed_from_u64(1);
        let mut error = |directory: &Directory, rules: PathRules<'_>| {
            choose_path(directory, &rules, &mut rng).unwrap_err().to_string()
        };
        let text = error(&plain(5), PathRules { hops: 2, ..PathRules::default() });
        assert_eq!(text, "expected 3 to 4 hops, got 2; --lab allows fewer than 3");
        let text = error(&plain(5), PathRules { hops: 5, lab: true, ..PathRules::default() });
        assert_eq!(text, "expected 1 to 4 hops, got 5");
        let text = error(&plain(2), PathRules::default());
        assert!(text.contains("at least 3 live nodes, got 2"), "{text}");
        let text = error(&plain(5), PathRules::default());
        assert!(text.contains("different networks") && text.contains("--lab"), "{text}");
        let text = error(&directory(&[(0, None, true, false); 3]), PathRules::default());
        assert!(text.contains("--exit"), "{text}");
        let guard = Some(fake_id(200));
        let text = error(&plain(5), PathRules { guard, ..PathRules::default() });
        assert!(text.contains("pinned guard"), "{text}");
    }

    #[test]
    fn the_exit_must_allow_the_destination() {
        let directory = fake_directory(5, |index, descriptor| {
            descriptor.addrs = vec![([10, index as u8, 0, 1], 5000).into()];
            descriptor.roles = vec![Role::Relay, Role::Exit];
            let rules = if index == 3 { "accept:*:443,reject:*" } else { "reject:*" };
            descriptor.exit_policy = rules.parse().unwrap();
        });
        let mut rng = StdRng::seed_from_u64(1);
        let mut with_port = |port| {
            let target = Some(("198.51.100.1".parse().unwrap(), Some(port)));
            choose_path(&directory, &PathRules { target, ..PathRules::default() }, &mut rng)
        };
        for _ in 0..20 {
            assert_eq!(with_port(443).unwrap()[2].id, fake_id(3));
        }
        assert_eq!(with_port(80), Err(PathError::NoExit { for_target: true }));
    }

    #[test]
    fn ipv6_networks_are_32_bits_and_families_differ() {
        let of = |text: &str| Network::of(text.parse().unwrap());
        assert!(of("2001:db8::1") == of("2001:db8:ffff::1"));
        assert!(of("2001:db8::1") != of("2001:db9::1"));
        assert!(of("32.1.13.184") != of("2001:db8::1"));
        assert!(of("192.0.2.1") == of("192.0.99.1"));
        assert!(of("192.0.2.1") != of("192.1.2.1"));
    }

    #[test]
    fn a_hopeless_large_network_is_given_up_quickly() {
        let directory = fake_directory(900, |index, descriptor| {
            descriptor.addrs = vec![([10, (index % 2) as u8, 0, 1], 5000).into()];
            descriptor.roles = vec![Role::Relay, Role::Exit];
        });
        let begun = std::time::Instant::now();
        let mut rng = StdRng::seed_from_u64(1);
        let error = choose_path(&directory, &PathRules::default(), &mut rng).unwrap_err();
        assert!(matches!(error, PathError::TooClose { .. }));
        assert!(begun.elapsed() < std::time::Duration::from_secs(1), "{:?}", begun.elapsed());
    }
}
