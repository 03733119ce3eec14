//! The hashes of the DC-net: every one names its purpose and the length of each part.
//!
//! In: a purpose and byte strings. Out: 32 bytes, a scalar, or a point nobody knows the logarithm
//! of. Called by: proofs, identities, the pad keys and the history of [`crate::dcnet`].

use curve25519_dalek::{RistrettoPoint, Scalar};
use rand::Rng;
use ring::digest::{Algorithm, Context, SHA256, SHA512};

fn digest(algorithm: &'static Algorithm, purpose: &str, parts: &[&[u8]]) -> ring::digest::Digest {
    let mut context = Context::new(algorithm);
    context.update(b"cepa dcnet ");
    context.update(purpose.as_bytes());
    context.update(&[0]);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    context.finish()
}

/// SHA-256 over the purpose and the length-prefixed parts.
pub fn hash(purpose: &str, parts: &[&[u8]]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, purpose, parts).as_ref());
    out
}

/// SHA-512 over the same.
pub fn wide(purpose: &str, parts: &[&[u8]]) -> [u8; 64] {
    let mut out = [0; 64];
    out.copy_from_slice(digest(&SHA512, purpose, parts).as_ref());
    out
}

/// A scalar, uniform but for a bias of 2^-259.
pub fn scalar(purpose: &str, parts: &[&[u8]]) -> Scalar {
    Scalar::from_bytes_mod_order_wide(&wide(purpose, parts))
}

/// The second generator of the Pedersen commitments.
pub fn second_generator() -> RistrettoPoint {
    RistrettoPoint::from_uniform_bytes(&wide("pedersen generator", &[]))
}

/// A random scalar.
pub fn random_scalar(rng: &mut impl Rng) -> Scalar {
    let mut bytes = [0; 64];
    rng.fill_bytes(&mut bytes);
    Scalar::from_bytes_mod_order_wide(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_together() {
        assert_ne!(hash("a", &[b"bc", b"d"]), hash("a", &[b"b", b"cd"]));
        assert_ne!(hash("a", &[b"b"]), hash("ab", &[]));
    }
}
