//! The pads of an interval: seekable, bound to its set of members, one per pair and round.
//!
//! In: a Diffie-Hellman point of client and trustee, the interval's hash, a round number. Out: the
//! pair's key scalars and pad bytes of that round. Called by: clients, trustees, and whoever
//! recomputes an opened pair during blame.
//!
//! ```text
//! K   = HKDF-SHA-256(salt = interval hash, secret = x Y, "pad")
//! AES-256-CTR(K, round 8 | 0 8)       = slot scalar 64 | request scalar 64 | pad L
//! AES-256-CTR(K, 2^63 + round 8 | 0 8) = blinding scalar 64 (blame only)
//! ```

use aes::{
    Aes256,
    cipher::{InnerIvInit, KeyInit, StreamCipher, StreamCipherCoreWrapper},
};
use aws_lc_rs::hkdf;
use ctr::{CtrCore, flavors::Ctr128BE};
use curve25519_dalek::{RistrettoPoint, Scalar};
use zeroize::{Zeroize, Zeroizing};

use crate::dcnet::proof;

/// Bytes of key material before the pad.
const SCALARS: usize = 128;
/// The counter block's bit that separates blinding scalars from pads.
const BLIND: u64 = 1 << 63;

/// The key of one pair for one interval.
#[derive(Clone)]
pub struct PairKey(Aes256);

struct KeyLen;

impl hkdf::KeyType for KeyLen {
    fn len(&self) -> usize {
        32
    }
}

/// HKDF-SHA-256 of a shared point for an interval.
pub fn derive(shared: &RistrettoPoint, interval: &[u8; 32], purpose: &str) -> Zeroizing<[u8; 32]> {
    let mut key = Zeroizing::new([0; 32]);
    let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, interval).extract(&proof::bytes(shared));
    let info = [b"cepa dcnet ".as_slice(), purpose.as_bytes()];
    // The length is 32, and HKDF gives up to 8160.
    if let Ok(okm) = secret.expand(&info, KeyLen) {
        let _ = okm.fill(&mut *key);
    }
    key
}

/// What a pair contributes to a round beside the pad bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RoundScalars {
    /// Masks the key of the slot.
    pub slot: Scalar,
    /// Masks the slot requests.
    pub request: Scalar,
}

impl PairKey {
    /// From the pair's shared point.
    pub fn new(shared: &RistrettoPoint, interval: &[u8; 32]) -> Self {
        Self(Aes256::new((&*derive(shared, interval, "pad")).into()))
    }

    fn stream(&self, counter: u64, out: &mut [u8]) {
        let mut block = [0; 16];
        block[..8].copy_from_slice(&counter.to_be_bytes());
        out.fill(0);
        let core = CtrCore::<&Aes256, Ctr128BE>::inner_iv_init(&self.0, &block.into());
        StreamCipherCoreWrapper::from_core(core).apply_keystream(out);
    }

    /// The scalars and, XORed into `cell`, the pad of a round. `scratch` is reused.
    pub fn apply(&self, round: u64, cell: &mut [u8], scratch: &mut Vec<u8>) -> RoundScalars {
        scratch.resize(SCALARS + cell.len(), 0);
        self.stream(round, scratch);
        for (byte, pad) in cell.iter_mut().zip(&scratch[SCALARS..]) {
            *byte ^= pad;
        }
        let wide = |at: usize| {
            let mut bytes = [0; 64];
            bytes.copy_from_slice(&scratch[at..at + 64]);
            Scalar::from_bytes_mod_order_wide(&bytes)
        };
        RoundScalars { slot: wide(0), request: wide(64) }
    }

    /// The scalars alone.
    pub fn scalars(&self, round: u64) -> RoundScalars {
        self.apply(round, &mut [], &mut Vec::new())
    }

    /// One bit of a round's pad.
    pub fn bit(&self, round: u64, bit: usize) -> bool {
        let mut cell = vec![0; bit / 8 + 1];
        self.apply(round, &mut cell, &mut Vec::new());
        cell[bit / 8] >> (7 - bit % 8) & 1 == 1
    }

    /// The scalar that blinds the commitment to the round's slot scalar.
    pub fn blinding(&self, round: u64) -> Scalar {
        let mut bytes = [0; 64];
        self.stream(BLIND | round, &mut bytes);
        Scalar::from_bytes_mod_order_wide(&bytes)
    }
}

/// All pairs of one party.
#[derive(Clone)]
pub struct Pads {
    /// One key per counterpart, in the interval's order.
    pub pairs: Vec<PairKey>,
    scratch: Vec<u8>,
}

impl Drop for Pads {
    fn drop(&mut self) {
        self.scratch.zeroize();
    }
}

impl Pads {
    /// From the shared points with all counterparts of an interval.
    pub fn new<'a>(shared: impl Iterator<Item = &'a RistrettoPoint>, interval: &[u8; 32]) -> Self {
        Self {
            pairs: shared.map(|point| PairKey::new(point, interval)).collect(),
            scratch: Vec::new(),
        }
    }

    /// XORs the round's pads into `cell` and gives the sums of the scalars.
    pub fn apply(&mut self, round: u64, cell: &mut [u8]) -> RoundScalars {
        let mut sum = RoundScalars::default();
        for pair in &self.pairs {
            let one = pair.apply(round, cell, &mut self.scratch);
            sum.slot += one.slot;
            sum.request += one.request;
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shared(seed: u64) -> RistrettoPoint {
        RistrettoPoint::mul_base(&Scalar::from(seed + 2))
    }

    proptest! {
        #[test]
        fn pads_and_scalars_cancel(round in 0..BLIND, clients in 1..5_u64, trustees in 1..4_u64, len in 1..400_usize) {
            let interval = [7; 32];
            let point = |client, trustee| shared(client * 10 + trustee);
            let mut cell = vec![0; len];
            let (mut slot, mut request) = (Scalar::ZERO, Scalar::ZERO);
            for client in 0..clients {
                let points: Vec<_> = (0..trustees).map(|trustee| point(client, trustee)).collect();
                let sum = Pads::new(points.iter(), &interval).apply(round, &mut cell);
                slot += sum.slot;
                request += sum.request;
            }
            prop_assert!(len < 8 || cell.iter().any(|byte| *byte != 0));
            for trustee in 0..trustees {
                let points: Vec<_> = (0..clients).map(|client| point(client, trustee)).collect();
                let sum = Pads::new(points.iter(), &interval).apply(round, &mut cell);
                slot -= sum.slot;
                request -= sum.request;
            }
            prop_assert!(cell.iter().all(|byte| *byte == 0));
            prop_assert_eq!((slot, request), (Scalar::ZERO, Scalar::ZERO));
        }
    }

    #[test]
    fn rounds_are_seekable_and_bound_to_the_interval() {
        let pair = PairKey::new(&shared(1), &[1; 32]);
        let other = PairKey::new(&shared(1), &[2; 32]);
        let mut scratch = Vec::new();
        let pad = |pair: &PairKey, round, scratch: &mut Vec<u8>| {
            let mut cell = vec![0; 64];
            pair.apply(round, &mut cell, scratch);
            cell
        };
        let ninth = pad(&pair, 9, &mut scratch);
        assert_ne!(ninth, pad(&pair, 8, &mut scratch));
        assert_ne!(ninth, pad(&other, 9, &mut scratch));
        assert_eq!(ninth, pad(&pair, 9, &mut scratch));
        assert_eq!(pair.bit(9, 13), ninth[1] >> 2 & 1 == 1);
    }
}
