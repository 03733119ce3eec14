//! One chosen node of a path: what a client must know to open a layer with it.
//!
//! In: a checked descriptor. Out: a value. Called by: directory (makes it), circuit (uses it).

use std::net::SocketAddr;

use super::{NodeId, Suite};

/// A node as the circuit state machines see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The node's id: SHA-256 of `identity_spki`.
    pub id: NodeId,
    /// The node's name in the directory, for people.
    pub name: String,
    /// Where it listens, UDP.
    pub addr: SocketAddr,
    /// Its RSA public key, SPKI DER.
    pub identity_spki: Vec<u8>,
    /// Its X25519 onion key.
    pub onion_key: [u8; 32],
    /// The id of that onion key.
    pub onion_key_id: [u8; 8],
    /// The suite chosen for this hop.
    pub suite: Suite,
    /// Whether the node is an exit.
    pub is_exit: bool,
}
