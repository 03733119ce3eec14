//! One circuit at a node, and the way of a cell through it.
//!
//! In: cells of the circuit. Out: the same, changed in place; what to do with them.
//! Called by: the table.
//!
//! ```text
//! admit    in order      a number that was not seen
//! verify   in any order  the tag; towards the exit it opens the cell
//! settle   in order      marks the number, looks at what came out; backwards, a number of our own
//! add      in any order  backwards, a layer and a tag of our own
//! ```
//! A cell takes the steps at once, or a batch takes each step together. Nothing of a cell that is not
//! genuine shows in those that go on: our own numbers can be read on the link.

use std::{net::SocketAddr, time::Instant};

use rand::Rng;

use super::{Verdict, open_neighbour};
use crate::{
    forward::{ReplayWindow, packing::CircuitPacker},
    keys::{BackwardLayer, ForwardLayer, LinkTag, PairControl, PairKeys},
    model::{CELL_LEN, Cid, CircuitKey, Direction, DropReason, prefetch, prefetch_start},
    wire::{BodyHeader, body_mut, body_ref, first_seq, set_cid},
};

/// A counter at or above this ends its circuit; neighbour cells have numbers from here on.
pub(super) const SEQ_END: u32 = PairControl::SEQ_BIT;
/// Numbers kept back, so that none runs out between a batch's first packet and its last.
pub(super) const SEQ_MARGIN: u32 = 0x1_0000;

/// The link towards the exit; what a forward cell needs of it is at its start.
#[repr(C)]
pub(super) struct OutLink {
    pub(super) addr: SocketAddr,
    pub(super) cid: Cid,
    pub(super) tag: LinkTag,
    pub(super) pair: PairKeys,
    pub(super) window: ReplayWindow,
    pub(super) control_window: ReplayWindow,
}

/// One circuit's row: the five-tuple of the source, with the keys expanded.
pub(super) struct Row {
    pub(super) in_addr: SocketAddr,
    pub(super) in_cid: Cid,
    pub(super) forward: ForwardLayer,
    pub(super) backward: BackwardLayer,
    pub(super) in_tag: LinkTag,
    pub(super) in_pair: PairKeys,
    pub(super) window: ReplayWindow,
    pub(super) control_window: ReplayWindow,
    /// The hash of the CREATE, until the client is known to have its answer.
    pub(super) create: Option<[u8; 32]>,
    pub(super) next_seq: u32,
    pub(super) next_control_seq: u32,
    pub(super) out: Option<OutLink>,
    pub(super) last_active: Instant,
    pub(super) cells: [u64; 2],
    pub(super) packer: CircuitPacker,
}

/// A cell between its steps.
pub(super) enum Step {
    /// Admitted.
    Work(Work),
    /// There is nothing to work on.
    Said(Verdict),
}

impl Step {
    /// The circuit and the number of a cell that goes backwards, once it is settled.
    pub(super) fn own(&self) -> Option<(CircuitKey, u32)> {
        match self {
            Self::Work(Work { circuit, own: Some(own), .. }) => Some((*circuit, *own)),
            _ => None,
        }
    }
}

/// What is known of an admitted cell.
pub(super) struct Work {
    pub(super) circuit: CircuitKey,
    direction: Direction,
    /// The number it came with.
    seq: u32,
    /// Whether its tag verified.
    is_genuine: bool,
    /// Backwards, once it is settled: the number it goes on with.
    own: Option<u32>,
}

impl Row {
    /// Has what a cell of this direction reads fetched.
    pub(super) fn prefetch(&self, direction: Direction, seq: u32) {
        match direction {
            Direction::Forward => {
                self.forward.prefetch();
                self.window.prefetch(seq);
                prefetch(&self.create);
            }
            Direction::Backward => {
                prefetch(&self.backward);
                prefetch(&self.in_tag);
                prefetch(&self.next_seq);
            }
        }
        prefetch(&self.in_addr);
        prefetch(&self.in_cid);
        prefetch(&self.last_active);
        prefetch(&self.cells);
        prefetch_start(&self.out);
    }

    /// Makes a cell whose body is written a backward cell of this node.
    pub(super) fn originate(
        &mut self,
        cell: &mut [u8; CELL_LEN],
        rng: &mut impl Rng,
    ) -> Result<(), DropReason> {
        self.begin(cell, rng)?;
        self.seal(cell);
        Ok(())
    }

    /// The part of [`Self::originate`] that keeps order.
    pub(super) fn begin(
        &mut self,
        cell: &mut [u8; CELL_LEN],
        rng: &mut impl Rng,
    ) -> Result<(), DropReason> {
        let seq = self.take_seq()?;
        BackwardLayer::begin(seq, cell, rng);
        self.cells[Direction::Backward as usize] += 1;
        Ok(())
    }

    /// The part of [`Self::originate`] that takes time.
    pub(super) fn seal(&self, cell: &mut [u8; CELL_LEN]) {
        self.backward.seal(cell);
        set_cid(cell, self.in_cid);
        self.in_tag.tag(cell);
    }

    /// Admits a cell that is no replay. Its number is not marked yet: it is not authenticated.
    pub(super) fn admit(
        &mut self,
        circuit: CircuitKey,
        direction: Direction,
        cell: &mut [u8; CELL_LEN],
    ) -> Result<Step, DropReason> {
        let seq = first_seq(cell);
        let (pair, window, control_window) = match direction {
            Direction::Forward => (&self.in_pair, &self.window, &mut self.control_window),
            Direction::Backward => {
                let out = self.out.as_mut().ok_or(DropReason::UnknownCircuit)?;
                (&out.pair, &out.window, &mut out.control_window)
            }
        };
        if PairControl::is_neighbour_seq(seq) {
            let message = open_neighbour(pair, direction, control_window, cell, seq)?;
            return Ok(Step::Said(Verdict::Neighbour { circuit, direction, message }));
        }
        if direction == Direction::Forward
            && let Some(create) = &self.create
            && is_create(create, cell)
        {
            return Ok(Step::Said(Verdict::RepeatedCreate { circuit }));
        }
        if !window.is_fresh(seq) {
            return Err(DropReason::Replay);
        }
        Ok(Step::Work(Work { circuit, direction, seq, is_genuine: false, own: None }))
    }

    /// Checks the tag of an admitted cell; towards the exit, that takes a layer off.
    pub(super) fn verify(&self, work: &mut Work, cell: &mut [u8; CELL_LEN]) {
        work.is_genuine = match (work.direction, &self.out) {
            (Direction::Forward, _) => self.forward.open(cell).is_ok(),
            (Direction::Backward, Some(out)) => out.tag.verify(cell).is_ok(),
            (Direction::Backward, None) => false,
        };
    }

    /// Adds the layer and the tag of this node to a cell that goes backwards as number `own`.
    pub(super) fn add(&self, own: u32, cell: &mut [u8; CELL_LEN]) {
        self.backward.add(own, cell);
        set_cid(cell, self.in_cid);
        self.in_tag.tag(cell);
    }

    /// Says what to do with a cell that was verified.
    pub(super) fn settle(
        &mut self,
        now: Instant,
        from: SocketAddr,
        work: &mut Work,
        cell: &mut [u8; CELL_LEN],
    ) -> Result<Verdict, DropReason> {
        let &mut Work { circuit, direction, seq, is_genuine, .. } = work;
        if !is_genuine {
            return Err(DropReason::BadTag);
        }
        let (window, addr) = match (direction, &mut self.out) {
            (Direction::Forward, _) => (&mut self.window, &mut self.in_addr),
            (Direction::Backward, Some(out)) => (&mut out.window, &mut out.addr),
            (Direction::Backward, None) => return Err(DropReason::UnknownCircuit),
        };
        // The same cell twice in one batch was admitted twice.
        if !window.is_fresh(seq) {
            return Err(DropReason::Replay);
        }
        if window.mark(seq) {
            *addr = from;
        }
        self.last_active = now;
        self.cells[direction as usize] += 1;
        if direction == Direction::Backward {
            work.own = Some(self.take_seq()?);
            return Ok(Verdict::Relay { circuit, to: self.in_addr });
        }
        self.create = None;
        self.forward.shift(seq, cell);
        if BodyHeader::is_recognised(body_ref(cell)) {
            let header = BodyHeader::parse(body_mut(cell)).map_err(|_| DropReason::UnknownKind)?;
            return Ok(Verdict::Local { circuit, seq, header });
        }
        let out = self.out.as_ref().ok_or(DropReason::NotRecognised)?;
        set_cid(cell, out.cid);
        Ok(Verdict::Relay { circuit, to: out.addr })
    }

    fn take_seq(&mut self) -> Result<u32, DropReason> {
        let seq = self.next_seq;
        if seq >= SEQ_END {
            return Err(DropReason::CounterExhausted);
        }
        self.next_seq += 1;
        Ok(seq)
    }
}

fn is_create(create: &[u8; 32], cell: &[u8; CELL_LEN]) -> bool {
    let prefix = &cell[crate::model::CID_LEN..][..crate::wire::CREATE_LEN];
    crate::wire::CreatePrefix::parse(prefix)
        .is_ok_and(|_| blake3::hash(prefix).as_bytes() == create)
}
