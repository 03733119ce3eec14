//! The messages of file sharing: peers and tracker, tracker and exits, exit and exit.
//!
//! In: bytes from outside, or typed messages. Out: typed messages, or bytes.
//! Called by: forward, tracker, node, peer_run.
//!
//! | message                         | between            | form                             |
//! |---------------------------------|--------------------|----------------------------------|
//! | [`ToTracker`], [`ToPeer`]       | peer, tracker      | JSON inside a sealed channel     |
//! | [`ChannelFrame`], [`Segment`]   | peer, tracker      | binary, in control bodies        |
//! | [`Envelope`]                    | members, port 5000 | `{"CID", "payload"}`             |
//! | [`Order`]                       | tracker, exit      | `"CID": "control"`, signed       |
//! | [`BridgeDatagram`], [`BridgeNotice`] | exit, peer    | bodies of kind 5 and of control  |
//! | [`JoinPrefix`]                  | exit, exit         | the first bytes of a cell        |
//! | [`CodeHead`], [`CodeSlot`]      | exits, relays      | tracking codes, in cells         |

mod bridge;
mod channel;
mod code;
mod envelope;
mod hex_text;
mod ids;
mod join;
mod message;
mod order;

pub use bridge::{BRIDGE_MTU, BridgeDatagram, BridgeEnd, BridgeNotice};
pub use channel::{ChannelFrame, MAX_FRAME_LEN, MAX_SEGMENT_LEN, Segment};
pub use code::{
    CODE_LEN, CODE_PART_LEN, CODE_SLOT_LEN, CODE_SLOTS, CodeBody, CodeGreeting, CodeHead, CodePart,
    CodeSlot, CodeWord, MOST_CODE_RELAYS, NextHop, NextRelayId, Piece, parse_route,
};
pub use envelope::{Address, Envelope, MAX_ENVELOPE_LEN, MAX_PAYLOAD_LEN};
pub use ids::{Consent, FileId, Session, ShareRole, Via};
pub use join::{JOIN_LEN, JoinPrefix};
pub use message::{
    CatalogueEntry, ListedFile, MAX_AVOIDED, MAX_FILES, MAX_MESSAGE_LEN, MAX_NAME_LEN,
    MAX_NOTE_LEN, MAX_SOURCES, Proposal, ToPeer, ToTracker,
};
pub use order::{MOST_EXPIRY_S, Order, OrderKind};

/// Why a message of file sharing was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ShareWireError {
    /// It does not read.
    #[error("expected {expected}, got {got}")]
    Malformed {
        /// What should have come.
        expected: &'static str,
        /// What came.
        got: String,
    },
    /// It is longer than allowed.
    #[error("expected at most {most} bytes of {what}, got {got}")]
    TooLong {
        /// What is too long.
        what: &'static str,
        /// The limit.
        most: usize,
        /// Its length.
        got: usize,
    },
}

impl ShareWireError {
    fn malformed(expected: &'static str, got: impl std::fmt::Display) -> Self {
        // Names and other text of strangers are not repeated.
        let got: String = got.to_string().chars().take(200).collect();
        Self::Malformed { expected, got }
    }
}
