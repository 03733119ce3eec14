//! The proofs of the DC-net: of one logarithm, of two equal ones, of one of two.
//!
//! In: secrets, statements and a message. Out: proofs of fixed length, and verdicts over them.
//! Called by: sessions (possession), pseudonyms (accusations), blame (key reveal, key scalars).
//!
//! All are Schnorr proofs made non-interactive by hashing the whole statement (Fiat and Shamir);
//! the proof of one of two is that of Cramer, Damgård and Schoenmakers (CRYPTO 1994).

use curve25519_dalek::{
    RistrettoPoint, Scalar,
    ristretto::CompressedRistretto,
    traits::{IsIdentity, VartimeMultiscalarMul},
};
use rand::Rng;
use zeroize::Zeroizing;

use crate::dcnet::hash;

/// Bytes of a [`Schnorr`] or [`EqualLogs`] proof.
pub const PROOF_LEN: usize = 64;
/// Bytes of an [`OneOfTwo`] proof.
pub const ONE_OF_TWO_LEN: usize = 128;

/// A point from its 32 bytes; the identity is no key and is refused.
pub fn point(bytes: &[u8; 32]) -> Option<RistrettoPoint> {
    CompressedRistretto(*bytes).decompress().filter(|point| !point.is_identity())
}

/// A point from its 32 bytes, the identity included.
pub fn any_point(bytes: &[u8; 32]) -> Option<RistrettoPoint> {
    CompressedRistretto(*bytes).decompress()
}

/// The 32 bytes of a point.
pub fn bytes(point: &RistrettoPoint) -> [u8; 32] {
    point.compress().to_bytes()
}

fn scalar_at(bytes: &[u8], at: usize) -> Option<Scalar> {
    let chunk: [u8; 32] = bytes.get(at..at + 32)?.try_into().ok()?;
    Scalar::from_canonical_bytes(chunk).into_option()
}

/// `r B - c P`, of public values only.
fn opened(
    r: &Scalar,
    base: &RistrettoPoint,
    c: &Scalar,
    public: &RistrettoPoint,
) -> RistrettoPoint {
    RistrettoPoint::vartime_multiscalar_mul([*r, -c], [base, public])
}

/// Proof of knowing `x` with `P = x B`, bound to a message: possession and signature in one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schnorr {
    challenge: Scalar,
    response: Scalar,
}

impl Schnorr {
    /// Signs `message` with `x` on `base`.
    pub fn sign(x: &Scalar, base: &RistrettoPoint, message: &[u8], rng: &mut impl Rng) -> Self {
        let nonce = Zeroizing::new(hash::random_scalar(rng));
        let challenge = Self::challenge(base, &(x * base), &(*nonce * base), message);
        Self { challenge, response: *nonce + challenge * x }
    }

    /// Whether `public` on `base` signed `message`.
    pub fn verify(&self, public: &RistrettoPoint, base: &RistrettoPoint, message: &[u8]) -> bool {
        let commitment = opened(&self.response, base, &self.challenge, public);
        Self::challenge(base, public, &commitment, message) == self.challenge
    }

    fn challenge(
        base: &RistrettoPoint,
        public: &RistrettoPoint,
        commitment: &RistrettoPoint,
        message: &[u8],
    ) -> Scalar {
        let parts = [bytes(base), bytes(public), bytes(commitment)];
        hash::scalar("schnorr", &[&parts[0], &parts[1], &parts[2], message])
    }

    /// `challenge 32 | response 32`.
    pub fn to_bytes(&self) -> [u8; PROOF_LEN] {
        join(&self.challenge, &self.response)
    }

    /// Strictly the canonical form.
    pub fn from_bytes(bytes: &[u8; PROOF_LEN]) -> Option<Self> {
        Some(Self { challenge: scalar_at(bytes, 0)?, response: scalar_at(bytes, 32)? })
    }
}

/// Proof that `X = x G` and `S = x Y` share `x`: a shared key is revealed without its secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EqualLogs {
    challenge: Scalar,
    response: Scalar,
}

impl EqualLogs {
    /// Proves `S = x Y` for the public key `x G`.
    pub fn prove(x: &Scalar, other: &RistrettoPoint, rng: &mut impl Rng) -> Self {
        let nonce = Zeroizing::new(hash::random_scalar(rng));
        let public = RistrettoPoint::mul_base(x);
        let challenge = Self::challenge(
            &public,
            other,
            &(x * other),
            &RistrettoPoint::mul_base(&nonce),
            &(*nonce * other),
        );
        Self { challenge, response: *nonce + challenge * x }
    }

    /// Whether `shared` is the Diffie-Hellman point of `public` and `other`.
    pub fn verify(
        &self,
        public: &RistrettoPoint,
        other: &RistrettoPoint,
        shared: &RistrettoPoint,
    ) -> bool {
        let generator = RistrettoPoint::mul_base(&Scalar::ONE);
        let first = opened(&self.response, &generator, &self.challenge, public);
        let second = opened(&self.response, other, &self.challenge, shared);
        Self::challenge(public, other, shared, &first, &second) == self.challenge
    }

    fn challenge(
        public: &RistrettoPoint,
        other: &RistrettoPoint,
        shared: &RistrettoPoint,
        first: &RistrettoPoint,
        second: &RistrettoPoint,
    ) -> Scalar {
        let parts = [public, other, shared, first, second].map(bytes);
        hash::scalar("equal logs", &[&parts[0], &parts[1], &parts[2], &parts[3], &parts[4]])
    }

    /// `challenge 32 | response 32`.
    pub fn to_bytes(&self) -> [u8; PROOF_LEN] {
        join(&self.challenge, &self.response)
    }

    /// Strictly the canonical form.
    pub fn from_bytes(bytes: &[u8; PROOF_LEN]) -> Option<Self> {
        Some(Self { challenge: scalar_at(bytes, 0)?, response: scalar_at(bytes, 32)? })
    }
}

/// One statement: `public = x base`.
#[derive(Debug, Clone, Copy)]
pub struct Statement {
    /// The base.
    pub base: RistrettoPoint,
    /// Its multiple.
    pub public: RistrettoPoint,
}

/// Proof of knowing the logarithm of one of two statements, and nothing of which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OneOfTwo {
    challenges: [Scalar; 2],
    responses: [Scalar; 2],
}

impl OneOfTwo {
    /// Proves with the secret `x` of `statements[known]`; the other half is simulated.
    pub fn prove(
        statements: &[Statement; 2],
        known: usize,
        x: &Scalar,
        message: &[u8],
        rng: &mut impl Rng,
    ) -> Self {
        let nonce = Zeroizing::new(hash::random_scalar(rng));
        let other = 1 - known;
        let mut challenges = [Scalar::ZERO; 2];
        let mut responses = [Scalar::ZERO; 2];
        challenges[other] = hash::random_scalar(rng);
        responses[other] = hash::random_scalar(rng);
        let mut commitments = [RistrettoPoint::default(); 2];
        commitments[known] = *nonce * statements[known].base;
        commitments[other] = responses[other] * statements[other].base
            - challenges[other] * statements[other].public;
        challenges[known] = Self::challenge(statements, &commitments, message) - challenges[other];
        responses[known] = *nonce + challenges[known] * x;
        Self { challenges, responses }
    }

    /// Whether the prover knows one of the two.
    pub fn verify(&self, statements: &[Statement; 2], message: &[u8]) -> bool {
        let commitments: [RistrettoPoint; 2] = std::array::from_fn(|at| {
            let Statement { base, public } = &statements[at];
            opened(&self.responses[at], base, &self.challenges[at], public)
        });
        Self::challenge(statements, &commitments, message)
            == self.challenges[0] + self.challenges[1]
    }

    fn challenge(
        statements: &[Statement; 2],
        commitments: &[RistrettoPoint; 2],
        message: &[u8],
    ) -> Scalar {
        let parts = [
            statements[0].base,
            statements[0].public,
            statements[1].base,
            statements[1].public,
            commitments[0],
            commitments[1],
        ]
        .map(|point| bytes(&point));
        hash::scalar(
            "one of two",
            &[&parts[0], &parts[1], &parts[2], &parts[3], &parts[4], &parts[5], message],
        )
    }

    /// `challenges 64 | responses 64`.
    pub fn to_bytes(&self) -> [u8; ONE_OF_TWO_LEN] {
        let mut out = [0; ONE_OF_TWO_LEN];
        out[..64].copy_from_slice(&join(&self.challenges[0], &self.challenges[1]));
        out[64..].copy_from_slice(&join(&self.responses[0], &self.responses[1]));
        out
    }

    /// Strictly the canonical form.
    pub fn from_bytes(bytes: &[u8; ONE_OF_TWO_LEN]) -> Option<Self> {
        Some(Self {
            challenges: [scalar_at(bytes, 0)?, scalar_at(bytes, 32)?],
            responses: [scalar_at(bytes, 64)?, scalar_at(bytes, 96)?],
        })
    }
}

fn join(first: &Scalar, second: &Scalar) -> [u8; PROOF_LEN] {
    let mut out = [0; PROOF_LEN];
    out[..32].copy_from_slice(first.as_bytes());
    out[32..].copy_from_slice(second.as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn signatures_bind_key_base_and_message() {
        let mut rng = StdRng::seed_from_u64(1);
        let base = RistrettoPoint::mul_base(&hash::random_scalar(&mut rng));
        let x = hash::random_scalar(&mut rng);
        let signature = Schnorr::sign(&x, &base, b"message", &mut rng);
        let signature = Schnorr::from_bytes(&signature.to_bytes()).unwrap();
        assert!(signature.verify(&(x * base), &base, b"message"));
        assert!(!signature.verify(&(x * base), &base, b"massage"));
        assert!(!signature.verify(&RistrettoPoint::mul_base(&x), &base, b"message"));
        let generator = RistrettoPoint::mul_base(&Scalar::ONE);
        assert!(!signature.verify(&(x * base), &generator, b"message"));
    }

    #[test]
    fn a_revealed_key_is_the_shared_one() {
        let mut rng = StdRng::seed_from_u64(2);
        let (x, y) = (hash::random_scalar(&mut rng), hash::random_scalar(&mut rng));
        let (public, other) = (RistrettoPoint::mul_base(&x), RistrettoPoint::mul_base(&y));
        let proof = EqualLogs::prove(&x, &other, &mut rng);
        let proof = EqualLogs::from_bytes(&proof.to_bytes()).unwrap();
        assert!(proof.verify(&public, &other, &(x * other)));
        assert!(!proof.verify(&public, &other, &(y * other)));
    }

    #[test]
    fn one_of_two_needs_one_and_hides_which() {
        let mut rng = StdRng::seed_from_u64(3);
        let secrets = [hash::random_scalar(&mut rng), hash::random_scalar(&mut rng)];
        let statements = secrets.map(|secret| {
            let base = RistrettoPoint::mul_base(&hash::random_scalar(&mut rng));
            Statement { base, public: secret * base }
        });
        for (known, secret) in secrets.iter().enumerate() {
            let proof = OneOfTwo::prove(&statements, known, secret, b"m", &mut rng);
            let proof = OneOfTwo::from_bytes(&proof.to_bytes()).unwrap();
            assert!(proof.verify(&statements, b"m"));
            assert!(!proof.verify(&statements, b"n"));
        }
        let wrong = hash::random_scalar(&mut rng);
        for known in 0..2 {
            let proof = OneOfTwo::prove(&statements, known, &wrong, b"m", &mut rng);
            assert!(!proof.verify(&statements, b"m"));
        }
    }
}
