//! Who a party is: an Ed25519 key that signs, and as X25519 key opens its links.
//!
//! In: 32 secret bytes. Out: [`Identity`], its public half [`PublicKey`], ids and signatures.
//! Called by: configuration, sessions, intervals, blame and the links of the relay.

use std::fmt;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use rand::Rng;
use zeroize::Zeroizing;

use crate::dcnet::{
    hash,
    hex::{self, Hex},
};

/// SHA-256 of a public identity key; the name of a party's private file.
pub type PartyId = Hex<32>;

/// The secret half.
pub struct Identity {
    signing: SigningKey,
}

impl Identity {
    /// A fresh identity.
    pub fn generate(rng: &mut impl Rng) -> Self {
        let mut secret = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut *secret);
        Self::from_secret(&secret)
    }

    /// The identity of 32 secret bytes.
    pub fn from_secret(secret: &[u8; 32]) -> Self {
        Self { signing: SigningKey::from_bytes(secret) }
    }

    /// The 32 secret bytes, for the private file.
    pub fn secret(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.signing.to_bytes())
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.signing.verifying_key())
    }

    /// The party's id.
    pub fn id(&self) -> PartyId {
        self.public().id()
    }

    /// A signature under a purpose that no other message shares.
    pub fn sign(&self, purpose: &str, message: &[u8]) -> Hex<64> {
        Hex(self.signing.sign(&hash::hash(purpose, &[message])).to_bytes())
    }

    /// The X25519 secret of the party's links.
    pub fn link_secret(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.signing.to_scalar_bytes())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Identity({})", self.id())
    }
}

/// The public half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// A key from 32 bytes; weak points are refused.
    pub fn from_bytes(bytes: &[u8; 32]) -> Option<Self> {
        VerifyingKey::from_bytes(bytes).ok().filter(|key| !key.is_weak()).map(Self)
    }

    /// The 32 bytes.
    pub fn to_bytes(self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The id.
    pub fn id(self) -> PartyId {
        Hex(hash::hash("party id", &[self.0.as_bytes()]))
    }

    /// Whether this party signed `message` for `purpose`.
    pub fn verify(self, purpose: &str, message: &[u8], signature: &[u8; 64]) -> bool {
        let signature = Signature::from_bytes(signature);
        self.0.verify_strict(&hash::hash(purpose, &[message]), &signature).is_ok()
    }

    /// The X25519 public key of the party's links.
    pub fn link_public(self) -> [u8; 32] {
        self.0.to_montgomery().to_bytes()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&hex::encode(self.0.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn signatures_are_bound_to_their_purpose() {
        let identity = Identity::generate(&mut StdRng::seed_from_u64(1));
        let signature = identity.sign("a", b"message");
        assert!(identity.public().verify("a", b"message", &signature.0));
        assert!(!identity.public().verify("b", b"message", &signature.0));
        assert!(!format!("{identity:?}").contains(&hex::encode(&*identity.secret())));
    }

    #[test]
    fn the_link_key_is_the_same_point() {
        let identity = Identity::generate(&mut StdRng::seed_from_u64(2));
        let scalar = curve25519_dalek::MontgomeryPoint::mul_base_clamped(*identity.link_secret());
        assert_eq!(scalar.to_bytes(), identity.public().link_public());
    }
}
