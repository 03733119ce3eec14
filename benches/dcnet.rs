//! What one round of a DC-net costs: the pads of a client and of a trustee, the XOR of all cells,
//! the share's bytes, the seal of a slot.

use std::hint::black_box;

use cepa::dcnet::{
    hash,
    message::Share,
    pads::Pads,
    sealing::{open_slot, seal_slot},
};
use curve25519_dalek::{RistrettoPoint, Scalar};
use divan::{Bencher, counter::BytesCount, counter::ItemsCount};
use rand::{SeedableRng, rngs::StdRng};

const CELL: usize = 256;
const ROUND: u64 = 77;

fn main() {
    divan::main();
}

fn pads(pairs: usize) -> Pads {
    let mut rng = StdRng::seed_from_u64(1);
    let points: Vec<RistrettoPoint> =
        (0..pairs).map(|_| RistrettoPoint::mul_base(&hash::random_scalar(&mut rng))).collect();
    Pads::new(points.iter(), &[3; 32])
}

/// Pad bytes and key scalars with so many counterparts: 3 for a client, 100 for a trustee.
#[divan::bench(args = [3, 10, 100])]
fn pads_and_scalars(bencher: Bencher, pairs: usize) {
    let (mut pads, mut cell) = (pads(pairs), [0; CELL]);
    bencher.counter(ItemsCount::new(pairs)).bench_local(|| pads.apply(black_box(ROUND), &mut cell));
}

/// What the relay does to decode a round of so many parties.
#[divan::bench(args = [13, 103])]
fn xor_of_all_cells(bencher: Bencher, parties: usize) {
    let (cells, mut sum) = (vec![[7; CELL]; parties], [0_u8; CELL]);
    bencher.counter(BytesCount::new(parties * CELL)).bench_local(|| {
        for cell in black_box(&cells) {
            sum.iter_mut().zip(cell).for_each(|(sum, byte)| *sum ^= byte);
        }
        sum
    });
}

#[divan::bench]
fn read_a_share(bencher: Bencher) {
    let cell = [9; CELL];
    let slot = Some((Scalar::from(8_u8), cell.as_slice()));
    let bytes = Share { number: 1, round: ROUND, requests: Scalar::ONE, slot }.to_bytes();
    bencher.bench_local(|| Share::parse(black_box(&bytes), CELL).is_ok());
}

#[divan::bench]
fn seal_and_open_a_slot(bencher: Bencher) {
    let key = Scalar::from(5_u8);
    bencher.bench_local(|| open_slot(&key, &seal_slot(black_box(&key), vec![0; CELL - 16])));
}
