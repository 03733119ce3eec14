//! One circuit at its client, and the way of a cell through it.
//!
//! In: cells of the circuit. Out: the same, wrapped; or a body, and what it is.
//! Called by: the table.
//!
//! As at a node (`forward/relay/row.rs`), what keeps order is apart from the cryptography, which a batch's
//! cells go through in any order.

use std::{net::SocketAddr, time::Instant};

use rand::Rng;

use super::{ClientVerdict, open_neighbour};
use crate::{
    forward::{ReplayWindow, packing::CircuitPacker, stream::Reassembler},
    keys::{BackwardLayer, ForwardWrap, LinkTag, PairControl, PairKeys, begin_wrap, seal_wrap},
    model::{BODY_LEN, CELL_LEN, Cid, CircuitKey, Direction, DropReason, SLOTS},
    wire::{BodyHeader, first_seq, set_cid},
};

/// The expanded keys of one hop and the counters that go with them.
pub(super) struct HopState {
    pub(super) backward: BackwardLayer,
    pub(super) window: ReplayWindow,
}

/// One circuit: its hops' keys and counters.
pub(super) struct Row {
    pub(super) cid: Cid,
    pub(super) guard: SocketAddr,
    pub(super) wraps: Vec<ForwardWrap>,
    pub(super) seqs: Vec<u32>,
    pub(super) hops: Vec<HopState>,
    pub(super) tag: LinkTag,
    pub(super) pair: PairKeys,
    pub(super) window: ReplayWindow,
    pub(super) control_window: ReplayWindow,
    pub(super) next_control_seq: u32,
    pub(super) packer: CircuitPacker,
    pub(super) reassembler: Reassembler,
    pub(super) last_heard: Instant,
    pub(super) cells: [u64; 2],
    pub(super) bytes: [u64; 2],
}

/// A cell that was begun for some hops of a circuit, under these numbers.
#[derive(Clone, Copy)]
pub(super) struct Begun {
    pub(super) circuit: CircuitKey,
    hops: usize,
    seqs: [u32; SLOTS],
}

/// A cell from the guard between its steps.
pub(super) enum Step {
    /// Admitted.
    Work(Work),
    /// There is nothing to work on.
    Said(ClientVerdict),
}

/// What is done with an admitted cell.
pub(super) struct Work {
    pub(super) circuit: CircuitKey,
    /// The number it came with.
    seq: u32,
    /// Whether the guard's tag verified.
    is_genuine: bool,
    /// Who sealed it, and under which number.
    originator: Option<(usize, u32)>,
}

impl Row {
    /// Room for the cells of a batch is kept, so that no counter runs out between check and wrap.
    pub(super) fn is_used_up(&self) -> bool {
        const MARGIN: u32 = 0x1_0000;
        self.seqs.iter().any(|seq| *seq >= PairControl::SEQ_BIT - MARGIN)
    }

    /// Begins a cell whose body is written for the last of so many hops; [`Self::seal`] is next.
    pub(super) fn begin(
        &mut self,
        circuit: CircuitKey,
        hops: usize,
        cell: &mut [u8; CELL_LEN],
        rng: &mut impl Rng,
    ) -> Begun {
        begin_wrap(&mut self.wraps[..hops], &self.seqs[..hops], cell, rng);
        let mut begun = Begun { circuit, hops, seqs: [0; SLOTS] };
        for (used, seq) in begun.seqs.iter_mut().zip(&mut self.seqs[..hops]) {
            *used = *seq;
            *seq += 1;
        }
        self.cells[Direction::Forward as usize] += 1;
        begun
    }

    /// Puts the layers around a cell that was begun.
    pub(super) fn seal(&self, begun: &Begun, cell: &mut [u8; CELL_LEN]) {
        seal_wrap(&self.wraps[..begun.hops], &begun.seqs[..begun.hops], cell);
        set_cid(cell, self.cid);
    }

    /// Admits a cell that is no replay; its number is not marked yet.
    pub(super) fn admit(
        &mut self,
        circuit: CircuitKey,
        cell: &mut [u8; CELL_LEN],
    ) -> Result<Step, DropReason> {
        let seq = first_seq(cell);
        if PairControl::is_neighbour_seq(seq) {
            let window = &mut self.control_window;
            let message = open_neighbour(&self.pair, Direction::Backward, window, cell, seq)?;
            return Ok(Step::Said(ClientVerdict::Neighbour { circuit, message }));
        }
        if !self.window.is_fresh(seq) {
            return Err(DropReason::Replay);
        }
        Ok(Step::Work(Work { circuit, seq, is_genuine: false, originator: None }))
    }

    /// Checks the guard's tag of an admitted cell, takes the layers off and opens its body.
    pub(super) fn open(
        &self,
        work: &mut Work,
        cell: &mut [u8; CELL_LEN],
        body: &mut [u8; BODY_LEN],
    ) {
        work.is_genuine = self.tag.verify(cell).is_ok();
        if work.is_genuine {
            work.originator = self.find_originator(cell, body);
        }
    }

    /// Says what a cell is that was worked on.
    pub(super) fn settle(
        &mut self,
        now: Instant,
        from: SocketAddr,
        work: &Work,
        body: &mut [u8; BODY_LEN],
    ) -> Result<ClientVerdict, DropReason> {
        if !work.is_genuine {
            return Err(DropReason::BadTag);
        }
        // The same cell twice in one batch was admitted twice.
        if !self.window.is_fresh(work.seq) {
            return Err(DropReason::Replay);
        }
        if self.window.mark(work.seq) {
            self.guard = from;
        }
        self.cells[Direction::Backward as usize] += 1;
        let (hop, seq) = work.originator.ok_or(DropReason::BadTag)?;
        let window = &mut self.hops[hop].window;
        if !window.is_fresh(seq) {
            return Err(DropReason::Replay);
        }
        window.mark(seq);
        if hop + 1 == self.hops.len() {
            self.last_heard = now;
        }
        let header = BodyHeader::parse(body).map_err(|_| DropReason::UnknownKind)?;
        Ok(ClientVerdict::Body { circuit: work.circuit, hop, seq, header })
    }

    /// Peels in path order and opens as the last hop; if that fails, tries the earlier hops.
    fn find_originator(
        &self,
        cell: &mut [u8; CELL_LEN],
        body: &mut [u8; BODY_LEN],
    ) -> Option<(usize, u32)> {
        let (last, before) = self.hops.split_last()?;
        let mut counters = [0u32; SLOTS];
        for (hop, counter) in before.iter().zip(&mut counters) {
            *counter = hop.backward.peel(cell);
        }
        if let Ok(seq) = last.backward.open(cell, body) {
            return Some((before.len(), seq));
        }
        for (index, hop) in before.iter().enumerate().rev() {
            hop.backward.unpeel(counters[index], cell);
            if let Ok(seq) = hop.backward.open(cell, body) {
                return Some((index, seq));
            }
        }
        None
    }
}
