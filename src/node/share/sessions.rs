//! Sessions at a peer: offers, consents, bridges that stand and fall.
//!
//! In: messages of the tracker, notices of exits, the peer's answers. Out: consents, events.
//! Called by: the engine.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{Bridge, ShareEvent, engine::Engine};
use crate::{
    capture::BridgeSocket,
    model::{CircuitKey, NodeId},
    node::client::{ClientCommand, ShareCommand},
    wire::share::{
        BridgeEnd, BridgeNotice, Consent, FileId, Order, Proposal, Session, ShareRole, ToTracker,
    },
};

/// A session of this peer.
pub(super) struct SessionRow {
    circuit: CircuitKey,
    role: ShareRole,
    file: FileId,
    peer_key: [u8; 32],
    note: Vec<u8>,
    ask: Option<u32>,
    bridge: Proposal,
    stage: Stage,
}

enum Stage {
    /// The peer was asked whether it shares.
    Asked,
    /// This peer consented; the socket waits for the bridge.
    Consented(BridgeSocket),
    /// The bridge stands.
    Open,
}

impl SessionRow {
    pub(super) fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open)
    }
}

impl Engine {
    /// The tracker asks this peer to share a file.
    pub(super) fn handle_asked(
        &mut self,
        circuit: CircuitKey,
        session: Session,
        file: FileId,
        key: [u8; 32],
        note: Vec<u8>,
        bridge: Proposal,
    ) {
        let row = SessionRow {
            circuit,
            role: ShareRole::Uploader,
            file,
            peer_key: key,
            note: note.clone(),
            ask: None,
            bridge,
            stage: Stage::Asked,
        };
        self.sessions.insert(session, row);
        self.emit(ShareEvent::Asked { session, file, key, note });
    }

    /// This peer shares: it consents to its half of the bridge.
    pub(super) async fn accept(&mut self, session: Session, key: [u8; 32], note: Vec<u8>) {
        let Some(row) = self.sessions.get(&session) else { return };
        if !matches!(row.stage, Stage::Asked) {
            return;
        }
        let circuit = row.circuit;
        if let Some(token) = self.consent(session).await {
            let message = ToTracker::Answer { session, key, note, token };
            self.tell_tracker(Some(circuit), message);
        } else {
            self.forget(session);
        }
    }

    /// The tracker offers an uploader: this peer consents to its half of the bridge.
    pub(super) async fn handle_offer(
        &mut self,
        circuit: CircuitKey,
        ask: u32,
        session: Session,
        key: [u8; 32],
        note: Vec<u8>,
        bridge: Proposal,
    ) {
        let Some(file) = self.requested.get(&ask).copied() else { return };
        let row = SessionRow {
            circuit,
            role: ShareRole::Downloader,
            file,
            peer_key: key,
            note,
            ask: Some(ask),
            bridge,
            stage: Stage::Asked,
        };
        self.sessions.insert(session, row);
        match self.consent(session).await {
            Some(token) => {
                let message = ToTracker::Consent { session, token };
                self.tell_tracker(Some(circuit), message);
            }
            None => self.forget(session),
        }
    }

    /// The consent to a session's bridge; from here on its datagrams have a socket.
    async fn consent(&mut self, session: Session) -> Option<Consent> {
        let row = self.sessions.get_mut(&session)?;
        let (circuit, role) = (row.circuit, row.role);
        let (cid, to, exp) = (row.bridge.cid(), row.bridge.to, row.bridge.exp);
        let bytes = Order::consent_bytes(session, role, cid, &to, exp);
        let (reply, token) = oneshot::channel();
        let ask = ShareCommand::Consent { circuit, bytes, reply };
        self.data.send(ClientCommand::Share(ask)).ok()?;
        let token = token.await.ok().flatten()?;
        let (ours, socket) = BridgeSocket::pair();
        let attach = ShareCommand::Attach { circuit, session, role, socket };
        self.data.send(ClientCommand::Share(attach)).ok()?;
        self.sessions.get_mut(&session)?.stage = Stage::Consented(ours);
        Some(Consent(token))
    }

    /// An exit says that a bridge stands, or why it fell.
    pub(super) fn handle_bridge(&mut self, circuit: CircuitKey, notice: BridgeNotice) {
        let session = notice.session;
        // An exit speaks for the bridges of its own circuit alone.
        if self.sessions.get(&session).is_none_or(|row| row.circuit != circuit) {
            return;
        }
        if let Some(reason) = notice.end {
            return self.close(session, reason);
        }
        let Some(row) = self.sessions.get_mut(&session) else { return };
        if row.role != notice.role || !matches!(row.stage, Stage::Consented(_)) {
            return;
        }
        let Stage::Consented(socket) = std::mem::replace(&mut row.stage, Stage::Open) else {
            return;
        };
        let circuit = self.circuits.get(&row.circuit);
        let own_exit = circuit.map_or(NodeId::from_bytes([0; 32]), |circuit| circuit.exit);
        let bridge = Bridge {
            session,
            role: row.role,
            file: row.file,
            peer_key: row.peer_key,
            note: std::mem::take(&mut row.note),
            ask: row.ask,
            circuit: circuit.map_or(0, |circuit| circuit.number),
            exits: [own_exit, row.bridge.to],
            socket: Arc::new(socket),
        };
        self.emit(ShareEvent::Opened(bridge));
    }

    /// The tracker says that a session is over. A bridge that stands needs no tracker: its exits
    /// say when it falls.
    pub(super) fn handle_dropped(&mut self, session: Session, reason: &str) {
        if self.sessions.get(&session).is_some_and(|row| !row.is_open()) {
            log::debug!("a session did not come to be: {reason}");
            self.close(session, BridgeEnd::Tracker);
        }
    }

    /// A session fell: the peer and the tracker are told.
    fn close(&mut self, session: Session, reason: BridgeEnd) {
        let Some(ask) = self.sessions.get(&session).map(|row| row.ask) else { return };
        self.emit(ShareEvent::Closed { session, ask, reason });
        self.forget(session);
    }

    /// This peer is done with a session, or does not want it.
    pub(super) fn forget(&mut self, session: Session) {
        let Some(row) = self.sessions.remove(&session) else { return };
        // A data path that is busy notices the closed socket.
        let _ = self.data.send(ClientCommand::Share(ShareCommand::Detach { session }));
        let circuit = self.circuits.contains_key(&row.circuit).then_some(row.circuit);
        if circuit.is_some() {
            self.tell_tracker(circuit, ToTracker::Drop { session });
        }
    }

    /// A circuit is gone, and its sessions with it.
    pub(super) fn end_sessions_of(&mut self, circuit: CircuitKey) {
        let of_circuit: Vec<Session> = self
            .sessions
            .iter()
            .filter(|(_, row)| row.circuit == circuit)
            .map(|(session, _)| *session)
            .collect();
        for session in of_circuit {
            self.close(session, BridgeEnd::CircuitLost);
        }
    }
}
