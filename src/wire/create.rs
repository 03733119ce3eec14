//! CREATE and its answers, CREATED and COOKIE.
//!
//! In: the bytes after the circuit id of a cell on a circuit without keys. Out: typed messages.
//! Called by: keys (through plain arrays), circuit.
//!
//! ```text
//! CREATE   version 2 | onion key id 8 | X25519 32 | RSA-OAEP 384 | mac1 16 | mac2 16      458
//! CREATED  1 | X25519 32 | confirmation 32 | sealed status 32 | mac 16                    113
//! COOKIE   2 | salt 32 | sealed cookie 32 | random 48                                     113
//! OAEP     secret 32 | pair key 32 | suite 1 | link suite 1                                66
//! ```

use crate::model::{DestroyReason, Suite};

/// The prefix of a CREATE cell; the rest of the cell is random padding.
pub const CREATE_LEN: usize = 458;
/// The version that a CREATE opens with.
pub const CREATE_VERSION: u16 = 1;
/// What RSA-3072 OAEP yields.
pub const OAEP_LEN: usize = 384;
/// What the OAEP block carries.
pub const OAEP_PLAIN_LEN: usize = 66;
/// The prefix of an answer cell; the rest of the cell is random padding.
pub const ANSWER_LEN: usize = 113;
/// The status inside a CREATED, in clear.
pub const STATUS_LEN: usize = 16;
/// The status inside a CREATED, sealed.
pub const SEALED_STATUS_LEN: usize = STATUS_LEN + 16;

const MAC1_AT: usize = CREATE_LEN - 32;
const MAC2_AT: usize = CREATE_LEN - 16;
const CREATED: u8 = 1;
const COOKIE: u8 = 2;
const CREATED_MAC_AT: usize = ANSWER_LEN - 16;

/// A CREATE prefix that is well formed; nothing in it is verified yet.
#[derive(Clone, PartialEq, Eq)]
pub struct CreatePrefix(Box<[u8; CREATE_LEN]>);

/// Why bytes are no CREATE.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CreateError {
    /// Shorter than the prefix.
    #[error("expected a CREATE of {CREATE_LEN} bytes, got {0}")]
    Length(usize),
    /// Another version.
    #[error("expected CREATE version {CREATE_VERSION}, got {0}")]
    Version(u16),
}

impl CreatePrefix {
    /// Reads the prefix from the start of `bytes`.
    ///
    /// # Errors
    /// When `bytes` is too short or of another version.
    pub fn parse(bytes: &[u8]) -> Result<Self, CreateError> {
        let prefix: &[u8; CREATE_LEN] =
            bytes.first_chunk().ok_or(CreateError::Length(bytes.len()))?;
        let version = u16::from_be_bytes([prefix[0], prefix[1]]);
        if version != CREATE_VERSION {
            return Err(CreateError::Version(version));
        }
        Ok(Self(Box::new(*prefix)))
    }

    /// Builds a prefix with both MACs zero.
    pub fn new(onion_key_id: [u8; 8], ephemeral: [u8; 32], oaep: &[u8; OAEP_LEN]) -> Self {
        let mut bytes = Box::new([0u8; CREATE_LEN]);
        bytes[..2].copy_from_slice(&CREATE_VERSION.to_be_bytes());
        bytes[2..10].copy_from_slice(&onion_key_id);
        bytes[10..42].copy_from_slice(&ephemeral);
        bytes[42..MAC1_AT].copy_from_slice(oaep);
        Self(bytes)
    }

    /// The bytes that go to the wire.
    pub fn as_bytes(&self) -> &[u8; CREATE_LEN] {
        &self.0
    }

    /// Which onion key the client used.
    pub fn onion_key_id(&self) -> [u8; 8] {
        array(&self.0[2..10])
    }

    /// The client's X25519 share.
    pub fn ephemeral(&self) -> [u8; 32] {
        array(&self.0[10..42])
    }

    /// The RSA block.
    pub fn oaep(&self) -> &[u8] {
        &self.0[42..MAC1_AT]
    }

    /// What `mac1` covers.
    pub fn before_mac1(&self) -> &[u8] {
        &self.0[..MAC1_AT]
    }

    /// What `mac2` covers.
    pub fn before_mac2(&self) -> &[u8] {
        &self.0[..MAC2_AT]
    }

    /// The MAC that proves knowledge of the node's identity.
    pub fn mac1(&self) -> [u8; 16] {
        array(&self.0[MAC1_AT..MAC2_AT])
    }

    /// The MAC that proves a cookie; random without one.
    pub fn mac2(&self) -> [u8; 16] {
        array(&self.0[MAC2_AT..])
    }

    /// Writes `mac1`.
    pub fn set_mac1(&mut self, mac: [u8; 16]) {
        self.0[MAC1_AT..MAC2_AT].copy_from_slice(&mac);
    }

    /// Writes `mac2`.
    pub fn set_mac2(&mut self, mac: [u8; 16]) {
        self.0[MAC2_AT..].copy_from_slice(&mac);
    }
}

impl std::fmt::Debug for CreatePrefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CreatePrefix(458 bytes)")
    }
}

/// What the OAEP block of a CREATE carries.
#[derive(Clone, PartialEq, Eq, zeroize::ZeroizeOnDrop)]
pub struct OaepPlain {
    /// The client's contribution to the hop secret.
    pub secret: [u8; 32],
    /// The key this node shares with its previous neighbour.
    pub pair: [u8; 32],
    /// The layer suite of this hop.
    #[zeroize(skip)]
    pub suite: Suite,
    /// The suite of the link tag between this node and its previous neighbour.
    #[zeroize(skip)]
    pub link_suite: Suite,
}

impl OaepPlain {
    /// Reads the block; unknown suites and other lengths are refused.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; OAEP_PLAIN_LEN] = bytes.try_into().ok()?;
        Some(Self {
            secret: array(&bytes[..32]),
            pair: array(&bytes[32..64]),
            suite: Suite::from_wire(bytes[64])?,
            link_suite: Suite::from_wire(bytes[65])?,
        })
    }

    /// The bytes that are encrypted to the node.
    pub fn emit(&self) -> zeroize::Zeroizing<[u8; OAEP_PLAIN_LEN]> {
        let mut bytes = zeroize::Zeroizing::new([0u8; OAEP_PLAIN_LEN]);
        bytes[..32].copy_from_slice(&self.secret);
        bytes[32..64].copy_from_slice(&self.pair);
        bytes[64] = self.suite as u8;
        bytes[65] = self.link_suite as u8;
        bytes
    }
}

/// What the sealed status of a CREATED says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// The circuit stands.
    Open,
    /// The node refuses, with a coarse reason.
    Refused(DestroyReason),
}

impl Status {
    /// Reads the opened status.
    pub fn parse(bytes: &[u8; STATUS_LEN]) -> Self {
        match bytes[0] {
            0 => Self::Open,
            _ => Self::Refused(DestroyReason::from_wire(bytes[1])),
        }
    }

    /// The bytes that are sealed.
    pub fn emit(self) -> [u8; STATUS_LEN] {
        let mut bytes = [0; STATUS_LEN];
        if let Self::Refused(reason) = self {
            bytes[0] = 1;
            bytes[1] = reason as u8;
        }
        bytes
    }
}

/// The answer to a CREATE.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The handshake is done; the status says whether the circuit stands.
    Created {
        /// The node's X25519 share.
        ephemeral: [u8; 32],
        /// Proves that the node derived the same keys.
        confirmation: [u8; 32],
        /// The status, sealed to the client.
        sealed_status: [u8; SEALED_STATUS_LEN],
        /// Proves to the previous neighbour that the node holds the pair key.
        mac: [u8; 16],
    },
    /// The node is under load and asks for proof of the sender's address.
    Cookie {
        /// Draws the key the cookie is sealed with.
        salt: [u8; 32],
        /// The cookie, sealed.
        sealed_cookie: [u8; 32],
    },
}

/// Why bytes are no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AnswerError {
    /// Shorter than an answer.
    #[error("expected an answer of {ANSWER_LEN} bytes, got {0}")]
    Length(usize),
    /// Neither CREATED nor COOKIE.
    #[error("expected answer type 1 (CREATED) or 2 (COOKIE), got {0}")]
    Type(u8),
}

impl Answer {
    /// Reads an answer from the start of `bytes`.
    ///
    /// # Errors
    /// When `bytes` is too short or of another type.
    pub fn parse(bytes: &[u8]) -> Result<Self, AnswerError> {
        let bytes: &[u8; ANSWER_LEN] =
            bytes.first_chunk().ok_or(AnswerError::Length(bytes.len()))?;
        match bytes[0] {
            CREATED => Ok(Self::Created {
                ephemeral: array(&bytes[1..33]),
                confirmation: array(&bytes[33..65]),
                sealed_status: array(&bytes[65..CREATED_MAC_AT]),
                mac: array(&bytes[CREATED_MAC_AT..]),
            }),
            COOKIE => Ok(Self::Cookie {
                salt: array(&bytes[1..33]),
                sealed_cookie: array(&bytes[33..65]),
            }),
            other => Err(AnswerError::Type(other)),
        }
    }

    /// Writes the answer; bytes that it does not need keep what `bytes` holds (random padding).
    pub fn emit(&self, bytes: &mut [u8; ANSWER_LEN]) {
        match self {
            Self::Created { ephemeral, confirmation, sealed_status, mac } => {
                bytes[0] = CREATED;
                bytes[1..33].copy_from_slice(ephemeral);
                bytes[33..65].copy_from_slice(confirmation);
                bytes[65..CREATED_MAC_AT].copy_from_slice(sealed_status);
                bytes[CREATED_MAC_AT..].copy_from_slice(mac);
            }
            Self::Cookie { salt, sealed_cookie } => {
                bytes[0] = COOKIE;
                bytes[1..33].copy_from_slice(salt);
                bytes[33..65].copy_from_slice(sealed_cookie);
            }
        }
    }

    /// What the MAC of a CREATED covers, taken from its emitted bytes.
    pub fn before_mac(bytes: &[u8; ANSWER_LEN]) -> &[u8] {
        &bytes[..CREATED_MAC_AT]
    }
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0u8; N];
    array.copy_from_slice(bytes);
    array
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn create_round_trips(id: [u8; 8], ephemeral: [u8; 32], fill: u8, mac1: [u8; 16], mac2: [u8; 16]) {
            let mut prefix = CreatePrefix::new(id, ephemeral, &[fill; OAEP_LEN]);
            prefix.set_mac1(mac1);
            prefix.set_mac2(mac2);
            let parsed = CreatePrefix::parse(prefix.as_bytes()).unwrap();
            prop_assert_eq!(parsed.onion_key_id(), id);
            prop_assert_eq!(parsed.ephemeral(), ephemeral);
            prop_assert_eq!(parsed.oaep(), &[fill; OAEP_LEN][..]);
            prop_assert_eq!(parsed.mac1(), mac1);
            prop_assert_eq!(parsed.mac2(), mac2);
            prop_assert_eq!(parsed, prefix);
        }

        #[test]
        fn created_round_trips(ephemeral: [u8; 32], confirmation: [u8; 32], sealed_status: [u8; 32], mac: [u8; 16]) {
            let answer = Answer::Created { ephemeral, confirmation, sealed_status, mac };
            let mut bytes = [0xaa; ANSWER_LEN];
            answer.emit(&mut bytes);
            prop_assert_eq!(Answer::parse(&bytes), Ok(answer));
        }

        #[test]
        fn cookie_round_trips(salt: [u8; 32], sealed_cookie: [u8; 32]) {
            let answer = Answer::Cookie { salt, sealed_cookie };
            let mut bytes = [0xaa; ANSWER_LEN];
            answer.emit(&mut bytes);
            prop_assert_eq!(Answer::parse(&bytes), Ok(answer));
        }

        #[test]
        fn any_bytes_parse_or_err(bytes: Vec<u8>) {
            let _ = CreatePrefix::parse(&bytes);
            let _ = Answer::parse(&bytes);
            let _ = OaepPlain::parse(&bytes);
        }
    }

    #[test]
    fn status_round_trips() {
        for status in DestroyReason::ALL.map(Status::Refused).into_iter().chain([Status::Open]) {
            assert_eq!(Status::parse(&status.emit()), status);
        }
    }
}
