//! A device that loses, doubles and reorders packets on purpose, the same ones for the same seed.
//!
//! In: a device and chances. Out: its packets, worse. Called by: tests, the rig.

use std::{io, os::fd::RawFd};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::PacketDevice;
use crate::model::PacketBatch;

/// How bad the network is; chances from 0 to 1, per packet and direction.
#[derive(Clone, Copy, Default, Debug)]
pub struct Faults {
    /// Lost.
    pub lose: f64,
    /// Delivered twice.
    pub double: f64,
    /// Delivered after the packet behind it.
    pub swap: f64,
    /// One bit flipped.
    pub flip: f64,
}

/// A device with faults.
#[derive(Debug)]
pub struct FaultyDevice<D> {
    device: D,
    faults: Faults,
    rng: SmallRng,
    clean: PacketBatch,
    worse: PacketBatch,
}

impl<D: PacketDevice> FaultyDevice<D> {
    /// Wraps a device.
    pub fn new(device: D, faults: Faults, seed: u64) -> Self {
        Self {
            device,
            faults,
            rng: SmallRng::seed_from_u64(seed),
            clean: PacketBatch::default(),
            worse: PacketBatch::default(),
        }
    }
}

/// Appends the packets of `from` to `to`, with faults.
fn spoil(faults: Faults, rng: &mut SmallRng, from: &PacketBatch, to: &mut PacketBatch) {
    let mut order: Vec<usize> = (0..from.len()).collect();
    let mut at = 1;
    while at < order.len() {
        if rng.random_bool(faults.swap) {
            order.swap(at - 1, at);
            at += 1;
        }
        at += 1;
    }
    for packet in order.into_iter().filter_map(|index| from.get(index)) {
        if rng.random_bool(faults.lose) {
            continue;
        }
        let copy = to.push(&[packet]);
        if !copy.is_empty() && rng.random_bool(faults.flip) {
            let bit = rng.random_range(0..copy.len() * 8);
            copy[bit / 8] ^= 1 << (bit % 8);
        }
        if rng.random_bool(faults.double) {
            to.push(&[packet]);
        }
    }
}

impl<D: PacketDevice> PacketDevice for FaultyDevice<D> {
    fn recv(&mut self, batch: &mut PacketBatch) -> io::Result<usize> {
        self.clean.clear();
        self.device.recv(&mut self.clean)?;
        let before = batch.len();
        spoil(self.faults, &mut self.rng, &self.clean, batch);
        Ok(batch.len() - before)
    }

    fn send(&mut self, batch: &PacketBatch) -> io::Result<usize> {
        self.worse.clear();
        spoil(self.faults, &mut self.rng, batch, &mut self.worse);
        self.device.send(&self.worse)?;
        Ok(batch.len())
    }

    fn raw_fd(&self) -> RawFd {
        self.device.raw_fd()
    }

    fn name(&self) -> &str {
        self.device.name()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spoiled(faults: Faults, seed: u64) -> Vec<Vec<u8>> {
        let (mut from, mut to) = (PacketBatch::default(), PacketBatch::default());
        for number in 0..1000u16 {
            from.push(&[&number.to_be_bytes()]);
        }
        spoil(faults, &mut SmallRng::seed_from_u64(seed), &from, &mut to);
        to.iter().map(<[u8]>::to_vec).collect()
    }

    #[test]
    fn each_fault_does_what_it_says_and_repeats_with_its_seed() {
        let none = spoiled(Faults::default(), 1);
        assert_eq!(none.len(), 1000);
        let lost = spoiled(Faults { lose: 0.2, ..Faults::default() }, 1);
        assert!((700..900).contains(&lost.len()));
        assert_eq!(lost, spoiled(Faults { lose: 0.2, ..Faults::default() }, 1));
        assert_ne!(lost, spoiled(Faults { lose: 0.2, ..Faults::default() }, 2));
        assert!(spoiled(Faults { double: 0.2, ..Faults::default() }, 1).len() > 1100);
        let mut swapped = spoiled(Faults { swap: 0.2, ..Faults::default() }, 1);
        assert_ne!(swapped, none);
        swapped.sort();
        assert_eq!(swapped, none);
        let flipped = spoiled(Faults { flip: 1.0, ..Faults::default() }, 1);
        let bits = |(a, b): (&Vec<u8>, &Vec<u8>)| {
            a.iter().zip(b).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>()
        };
        assert!(flipped.iter().zip(&none).all(|pair| bits(pair) == 1));
    }
}
