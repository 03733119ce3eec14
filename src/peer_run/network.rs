//! What the peer asks of the network: circuits to a tracker, sessions with other peers.
//!
//! In: announcements, requests. Out: bridges, and who asks for what. Called by: engine, download;
//! implemented over the onion network, and in memory by tests.

use std::{future::Future, pin::Pin, sync::Arc};

use super::quic::Datagrams;
use crate::peer::{transfer::Stage, view::CircuitView};

/// A future that can be boxed away.
pub type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The id of a session between two peers, drawn by the tracker.
pub type SessionId = [u8; 16];
/// What the tracker knows a content as.
pub type FileId = [u8; 32];

/// What this peer tells the tracker of one share.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listing {
    /// Its id.
    pub id: FileId,
    /// Its name; empty for a link share, which is not listed.
    pub name: String,
    /// Its size in bytes; 0 for a link share.
    pub size: u64,
    /// The sharer's key, if it is listed.
    pub key: Option<[u8; 32]>,
}

/// An entry of the tracker's catalogue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CatalogueEntry {
    /// Its id.
    pub id: FileId,
    /// Its name, as the sharer wrote it.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// The sharer's key.
    pub key: Option<[u8; 32]>,
    /// How many peers share it.
    pub sources: u32,
}

/// A request for uploaders.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileRequest {
    /// Which content.
    pub id: FileId,
    /// The downloader's X25519 key.
    pub key: [u8; 32],
    /// What goes with it.
    pub note: Vec<u8>,
    /// How many uploaders: 1 to 4.
    pub sources: u8,
    /// Sessions whose uploaders are not wanted again.
    pub avoid: Vec<SessionId>,
    /// By tracking code instead of a bridge.
    pub via_code: bool,
}

/// How a request went.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ticket(pub u64);

/// A bridge that stands.
#[derive(Clone, Debug)]
pub struct OpenBridge {
    /// Its session.
    pub session: SessionId,
    /// Which content.
    pub id: FileId,
    /// At the downloader: its request, and the uploader's key and note.
    pub answer: Option<(Ticket, [u8; 32], Vec<u8>)>,
    /// The circuit that it uses.
    pub circuit: u32,
    /// Its datagrams; dropping them all ends it.
    pub datagrams: Arc<dyn Datagrams>,
}

/// What the network says by itself.
#[derive(Clone, Debug)]
pub enum NetworkEvent {
    /// Somebody wants a content of this peer.
    Asked {
        /// The session it would be.
        session: SessionId,
        /// Which content.
        id: FileId,
        /// The downloader's key.
        key: [u8; 32],
        /// What goes with it.
        note: Vec<u8>,
    },
    /// A bridge stands, at either side.
    Opened(OpenBridge),
    /// A bridge is gone.
    Closed {
        /// Its session.
        session: SessionId,
        /// Whether the exit or the circuit was lost, and not the other peer.
        is_exit_lost: bool,
    },
}

/// Why the network does not do it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NetworkError {
    /// Nobody shares it.
    #[error("nobody who is online shares it")]
    NoSource,
    /// The tracker, or the way to it, does not answer.
    #[error("the tracker does not answer: {0}")]
    Unreachable(String),
    /// The tracker refuses.
    #[error("the tracker refuses: {0}")]
    Refused(String),
}

/// The network half of a peer.
pub trait Network: Send + Sync + 'static {
    /// Replaces what this peer shares; told again by itself as often as needed.
    fn announce(&self, files: Vec<Listing>);
    /// The catalogue's entries whose name contains `filter`.
    fn catalogue(&self, filter: String) -> Later<Result<Vec<CatalogueEntry>, NetworkError>>;
    /// Asks for uploaders: how many were asked. Each that answers comes as
    /// [`NetworkEvent::Opened`] with the same ticket.
    fn request(&self, request: FileRequest) -> Later<Result<(Ticket, usize), NetworkError>>;
    /// The uploader's yes.
    fn accept(&self, session: SessionId, key: [u8; 32], note: Vec<u8>);
    /// The uploader's no.
    fn refuse(&self, session: SessionId);
    /// New sessions use new circuits.
    fn rotate(&self);
    /// What it does.
    fn stage(&self) -> Stage;
    /// Its circuits.
    fn circuits(&self) -> Vec<CircuitView>;
}
