//! The circuit id of one link.
//!
//! In: 16 bytes or an RNG. Out: a typed id. Called by: wire, circuit, forward.

use std::fmt;

use rand::Rng;
use uuid::Uuid;

/// Names a circuit on one link, for both directions: a random `UUIDv4` (16 bytes on the wire).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cid(Uuid);

impl Cid {
    /// The all-zero id, reserved for reachability probes.
    pub const ZERO: Self = Self(Uuid::nil());

    /// Draws a fresh id.
    pub fn random(rng: &mut impl Rng) -> Self {
        let mut bytes = [0u8; 16];
        rng.fill_bytes(&mut bytes);
        Self(uuid::Builder::from_random_bytes(bytes).into_uuid())
    }

    /// Takes the id from its wire form.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// The wire form.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The textual form's owner, for the HTTP carrier.
    pub const fn uuid(&self) -> Uuid {
        self.0
    }
}

impl fmt::Debug for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
