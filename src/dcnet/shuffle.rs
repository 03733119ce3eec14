//! The verified shuffle: who owns which slot is known to nobody but the owner.
//!
//! In: a base and the pseudonym keys on it, a trustee's secret exponent and permutation. Out: a
//! [`ShuffleStep`]: a new base `c B`, the keys `c X` in another order, and a proof that they are
//! that and nothing else. Called by: the ceremony (`cepa dcnet config`), and by every party, which
//! checks every step before it takes part. The proof itself is in `shuffle/argument.rs`.

use curve25519_dalek::{RistrettoPoint, Scalar};
use rand::Rng;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::dcnet::{
    error::DcnetError,
    hash,
    hex::{self, Hex},
    proof,
};

mod argument;

use argument::Generators;

/// One trustee's shuffle, as it stands in `pseudonym.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShuffleStep {
    /// The trustee that made it.
    pub trustee: Hex<32>,
    /// The new base.
    pub base: Hex<32>,
    /// The keys on it, in their new order.
    pub keys: Vec<Hex<32>>,
    /// That they are a shuffle: [`proof_len`] bytes.
    #[serde(with = "hex::vec")]
    pub proof: Vec<u8>,
    /// The trustee's Ed25519 signature over the session and this step.
    pub signature: Hex<64>,
}

impl ShuffleStep {
    /// What the trustee's signature covers.
    pub fn signed(&self, session: &[u8; 32]) -> Vec<u8> {
        let mut bytes = [session.as_slice(), &self.trustee.0, &self.base.0].concat();
        for key in &self.keys {
            bytes.extend_from_slice(&key.0);
        }
        bytes.extend_from_slice(&self.proof);
        bytes
    }
}

/// A base and the keys on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyList {
    /// The base.
    pub base: RistrettoPoint,
    /// `x base` for each member.
    pub keys: Vec<RistrettoPoint>,
}

/// A permutation of `count` places drawn from `seed`.
fn permutation(seed: &[u8; 32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        let draw = hash::hash("permutation", &[seed, &(last as u64).to_be_bytes()]);
        let mut word = [0; 16];
        word.copy_from_slice(&draw[..16]);
        let at = u128::from_be_bytes(word) % (last as u128 + 1);
        order.swap(last, usize::try_from(at).unwrap_or(0));
    }
    order
}

/// Bytes of a proof over so many keys.
pub fn proof_len(keys: usize) -> usize {
    argument::proof_len(keys)
}

/// Shuffles `input`; gives the new list and the proof bytes.
pub fn prove(context: &[u8], input: &KeyList, rng: &mut impl Rng) -> (KeyList, Vec<u8>) {
    let count = input.keys.len();
    let c = Zeroizing::new(hash::random_scalar(rng));
    let mut seed = Zeroizing::new([0; 32]);
    rng.fill_bytes(&mut *seed);
    let places = Zeroizing::new(permutation(&seed, count));
    let mut keys = vec![RistrettoPoint::default(); count];
    for (key, place) in input.keys.iter().zip(places.iter()) {
        keys[*place] = *c * key;
    }
    let output = KeyList { base: *c * input.base, keys };
    let secrets = argument::Secrets { c: &c, places: &places };
    let proof = argument::prove(context, &Generators::new(count), input, &output, &secrets, rng);
    (output, proof)
}

/// Whether `output` is a shuffle of `input`.
pub fn verify(context: &[u8], input: &KeyList, output: &KeyList, proof: &[u8]) -> bool {
    argument::verify(context, &Generators::new(input.keys.len()), input, output, proof)
}

/// Checks every step from the members' keys on; gives the final base and slot keys.
///
/// # Errors
/// Names the first trustee whose step does not verify.
pub fn verify_all(
    context: &[u8],
    members: &[RistrettoPoint],
    steps: &[ShuffleStep],
) -> Result<KeyList, DcnetError> {
    let mut list = KeyList { base: RistrettoPoint::mul_base(&Scalar::ONE), keys: members.to_vec() };
    let generators = Generators::new(members.len());
    for step in steps {
        let bad = || DcnetError::BadProof { what: "the shuffle", who: step.trustee.to_string() };
        let next = KeyList {
            base: proof::point(&step.base.0).ok_or_else(bad)?,
            keys: step
                .keys
                .iter()
                .map(|key| proof::point(&key.0))
                .collect::<Option<Vec<_>>>()
                .ok_or_else(bad)?,
        };
        let context = step_context(context, &step.trustee);
        if !argument::verify(&context, &generators, &list, &next, &step.proof) {
            return Err(bad());
        }
        list = next;
    }
    Ok(list)
}

/// What a step's challenge is bound to: the session and the trustee.
pub fn step_context(context: &[u8], trustee: &Hex<32>) -> Vec<u8> {
    [context, &trustee.0].concat()
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn list(count: usize, rng: &mut StdRng) -> KeyList {
        KeyList {
            base: RistrettoPoint::mul_base(&Scalar::ONE),
            keys: (0..count).map(|_| RistrettoPoint::mul_base(&hash::random_scalar(rng))).collect(),
        }
    }

    #[test]
    fn an_honest_shuffle_verifies_and_keeps_the_owners() {
        let mut rng = StdRng::seed_from_u64(1);
        for count in [1, 2, 7, 40] {
            let secrets: Vec<Scalar> = (0..count).map(|_| hash::random_scalar(&mut rng)).collect();
            let input = KeyList {
                base: RistrettoPoint::mul_base(&Scalar::ONE),
                keys: secrets.iter().map(RistrettoPoint::mul_base).collect(),
            };
            let (output, proof) = prove(b"session", &input, &mut rng);
            assert_eq!(proof.len(), proof_len(count));
            assert!(verify(b"session", &input, &output, &proof));
            assert!(!verify(b"another", &input, &output, &proof));
            for secret in secrets {
                let own = secret * output.base;
                assert_eq!(output.keys.iter().filter(|key| **key == own).count(), 1);
            }
        }
    }

    #[test]
    fn a_replaced_doubled_or_dropped_key_is_refused() {
        let mut rng = StdRng::seed_from_u64(2);
        let input = list(5, &mut rng);
        let (output, proof) = prove(b"s", &input, &mut rng);
        let mut replaced = output.clone();
        replaced.keys[2] = RistrettoPoint::mul_base(&hash::random_scalar(&mut rng));
        assert!(!verify(b"s", &input, &replaced, &proof));
        let mut doubled = output.clone();
        doubled.keys[1] = doubled.keys[0];
        assert!(!verify(b"s", &input, &doubled, &proof));
        let mut dropped = output.clone();
        dropped.keys.pop();
        assert!(!verify(b"s", &input, &dropped, &proof));
        let mut rebased = output.clone();
        rebased.base += rebased.base;
        assert!(!verify(b"s", &input, &rebased, &proof));
    }

    #[test]
    fn no_bytes_make_the_verifier_fall() {
        let mut rng = StdRng::seed_from_u64(3);
        let input = list(3, &mut rng);
        let (output, proof) = prove(b"s", &input, &mut rng);
        for cut in [0, 1, 31, 96, 256, proof.len() - 1] {
            assert!(!verify(b"s", &input, &output, &proof[..cut]));
        }
        assert!(!verify(b"s", &input, &output, &[proof.as_slice(), &[0]].concat()));
        for at in (0..proof.len()).step_by(13) {
            let mut bent = proof.clone();
            bent[at] ^= 0x40;
            assert!(!verify(b"s", &input, &output, &bent), "bent at {at}");
        }
        let empty = KeyList { base: input.base, keys: Vec::new() };
        assert!(!verify(b"s", &empty, &empty, &[0; 288]));
    }
}
