//! The argument that one list of keys is a shuffle of another, short and quick to check.
//!
//! In: both lists, the exponent and the permutation between them. Out: `32 (5 N + 9)` bytes, and a
//! verdict over them for one multi-scalar multiplication of `6 N` points.
//! Called by: [`crate::dcnet::shuffle`].
//!
//! The argument of Wikström (ACISP 2009; Terelius and Wikström, AFRICACRYPT 2010) for `Y = c X` in
//! another order, `B' = c B`, made non-interactive by hashing everything said before:
//!
//! ```text
//! C_i     = r_i G + H_p(i)                a commitment to the permutation, column by column
//! u_i     = hash(lists, C), v_p(i) = u_i  a weight for each key, and the same weights shuffled
//! D_j     = s_j G + v_j D_(j-1), D_0 = H  a chain that ends in the product of the weights
//! proven, with one challenge, without telling r, s, v or c:
//!   sum C_i - sum H_j = r G               every row of the commitment adds up to one
//!   D_N - (product of u) H = s G          the same product: C is a permutation, whatever u is
//!   sum u_i C_i = t G + sum v_j H_j       v is u in that permutation's order
//!   sum v_j Y_j = c sum u_i X_i, B' = c B the keys have moved with it, and are multiplied by c
//!   D_j = s_j G + v_j D_(j-1)
//! ```
//!
//! Nobody knows a relation between `G`, `H` and the `H_j`, which are hashes. A false list survives
//! with about `N / 2^252` per try. The verifier adds all equations up with weights of 128 bits that
//! hang on every byte of the proof.

use std::iter;

use curve25519_dalek::{
    RistrettoPoint, Scalar,
    traits::{IsIdentity, MultiscalarMul, VartimeMultiscalarMul},
};
use rand::Rng;
use zeroize::Zeroizing;

use super::KeyList;
use crate::dcnet::{hash, proof};

/// Bytes of a proof over so many keys.
pub(super) fn proof_len(keys: usize) -> usize {
    32 * (5 * keys + 9)
}

/// Points nobody knows a relation between.
pub(super) struct Generators {
    chain: RistrettoPoint,
    places: Vec<RistrettoPoint>,
}

impl Generators {
    pub(super) fn new(count: usize) -> Self {
        let generator = |at: usize| {
            let bytes = hash::wide("shuffle generator", &[&(at as u64).to_be_bytes()]);
            RistrettoPoint::from_uniform_bytes(&bytes)
        };
        Self { chain: generator(0), places: (1..=count).map(generator).collect() }
    }
}

/// What only the prover knows: input key `i` stands, multiplied by `c`, at `places[i]`.
pub(super) struct Secrets<'a> {
    pub(super) c: &'a Scalar,
    pub(super) places: &'a [usize],
}

fn encode(points: &[RistrettoPoint]) -> Vec<u8> {
    points.iter().flat_map(proof::bytes).collect()
}

fn scalars(count: usize, rng: &mut impl Rng) -> Zeroizing<Vec<Scalar>> {
    Zeroizing::new(iter::repeat_with(|| hash::random_scalar(rng)).take(count).collect())
}

/// A hash of the statement.
fn statement(context: &[u8], input: &KeyList, output: &KeyList) -> [u8; 32] {
    let [input, output] = [input, output].map(|list| {
        let mut bytes = proof::bytes(&list.base).to_vec();
        bytes.extend_from_slice(&encode(&list.keys));
        bytes
    });
    hash::hash("shuffle statement", &[context, &input, &output])
}

/// The weights of the input keys.
fn weights(statement: &[u8; 32], commitments: &[u8], count: usize) -> Vec<Scalar> {
    let seed = hash::hash("shuffle weights", &[statement, commitments]);
    let weight = |at: usize| hash::scalar("shuffle weight", &[&seed, &(at as u64).to_be_bytes()]);
    (0..count).map(weight).collect()
}

fn challenge(statement: &[u8; 32], said: &[u8]) -> Scalar {
    hash::scalar("shuffle challenge", &[statement, said])
}

/// Proves that `output` is `input` multiplied by `c` and moved.
pub(super) fn prove(
    context: &[u8],
    generators: &Generators,
    input: &KeyList,
    output: &KeyList,
    secrets: &Secrets<'_>,
    rng: &mut impl Rng,
) -> Vec<u8> {
    let count = input.keys.len();
    let statement = statement(context, input, output);
    // The commitment to the permutation.
    let blindings = scalars(count, rng);
    let commitments: Vec<RistrettoPoint> = blindings
        .iter()
        .zip(secrets.places)
        .map(|(blinding, place)| RistrettoPoint::mul_base(blinding) + generators.places[*place])
        .collect();
    let mut said = encode(&commitments);
    let weights = weights(&statement, &said, count);
    let mut moved = Zeroizing::new(vec![Scalar::ZERO; count]);
    for (weight, place) in weights.iter().zip(secrets.places) {
        moved[*place] = *weight;
    }
    // The chain.
    let steps = scalars(count, rng);
    let mut chain = vec![generators.chain];
    let mut chain_blinding = Zeroizing::new(Scalar::ZERO);
    for (step, weight) in steps.iter().zip(moved.iter()) {
        let next = RistrettoPoint::mul_base(step) + weight * chain[chain.len() - 1];
        chain.push(next);
        *chain_blinding = step + weight * *chain_blinding;
    }
    said.extend_from_slice(&encode(&chain[1..]));
    // Random values for every secret, and what the equations make of them.
    let (single, of_steps, of_moved) = (scalars(4, rng), scalars(count, rng), scalars(count, rng));
    let weighted = RistrettoPoint::vartime_multiscalar_mul(&weights, &input.keys);
    let mut first = vec![
        RistrettoPoint::mul_base(&single[0]),
        RistrettoPoint::mul_base(&single[1]),
        RistrettoPoint::mul_base(&single[2])
            + RistrettoPoint::multiscalar_mul(of_moved.iter(), &generators.places),
        RistrettoPoint::multiscalar_mul(of_moved.iter(), &output.keys) - single[3] * weighted,
        single[3] * input.base,
    ];
    for at in 0..count {
        first.push(RistrettoPoint::mul_base(&of_steps[at]) + of_moved[at] * chain[at]);
    }
    said.extend_from_slice(&encode(&first));
    let e = challenge(&statement, &said);
    let row_sum: Scalar = blindings.iter().sum();
    let weighted_sum: Scalar = weights.iter().zip(blindings.iter()).map(|(u, r)| u * r).sum();
    let singles = [row_sum, *chain_blinding, weighted_sum, *secrets.c];
    let responses = single.iter().zip(&singles);
    let responses = responses.chain(of_steps.iter().zip(steps.iter()));
    for (random, secret) in responses.chain(of_moved.iter().zip(moved.iter())) {
        said.extend_from_slice((random + e * secret).as_bytes());
    }
    said
}

/// A proof as read.
struct Said {
    commitments: Vec<RistrettoPoint>,
    chain: Vec<RistrettoPoint>,
    first: Vec<RistrettoPoint>,
    single: Vec<Scalar>,
    steps: Vec<Scalar>,
    moved: Vec<Scalar>,
}

impl Said {
    fn read(bytes: &[u8], count: usize) -> Option<Self> {
        if count == 0 || bytes.len() != proof_len(count) {
            return None;
        }
        let mut words = bytes.chunks_exact(32).filter_map(|word| <[u8; 32]>::try_from(word).ok());
        let mut points = |count: usize| -> Option<Vec<RistrettoPoint>> {
            (0..count).map(|_| proof::any_point(&words.next()?)).collect()
        };
        let (commitments, chain, first) = (points(count)?, points(count)?, points(count + 5)?);
        let mut scalars = |count: usize| -> Option<Vec<Scalar>> {
            (0..count).map(|_| Scalar::from_canonical_bytes(words.next()?).into_option()).collect()
        };
        let (single, steps, moved) = (scalars(4)?, scalars(count)?, scalars(count)?);
        Some(Self { commitments, chain, first, single, steps, moved })
    }
}

/// Whether `proof` shows that `output` is a shuffle of `input`.
pub(super) fn verify(
    context: &[u8],
    generators: &Generators,
    input: &KeyList,
    output: &KeyList,
    proof: &[u8],
) -> bool {
    let count = input.keys.len();
    if output.keys.len() != count || generators.places.len() != count {
        return false;
    }
    let Some(said) = Said::read(proof, count) else { return false };
    let statement = statement(context, input, output);
    let u = weights(&statement, &proof[..32 * count], count);
    let e = challenge(&statement, &proof[..32 * (3 * count + 5)]);
    // One weight for each equation.
    let seed = hash::hash("shuffle equations", &[&statement, proof]);
    let weight = |at: usize| {
        let mut bytes = [0; 32];
        let drawn = hash::hash("shuffle equation", &[&seed, &(at as u64).to_be_bytes()]);
        bytes[..16].copy_from_slice(&drawn[..16]);
        Scalar::from_bytes_mod_order(bytes)
    };
    let w: Vec<Scalar> = (0..5).map(weight).collect();
    let links: Vec<Scalar> = (5..5 + count).map(weight).collect();
    let product: Scalar = u.iter().product();
    let (single, steps, moved) = (&said.single, &said.steps, &said.moved);
    // What each point is multiplied by, over all equations.
    let chained: Scalar = links.iter().zip(steps).map(|(link, step)| link * step).sum();
    let base = w[0] * single[0] + w[1] * single[1] + w[2] * single[2] + chained;
    let start = w[1] * e * product + links[0] * moved[0];
    let of_commitments = u.iter().map(|u| -e * (w[0] + w[2] * u));
    let of_places = moved.iter().map(|v| w[0] * e + w[2] * v);
    let of_chain = (0..count).map(|at| {
        let next = if at + 1 < count { links[at + 1] * moved[at + 1] } else { -w[1] * e };
        next - e * links[at]
    });
    let of_output = moved.iter().map(|v| w[3] * v);
    let of_input = u.iter().map(|u| -w[3] * single[3] * u);
    let of_first = w.iter().chain(&links).map(|weight| -weight);
    let factors = [base, start, w[4] * single[3], -w[4] * e]
        .into_iter()
        .chain(of_commitments)
        .chain(of_places)
        .chain(of_chain)
        .chain(of_output)
        .chain(of_input)
        .chain(of_first);
    let generator = RistrettoPoint::mul_base(&Scalar::ONE);
    let points = [&generator, &generators.chain, &input.base, &output.base]
        .into_iter()
        .chain(&said.commitments)
        .chain(&generators.places)
        .chain(&said.chain)
        .chain(&output.keys)
        .chain(&input.keys)
        .chain(&said.first);
    RistrettoPoint::vartime_multiscalar_mul(factors, points).is_identity()
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    /// Two members, shuffled by hand.
    fn lists(rng: &mut StdRng, c: &Scalar) -> (KeyList, KeyList) {
        let base = RistrettoPoint::mul_base(&Scalar::ONE);
        let keys: Vec<RistrettoPoint> =
            (0..4).map(|_| RistrettoPoint::mul_base(&hash::random_scalar(rng))).collect();
        let moved = [3, 0, 2, 1].map(|at: usize| c * keys[at]).to_vec();
        (KeyList { base, keys }, KeyList { base: c * base, keys: moved })
    }

    /// A prover that follows the protocol to the letter, with lists that are no shuffle of each
    /// other or places that are no permutation, convinces nobody.
    #[test]
    fn a_prover_with_false_lists_convinces_nobody() {
        let mut rng = StdRng::seed_from_u64(1);
        let c = hash::random_scalar(&mut rng);
        let (input, output) = lists(&mut rng, &c);
        let generators = Generators::new(4);
        let mut convinces = |output: &KeyList, c: &Scalar, places: &[usize]| {
            let secrets = Secrets { c, places };
            let proof = prove(b"s", &generators, &input, output, &secrets, &mut rng);
            verify(b"s", &generators, &input, output, &proof)
        };
        assert!(convinces(&output, &c, &[1, 3, 2, 0]));
        assert!(!convinces(&output, &(c + Scalar::ONE), &[1, 3, 2, 0]), "another exponent");
        assert!(!convinces(&output, &c, &[3, 1, 2, 0]), "another permutation");
        assert!(!convinces(&output, &c, &[1, 3, 2, 2]), "two keys at one place");
        // One member's key stands there twice, the other's not at all.
        let mut doubled = output.clone();
        doubled.keys[1] = doubled.keys[0];
        assert!(!convinces(&doubled, &c, &[1, 3, 2, 0]));
        assert!(!convinces(&doubled, &c, &[1, 3, 2, 1]));
        // A multiple of one key is told apart from that of all.
        let mut scaled = output.clone();
        scaled.keys[2] = output.keys[2] + output.keys[2];
        assert!(!convinces(&scaled, &c, &[1, 3, 2, 0]));
        let mut rebased = output.clone();
        rebased.base += rebased.base;
        assert!(!convinces(&rebased, &c, &[1, 3, 2, 0]));
        // Two keys that cancel in a plain sum do not in a weighted one.
        let mut swapped = output;
        let shift = RistrettoPoint::mul_base(&hash::random_scalar(&mut rng));
        swapped.keys[0] += shift;
        swapped.keys[3] -= shift;
        let secrets = Secrets { c: &c, places: &[1, 3, 2, 0] };
        let proof = prove(b"s", &generators, &input, &swapped, &secrets, &mut rng);
        assert!(!verify(b"s", &generators, &input, &swapped, &proof));
    }

    /// Each equation is needed: a proof that is bent in what only that equation reads is refused.
    #[test]
    fn every_equation_is_checked() {
        let mut rng = StdRng::seed_from_u64(2);
        let c = hash::random_scalar(&mut rng);
        let (input, output) = lists(&mut rng, &c);
        let generators = Generators::new(4);
        let secrets = Secrets { c: &c, places: &[1, 3, 2, 0] };
        let proof = prove(b"s", &generators, &input, &output, &secrets, &mut rng);
        assert!(verify(b"s", &generators, &input, &output, &proof));
        let responses = 32 * (3 * 4 + 5);
        for word in 0..(proof.len() - responses) / 32 {
            let mut bent = proof.clone();
            let at = responses + 32 * word;
            let mut bytes = [0; 32];
            bytes.copy_from_slice(&bent[at..at + 32]);
            let response = Scalar::from_canonical_bytes(bytes).unwrap() + Scalar::ONE;
            bent[at..at + 32].copy_from_slice(response.as_bytes());
            assert!(!verify(b"s", &generators, &input, &output, &bent), "response {word}");
        }
    }
}
