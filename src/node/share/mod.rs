//! A peer's way to the tracker and to other peers: circuits without a TUN, sessions over them.
//!
//! In: files to announce, requests, answers. Out: [`ShareEvent`]s, bridges with their sockets.
//! Called by: `peer_run`.
//!
//! ```text
//! ShareNet -- commands --> engine (tokio) -- frames, consents --> data path (thread) -- cells
//!    ^                        |                                        |
//!    +------- ShareEvent -----+        BridgeSocket <== datagrams =====+
//! ```

mod announce;
mod engine;
mod sessions;
mod start;

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::{mpsc, oneshot, watch};

use self::engine::Command;
use super::{client::ClientCommand, data_thread::Handle};
use crate::{
    capture::BridgeSocket,
    directory::ControllerLink,
    model::{Carrier, NodeId, Suite},
    telemetry::CircuitInfo,
    wire::share::{
        BridgeEnd, CatalogueEntry, FileId, ListedFile, MAX_NOTE_LEN, MAX_SOURCES, Session,
        ShareRole, Via,
    },
};

/// How a peer reaches the network.
#[derive(Clone, Debug)]
pub struct ShareSettings {
    /// The controller.
    pub link: ControllerLink,
    /// Where the directory and the guard are kept.
    pub state: PathBuf,
    /// The local address of the UDP socket; none: any.
    pub listen: Option<std::net::SocketAddr>,
    /// Nodes of a path.
    pub hops: u8,
    /// The nodes of every path, by name or id; empty: random.
    pub path: Vec<String>,
    /// A lab: fewer hops and nodes of one subnet are allowed.
    pub lab: bool,
    /// New sessions move to a new circuit after so long, give or take a fifth.
    pub rotate_every: Duration,
    /// The tracker's name; none: the only one.
    pub tracker: Option<String>,
    /// How cells travel, on every link.
    pub carrier: Carrier,
    /// The suites a hop may use, in order of preference; empty: what each node prefers.
    pub suites: Vec<Suite>,
    /// Threads that work on cells; 0: as many as this machine needs.
    pub workers: u8,
}

/// Joins the bridges of one request to it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RequestTicket {
    /// The request's number.
    pub ask: u32,
    /// Uploaders that were asked; zero: nobody offers the file.
    pub asked: u8,
}

/// A request for uploaders.
#[derive(Clone, Debug)]
pub struct FileRequest {
    /// The file.
    pub file: FileId,
    /// A fresh X25519 public key.
    pub key: [u8; 32],
    /// How many uploaders, 1 to 4.
    pub sources: u8,
    /// Sessions whose uploaders are not wanted again.
    pub avoid: Vec<Session>,
    /// How the exits are joined.
    pub via: Via,
    /// For the uploaders, at most 512 bytes.
    pub note: Vec<u8>,
}

/// A standing bridge. Dropping the socket takes it down.
#[derive(Debug)]
pub struct Bridge {
    /// Its session.
    pub session: Session,
    /// This peer's side.
    pub role: ShareRole,
    /// The file.
    pub file: FileId,
    /// The other peer's X25519 key.
    pub peer_key: [u8; 32],
    /// From the other peer.
    pub note: Vec<u8>,
    /// At the downloader: the request's number.
    pub ask: Option<u32>,
    /// The number of the circuit it runs over.
    pub circuit: u32,
    /// The exits of both ends: this peer's, the other's.
    pub exits: [NodeId; 2],
    /// Its datagrams.
    pub socket: Arc<BridgeSocket>,
}

/// What a peer is told.
#[derive(Debug)]
pub enum ShareEvent {
    /// Somebody wants a file; accept or refuse within 5 s.
    Asked {
        /// The new session.
        session: Session,
        /// The file.
        file: FileId,
        /// The downloader's X25519 key.
        key: [u8; 32],
        /// From the downloader.
        note: Vec<u8>,
    },
    /// A bridge stands.
    Opened(Bridge),
    /// A session is over, or never came to be.
    Closed {
        /// The session.
        session: Session,
        /// The request's number, at the downloader.
        ask: Option<u32>,
        /// Why.
        reason: BridgeEnd,
    },
    /// New sessions take another circuit; the old bridges go on.
    CircuitChanged {
        /// Its number.
        number: u32,
    },
    /// The tracker answers, or does not.
    Tracker {
        /// Whether it answers.
        reachable: bool,
        /// In a few words.
        reason: String,
    },
}

/// How things stand.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ShareStatus {
    /// Whether the tracker answers through the active circuit.
    pub tracker: bool,
    /// Why not, or that it does, in a few words.
    pub reason: String,
    /// Files that the tracker lists for this peer.
    pub listed: u32,
    /// Files that it refused.
    pub refused: u32,
    /// Bridges that stand.
    pub bridges: usize,
}

/// How long an engine may take to end.
const FAREWELL: Duration = Duration::from_millis(1500);

/// Why a question has no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ShareError {
    /// Nobody answered in time.
    #[error("expected the tracker's answer within 15 s, got none: {0}")]
    NoAnswer(String),
    /// The tracker said no.
    #[error("the tracker refused: {0}")]
    Refused(String),
    /// The request breaks a rule.
    #[error("expected {0}")]
    Invalid(&'static str),
    /// The engine has ended.
    #[error("the connection to the network has ended; the log says more")]
    Ended,
}

/// The handle of a running engine; cheap to clone. The engine ends with its last handle.
#[derive(Clone)]
pub struct ShareNet {
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<ShareStatus>,
    data: Handle<ClientCommand>,
    /// Its other side goes when everything has ended.
    is_ended: watch::Receiver<()>,
}

impl ShareNet {
    /// Replaces the files that this peer shares.
    pub async fn announce(&self, files: Vec<ListedFile>) {
        // An engine that has ended says so by its closed events.
        let _ = self.commands.send(Command::Announce(files)).await;
    }

    /// The public files whose name contains `filter`.
    ///
    /// # Errors
    /// When the tracker does not answer or refuses.
    pub async fn catalogue(&self, filter: &str) -> Result<Vec<CatalogueEntry>, ShareError> {
        let filter = filter.to_owned();
        self.ask(|reply| Command::Catalogue { filter, reply }).await
    }

    /// Asks for uploaders; each that agrees comes as [`ShareEvent::Opened`].
    ///
    /// # Errors
    /// When the tracker does not answer or refuses, or the request breaks a rule.
    pub async fn request(&self, request: FileRequest) -> Result<RequestTicket, ShareError> {
        if !(1..=MAX_SOURCES).contains(&request.sources) {
            return Err(ShareError::Invalid("1 to 4 sources"));
        }
        if request.note.len() > MAX_NOTE_LEN {
            return Err(ShareError::Invalid("a note of at most 512 bytes"));
        }
        self.ask(|reply| Command::Request { request, reply }).await
    }

    /// Agrees to share, with a fresh X25519 key and a note for the downloader.
    pub async fn accept(&self, session: Session, key: [u8; 32], note: Vec<u8>) {
        let _ = self.commands.send(Command::Accept { session, key, note }).await;
    }

    /// Does not share.
    pub async fn refuse(&self, session: Session) {
        let _ = self.commands.send(Command::Refuse { session }).await;
    }

    /// How things stand.
    pub fn status(&self) -> ShareStatus {
        self.status.borrow().clone()
    }

    /// Follows how things stand.
    pub fn watch_status(&self) -> watch::Receiver<ShareStatus> {
        self.status.clone()
    }

    /// The circuits of this peer.
    pub async fn circuits(&self) -> Vec<CircuitInfo> {
        self.data.ask(ClientCommand::Snapshot).await.map(|data| data.circuits).unwrap_or_default()
    }

    /// Builds a circuit for new sessions; says whether it stands.
    pub async fn rotate(&self) -> bool {
        matches!(self.data.ask(ClientCommand::NewCircuit).await, Ok(Ok(_)))
    }

    /// Ends the engine: bridges fall, guards are told.
    pub fn stop(&self) {
        // An engine that has ended no longer listens.
        let _ = self.data.send(ClientCommand::Stop);
    }

    /// Waits until the engine has ended and its last words are on their way, a second and a half at
    /// most.
    pub async fn ended(&self) {
        let mut is_ended = self.is_ended.clone();
        // Nothing is ever sent: the error is the end.
        let _ = tokio::time::timeout(FAREWELL, is_ended.changed()).await;
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, ShareError>>) -> Command,
    ) -> Result<T, ShareError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| ShareError::Ended)?;
        answer.await.map_err(|_| ShareError::Ended)?
    }
}
