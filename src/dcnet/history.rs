//! What a client has heard: a hash of every downstream message of the interval.
//!
//! In: DOWN bodies, in order. Out: a running hash, and the scalar that binds a round's key shares
//! to it. Called by: clients and the relay.
//!
//! A client's share of the slot key is `k + h * q`. The relay recovers `k` only where every client
//! heard the same history, up to and including the message that opened the round: one different
//! byte for one client, and the slot does not open.

use curve25519_dalek::Scalar;

use crate::dcnet::hash;

/// The running hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct History(pub [u8; 32]);

impl History {
    /// Before the first message: the interval and the relay's key in it.
    pub fn new(interval: &[u8; 32], relay_key: &[u8; 32]) -> Self {
        Self(hash::hash("history", &[interval, relay_key]))
    }

    /// After one more message.
    pub fn push(&mut self, down: &[u8]) {
        self.0 = hash::hash("history", &[&self.0, down]);
    }

    /// The scalar `h`.
    pub fn scalar(&self) -> Scalar {
        Scalar::from_bytes_mod_order(self.0)
    }

    /// What the relay signs.
    pub fn signed(&self, interval: &[u8; 32], round: u64) -> Vec<u8> {
        [interval.as_slice(), &round.to_be_bytes(), &self.0].concat()
    }
}
