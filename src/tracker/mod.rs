//! The tracker: who shares what, and which circuits are joined for it (sources 000 and 001).
//!
//! In: frames of legs, the time. Out: frames, signed orders to exits, what must be kept.
//! Called by: node.
//!
//! The tracker knows circuits, never peers' addresses; file data passes it by. A session goes
//!
//! ```text
//! downloader            tracker              uploader
//!  request ------------> choose up to 4
//!                        request ----------> consents to its half
//!                        <------------------ answer (key, token)
//!  offer <-------------- offer
//!  consent (token) ----> receive_bridge to the downloader's exit
//!                        make_bridge to the uploader's exit
//! ```

mod catalogue;
mod channel;
mod conversation;
mod orders;
mod sessions;
mod state;
pub mod store;
#[cfg(test)]
mod tests;

pub use catalogue::Quota;
pub use channel::{Accepted, PeerChannel, accept};
pub use conversation::Conversation;
pub use orders::OrderKey;
pub use sessions::SessionRecord;
pub use state::{Change, TrackerEvent, TrackerLimits, TrackerMember, TrackerState, TrackerSummary};

use crate::wire::share::ShareWireError;

/// What can go wrong at a tracker, or on the channel to it.
#[derive(Debug, thiserror::Error)]
pub enum TrackerError {
    /// A message does not read.
    #[error(transparent)]
    Wire(#[from] ShareWireError),
    /// A frame was not sealed by the other side.
    #[error("expected a frame sealed by the other side, got another")]
    Seal,
    /// A key cannot be used.
    #[error("expected an X25519 key, got one that cannot be used")]
    Key,
    /// A message is too long.
    #[error("expected a message of at most 16384 bytes, got {got}")]
    TooLong {
        /// Its length.
        got: usize,
    },
    /// Too much waits already.
    #[error("expected fewer messages at once; wait until those before are through")]
    QueueFull,
    /// The tracker has no room for another circuit.
    #[error("expected fewer circuits; this tracker has no room for another")]
    NoRoom,
    /// The database.
    #[error("expected a readable tracker database, got: {0}")]
    Store(#[from] rusqlite::Error),
    /// The database was written by a newer program.
    #[error("expected a tracker database of version 1, got {got}; update this program")]
    NewerStore {
        /// Its version.
        got: i64,
    },
    /// A file of the tracker's state.
    #[error(transparent)]
    State(#[from] crate::keys::KeyError),
}
