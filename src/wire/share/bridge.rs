//! What a peer and its exit say of bridges: datagrams, and that a bridge stands or fell.
//!
//! In: bodies of kind bridge; values of control messages. Out: typed views, and back.
//! Called by: forward, node.
//!
//! ```text
//! body    header (kind 5, offset = length of the datagram) 12 | session 16 | datagram
//! notice  session 16 | role 1 | 0: stands, else why it fell 1
//! ```

use super::{Session, ShareRole, ShareWireError};
use crate::{
    model::{BODY_HEADER_LEN, BODY_LEN, BodyKind},
    wire::BodyHeader,
};

const SESSION_LEN: usize = 16;
const DATAGRAM_AT: usize = BODY_HEADER_LEN + SESSION_LEN;

/// The largest datagram of a bridge.
pub const BRIDGE_MTU: usize = BODY_LEN - DATAGRAM_AT;

/// A datagram between two peers, in a body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BridgeDatagram<'a> {
    /// The session it belongs to.
    pub session: Session,
    /// Its bytes: sealed between the peers.
    pub bytes: &'a [u8],
}

impl<'a> BridgeDatagram<'a> {
    /// The session of a body of kind bridge.
    pub fn session_of(body: &[u8; BODY_LEN]) -> Session {
        let mut session = [0; SESSION_LEN];
        session.copy_from_slice(&body[BODY_HEADER_LEN..DATAGRAM_AT]);
        Session(session)
    }

    /// Reads a body of kind bridge.
    ///
    /// # Errors
    /// When its length does not fit.
    pub fn parse(body: &'a [u8; BODY_LEN]) -> Result<Self, ShareWireError> {
        let length = usize::from(u16::from_be_bytes([body[10], body[11]]));
        let bytes = body.get(DATAGRAM_AT..DATAGRAM_AT + length).ok_or(ShareWireError::TooLong {
            what: "datagram",
            most: BRIDGE_MTU,
            got: length,
        })?;
        Ok(Self { session: Self::session_of(body), bytes })
    }

    /// Writes a whole body; what is longer than [`BRIDGE_MTU`] is cut, which callers prevent.
    pub fn emit(&self, body: &mut [u8; BODY_LEN]) {
        let bytes = &self.bytes[..self.bytes.len().min(BRIDGE_MTU)];
        BodyHeader { kind: BodyKind::Bridge, flags: 0, offset: bytes.len() as u16 }.emit(body);
        body[BODY_HEADER_LEN..DATAGRAM_AT].copy_from_slice(&self.session.0);
        body[DATAGRAM_AT..DATAGRAM_AT + bytes.len()].copy_from_slice(bytes);
        body[DATAGRAM_AT + bytes.len()..].fill(0);
    }
}

/// Why a bridge fell.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum BridgeEnd {
    /// The other peer, or this one, is done.
    Peer = 1,
    /// The tracker ended the session.
    Tracker = 2,
    /// The other exit does not answer.
    ExitLost = 3,
    /// A circuit of the session ended.
    CircuitLost = 4,
    /// Nothing came for too long.
    Idle = 5,
    /// The exit has no room.
    NoRoom = 6,
}

impl BridgeEnd {
    /// All reasons.
    pub const ALL: [Self; 6] =
        [Self::Peer, Self::Tracker, Self::ExitLost, Self::CircuitLost, Self::Idle, Self::NoRoom];

    /// The reason of a wire number; unknown ones read as [`Self::ExitLost`].
    pub fn from_wire(number: u8) -> Self {
        Self::ALL.into_iter().find(|end| *end as u8 == number).unwrap_or(Self::ExitLost)
    }

    /// A few words for people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Peer => "the other peer is done",
            Self::Tracker => "the tracker ended the session",
            Self::ExitLost => "the other exit is lost",
            Self::CircuitLost => "a circuit ended",
            Self::Idle => "nothing came for too long",
            Self::NoRoom => "the exit has no room",
        }
    }
}

/// What an exit tells a peer of a bridge, and a peer its exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BridgeNotice {
    /// The session.
    pub session: Session,
    /// The side that the peer is on.
    pub role: ShareRole,
    /// Why it fell, if it does not stand.
    pub end: Option<BridgeEnd>,
}

impl BridgeNotice {
    /// The length of a notice.
    pub const LEN: usize = SESSION_LEN + 2;

    /// Reads the value of a bridge notice.
    ///
    /// # Errors
    /// When the length or the role is off.
    pub fn parse(value: &[u8]) -> Result<Self, ShareWireError> {
        let wrong = || ShareWireError::malformed("a notice of 18 bytes", value.len());
        let bytes: &[u8; Self::LEN] = value.try_into().map_err(|_| wrong())?;
        let mut session = [0; SESSION_LEN];
        session.copy_from_slice(&bytes[..SESSION_LEN]);
        Ok(Self {
            session: Session(session),
            role: ShareRole::from_byte(bytes[16]).ok_or_else(wrong)?,
            end: (bytes[17] != 0).then(|| BridgeEnd::from_wire(bytes[17])),
        })
    }

    /// The value of the control message.
    pub fn emit(&self) -> [u8; Self::LEN] {
        let mut value = [0; Self::LEN];
        value[..SESSION_LEN].copy_from_slice(&self.session.0);
        value[16] = self.role.byte();
        value[17] = self.end.map_or(0, |end| end as u8);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn datagrams_round_trip(session: [u8; 16],
            bytes in prop::collection::vec(any::<u8>(), 0..=BRIDGE_MTU)) {
            let mut body = [0xee; BODY_LEN];
            let datagram = BridgeDatagram { session: Session(session), bytes: &bytes };
            datagram.emit(&mut body);
            prop_assert!(BodyHeader::is_recognised(&body));
            prop_assert_eq!(BodyHeader::parse(&body).unwrap().kind, BodyKind::Bridge);
            prop_assert_eq!(BridgeDatagram::parse(&body), Ok(datagram));
        }

        #[test]
        fn any_length_parses_or_errs(length: u16) {
            let mut body = [0; BODY_LEN];
            body[10..12].copy_from_slice(&length.to_be_bytes());
            prop_assert_eq!(BridgeDatagram::parse(&body).is_ok(), usize::from(length) <= BRIDGE_MTU);
        }

        #[test]
        fn notices_round_trip(session: [u8; 16], end in 0u8..7) {
            let end = (end != 0).then(|| BridgeEnd::from_wire(end));
            for role in [ShareRole::Uploader, ShareRole::Downloader] {
                let notice = BridgeNotice { session: Session(session), role, end };
                prop_assert_eq!(BridgeNotice::parse(&notice.emit()), Ok(notice));
            }
        }
    }

    #[test]
    fn quic_fits() {
        assert_eq!(BRIDGE_MTU, 1284);
    }
}
