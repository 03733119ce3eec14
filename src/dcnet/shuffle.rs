//! The verified shuffle: who owns which slot is known to nobody but the owner.
//!
//! In: a base and the pseudonym keys on it, a trustee's secret exponent and permutation. Out: a
//! [`ShuffleStep`]: a new base `c B`, the keys `c X` in another order, and a proof that they are
//! that and nothing else. Called by: the ceremony (`cepa dcnet config`), and by every party, which
//! checks every step before it takes part.
//!
//! The proof is cut-and-choose: for each of [`ROUNDS`] rounds the prover commits to a shuffle
//! half way, and a hash of all commitments decides which half is opened. A false step survives
//! with probability `2^-ROUNDS` per try.
//!
//! ```text
//! (B, X) --c1, p1--> (B', X')        commitment: hash of (B', X')
//!      \--------- c, p --------> (c B, c X permuted)
//! ```

use curve25519_dalek::{RistrettoPoint, Scalar, ristretto::RistrettoBasepointTable};
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::dcnet::{
    error::DcnetError,
    hash,
    hex::{self, Hex},
    proof,
};

/// Rounds of cut-and-choose.
pub const ROUNDS: usize = 80;

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
    /// `ROUNDS` commitments of 32 bytes, then as many openings `scalar 32 | permutation`, which
    /// is a 32-byte seed towards the input or `2 N` bytes towards the output.
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

/// Multiples of a list's points, for the many products of a proof.
struct Tables {
    base: RistrettoBasepointTable,
    keys: Vec<RistrettoBasepointTable>,
}

impl Tables {
    /// `keys[i]` multiplied by `c` at place `order[i]`.
    fn moved(&self, c: &Scalar, order: &[u16]) -> KeyList {
        let mut keys = vec![RistrettoPoint::default(); self.keys.len()];
        for (key, place) in self.keys.iter().zip(order) {
            keys[usize::from(*place)] = key * c;
        }
        KeyList { base: &self.base * c, keys }
    }
}

impl KeyList {
    fn tables(&self) -> Tables {
        Tables {
            base: RistrettoBasepointTable::create(&self.base),
            keys: self.keys.iter().map(RistrettoBasepointTable::create).collect(),
        }
    }

    /// A hash of the doubled points, which compress together for one inversion.
    fn commitment(&self) -> [u8; 32] {
        let mut points = self.keys.clone();
        points.push(self.base);
        let mut all = Vec::with_capacity(points.len() * 32);
        for point in RistrettoPoint::double_and_compress_batch(&points) {
            all.extend_from_slice(point.as_bytes());
        }
        hash::hash("shuffle commitment", &[&all])
    }
}

/// A permutation of `count` places drawn from `seed`.
fn permutation(seed: &[u8; 32], count: usize) -> Vec<u16> {
    let mut order: Vec<u16> = (0..count).map(|at| u16::try_from(at).unwrap_or(u16::MAX)).collect();
    for last in (1..count).rev() {
        let draw = hash::hash("permutation", &[seed, &(last as u64).to_be_bytes()]);
        let mut word = [0; 16];
        word.copy_from_slice(&draw[..16]);
        let at = u128::from_be_bytes(word) % (last as u128 + 1);
        order.swap(last, usize::try_from(at).unwrap_or(0));
    }
    order
}

fn random_seed(rng: &mut impl Rng) -> [u8; 32] {
    let mut seed = [0; 32];
    rng.fill_bytes(&mut seed);
    seed
}

/// The bits that choose which half is opened.
fn choices(
    context: &[u8],
    input: &KeyList,
    output: &KeyList,
    commitments: &[[u8; 32]],
) -> [u8; 64] {
    hash::wide(
        "shuffle challenge",
        &[context, &input.commitment(), &output.commitment(), &commitments.concat()],
    )
}

/// Shuffles `input`; gives the new list and the proof bytes.
pub fn prove(context: &[u8], input: &KeyList, rng: &mut impl Rng) -> (KeyList, Vec<u8>) {
    let count = input.keys.len();
    let c = hash::random_scalar(rng);
    let order = permutation(&random_seed(rng), count);
    let input_tables = input.tables();
    let output = input_tables.moved(&c, &order);
    let halves: Vec<(Scalar, [u8; 32])> =
        (0..ROUNDS).map(|_| (hash::random_scalar(rng), random_seed(rng))).collect();
    let orders: Vec<Vec<u16>> = halves.iter().map(|(_, seed)| permutation(seed, count)).collect();
    let commitments: Vec<[u8; 32]> = halves
        .iter()
        .zip(&orders)
        .map(|((half, _), order)| input_tables.moved(half, order).commitment())
        .collect();
    let bits = choices(context, input, &output, &commitments);
    let mut bytes = commitments.concat();
    for (round, (half, seed)) in halves.iter().enumerate() {
        if bits[round / 8] >> (round % 8) & 1 == 0 {
            bytes.extend_from_slice(half.as_bytes());
            bytes.extend_from_slice(seed);
        } else {
            // From the output back to the half-way list: place order[i] came from orders[i].
            bytes.extend_from_slice((half * c.invert()).as_bytes());
            let mut back = vec![0_u16; count];
            for member in 0..count {
                back[usize::from(order[member])] = orders[round][member];
            }
            for place in back {
                bytes.extend_from_slice(&place.to_be_bytes());
            }
        }
    }
    (output, bytes)
}

/// Whether `output` is a shuffle of `input`.
pub fn verify(context: &[u8], input: &KeyList, output: &KeyList, proof: &[u8]) -> bool {
    verify_inner(context, input, output, proof).is_some()
}

fn verify_inner(context: &[u8], input: &KeyList, output: &KeyList, proof: &[u8]) -> Option<()> {
    let count = input.keys.len();
    if output.keys.len() != count || count == 0 {
        return None;
    }
    let (table, mut rest) = proof.split_at_checked(ROUNDS * 32)?;
    let commitments: Vec<[u8; 32]> =
        table.chunks_exact(32).map(|chunk| chunk.try_into().ok()).collect::<Option<_>>()?;
    let bits = choices(context, input, output, &commitments);
    let (input_tables, output_tables) = (input.tables(), output.tables());
    for (round, commitment) in commitments.iter().enumerate() {
        let opened_first = bits[round / 8] >> (round % 8) & 1 == 0;
        let (entry, tail) = rest.split_at_checked(32 + tail_len(opened_first, count))?;
        rest = tail;
        let scalar: [u8; 32] = entry[..32].try_into().ok()?;
        let scalar = Scalar::from_canonical_bytes(scalar).into_option()?;
        if scalar == Scalar::ZERO {
            return None;
        }
        let half = if opened_first {
            let seed: [u8; 32] = entry[32..].try_into().ok()?;
            input_tables.moved(&scalar, &permutation(&seed, count))
        } else {
            let order: Vec<u16> = entry[32..]
                .chunks_exact(2)
                .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
                .collect();
            let mut seen = vec![false; count];
            for place in &order {
                let place = seen.get_mut(usize::from(*place))?;
                if std::mem::replace(place, true) {
                    return None;
                }
            }
            output_tables.moved(&scalar, &order)
        };
        if half.commitment() != *commitment {
            return None;
        }
    }
    rest.is_empty().then_some(())
}

fn tail_len(opened_first: bool, count: usize) -> usize {
    if opened_first { 32 } else { 2 * count }
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
        if !verify(&step_context(context, &step.trustee), &list, &next, &step.proof) {
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
        let secrets: Vec<Scalar> = (0..7).map(|_| hash::random_scalar(&mut rng)).collect();
        let input = KeyList {
            base: RistrettoPoint::mul_base(&Scalar::ONE),
            keys: secrets.iter().map(RistrettoPoint::mul_base).collect(),
        };
        let (output, proof) = prove(b"session", &input, &mut rng);
        assert!(verify(b"session", &input, &output, &proof));
        assert!(!verify(b"another", &input, &output, &proof));
        for secret in secrets {
            assert_eq!(output.keys.iter().filter(|key| **key == secret * output.base).count(), 1);
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
        // A prover who shuffles honestly half way but swaps a key at the end is caught as well.
        let mut cheat = input.clone();
        cheat.keys[0] = RistrettoPoint::mul_base(&hash::random_scalar(&mut rng));
        let (bad, bad_proof) = prove(b"s", &cheat, &mut rng);
        assert!(!verify(b"s", &input, &bad, &bad_proof));
    }

    #[test]
    fn no_bytes_make_the_verifier_fall() {
        let mut rng = StdRng::seed_from_u64(3);
        let input = list(3, &mut rng);
        let (output, proof) = prove(b"s", &input, &mut rng);
        for cut in [0, 1, 31, 2560, 2600, proof.len() - 1] {
            assert!(!verify(b"s", &input, &output, &proof[..cut]));
        }
        // Commitments and the first scalar; another seed may well draw the same permutation.
        for at in (0..ROUNDS * 32 + 32).step_by(31) {
            let mut bent = proof.clone();
            bent[at] ^= 0x40;
            assert!(!verify(b"s", &input, &output, &bent), "bent at {at}");
        }
    }
}
