//! How one exit joins another: the first bytes of a cell under the bridge's id.
//!
//! In: bytes 16.. of a cell. Out: a typed prefix. Called by: forward.
//!
//! ```text
//! join    version 1 | suite 1 | receiver's onion key id 8 | sender's 8 | X25519 ephemeral 32 | mac 16
//! accept  mac 16
//! ```
//! Random padding follows both, up to the length of a cell.

use super::ShareWireError;
use crate::model::Suite;

/// The length of a join.
pub const JOIN_LEN: usize = 66;

const VERSION: u8 = 1;

/// A join as it travels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JoinPrefix {
    /// The suite of the link that it opens.
    pub suite: Suite,
    /// Which of the receiver's onion keys is used.
    pub receiver_key_id: [u8; 8],
    /// Which of the sender's.
    pub sender_key_id: [u8; 8],
    /// A key of this join alone.
    pub ephemeral: [u8; 32],
    /// Keyed by what both exits alone can compute.
    pub mac: [u8; 16],
}

impl JoinPrefix {
    /// Reads the first bytes after the circuit id.
    ///
    /// # Errors
    /// When there are too few or the version is another.
    pub fn parse(bytes: &[u8]) -> Result<Self, ShareWireError> {
        let bytes: &[u8; JOIN_LEN] = bytes
            .first_chunk()
            .ok_or_else(|| ShareWireError::malformed("a join of 66 bytes", bytes.len()))?;
        if bytes[0] != VERSION {
            return Err(ShareWireError::malformed("a join of version 1", bytes[0]));
        }
        let suite = Suite::from_wire(bytes[1])
            .ok_or_else(|| ShareWireError::malformed("a suite of 1 or 2", bytes[1]))?;
        let mut join = Self {
            suite,
            receiver_key_id: [0; 8],
            sender_key_id: [0; 8],
            ephemeral: [0; 32],
            mac: [0; 16],
        };
        join.receiver_key_id.copy_from_slice(&bytes[2..10]);
        join.sender_key_id.copy_from_slice(&bytes[10..18]);
        join.ephemeral.copy_from_slice(&bytes[18..50]);
        join.mac.copy_from_slice(&bytes[50..]);
        Ok(join)
    }

    /// The bytes of the join.
    pub fn emit(&self) -> [u8; JOIN_LEN] {
        let mut bytes = [0; JOIN_LEN];
        bytes[0] = VERSION;
        bytes[1] = self.suite as u8;
        bytes[2..10].copy_from_slice(&self.receiver_key_id);
        bytes[10..18].copy_from_slice(&self.sender_key_id);
        bytes[18..50].copy_from_slice(&self.ephemeral);
        bytes[50..].copy_from_slice(&self.mac);
        bytes
    }

    /// What the mac covers.
    pub fn before_mac(bytes: &[u8; JOIN_LEN]) -> &[u8] {
        &bytes[..50]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trips(receiver_key_id: [u8; 8], sender_key_id: [u8; 8], ephemeral: [u8; 32],
            mac: [u8; 16]) {
            let suite = Suite::ChaCha20Poly1305;
            let join = JoinPrefix { suite, receiver_key_id, sender_key_id, ephemeral, mac };
            prop_assert_eq!(JoinPrefix::parse(&join.emit()), Ok(join));
        }

        #[test]
        fn any_bytes_parse_or_err(bytes: Vec<u8>) {
            let _ = JoinPrefix::parse(&bytes);
        }
    }
}
