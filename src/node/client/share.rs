//! File sharing in a client's data path: frames of the tracker, datagrams of bridges.
//!
//! In: commands and runs of datagrams of the tokio side; bodies of exits. Out: cells in the outbox,
//! notices, runs of datagrams. Called by: the client's turn.

use std::{
    sync::Arc,
    task::{Wake, Waker},
};

use hashbrown::HashMap;
use tokio::sync::{mpsc, oneshot};

use super::Client;
use crate::{
    capture::{BridgeSocket, DatagramRun},
    keys::{ConsentKey, HopKeys},
    model::{BODY_LEN, CircuitKey, DropReason, NodeId},
    node::reactor,
    wire::{
        ControlFragment, ControlType,
        share::{BRIDGE_MTU, BridgeDatagram, BridgeEnd, BridgeNotice, Session, ShareRole},
    },
};

/// Runs that one bridge may send before the others get their turn.
const RUNS_PER_TURN: usize = 16;

/// What the tokio side asks for.
pub(crate) enum ShareCommand {
    /// Send a frame to a tracker through a circuit.
    Up { circuit: CircuitKey, tracker: NodeId, frame: Vec<u8> },
    /// The client's consent to a bridge: a MAC over these bytes.
    Consent { circuit: CircuitKey, bytes: [u8; 73], reply: oneshot::Sender<Option<[u8; 16]>> },
    /// Datagrams of a session come from and go to this socket.
    Attach { circuit: CircuitKey, session: Session, role: ShareRole, socket: BridgeSocket },
    /// A session is over; its exit is told.
    Detach { session: Session },
}

/// What the tokio side is told.
#[derive(Debug)]
pub(crate) enum ShareNotice {
    /// A circuit stands.
    Ready { circuit: CircuitKey, number: u32, exit: NodeId },
    /// A circuit is gone.
    Gone { circuit: CircuitKey },
    /// The circuit that new sessions take.
    Active { circuit: Option<CircuitKey> },
    /// A frame of a tracker.
    Frame { circuit: CircuitKey, tracker: NodeId, frame: Vec<u8> },
    /// A bridge stands or fell.
    Bridge { circuit: CircuitKey, notice: BridgeNotice },
    /// The peer's side dropped its socket.
    SocketClosed { session: Session },
}

struct BridgeRow {
    circuit: CircuitKey,
    session: Session,
    role: ShareRole,
    socket: BridgeSocket,
    /// What came in this read, not handed over yet.
    staged: DatagramRun,
    is_dirty: bool,
}

/// The sharing part of a data path.
pub(crate) struct ShareData {
    notices: mpsc::Sender<ShareNotice>,
    waker: Waker,
    consents: HashMap<CircuitKey, ConsentKey>,
    bridges: Vec<BridgeRow>,
    by_session: HashMap<Session, usize>,
    active: Option<CircuitKey>,
    runs: Vec<DatagramRun>,
    /// A bridge had more to send than its turn allowed.
    has_more: bool,
}

struct WakeReactor(Arc<reactor::Waker>);

impl Wake for WakeReactor {
    fn wake(self: Arc<Self>) {
        // Fails only when the reactor is gone, and then nobody waits.
        let _ = self.0.wake();
    }
}

impl ShareData {
    pub(crate) fn new(notices: mpsc::Sender<ShareNotice>, waker: Arc<reactor::Waker>) -> Self {
        Self {
            notices,
            waker: Waker::from(Arc::new(WakeReactor(waker))),
            consents: HashMap::new(),
            bridges: Vec::new(),
            by_session: HashMap::new(),
            active: None,
            runs: Vec::new(),
            has_more: false,
        }
    }

    fn tell(&self, notice: ShareNotice) {
        if self.notices.try_send(notice).is_err() {
            log::debug!("a notice of file sharing was dropped: too many wait");
        }
    }

    /// Whether datagrams wait that the next turn must send.
    pub(super) fn has_more(&self) -> bool {
        self.has_more
    }

    /// Bridges of a circuit: it is not closed under them.
    pub(super) fn bridges_of(&self, circuit: CircuitKey) -> usize {
        self.bridges.iter().filter(|row| row.circuit == circuit).count()
    }

    /// A hop joined a circuit; the last one is its exit.
    pub(super) fn on_hop(&mut self, circuit: CircuitKey, keys: &HopKeys) {
        self.consents.insert(circuit, keys.consent_key());
    }

    pub(super) fn on_ready(&self, circuit: CircuitKey, number: u32, exit: NodeId) {
        self.tell(ShareNotice::Ready { circuit, number, exit });
    }

    pub(super) fn on_closed(&mut self, circuit: CircuitKey) {
        self.consents.remove(&circuit);
        while let Some(row) = self.bridges.iter().find(|row| row.circuit == circuit) {
            let (session, role) = (row.session, row.role);
            self.remove(session);
            let notice = BridgeNotice { session, role, end: Some(BridgeEnd::CircuitLost) };
            self.tell(ShareNotice::Bridge { circuit, notice });
        }
        self.tell(ShareNotice::Gone { circuit });
    }

    fn remove(&mut self, session: Session) -> Option<BridgeRow> {
        let at = self.by_session.remove(&session)?;
        let row = self.bridges.swap_remove(at);
        if let Some(moved) = self.bridges.get(at) {
            self.by_session.insert(moved.session, at);
        }
        Some(row)
    }

    /// A datagram of an exit.
    pub(super) fn receive(
        &mut self,
        circuit: CircuitKey,
        body: &[u8; BODY_LEN],
    ) -> Result<(), DropReason> {
        let datagram = BridgeDatagram::parse(body).map_err(|_| DropReason::BadControl)?;
        let at = *self.by_session.get(&datagram.session).ok_or(DropReason::NoBridge)?;
        let row = &mut self.bridges[at];
        if row.circuit != circuit {
            return Err(DropReason::NoBridge);
        }
        row.is_dirty = true;
        if row.staged.push(datagram.bytes) {
            return Ok(());
        }
        hand_over(row)?;
        row.staged.push(datagram.bytes);
        Ok(())
    }

    /// Hands over what the last read brought; says how many datagrams found no room.
    pub(super) fn publish(&mut self) -> usize {
        let mut lost = 0;
        for row in self.bridges.iter_mut().filter(|row| row.is_dirty) {
            row.is_dirty = false;
            let count = row.staged.datagrams().len();
            if hand_over(row).is_err() {
                lost += count;
            }
        }
        lost
    }
}

/// Gives the staged run to the peer's side; what finds no room is dropped.
fn hand_over(row: &mut BridgeRow) -> Result<(), DropReason> {
    if row.staged.bytes.is_empty() {
        return Ok(());
    }
    row.socket.try_send_run(&mut row.staged).map_err(|_| {
        row.staged.bytes.clear();
        DropReason::QueueFull
    })
}

impl Client {
    pub(super) fn handle_share_command(&mut self, command: ShareCommand) {
        match command {
            ShareCommand::Up { circuit, tracker, frame } => {
                let value = [tracker.as_bytes().as_slice(), &frame].concat();
                self.send_to_exit(circuit, ControlType::TrackerUp, &value);
            }
            ShareCommand::Consent { circuit, bytes, reply } => {
                let consents = self.share.as_ref().map(|share| &share.consents);
                let token = consents.and_then(|consents| consents.get(&circuit));
                // Whoever asked may be gone.
                let _ = reply.send(token.map(|key| key.token(&bytes)));
            }
            ShareCommand::Attach { circuit, session, role, socket } => {
                let Some(share) = &mut self.share else { return };
                if self.circuits.get(circuit).is_none() || share.by_session.contains_key(&session) {
                    return;
                }
                share.by_session.insert(session, share.bridges.len());
                let (staged, is_dirty) = (DatagramRun::default(), false);
                share.bridges.push(BridgeRow { circuit, session, role, socket, staged, is_dirty });
                share.has_more = true;
            }
            ShareCommand::Detach { session } => self.detach(session),
        }
    }

    fn detach(&mut self, session: Session) {
        let row = self.share.as_mut().and_then(|share| share.remove(session));
        if let Some(row) = row {
            let notice = BridgeNotice { session, role: row.role, end: Some(BridgeEnd::Peer) };
            self.send_to_exit(row.circuit, ControlType::Bridge, &notice.emit());
        }
    }

    fn send_to_exit(&mut self, circuit: CircuitKey, kind: ControlType, value: &[u8]) {
        let Some(hop) = self.circuits.get(circuit).and_then(|row| row.path().len().checked_sub(1))
        else {
            return;
        };
        let fragment = ControlFragment { kind, request: 0, index: 0, count: 1, value };
        let mut is_written = true;
        let write = |body: &mut [u8; BODY_LEN]| is_written = fragment.emit(body).is_ok();
        let sent = self.table.send_body(circuit, hop, write, &mut self.outbox, &mut self.rng);
        if let Err(reason) = sent {
            self.link.drops.count(reason);
        }
        if !is_written {
            log::debug!("a control message did not fit its body");
        }
    }

    /// Datagrams of bridges into cells, a few runs of each.
    pub(super) fn send_bridges(&mut self) {
        let Some(share) = &mut self.share else { return };
        share.has_more = false;
        let mut closed = None;
        for row in &share.bridges {
            row.socket.drain(&mut share.runs, RUNS_PER_TURN, &share.waker);
            share.has_more |= share.runs.len() == RUNS_PER_TURN;
            if share.runs.is_empty() && row.socket.is_closed() {
                closed = Some(row.session);
            }
            let Some(path) = self.circuits.get(row.circuit).map(|row| row.path().len()) else {
                continue;
            };
            for datagram in share.runs.iter().flat_map(DatagramRun::datagrams) {
                if datagram.len() > BRIDGE_MTU {
                    self.link.drops.count(DropReason::TooLarge);
                    continue;
                }
                let datagram = BridgeDatagram { session: row.session, bytes: datagram };
                let sent = self.table.send_body(
                    row.circuit,
                    path - 1,
                    |body| datagram.emit(body),
                    &mut self.outbox,
                    &mut self.rng,
                );
                if let Err(reason) = sent {
                    self.link.drops.count(reason);
                }
            }
            self.link.flush(&mut self.outbox);
        }
        if let Some(session) = closed {
            self.detach(session);
            if let Some(share) = &mut self.share {
                share.has_more = true;
                share.tell(ShareNotice::SocketClosed { session });
            }
            self.link.flush(&mut self.outbox);
        }
    }

    /// A control body of an exit that is for file sharing; says whether it was.
    pub(super) fn handle_share_control(&mut self, circuit: CircuitKey, hop: usize) -> bool {
        let Some(share) = &mut self.share else { return false };
        let is_last = self.circuits.get(circuit).is_some_and(|row| hop + 1 == row.path().len());
        let Ok(fragment) = ControlFragment::parse(&self.body) else { return false };
        match fragment.kind {
            ControlType::TrackerDown if is_last => {
                if let Some((id, frame)) = fragment.value.split_first_chunk::<32>() {
                    let (tracker, frame) = (NodeId::from_bytes(*id), frame.to_vec());
                    share.tell(ShareNotice::Frame { circuit, tracker, frame });
                }
                true
            }
            ControlType::Bridge if is_last => {
                if let Ok(notice) = BridgeNotice::parse(fragment.value) {
                    if notice.end.is_some() {
                        share.remove(notice.session);
                    }
                    share.tell(ShareNotice::Bridge { circuit, notice });
                }
                true
            }
            _ => false,
        }
    }

    /// Says which circuit new sessions take, when that has changed.
    pub(super) fn watch_active(&mut self) {
        let active = self.pool.active();
        if let Some(share) = &mut self.share
            && share.active != active
        {
            share.active = active;
            share.tell(ShareNotice::Active { circuit: active });
        }
    }

    /// A datagram of an exit, opened into the body.
    pub(super) fn receive_bridge(
        &mut self,
        circuit: CircuitKey,
        hop: usize,
    ) -> Result<(), DropReason> {
        let row = self.circuits.get(circuit).ok_or(DropReason::UnknownCircuit)?;
        if hop + 1 != row.path().len() {
            return Err(DropReason::NotAnExit);
        }
        self.share.as_mut().ok_or(DropReason::NoBridge)?.receive(circuit, &self.body)
    }

    /// Hands over what one read brought.
    pub(super) fn publish_bridges(&mut self) {
        if let Some(share) = &mut self.share {
            for _ in 0..share.publish() {
                self.link.drops.count(DropReason::QueueFull);
            }
        }
    }
}
