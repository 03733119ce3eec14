//! Control messages: what a client and one hop of its circuit say to each other.
//!
//! In: bodies of kind control. Out: typed fragments and values. Called by: circuit.
//!
//! ```text
//! body   flags = fragment index (high nibble), fragments - 1 (low nibble)
//! 12     type 1 | request id 4 | len 2 | value
//! ```
//! A message longer than one body continues in further cells, each with the same type and request
//! id; the flags number them, so order of arrival does not matter.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};

use super::{BodyHeader, CREATE_LEN};
use crate::model::{BODY_HEADER_LEN, BODY_LEN, BodyKind, Suite};

/// Type, request id and length before a control value.
pub const CONTROL_HEADER_LEN: usize = 7;
/// What one body carries of a control value.
pub const CONTROL_VALUE_LEN: usize = BODY_LEN - BODY_HEADER_LEN - CONTROL_HEADER_LEN;
/// The most fragments of one message.
pub const MAX_CONTROL_FRAGMENTS: usize = 16;

const VALUE_AT: usize = BODY_HEADER_LEN + CONTROL_HEADER_LEN;

/// What a control message asks or answers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum ControlType {
    /// Client to last hop: extend the circuit.
    Extend = 1,
    /// Hop to client: the answer of the next node, as it came.
    Extended = 2,
    /// Hop to client: the circuit was not extended; the value is a `DestroyReason` byte.
    ExtendFailed = 3,
    /// Client to exit: a frame for a tracker; the value is the tracker's node id and the frame.
    TrackerUp = 4,
    /// Exit to client: a frame of a tracker, in the same form.
    TrackerDown = 5,
    /// Exit to client: a bridge stands or fell; client to exit: it is done with one.
    Bridge = 6,
}

impl ControlType {
    fn from_wire(number: u8) -> Option<Self> {
        [
            Self::Extend,
            Self::Extended,
            Self::ExtendFailed,
            Self::TrackerUp,
            Self::TrackerDown,
            Self::Bridge,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == number)
    }
}

/// Why a control body was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ControlError {
    /// A type this program does not know.
    #[error("expected a control type of 1 to 6, got {0}")]
    Type(u8),
    /// A length that does not fit the body.
    #[error("expected a control value of at most {CONTROL_VALUE_LEN} bytes, got {0}")]
    Length(usize),
    /// A fragment number at or past the number of fragments.
    #[error("expected a fragment below {count}, got {index}")]
    Fragment {
        /// The fragment's number.
        index: u8,
        /// How many fragments the message has.
        count: u8,
    },
    /// The value of an EXTEND does not read.
    #[error("expected an EXTEND of {{to, relay, pair}}: {0}")]
    Extend(String),
}

/// One fragment of a control message; most messages have just one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ControlFragment<'a> {
    /// What the message is.
    pub kind: ControlType,
    /// Joins an answer to its question, and fragments to each other.
    pub request: u32,
    /// This fragment's number, from 0.
    pub index: u8,
    /// How many fragments the message has, from 1.
    pub count: u8,
    /// This fragment's part of the value.
    pub value: &'a [u8],
}

impl<'a> ControlFragment<'a> {
    /// Reads a body of kind control.
    ///
    /// # Errors
    /// When the type is unknown, or a length or number does not fit.
    pub fn parse(body: &'a [u8; BODY_LEN]) -> Result<Self, ControlError> {
        let flags = body[9];
        let (index, count) = (flags >> 4, (flags & 0x0f) + 1);
        if index >= count {
            return Err(ControlError::Fragment { index, count });
        }
        let kind = ControlType::from_wire(body[12]).ok_or(ControlError::Type(body[12]))?;
        let request = u32::from_be_bytes([body[13], body[14], body[15], body[16]]);
        let length = usize::from(u16::from_be_bytes([body[17], body[18]]));
        let value = body.get(VALUE_AT..VALUE_AT + length).ok_or(ControlError::Length(length))?;
        Ok(Self { kind, request, index, count, value })
    }

    /// Writes the fragment as a whole body.
    ///
    /// # Errors
    /// When the value is longer than a body holds, or the numbers do not fit.
    pub fn emit(&self, body: &mut [u8; BODY_LEN]) -> Result<(), ControlError> {
        if self.value.len() > CONTROL_VALUE_LEN {
            return Err(ControlError::Length(self.value.len()));
        }
        if self.index >= self.count || usize::from(self.count) > MAX_CONTROL_FRAGMENTS {
            return Err(ControlError::Fragment { index: self.index, count: self.count });
        }
        let flags = self.index << 4 | (self.count - 1);
        BodyHeader { kind: BodyKind::Control, flags, offset: 0 }.emit(body);
        body[12] = self.kind as u8;
        body[13..17].copy_from_slice(&self.request.to_be_bytes());
        body[17..19].copy_from_slice(&(self.value.len() as u16).to_be_bytes());
        body[VALUE_AT..VALUE_AT + self.value.len()].copy_from_slice(self.value);
        body[VALUE_AT + self.value.len()..].fill(0);
        Ok(())
    }
}

/// Cuts a value into the fragments of one message.
///
/// # Errors
/// When the value needs more than [`MAX_CONTROL_FRAGMENTS`].
pub fn fragments(
    kind: ControlType,
    request: u32,
    value: &[u8],
) -> Result<Vec<ControlFragment<'_>>, ControlError> {
    let count = value.len().div_ceil(CONTROL_VALUE_LEN).max(1);
    if count > MAX_CONTROL_FRAGMENTS {
        return Err(ControlError::Length(value.len()));
    }
    Ok((0..count)
        .map(|index| {
            let start = index * CONTROL_VALUE_LEN;
            let end = value.len().min(start + CONTROL_VALUE_LEN);
            ControlFragment {
                kind,
                request,
                index: index as u8,
                count: count as u8,
                value: &value[start..end],
            }
        })
        .collect())
}

/// The value of an EXTEND: where to, the CREATE prefix to relay, and the pair key of the new link.
#[derive(Clone, PartialEq, Eq)]
pub struct ExtendValue {
    /// A node id, or the `ip:port` of a member.
    pub to: String,
    /// The CREATE prefix, as the next node receives it.
    pub relay: Box<[u8; CREATE_LEN]>,
    /// The key of the link between this hop and the next.
    pub pair: zeroize::Zeroizing<[u8; 32]>,
    /// The suite of that link's tags.
    pub link_suite: Suite,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExtendJson {
    to: String,
    relay: String,
    pair: String,
    link: Suite,
}

impl ExtendValue {
    /// Reads the JSON of an EXTEND.
    ///
    /// # Errors
    /// When the JSON, the base64 or a length is off.
    pub fn parse(value: &[u8]) -> Result<Self, ControlError> {
        let json: ExtendJson = serde_json::from_slice(value)
            .map_err(|error| ControlError::Extend(error.to_string()))?;
        Ok(Self {
            relay: Box::new(decode(&json.relay, "relay")?),
            pair: zeroize::Zeroizing::new(decode(&json.pair, "pair")?),
            to: json.to,
            link_suite: json.link,
        })
    }

    /// The JSON of an EXTEND.
    pub fn emit(&self) -> zeroize::Zeroizing<Vec<u8>> {
        let json = ExtendJson {
            to: self.to.clone(),
            relay: BASE64.encode(self.relay.as_slice()),
            pair: BASE64.encode(self.pair.as_slice()),
            link: self.link_suite,
        };
        zeroize::Zeroizing::new(serde_json::to_vec(&json).unwrap_or_default())
    }
}

impl std::fmt::Debug for ExtendValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExtendValue").field("link_suite", &self.link_suite).finish_non_exhaustive()
    }
}

fn decode<const N: usize>(text: &str, field: &str) -> Result<[u8; N], ControlError> {
    let bytes = BASE64
        .decode(text)
        .map_err(|error| ControlError::Extend(format!("{field} is no base64: {error}")))?;
    bytes.as_slice().try_into().map_err(|_| {
        ControlError::Extend(format!("expected {N} bytes in {field}, got {}", bytes.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn fragments_round_trip(request: u32, value in prop::collection::vec(any::<u8>(), 0..5000)) {
            let parts = fragments(ControlType::Extended, request, &value).unwrap();
            let mut joined = Vec::new();
            for (index, part) in parts.iter().enumerate() {
                let mut body = [0xee; BODY_LEN];
                part.emit(&mut body).unwrap();
                let parsed = ControlFragment::parse(&body).unwrap();
                prop_assert_eq!(&parsed, part);
                prop_assert_eq!(usize::from(parsed.index), index);
                joined.extend_from_slice(parsed.value);
            }
            prop_assert_eq!(joined, value);
        }

        #[test]
        fn any_body_parses_or_errs(seed: [u8; 32], length: u16) {
            let mut body = [0u8; BODY_LEN];
            for (byte, value) in body.iter_mut().zip(seed.iter().cycle()) {
                *byte = *value;
            }
            body[17..19].copy_from_slice(&length.to_be_bytes());
            let _ = ControlFragment::parse(&body);
        }

        #[test]
        fn any_extend_parses_or_errs(value: Vec<u8>) {
            let _ = ExtendValue::parse(&value);
        }

        #[test]
        fn extend_round_trips(fill: u8, pair: [u8; 32], to in "[0-9a-f]{64}") {
            let value = ExtendValue {
                to, relay: Box::new([fill; CREATE_LEN]),
                pair: zeroize::Zeroizing::new(pair), link_suite: Suite::ChaCha20Poly1305,
            };
            let bytes = value.emit();
            prop_assert!(bytes.len() <= CONTROL_VALUE_LEN, "one cell holds it: {}", bytes.len());
            prop_assert_eq!(ExtendValue::parse(&bytes), Ok(value));
        }
    }
}
