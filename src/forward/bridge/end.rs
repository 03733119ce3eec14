//! One end of a bridge: a circuit's session at this exit, and the link to the other exit.
//!
//! In: what the exit's bridges tell it. Out: its state. Called by: the exit's bridges.
//!
//! ```text
//! make_bridge    -> Joining --accept--> Open      (asks again until accepted)
//! receive_bridge -> Waiting --join----> Open
//! both circuits end at this exit:       Local
//! via code                               Code, with stages of its own
//! ```

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{code::CodeLink, fair::Share};
use crate::{
    forward::ReplayWindow,
    keys::{BridgeKeys, BridgeLayer},
    model::{CELL_LEN, CID_LEN, Cid, CircuitKey, DropReason, NodeId},
    wire::{
        first_seq, set_cid,
        share::{JOIN_LEN, Session, ShareRole},
    },
};

/// The pause before a join is asked again, doubled each time.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// The longest pause.
const ASK_AGAIN_AT_MOST: Duration = Duration::from_secs(1);

/// One end of a bridge.
pub(super) struct End {
    pub(super) circuit: CircuitKey,
    pub(super) session: Session,
    pub(super) role: ShareRole,
    pub(super) other: NodeId,
    pub(super) bridge: Cid,
    pub(super) since: Instant,
    /// When a datagram last came, from either side.
    pub(super) last_data: Instant,
    pub(super) share: Share,
    pub(super) link: EndLink,
}

/// The way to the other end.
pub(super) enum EndLink {
    Joining(Box<Joining>),
    Waiting,
    Open(Box<OpenLink>),
    /// The other end is at this exit too.
    Local(CircuitKey),
    /// By tracking codes.
    Code(Box<CodeLink>),
}

/// A join that is not accepted yet.
pub(super) struct Joining {
    pub(super) to: SocketAddr,
    pub(super) keys: BridgeKeys,
    pub(super) prefix: [u8; JOIN_LEN],
    pub(super) attempts: u32,
    pub(super) next: Instant,
}

impl Joining {
    /// When to ask again after the present attempt.
    pub(super) fn count_attempt(&mut self, now: Instant) {
        let pause = ASK_AGAIN.saturating_mul(1 << self.attempts.min(8));
        self.attempts += 1;
        self.next = now + pause.min(ASK_AGAIN_AT_MOST);
    }
}

/// The link between two exits.
pub(super) struct OpenLink {
    to: SocketAddr,
    send: BridgeLayer,
    recv: BridgeLayer,
    seq: u32,
    window: ReplayWindow,
    /// At the receiver: the join that opened it and its answer, to be given again.
    pub(super) join: Option<([u8; JOIN_LEN], [u8; 16])>,
    /// When the other exit was last heard.
    pub(super) heard: Instant,
    /// When an echo was last asked.
    pub(super) asked: Instant,
}

impl OpenLink {
    pub(super) fn new(
        now: Instant,
        to: SocketAddr,
        (send, recv): (BridgeLayer, BridgeLayer),
        join: Option<([u8; JOIN_LEN], [u8; 16])>,
    ) -> Self {
        let window = ReplayWindow::default();
        Self { to, send, recv, seq: 0, window, join, heard: now, asked: now }
    }

    /// Seals a cell whose body is written; returns where to send it.
    pub(super) fn seal(
        &mut self,
        bridge: Cid,
        cell: &mut [u8; CELL_LEN],
    ) -> Result<SocketAddr, DropReason> {
        let seq = self.seq.checked_add(1).ok_or(DropReason::CounterExhausted)?;
        self.seq = seq;
        set_cid(cell, bridge);
        self.send.seal(seq, cell);
        Ok(self.to)
    }

    /// Whether a cell is the join that opened this link, once more: its answer was lost.
    pub(super) fn is_join(&self, cell: &[u8; CELL_LEN]) -> bool {
        self.join.as_ref().is_some_and(|(join, _)| cell[CID_LEN..CID_LEN + JOIN_LEN] == *join)
    }

    /// Opens a cell of the other exit in place.
    pub(super) fn open(
        &mut self,
        now: Instant,
        from: SocketAddr,
        cell: &mut [u8; CELL_LEN],
    ) -> Result<(), DropReason> {
        let seq = first_seq(cell);
        if !self.window.is_fresh(seq) {
            return Err(DropReason::Replay);
        }
        self.recv.open(cell).map_err(|_| DropReason::BadTag)?;
        if self.window.mark(seq) {
            self.to = from;
        }
        self.heard = now;
        Ok(())
    }
}
