//! The pool against its promises: no address twice, none before its rest, none forgotten.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

const REST: Duration = Duration::from_secs(60);

fn small() -> AddressPool {
    let v4 = (Ipv4Addr::new(100, 65, 0, 0), 28);
    AddressPool::new(v4, ("fd63:6570:6101::".parse().unwrap(), 64), REST).unwrap()
}

#[test]
fn numbers_addresses_and_sizes() {
    let mut pool = small();
    assert_eq!(pool.device_address().v4, Ipv4Addr::new(100, 65, 0, 1));
    assert_eq!(pool.capacity(), 13);
    let now = Instant::now();
    let first = pool.lease(now).unwrap();
    assert_eq!(first.v4, Ipv4Addr::new(100, 65, 0, 2));
    assert_eq!(first.v6, "fd63:6570:6101::2".parse::<Ipv6Addr>().unwrap());
    assert_eq!(pool.number(first.v4.into()), Some(2));
    assert_eq!(pool.number(first.v6.into()), Some(2));
    for outside in ["100.65.0.0", "100.65.0.1", "100.65.0.15", "100.65.0.16", "100.64.255.255"] {
        assert_eq!(pool.number(outside.parse().unwrap()), None, "{outside}");
    }
    for (address, inside) in [
        ("100.65.0.0", true),
        ("100.65.0.15", true),
        ("100.65.0.16", false),
        ("100.64.0.1", false),
        ("fd63:6570:6101::1:2:3", true),
        ("fd63:6570:6102::", false),
    ] {
        assert_eq!(pool.contains(address.parse().unwrap()), inside, "{address}");
    }
}

#[test]
fn networks_that_are_none_are_refused() {
    let v6 = ("fd63:6570:6101::".parse().unwrap(), 64);
    let new = |a: [u8; 4], len, v6| AddressPool::new((a.into(), len), v6, REST);
    assert!(new([100, 65, 0, 0], 16, v6).is_ok());
    assert!(new([0, 0, 0, 0], 0, v6).is_ok());
    for (address, len) in [([100, 65, 0, 1], 16), ([100, 65, 0, 0], 31), ([100, 65, 0, 0], 33)] {
        assert!(matches!(new(address, len, v6), Err(PoolError::Network { .. })), "{len}");
    }
    for (address, len) in [("fd63::", 129), ("fd63::", 127), ("fd63::1", 64)] {
        let v6 = (address.parse().unwrap(), len);
        assert!(new([100, 65, 0, 0], 16, v6).is_err(), "{address}/{len}");
    }
}

#[test]
fn an_address_rests_after_it_was_reported() {
    let now = Instant::now();
    let mut pool = small();
    let all: Vec<_> = (0..13).map(|_| pool.lease(now).unwrap()).collect();
    assert_eq!(pool.lease(now), Err(PoolError::Exhausted { in_use: 13, resting: 0 }));
    pool.release(all[4]);
    let later = now + REST * 10;
    assert_eq!(pool.lease(later), Err(PoolError::Exhausted { in_use: 12, resting: 1 }));
    assert_eq!(pool.poll_released(later), Some(all[4]));
    assert_eq!(pool.poll_released(later), None);
    assert!(pool.lease(later + REST - Duration::from_millis(1)).is_err());
    assert_eq!(pool.lease(later + REST), Ok(all[4]));
}

proptest! {
    #[test]
    fn no_address_is_leased_twice_or_before_its_rest(
        steps in prop::collection::vec((0..4u8, any::<prop::sample::Index>(), 0..40u64), 1..300),
    ) {
        let mut now = Instant::now();
        let mut pool = small();
        let mut in_use: Vec<PoolAddress> = Vec::new();
        let mut unreported = HashSet::new();
        let mut rests_until = HashMap::new();
        for (what, index, pause) in steps {
            now += Duration::from_secs(pause);
            match what {
                0 | 1 => match pool.lease(now) {
                    Ok(address) => {
                        prop_assert!(!in_use.contains(&address));
                        prop_assert!(!unreported.contains(&address));
                        prop_assert!(rests_until.get(&address).is_none_or(|until| *until <= now));
                        in_use.push(address);
                    }
                    Err(_) => {
                        let resting = rests_until.iter().filter(|(address, until)| {
                            **until > now && !in_use.contains(address) && !unreported.contains(*address)
                        });
                        prop_assert_eq!(in_use.len() + unreported.len() + resting.count(), 13);
                    }
                },
                2 if !in_use.is_empty() => {
                    let address = in_use.swap_remove(index.index(in_use.len()));
                    pool.release(address);
                    unreported.insert(address);
                }
                _ => {
                    if let Some(address) = pool.poll_released(now) {
                        prop_assert!(unreported.remove(&address));
                        rests_until.insert(address, now + REST);
                    } else {
                        prop_assert!(unreported.is_empty());
                    }
                }
            }
            prop_assert_eq!(pool.in_use() as usize, in_use.len());
        }
    }
}
