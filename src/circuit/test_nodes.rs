//! Nodes for the tests of this folder: committed identities, onion keys from seeds.
//!
//! In: an index. Out: a node and the hop that a client sees, CREATE cells. Called by: unit tests
//! only.

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::ClientHandshake;
use crate::{
    keys::{Identity, OnionKey, test_keys::identity},
    model::{CELL_LEN, CID_LEN, Cid, Hop, Suite},
    wire::{CreatePrefix, set_cid},
};

/// A node by its keys.
pub(super) struct TestNode {
    pub(super) identity: &'static Identity,
    pub(super) onion: OnionKey,
    pub(super) hop: Hop,
}

/// The node of a committed identity, 0 to 7.
pub(super) fn node(index: usize) -> TestNode {
    let identity = identity(index);
    let onion = OnionKey::generate(&mut StdRng::seed_from_u64(index as u64)).unwrap();
    let hop = Hop {
        id: identity.id(),
        name: format!("n{index}"),
        addr: ([192, 0, 2, 10 + index as u8], 5000).into(),
        identity_spki: identity.spki_der().to_vec(),
        onion_key: *onion.public(),
        onion_key_id: onion.id(),
        suite: Suite::ALL[index % 2],
        is_exit: true,
    };
    TestNode { identity, onion, hop }
}

impl TestNode {
    /// A client's half of a handshake with this node.
    pub(super) fn handshake(&self, rng: &mut impl Rng) -> ClientHandshake {
        ClientHandshake::start(self.hop.clone(), Suite::Aes128Gcm, rng).unwrap()
    }
}

/// A prefix as a cell, with random padding.
pub(super) fn cell(cid: Cid, prefix: &CreatePrefix, rng: &mut impl Rng) -> [u8; CELL_LEN] {
    let mut cell = [0u8; CELL_LEN];
    rng.fill_bytes(&mut cell);
    set_cid(&mut cell, cid);
    cell[CID_LEN..][..prefix.as_bytes().len()].copy_from_slice(prefix.as_bytes());
    cell
}

/// Points of Curve25519 with which every agreement is all zero (RFC 7748, 6.1, and their
/// non-canonical encodings).
pub(super) const LOW_ORDER: [[u8; 32]; 7] = {
    const fn p_and(more: i16) -> [u8; 32] {
        let mut bytes = [0xff; 32];
        bytes[0] = (0xed + more) as u8;
        bytes[31] = 0x7f;
        bytes
    }
    let mut one = [0; 32];
    one[0] = 1;
    [
        [0; 32],
        one,
        p_and(-1),
        p_and(0),
        p_and(1),
        [
            0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f,
            0xc4, 0x6a, 0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16,
            0x5f, 0x49, 0xb8, 0x00,
        ],
        [
            0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83,
            0xef, 0x5b, 0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd,
            0xd0, 0x9f, 0x11, 0x57,
        ],
    ]
};
