//! The reachability probe: the controller asks a node over UDP, the node answers in equal size.
//!
//! In: datagrams with the all-zero circuit id. Out: typed messages, or such datagrams.
//! Called by: controller (asks), node (answers).
//!
//! ```text
//! probe    0 CID 16 (zero) | 16 kind 1 = 1 | 17 nonce 32 | 49 node id 32 | 81 issued 8
//!          | 89 controller's PSS signature 384 | 473 random padding to 1408
//! answer   0 CID 16 (zero) | 16 kind 1 = 2 | 17 nonce 32 | 49 node id 32
//!          | 81 random padding to 1408
//! ```
//! `issued` counts seconds since 1970. The signature is over `cepa-probe-v1\n` and bytes 17..89.
//! A node answers only probes that name it, so a node cannot be registered at another's address,
//! and only of its own controller, so nobody else can use it as a reflector.

use rand::Rng;

use crate::model::{CELL_LEN, Cid, NodeId};

/// A PSS signature of an RSA-3072 key.
pub const PROBE_SIGNATURE_LEN: usize = 384;

const LABEL: &[u8; 14] = b"cepa-probe-v1\n";
const PROBE: u8 = 1;
const ANSWER: u8 = 2;
const KIND_AT: usize = 16;
const NONCE_AT: usize = 17;
const NODE_AT: usize = 49;
const ISSUED_AT: usize = 81;
const SIGNATURE_AT: usize = 89;
const PADDING_AT: usize = SIGNATURE_AT + PROBE_SIGNATURE_LEN;

/// Why a datagram with the all-zero circuit id is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProbeError {
    /// Not as long as a cell.
    #[error("expected a probe of 1408 bytes, got {0}")]
    Length(usize),
    /// Another circuit id than the all-zero one.
    #[error("expected the all-zero circuit id, got another")]
    Cid,
    /// Another kind.
    #[error("expected a probe message of kind {expected}, got {got}")]
    Kind {
        /// 1 for a probe, 2 for an answer.
        expected: u8,
        /// What was found.
        got: u8,
    },
}

/// The question whether a node can be reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Probe {
    /// Random, to be echoed.
    pub nonce: [u8; 32],
    /// The node that is meant.
    pub node: NodeId,
    /// When it was made, in seconds since 1970.
    pub issued: u64,
    /// The controller's signature over [`Self::signed_bytes`].
    pub signature: [u8; PROBE_SIGNATURE_LEN],
}

/// The answer of a node that can be reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProbeAnswer {
    /// The nonce of the probe.
    pub nonce: [u8; 32],
    /// The node that answers.
    pub node: NodeId,
}

/// Checks length, circuit id and kind.
fn checked(datagram: &[u8], expected: u8) -> Result<&[u8; CELL_LEN], ProbeError> {
    let cell: &[u8; CELL_LEN] =
        datagram.try_into().map_err(|_| ProbeError::Length(datagram.len()))?;
    if cell[..KIND_AT] != Cid::ZERO.as_bytes()[..] {
        return Err(ProbeError::Cid);
    }
    if cell[KIND_AT] != expected {
        return Err(ProbeError::Kind { expected, got: cell[KIND_AT] });
    }
    Ok(cell)
}

fn array<const N: usize>(cell: &[u8; CELL_LEN], at: usize) -> [u8; N] {
    std::array::from_fn(|index| cell[at + index])
}

impl Probe {
    /// What the controller signs.
    pub fn signed_bytes(nonce: &[u8; 32], node: &NodeId, issued: u64) -> Vec<u8> {
        [&LABEL[..], nonce, node.as_bytes(), &issued.to_be_bytes()].concat()
    }

    /// Reads a probe; its signature is not checked yet.
    ///
    /// # Errors
    /// Why the datagram is none.
    pub fn parse(datagram: &[u8]) -> Result<Self, ProbeError> {
        let cell = checked(datagram, PROBE)?;
        Ok(Self {
            nonce: array(cell, NONCE_AT),
            node: NodeId::from_bytes(array(cell, NODE_AT)),
            issued: u64::from_be_bytes(array(cell, ISSUED_AT)),
            signature: array(cell, SIGNATURE_AT),
        })
    }

    /// Writes the probe; the padding is random.
    pub fn emit(&self, cell: &mut [u8; CELL_LEN], rng: &mut impl Rng) {
        cell[..KIND_AT].copy_from_slice(Cid::ZERO.as_bytes());
        cell[KIND_AT] = PROBE;
        cell[NONCE_AT..NODE_AT].copy_from_slice(&self.nonce);
        cell[NODE_AT..ISSUED_AT].copy_from_slice(self.node.as_bytes());
        cell[ISSUED_AT..SIGNATURE_AT].copy_from_slice(&self.issued.to_be_bytes());
        cell[SIGNATURE_AT..PADDING_AT].copy_from_slice(&self.signature);
        rng.fill_bytes(&mut cell[PADDING_AT..]);
    }

    /// The answer to it.
    pub const fn answer(&self) -> ProbeAnswer {
        ProbeAnswer { nonce: self.nonce, node: self.node }
    }
}

impl ProbeAnswer {
    /// Reads an answer.
    ///
    /// # Errors
    /// Why the datagram is none.
    pub fn parse(datagram: &[u8]) -> Result<Self, ProbeError> {
        let cell = checked(datagram, ANSWER)?;
        Ok(Self { nonce: array(cell, NONCE_AT), node: NodeId::from_bytes(array(cell, NODE_AT)) })
    }

    /// Writes the answer; the padding is random.
    pub fn emit(&self, cell: &mut [u8; CELL_LEN], rng: &mut impl Rng) {
        cell[..KIND_AT].copy_from_slice(Cid::ZERO.as_bytes());
        cell[KIND_AT] = ANSWER;
        cell[NONCE_AT..NODE_AT].copy_from_slice(&self.nonce);
        cell[NODE_AT..ISSUED_AT].copy_from_slice(self.node.as_bytes());
        rng.fill_bytes(&mut cell[ISSUED_AT..]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;

    use super::*;

    proptest! {
        #[test]
        fn messages_round_trip(
            nonce: [u8; 32], node: [u8; 32], issued: u64, fill: u8, seed: u64,
        ) {
            let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
            let signature = [fill; PROBE_SIGNATURE_LEN];
            let probe = Probe { nonce, node: NodeId::from_bytes(node), issued, signature };
            let mut cell = [0; CELL_LEN];
            probe.emit(&mut cell, &mut rng);
            prop_assert_eq!(Probe::parse(&cell), Ok(probe.clone()));
            prop_assert!(ProbeAnswer::parse(&cell).is_err());
            let covered = Probe::signed_bytes(&nonce, &probe.node, issued);
            prop_assert_eq!(&covered[LABEL.len()..], &cell[NONCE_AT..SIGNATURE_AT]);
            probe.answer().emit(&mut cell, &mut rng);
            prop_assert_eq!(ProbeAnswer::parse(&cell), Ok(probe.answer()));
            prop_assert!(Probe::parse(&cell).is_err());
        }

        #[test]
        fn other_datagrams_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..1500)) {
            let zeroed = bytes.len() == CELL_LEN && bytes[..KIND_AT].iter().all(|byte| *byte == 0);
            prop_assert!(zeroed || Probe::parse(&bytes).is_err());
            prop_assert!(zeroed || ProbeAnswer::parse(&bytes).is_err());
        }
    }

    #[test]
    fn errors_say_what_was_expected() {
        assert_eq!(Probe::parse(&[0; 1407]), Err(ProbeError::Length(1407)));
        assert_eq!(Probe::parse(&[1; CELL_LEN]), Err(ProbeError::Cid));
        assert_eq!(
            Probe::parse(&[0; CELL_LEN]).unwrap_err().to_string(),
            "expected a probe message of kind 1, got 0"
        );
    }
}
