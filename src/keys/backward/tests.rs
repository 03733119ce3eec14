//! Unit and property tests of the backward layers and link tags.

use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::model::Suite;

fn layer(suite: Suite, number: u8) -> BackwardLayer {
    BackwardLayer::new(&HopKeys::derive(suite, &[number; 32], &[number ^ 0x5a; 96]))
}

fn link(suite: Suite) -> LinkTag {
    LinkTag::new(&PairKeys::derive(suite, &[9; 32]))
}

fn suite() -> impl Strategy<Value = Suite> {
    prop::sample::select(Suite::ALL.to_vec())
}

proptest! {
    #[test]
    fn the_client_opens_what_any_hop_originates(
        suites in prop::collection::vec(suite(), 1..=SLOTS), origin in 0usize..SLOTS, seed: u64, seqs: [u32; SLOTS],
    ) {
        let hops: Vec<_> = suites.iter().enumerate().map(|(n, suite)| layer(*suite, n as u8)).collect();
        let origin = origin % hops.len();
        let mut cell = [0u8; CELL_LEN];
        cell[BODY_AT..].fill(0x33);
        hops[origin].originate(seqs[origin], &mut cell, &mut StdRng::seed_from_u64(seed));
        for index in (0..origin).rev() {
            hops[index].add(seqs[index], &mut cell);
        }
        // The client peels all but the last, then tries backwards.
        let mut peeled = Vec::new();
        for hop in &hops[..hops.len() - 1] {
            peeled.push(hop.peel(&mut cell));
        }
        let mut body = [0u8; BODY_LEN];
        let mut found = None;
        for index in (0..hops.len()).rev() {
            if let Ok(seq) = hops[index].open(&cell, &mut body) {
                found = Some((index, seq));
                break;
            }
            if index > 0 {
                hops[index - 1].unpeel(peeled[index - 1], &mut cell);
            }
        }
        prop_assert_eq!(found, Some((origin, seqs[origin])));
        prop_assert_eq!(&body[..], &[0x33; BODY_LEN][..]);
    }

    #[test]
    fn link_tags_verify(suite in suite(), seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut cell = [0u8; CELL_LEN];
        rng.fill_bytes(&mut cell);
        link(suite).tag(&mut cell);
        prop_assert_eq!(link(suite).verify(&mut cell), Ok(()));
        prop_assert_eq!(link(suite).verify(&mut cell), Err(BadTag), "verifying takes the tag off");
    }
}

#[test]
fn every_flipped_bit_is_dropped_by_the_neighbour() {
    for suite in Suite::ALL {
        let mut cell = [0x5c; CELL_LEN];
        let tag = link(suite);
        tag.tag(&mut cell);
        for bit in 0..CELL_LEN * 8 {
            let mut changed = cell;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(tag.verify(&mut changed), Err(BadTag), "bit {bit}");
        }
    }
}

#[test]
fn every_bit_flipped_inside_a_hop_is_seen_by_the_client() {
    for suite in Suite::ALL {
        let (first, last) = (layer(suite, 1), layer(suite, 2));
        let mut cell = [0u8; CELL_LEN];
        last.originate(5, &mut cell, &mut StdRng::seed_from_u64(3));
        let mut body = [0u8; BODY_LEN];
        let significant = (CID_LEN * 8..STREAM_AT * 8).chain(LINK_TAG_END * 8..CELL_LEN * 8);
        for bit in significant {
            let mut changed = cell;
            changed[bit / 8] ^= 1 << (bit % 8);
            first.add(6, &mut changed);
            first.peel(&mut changed);
            assert_eq!(last.open(&changed, &mut body), Err(BadTag), "bit {bit}");
        }
    }
}
