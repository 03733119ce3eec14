//! A node's data path: cells in, a verdict each out.
//!
//! In: cells as they came, in place. Out: the same cells with one layer less or more, and what to
//! do with them. Called by: the node's event loop.
//!
//! ```text
//! from the client's side:  look up -> replay? -> peel -> mark -> Relay | Local
//! from the exit's side:    look up -> replay? -> verify link tag -> add layer -> mark -> Relay
//! ```

mod row;

use std::{net::SocketAddr, time::Instant};

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use rand::Rng;

use self::row::{OutLink, Row, SEQ_END, SEQ_MARGIN, Step};
use super::{
    Outbox, ReplayWindow,
    packing::{CircuitPacker, Written},
};
use crate::{
    keys::{BackwardLayer, ForwardLayer, LinkTag, PairKeys, RelayKeys},
    model::{CELL_LEN, Cid, CircuitKey, Crew, Direction, DropReason},
    wire::{BodyHeader, PairMessage, cid_of, first_seq, set_cid},
};

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

/// All circuits of a node, by the ids of both their links.
pub struct RelayTable {
    rows: Vec<Option<Box<Row>>>,
    by_cid: HashMap<Cid, (CircuitKey, Direction), RandomState>,
    written: Written,
    /// Of a batch that is shared out: where each cell is on its way.
    steps: Vec<Step>,
    /// Of cells of this node that are sealed together: the circuit of each.
    begun: Vec<Option<CircuitKey>>,
}

impl Default for RelayTable {
    fn default() -> Self {
        Self {
            rows: Vec::new(),
            by_cid: HashMap::with_hasher(RandomState::default()),
            written: Written::default(),
            steps: Vec::new(),
            begun: Vec::new(),
        }
    }
}

impl RelayTable {
    /// How many cells at a time are looked ahead for.
    const AHEAD: usize = 8;

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
    fn look_ahead(&self, cells: &[[u8; CELL_LEN]]) {
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

    /// Looks at cells of one sender, changes them in place and says what to do with each.
    pub fn handle_cells(
        &mut self,
        now: Instant,
        from: SocketAddr,
        cells: &mut [[u8; CELL_LEN]],
        verdicts: &mut Vec<Verdict>,
        crew: &impl Crew,
    ) {
        verdicts.clear();
        if !crew.shares(cells.len()) {
            for eight in cells.chunks_mut(Self::AHEAD) {
                self.look_ahead(eight);
                verdicts.extend(eight.iter_mut().map(|cell| self.handle_cell(now, from, cell)));
            }
            return;
        }
        let mut steps = std::mem::take(&mut self.steps);
        for eight in cells.chunks_mut(Self::AHEAD) {
            self.look_ahead(eight);
            steps.extend(eight.iter_mut().map(|cell| self.admit(cell)));
        }
        let rows = &self.rows;
        crew.each(cells, &mut steps, |cell, step| verify(rows, step, cell));
        let verified = steps.iter_mut().zip(&mut *cells);
        verdicts.extend(verified.map(|(step, cell)| self.settle(now, from, step, cell)));
        if steps.iter().any(|step| step.own().is_some()) {
            let rows = &self.rows;
            crew.each(cells, &mut steps, |cell, step| add(rows, step, cell));
        }
        steps.clear();
        self.steps = steps;
    }

    /// Looks at one cell, changes it in place and says what to do with it.
    pub fn handle_cell(
        &mut self,
        now: Instant,
        from: SocketAddr,
        cell: &mut [u8; CELL_LEN],
    ) -> Verdict {
        let mut step = self.admit(cell);
        verify(&self.rows, &mut step, cell);
        let verdict = self.settle(now, from, &mut step, cell);
        add(&self.rows, &step, cell);
        verdict
    }

    fn admit(&mut self, cell: &mut [u8; CELL_LEN]) -> Step {
        let Some(&(key, direction)) = self.by_cid.get(&cid_of(cell)) else {
            return Step::Said(Verdict::Unknown);
        };
        let Some(row) = row_mut(&mut self.rows, key) else { return Step::Said(Verdict::Unknown) };
        row.admit(key, direction, cell).unwrap_or_else(|reason| Step::Said(Verdict::Drop(reason)))
    }

    fn settle(
        &mut self,
        now: Instant,
        from: SocketAddr,
        step: &mut Step,
        cell: &mut [u8; CELL_LEN],
    ) -> Verdict {
        let work = match step {
            Step::Said(verdict) => return std::mem::replace(verdict, Verdict::Unknown),
            Step::Work(work) => work,
        };
        let Some(row) = row_mut(&mut self.rows, work.circuit) else { return Verdict::Unknown };
        row.settle(now, from, work, cell).unwrap_or_else(Verdict::Drop)
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
    pub fn finish(&mut self, outbox: &mut Outbox, rng: &mut impl Rng, crew: &impl Crew) {
        let written = self.written.take();
        let mut begun = std::mem::take(&mut self.begun);
        begun.resize(outbox.len(), None);
        for (key, index) in &written {
            let is_begun = row_mut(&mut self.rows, *key).is_some_and(|row| {
                row.packer.close(*index, outbox);
                row.begin(outbox.cell_mut(*index), rng).is_ok()
            });
            if is_begun {
                begun[*index] = Some(*key);
            } else {
                // Never sent as it is: the body is still in clear.
                rng.fill_bytes(outbox.cell_mut(*index));
            }
        }
        let rows = &self.rows;
        crew.each(outbox.cells_mut(), &mut begun, |cell, begun| {
            if let Some(row) = begun.take().and_then(|key| row_of(rows, key)) {
                row.seal(cell);
            }
        });
        begun.clear();
        self.begun = begun;
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

/// Checks the tag of a cell that was admitted.
fn verify(rows: &[Option<Box<Row>>], step: &mut Step, cell: &mut [u8; CELL_LEN]) {
    if let Step::Work(work) = step
        && let Some(row) = row_of(rows, work.circuit)
    {
        row.verify(work, cell);
    }
}

/// Adds this node's layer to a cell that was settled and goes backwards.
fn add(rows: &[Option<Box<Row>>], step: &Step, cell: &mut [u8; CELL_LEN]) {
    if let Some((circuit, own)) = step.own()
        && let Some(row) = row_of(rows, circuit)
    {
        row.add(own, cell);
    }
}

fn row_of(rows: &[Option<Box<Row>>], key: CircuitKey) -> Option<&Row> {
    rows.get(key.index())?.as_deref()
}

fn row_mut(rows: &mut [Option<Box<Row>>], key: CircuitKey) -> Option<&mut Row> {
    rows.get_mut(key.index())?.as_deref_mut()
}

#[cfg(test)]
mod tests;
