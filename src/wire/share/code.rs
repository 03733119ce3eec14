//! Tracking codes (source 000): the fixed-length list by which a message finds its way from relay to
//! relay, and what is inside it when it arrives.
//!
//! In: cells, slots, payloads. Out: typed views, and back. Called by: keys (lengths), forward, tracker.
//!
//! ```text
//! set-up   0 CID 16 | 16 type 3 | 17 version 1 | 18 X25519 32 | 50 mac 16 | 66 code 384 | 450 payload 958
//! message  0 CID 16 | 16 number 4              | 20 mac 16    | 36 code 384 | 420 payload 988
//! code     8 slots
//! slot     kind 1 (1 pass on, 2 arrived) | zero 3 | next_relay_id 8 | next CID 16 | number 4 | next mac 16
//! ```
//! `number` of a slot is the number of the message on the next link; in a set-up, the time in seconds
//! since 1970 after which it is refused. Where a message has arrived, what names the next is zero.

use super::{JOIN_LEN, ShareWireError};
use crate::model::{CELL_LEN, CID_LEN, Cid, NodeId};

/// Slots of a code: no message passes more relays.
pub const CODE_SLOTS: usize = 8;
/// The length of a slot.
pub const CODE_SLOT_LEN: usize = 48;
/// The length of a code, wherever it is.
pub const CODE_LEN: usize = CODE_SLOTS * CODE_SLOT_LEN;
/// Bytes of a datagram in one message, at most.
pub const CODE_PART_LEN: usize = CELL_LEN - MESSAGE_CODE_AT - CODE_LEN - PART_HEADER_LEN;
/// Relays between two exits, at most.
pub const MOST_CODE_RELAYS: usize = CODE_SLOTS - 1;

const SETUP_TYPE: u8 = 3;
const SETUP_VERSION: u8 = 1;
const EPHEMERAL_AT: usize = CID_LEN + 2;
const SETUP_MAC_AT: usize = EPHEMERAL_AT + 32;
const SETUP_CODE_AT: usize = SETUP_MAC_AT + 16;
const MESSAGE_MAC_AT: usize = CID_LEN + 4;
const MESSAGE_CODE_AT: usize = MESSAGE_MAC_AT + 16;
const PART_HEADER_LEN: usize = 7;

/// A relay, as a slot names it: the first bytes of its node id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NextRelayId(pub [u8; 8]);

impl NextRelayId {
    /// The name of a node.
    pub fn of(id: &NodeId) -> Self {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&id.as_bytes()[..8]);
        Self(bytes)
    }

    /// Whether it names this node.
    pub fn names(self, id: &NodeId) -> bool {
        id.as_bytes()[..8] == self.0
    }
}

/// Where a message goes next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NextHop {
    /// The relay.
    pub relay: NextRelayId,
    /// The id of the link to it.
    pub cid: Cid,
    /// What proves the message to it.
    pub mac: [u8; 16],
}

/// One entry of a code, as its relay reads it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CodeSlot {
    /// Where to pass the message on; nothing: it has arrived.
    pub next: Option<NextHop>,
    /// The number on the next link; in a set-up, when it is over.
    pub number: u32,
}

impl CodeSlot {
    /// Reads the slot that a relay has opened.
    ///
    /// # Errors
    /// When it is none: the code ran out.
    pub fn parse(bytes: &[u8; CODE_SLOT_LEN]) -> Result<Self, ShareWireError> {
        let wrong = || ShareWireError::malformed("a slot of a tracking code", bytes[0]);
        let number = u32::from_be_bytes([bytes[28], bytes[29], bytes[30], bytes[31]]);
        if bytes[1..4] != [0; 3] {
            return Err(wrong());
        }
        let (mut relay, mut cid, mut mac) = ([0; 8], [0; CID_LEN], [0; 16]);
        relay.copy_from_slice(&bytes[4..12]);
        cid.copy_from_slice(&bytes[12..28]);
        mac.copy_from_slice(&bytes[32..]);
        let next = NextHop { relay: NextRelayId(relay), cid: Cid::from_bytes(cid), mac };
        let is_empty = relay == [0; 8] && cid == [0; CID_LEN] && mac == [0; 16];
        match bytes[0] {
            1 => Ok(Self { next: Some(next), number }),
            2 if is_empty => Ok(Self { next: None, number }),
            _ => Err(wrong()),
        }
    }

    /// The bytes of the slot.
    pub fn emit(&self) -> [u8; CODE_SLOT_LEN] {
        let mut bytes = [0; CODE_SLOT_LEN];
        bytes[0] = 2;
        bytes[28..32].copy_from_slice(&self.number.to_be_bytes());
        if let Some(next) = &self.next {
            bytes[0] = 1;
            bytes[4..12].copy_from_slice(&next.relay.0);
            bytes[12..28].copy_from_slice(next.cid.as_bytes());
            bytes[32..].copy_from_slice(&next.mac);
        }
        bytes
    }
}

/// What stands in clear in front of a code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CodeHead {
    /// Sets a session up at each relay.
    SetUp {
        /// The key that this relay agrees with.
        ephemeral: [u8; 32],
        /// What proves the rest to it.
        mac: [u8; 16],
    },
    /// A message of a session that was set up.
    Message {
        /// Its number on this link.
        number: u32,
        /// What proves the rest.
        mac: [u8; 16],
    },
}

impl CodeHead {
    /// Reads a cell as a set-up; nothing if it is none.
    pub fn parse_setup(cell: &[u8; CELL_LEN]) -> Option<Self> {
        if cell[CID_LEN..EPHEMERAL_AT] != [SETUP_TYPE, SETUP_VERSION] {
            return None;
        }
        let (mut ephemeral, mut mac) = ([0; 32], [0; 16]);
        ephemeral.copy_from_slice(&cell[EPHEMERAL_AT..SETUP_MAC_AT]);
        mac.copy_from_slice(&cell[SETUP_MAC_AT..SETUP_CODE_AT]);
        Some(Self::SetUp { ephemeral, mac })
    }

    /// Reads a cell as a message.
    pub fn parse_message(cell: &[u8; CELL_LEN]) -> Self {
        let mut mac = [0; 16];
        mac.copy_from_slice(&cell[MESSAGE_MAC_AT..MESSAGE_CODE_AT]);
        Self::Message { number: crate::wire::first_seq(cell), mac }
    }

    /// Writes it behind the circuit id.
    pub fn emit(&self, cell: &mut [u8; CELL_LEN]) {
        match self {
            Self::SetUp { ephemeral, mac } => {
                cell[CID_LEN..EPHEMERAL_AT].copy_from_slice(&[SETUP_TYPE, SETUP_VERSION]);
                cell[EPHEMERAL_AT..SETUP_MAC_AT].copy_from_slice(ephemeral);
                cell[SETUP_MAC_AT..SETUP_CODE_AT].copy_from_slice(mac);
            }
            Self::Message { number, mac } => {
                cell[CID_LEN..MESSAGE_MAC_AT].copy_from_slice(&number.to_be_bytes());
                cell[MESSAGE_MAC_AT..MESSAGE_CODE_AT].copy_from_slice(mac);
            }
        }
    }

    /// The payload of a message that has arrived.
    pub fn payload_of_message(cell: &[u8; CELL_LEN]) -> &[u8] {
        &cell[MESSAGE_CODE_AT + CODE_LEN..]
    }

    /// The code and the payload behind it.
    pub fn parts<'a>(
        &self,
        cell: &'a mut [u8; CELL_LEN],
    ) -> (&'a mut [u8; CODE_LEN], &'a mut [u8]) {
        let at = match self {
            Self::SetUp { .. } => SETUP_CODE_AT,
            Self::Message { .. } => MESSAGE_CODE_AT,
        };
        let Some(parts) = cell[at..].split_first_chunk_mut() else {
            unreachable!("a code and its payload fill a cell")
        };
        parts
    }
}

/// What a set-up brings to the exit at its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CodeGreeting {
    /// The link between the two exits.
    pub bridge: Cid,
    /// Which of the sender's set-ups this is.
    pub attempt: u8,
    /// The last of the other side's set-ups that arrived; zero: none.
    pub heard: u8,
    /// What it says.
    pub word: CodeWord,
}

/// What an exit says to the other at the set-up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CodeWord {
    /// The uploader's exit joins.
    Join([u8; JOIN_LEN]),
    /// The downloader's exit accepts.
    Accept([u8; 16]),
}

impl CodeGreeting {
    /// Reads the payload of a set-up.
    ///
    /// # Errors
    /// When it says something else.
    pub fn parse(payload: &[u8]) -> Result<Self, ShareWireError> {
        let wrong = || ShareWireError::malformed("a greeting of an exit", payload.len());
        let (head, rest) = payload.split_first_chunk::<19>().ok_or_else(wrong)?;
        let mut cid = [0; CID_LEN];
        cid.copy_from_slice(&head[..CID_LEN]);
        let word = match head[16] {
            1 => CodeWord::Join(*rest.first_chunk().ok_or_else(wrong)?),
            2 => CodeWord::Accept(*rest.first_chunk().ok_or_else(wrong)?),
            _ => return Err(wrong()),
        };
        Ok(Self { bridge: Cid::from_bytes(cid), attempt: head[17], heard: head[18], word })
    }

    /// Writes it at the start of a payload, zeros behind.
    pub fn emit(&self, payload: &mut [u8]) {
        payload.fill(0);
        payload[..CID_LEN].copy_from_slice(self.bridge.as_bytes());
        (payload[17], payload[18]) = (self.attempt, self.heard);
        let (kind, word): (u8, &[u8]) = match &self.word {
            CodeWord::Join(join) => (1, join),
            CodeWord::Accept(mac) => (2, mac),
        };
        payload[16] = kind;
        payload[19..19 + word.len()].copy_from_slice(word);
    }
}

/// What a message brings to the exit at its end.
///
/// ```text
/// kind 1 | part 1 | heard 1 | number 2 | length 2 | bytes
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CodePart<'a> {
    /// The last of the other side's set-ups that arrived.
    pub heard: u8,
    /// What it is.
    pub body: CodeBody<'a>,
}

/// The kinds of messages between two exits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CodeBody<'a> {
    /// Asks whether the other is there.
    Echo,
    /// It is.
    EchoReply,
    /// A bridge notice.
    Notice(&'a [u8]),
    /// A datagram, or half of one.
    Datagram {
        /// Which piece it is.
        piece: Piece,
        /// Which datagram.
        number: u16,
        /// Its bytes.
        bytes: &'a [u8],
    },
}

/// A datagram travels whole, or in two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Piece {
    /// All of it.
    Whole,
    /// The first [`CODE_PART_LEN`] bytes.
    First,
    /// What is left.
    Second,
}

impl<'a> CodePart<'a> {
    /// Reads the payload of a message.
    ///
    /// # Errors
    /// When its kind, its piece or its length is off.
    pub fn parse(payload: &'a [u8]) -> Result<Self, ShareWireError> {
        let wrong = || ShareWireError::malformed("a message between exits", payload.len());
        let (head, rest) = payload.split_first_chunk::<PART_HEADER_LEN>().ok_or_else(wrong)?;
        let length = usize::from(u16::from_be_bytes([head[5], head[6]]));
        let bytes = rest.get(..length).ok_or_else(wrong)?;
        let number = u16::from_be_bytes([head[3], head[4]]);
        let body = match (head[0], head[1]) {
            (0, 0) => CodeBody::Echo,
            (1, 0) => CodeBody::EchoReply,
            (2, 0) => CodeBody::Notice(bytes),
            (3, 0) => CodeBody::Datagram { piece: Piece::Whole, number, bytes },
            (3, 1) => CodeBody::Datagram { piece: Piece::First, number, bytes },
            (3, 2) => CodeBody::Datagram { piece: Piece::Second, number, bytes },
            _ => return Err(wrong()),
        };
        Ok(Self { heard: head[2], body })
    }

    /// Writes a payload, zeros behind; what is longer than [`CODE_PART_LEN`] is cut, which callers
    /// prevent.
    pub fn emit(&self, payload: &mut [u8]) {
        let (kind, piece, number, bytes): (u8, u8, u16, &[u8]) = match self.body {
            CodeBody::Echo => (0, 0, 0, &[]),
            CodeBody::EchoReply => (1, 0, 0, &[]),
            CodeBody::Notice(bytes) => (2, 0, 0, bytes),
            CodeBody::Datagram { piece, number, bytes } => (3, piece as u8, number, bytes),
        };
        let bytes = &bytes[..bytes.len().min(CODE_PART_LEN)];
        let [high, low] = number.to_be_bytes();
        let [long, short] = (bytes.len() as u16).to_be_bytes();
        payload[..PART_HEADER_LEN]
            .copy_from_slice(&[kind, piece, self.heard, high, low, long, short]);
        payload[PART_HEADER_LEN..PART_HEADER_LEN + bytes.len()].copy_from_slice(bytes);
        payload[PART_HEADER_LEN + bytes.len()..].fill(0);
    }
}

/// The relays that the tracker chose, as they stand inside a sealed route.
///
/// # Errors
/// When the length is off, or there are none or too many.
pub fn parse_route(plain: &[u8]) -> Result<Vec<NodeId>, ShareWireError> {
    let (ids, rest) = plain.as_chunks::<32>();
    if !rest.is_empty() || ids.is_empty() || ids.len() > MOST_CODE_RELAYS {
        return Err(ShareWireError::malformed("a route of 1 to 7 relays", plain.len()));
    }
    Ok(ids.iter().map(|id| NodeId::from_bytes(*id)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MESSAGE_PAYLOAD_LEN: usize = 988;
    const SETUP_PAYLOAD_LEN: usize = 958;

    proptest! {
        #[test]
        fn slots_round_trip(relay: [u8; 8], cid: [u8; 16], mac: [u8; 16], number: u32, arrived: bool) {
            let next = NextHop { relay: NextRelayId(relay), cid: Cid::from_bytes(cid), mac };
            let slot = CodeSlot { next: (!arrived).then_some(next), number };
            prop_assert_eq!(CodeSlot::parse(&slot.emit()), Ok(slot));
        }

        #[test]
        fn heads_round_trip(ephemeral: [u8; 32], mac: [u8; 16], number: u32) {
            let mut cell = [0xee; CELL_LEN];
            let setup = CodeHead::SetUp { ephemeral, mac };
            setup.emit(&mut cell);
            prop_assert_eq!(CodeHead::parse_setup(&cell), Some(setup));
            prop_assert_eq!(setup.parts(&mut cell).1.len(), SETUP_PAYLOAD_LEN);
            let message = CodeHead::Message { number, mac };
            message.emit(&mut cell);
            prop_assert_eq!(CodeHead::parse_message(&cell), message);
            prop_assert_eq!(message.parts(&mut cell).1.len(), MESSAGE_PAYLOAD_LEN);
        }

        #[test]
        fn greetings_round_trip(bridge: [u8; 16], attempt: u8, heard: u8, seed: u8, join: bool) {
            let word = match join {
                true => CodeWord::Join([seed; JOIN_LEN]),
                false => CodeWord::Accept([seed; 16]),
            };
            let greeting = CodeGreeting { bridge: Cid::from_bytes(bridge), attempt, heard, word };
            let mut payload = [0xee; SETUP_PAYLOAD_LEN];
            greeting.emit(&mut payload);
            prop_assert_eq!(CodeGreeting::parse(&payload), Ok(greeting));
        }

        #[test]
        fn parts_round_trip(number: u16, heard: u8, at in 0usize..6,
            bytes in prop::collection::vec(any::<u8>(), 0..=CODE_PART_LEN)) {
            let datagram = |piece| CodeBody::Datagram { piece, number, bytes: &bytes };
            let body = [CodeBody::Echo, CodeBody::EchoReply, CodeBody::Notice(&bytes),
                datagram(Piece::Whole), datagram(Piece::First), datagram(Piece::Second)][at];
            let part = CodePart { heard, body };
            let mut payload = [0xee; MESSAGE_PAYLOAD_LEN];
            part.emit(&mut payload);
            prop_assert_eq!(CodePart::parse(&payload), Ok(part));
        }

        #[test]
        fn any_bytes_parse_or_err(bytes in prop::collection::vec(any::<u8>(), 0..1408)) {
            let _ = CodeGreeting::parse(&bytes);
            let _ = CodePart::parse(&bytes);
            let _ = parse_route(&bytes);
            if let Some(slot) = bytes.first_chunk() {
                let _ = CodeSlot::parse(slot);
            }
        }
    }

    #[test]
    fn a_datagram_of_a_bridge_fits_in_two() {
        const { assert!(super::super::BRIDGE_MTU <= 2 * CODE_PART_LEN) }
        assert_eq!(CODE_PART_LEN, 981);
    }
}
