//! A node's data path: one cell in, one verdict out.
//!
//! In: cells as they came, in place. Out: the same cells with one layer less or more, and what to
//! do with them. Called by: the node's event loop.
//!
//! ```text
//! from the client's side:  look up -> replay? -> peel -> mark -> Relay | Local
//! from the exit's side:    look up -> replay? -> verify link tag -> mark -> add layer -> Relay
//! ```

use std::{net::SocketAddr, time::Instant};

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use rand::Rng;

use super::{
    Outbox, ReplayWindow,
    packing::{CircuitPacker, Written},
};
use crate::{
    keys::{BackwardLayer, ForwardLayer, LinkTag, PairControl, PairKeys, RelayKeys},
    model::{CELL_LEN, Cid, CircuitKey, Direction, DropReason, prefetch, prefetch_start},
    wire::{BodyHeader, PairMessage, body_mut, body_ref, cid_of, first_seq, set_cid},
};

/// A counter at or above this ends its circuit; neighbour cells have numbers from here on.
const SEQ_END: u32 = PairControl::SEQ_BIT;
/// Numbers kept back, so that none runs out between a batch's first packet and its last.
const SEQ_MARGIN: u32 = 0x1_0000;

/// Ids of links, two for a circuit that goes on, from which on the rows no longer fit the caches.
const MANY: usize = 1_024;

/// What to do with a cell.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send the cell, which was changed in place.
    Relay {
        /// The circuit it is on.
        circuit: CircuitKey,
        /// The neighbour on the other side.
        to: SocketAddr,
    },
    /// The cell's body is open and for this node.
    Local {
        /// The circuit it came on.
        circuit: CircuitKey,
        /// Its place in the circuit's forward order.
        seq: u32,
        /// What it is.
        header: BodyHeader,
    },
    /// A neighbour says something without the client.
    Neighbour {
        /// The circuit it concerns.
        circuit: CircuitKey,
        /// The way the message travels.
        direction: Direction,
        /// What it says.
        message: PairMessage,
    },
    /// The CREATE of an open circuit came again: its answer was lost.
    RepeatedCreate {
        /// The circuit that it created.
        circuit: CircuitKey,
    },
    /// No circuit has this id: it may be a CREATE, or the answer to one.
    Unknown,
    /// Nothing to send.
    Drop(DropReason),
}

/// The link towards the exit; what a forward cell needs of it is at its start.
#[repr(C)]
struct OutLink {
    addr: SocketAddr,
    cid: Cid,
    tag: LinkTag,
    pair: PairKeys,
    window: ReplayWindow,
    control_window: ReplayWindow,
}

/// One circuit's row: the five-tuple of the source, with the keys expanded.
struct Row {
    in_addr: SocketAddr,
    in_cid: Cid,
    forward: ForwardLayer,
    backward: BackwardLayer,
    in_tag: LinkTag,
    in_pair: PairKeys,
    window: ReplayWindow,
    control_window: ReplayWindow,
    /// The hash of the CREATE, until the client is known to have its answer.
    create: Option<[u8; 32]>,
    next_seq: u32,
    next_control_seq: u32,
    out: Option<OutLink>,
    last_active: Instant,
    cells: [u64; 2],
    packer: CircuitPacker,
}

/// All circuits of a node, by the ids of both their links.
pub struct RelayTable {
    rows: Vec<Option<Box<Row>>>,
    by_cid: HashMap<Cid, (CircuitKey, Direction), RandomState>,
    written: Written,
}

impl Default for RelayTable {
    fn default() -> Self {
        Self {
            rows: Vec::new(),
            by_cid: HashMap::with_hasher(RandomState::default()),
            written: Written::default(),
        }
    }
}

impl RelayTable {
    /// How many cells at a time [`Self::look_ahead`] is for.
    pub const AHEAD: usize = 8;

    /// Adds a circuit that was created from `from` under `cid`.
    pub fn install(
        &mut self,
        now: Instant,
        key: CircuitKey,
        from: SocketAddr,
        cid: Cid,
        keys: &RelayKeys,
        rng: &mut impl Rng,
    ) {
        if self.rows.len() <= key.index() {
            self.rows.resize_with(key.index() + 1, || None);
        }
        self.remove(key);
        self.by_cid.insert(cid, (key, Direction::Forward));
        self.rows[key.index()] = Some(Box::new(Row {
            in_addr: from,
            in_cid: cid,
            forward: ForwardLayer::new(&keys.hop),
            backward: BackwardLayer::new(&keys.hop),
            in_tag: LinkTag::new(&keys.pair),
            in_pair: keys.pair.clone(),
            window: ReplayWindow::default(),
            control_window: ReplayWindow::default(),
            create: Some(keys.create),
            next_seq: random_start(rng),
            next_control_seq: random_start(rng),
            out: None,
            last_active: now,
            cells: [0; 2],
            packer: CircuitPacker::default(),
        }));
    }

    /// Extends a circuit by the link to `addr` under `cid`.
    pub fn extend(&mut self, key: CircuitKey, addr: SocketAddr, cid: Cid, pair: &PairKeys) {
        if let Some(row) = row_mut(&mut self.rows, key) {
            row.out = Some(OutLink {
                addr,
                cid,
                tag: LinkTag::new(pair),
                pair: pair.clone(),
                window: ReplayWindow::default(),
                control_window: ReplayWindow::default(),
            });
            self.by_cid.insert(cid, (key, Direction::Backward));
        }
    }

    /// Frees a circuit at once.
    pub fn remove(&mut self, key: CircuitKey) {
        if let Some(row) = self.rows.get_mut(key.index()).and_then(Option::take) {
            self.by_cid.remove(&row.in_cid);
            if let Some(out) = &row.out {
                self.by_cid.remove(&out.cid);
            }
        }
    }

    /// When the circuit last carried an authenticated cell.
    pub fn last_active(&self, key: CircuitKey) -> Option<Instant> {
        self.rows.get(key.index())?.as_ref().map(|row| row.last_active)
    }

    /// Cells carried forwards and backwards.
    pub fn cells(&self, key: CircuitKey) -> [u64; 2] {
        self.rows.get(key.index()).and_then(Option::as_ref).map_or([0; 2], |row| row.cells)
    }

    /// How many circuits there are.
    pub fn len(&self) -> usize {
        self.rows.iter().flatten().count()
    }

    /// Whether there is no circuit.
    pub fn is_empty(&self) -> bool {
        self.by_cid.is_empty()
    }

    /// Has the rows of the cells that come next fetched into the processor's caches, if there are so
    /// many rows that they are not there: each is some thirty lines of memory, which arrive together
    /// instead of one after the other.
    pub fn look_ahead(&self, cells: &[[u8; CELL_LEN]]) {
        if self.by_cid.len() < MANY {
            return;
        }
        for cell in cells {
            let Some(&(key, direction)) = self.by_cid.get(&cid_of(cell)) else { continue };
            if let Some(row) = self.rows.get(key.index()).and_then(Option::as_deref) {
                row.prefetch(direction, first_seq(cell));
            }
        }
    }

    /// Looks at one cell, changes it in place and says what to do with it.
    pub fn handle_cell(
        &mut self,
        now: Instant,
        from: SocketAddr,
        cell: &mut [u8; CELL_LEN],
    ) -> Verdict {
        let Some(&(key, direction)) = self.by_cid.get(&cid_of(cell)) else {
            return Verdict::Unknown;
        };
        let Some(row) = row_mut(&mut self.rows, key) else { return Verdict::Unknown };
        let verdict = match direction {
            Direction::Forward => row.handle_forward(now, key, from, cell),
            Direction::Backward => row.handle_backward(now, key, from, cell),
        };
        verdict.unwrap_or_else(Verdict::Drop)
    }

    /// Turns a cell whose body is written into a backward cell of this node, ready for the wire;
    /// returns where to send it.
    pub fn originate(
        &mut self,
        key: CircuitKey,
        cell: &mut [u8; CELL_LEN],
        rng: &mut impl Rng,
    ) -> Result<SocketAddr, DropReason> {
        let row = row_mut(&mut self.rows, key).ok_or(DropReason::NoCircuit)?;
        row.originate(cell, rng)?;
        Ok(row.in_addr)
    }

    /// Appends an inner packet for the client to the cells of a circuit. The last cell stays open
    /// for the next packet until [`Self::finish`].
    ///
    /// # Errors
    /// When the circuit is gone or used up, or the packet is none or too large.
    pub fn send_packet(
        &mut self,
        key: CircuitKey,
        packet: &[u8],
        outbox: &mut Outbox,
    ) -> Result<(), DropReason> {
        let row = row_mut(&mut self.rows, key).ok_or(DropReason::NoCircuit)?;
        if row.next_seq >= SEQ_END - SEQ_MARGIN {
            return Err(DropReason::CounterExhausted);
        }
        self.written.push(key, &mut row.packer, row.in_addr, packet, outbox)
    }

    /// Closes and seals every cell that [`Self::send_packet`] wrote; the outbox can then be sent.
    pub fn finish(&mut self, outbox: &mut Outbox, rng: &mut impl Rng) {
        let written = self.written.take();
        for (key, index) in &written {
            let sealed = row_mut(&mut self.rows, *key).is_some_and(|row| {
                row.packer.close(*index, outbox);
                row.originate(outbox.cell_mut(*index), rng).is_ok()
            });
            if !sealed {
                // Never sent as it is: the body is still in clear.
                rng.fill_bytes(outbox.cell_mut(*index));
            }
        }
        self.written.reuse(written);
    }

    /// Writes a neighbour cell; returns where to send it, or nothing when there is no such link.
    pub fn neighbour_cell(
        &mut self,
        key: CircuitKey,
        direction: Direction,
        message: PairMessage,
        cell: &mut [u8; CELL_LEN],
    ) -> Option<SocketAddr> {
        let row = row_mut(&mut self.rows, key)?;
        let (addr, cid, pair) = match direction {
            Direction::Forward => {
                row.out.as_ref().map(|out| (out.addr, out.cid, out.pair.clone()))?
            }
            Direction::Backward => (row.in_addr, row.in_cid, row.in_pair.clone()),
        };
        row.next_control_seq = row.next_control_seq.wrapping_add(1);
        set_cid(cell, cid);
        message.emit(&mut cell[crate::model::CID_LEN + crate::model::SLOT_LEN..]);
        pair.control(direction).seal(row.next_control_seq, cell);
        Some(addr)
    }
}

impl Row {
    /// What [`Self::handle_forward`] or [`Self::handle_backward`] reads.
    fn prefetch(&self, direction: Direction, seq: u32) {
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

    fn originate(
        &mut self,
        cell: &mut [u8; CELL_LEN],
        rng: &mut impl Rng,
    ) -> Result<(), DropReason> {
        let seq = self.take_seq()?;
        self.backward.originate(seq, cell, rng);
        set_cid(cell, self.in_cid);
        self.in_tag.tag(cell);
        self.cells[Direction::Backward as usize] += 1;
        Ok(())
    }

    fn handle_forward(
        &mut self,
        now: Instant,
        key: CircuitKey,
        from: SocketAddr,
        cell: &mut [u8; CELL_LEN],
    ) -> Result<Verdict, DropReason> {
        let seq = first_seq(cell);
        if PairControl::is_neighbour_seq(seq) {
            let message = open_neighbour(
                &self.in_pair,
                Direction::Forward,
                &mut self.control_window,
                cell,
                seq,
            )?;
            return Ok(Verdict::Neighbour { circuit: key, direction: Direction::Forward, message });
        }
        if let Some(create) = &self.create
            && is_create(create, cell)
        {
            return Ok(Verdict::RepeatedCreate { circuit: key });
        }
        if !self.window.is_fresh(seq) {
            return Err(DropReason::Replay);
        }
        self.forward.peel(cell).map_err(|_| DropReason::BadTag)?;
        if self.window.mark(seq) {
            self.in_addr = from;
        }
        self.create = None;
        self.last_active = now;
        self.cells[Direction::Forward as usize] += 1;
        if BodyHeader::is_recognised(body_ref(cell)) {
            let header = BodyHeader::parse(body_mut(cell)).map_err(|_| DropReason::UnknownKind)?;
            return Ok(Verdict::Local { circuit: key, seq, header });
        }
        let out = self.out.as_ref().ok_or(DropReason::NotRecognised)?;
        set_cid(cell, out.cid);
        Ok(Verdict::Relay { circuit: key, to: out.addr })
    }

    fn handle_backward(
        &mut self,
        now: Instant,
        key: CircuitKey,
        from: SocketAddr,
        cell: &mut [u8; CELL_LEN],
    ) -> Result<Verdict, DropReason> {
        let out = self.out.as_mut().ok_or(DropReason::UnknownCircuit)?;
        let seq = first_seq(cell);
        if PairControl::is_neighbour_seq(seq) {
            let message =
                open_neighbour(&out.pair, Direction::Backward, &mut out.control_window, cell, seq)?;
            return Ok(Verdict::Neighbour {
                circuit: key,
                direction: Direction::Backward,
                message,
            });
        }
        if !out.window.is_fresh(seq) {
            return Err(DropReason::Replay);
        }
        out.tag.verify(cell).map_err(|_| DropReason::BadTag)?;
        if out.window.mark(seq) {
            out.addr = from;
        }
        self.last_active = now;
        self.cells[Direction::Backward as usize] += 1;
        let own = self.take_seq()?;
        self.backward.add(own, cell);
        set_cid(cell, self.in_cid);
        self.in_tag.tag(cell);
        Ok(Verdict::Relay { circuit: key, to: self.in_addr })
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

/// A counter's random start of 30 bits.
pub(super) fn random_start(rng: &mut impl Rng) -> u32 {
    rng.next_u32() >> 2
}

/// Opens a neighbour cell and marks its number.
pub(super) fn open_neighbour(
    pair: &PairKeys,
    direction: Direction,
    window: &mut ReplayWindow,
    cell: &mut [u8; CELL_LEN],
    seq: u32,
) -> Result<PairMessage, DropReason> {
    if !window.is_fresh(seq) {
        return Err(DropReason::Replay);
    }
    let control = pair.control(direction);
    let message = {
        let plain = control.open(cell).map_err(|_| DropReason::BadTag)?;
        PairMessage::parse(plain).ok_or(DropReason::BadControl)
    };
    window.mark(seq);
    message
}

fn is_create(create: &[u8; 32], cell: &[u8; CELL_LEN]) -> bool {
    let prefix = &cell[crate::model::CID_LEN..][..crate::wire::CREATE_LEN];
    crate::wire::CreatePrefix::parse(prefix)
        .is_ok_and(|_| blake3::hash(prefix).as_bytes() == create)
}

fn row_mut(rows: &mut [Option<Box<Row>>], key: CircuitKey) -> Option<&mut Row> {
    rows.get_mut(key.index())?.as_deref_mut()
}
