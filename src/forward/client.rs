//! A client's data path: packets into wrapped cells, cells into bodies.
//!
//! In: inner packets and bodies for hops; cells from the guard. Out: cells in an [`Outbox`]; opened
//! bodies. Called by: the client's event loop.

mod row;

use std::{net::SocketAddr, time::Instant};

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use rand::Rng;

use self::row::{Begun, HopState, Row, Step};
use super::{
    Outbox, ReplayWindow,
    packing::{CircuitPacker, Written},
    relay::{open_neighbour, random_start},
    stream::Reassembler,
};
use crate::{
    keys::{BackwardLayer, ForwardWrap, HopKeys, LinkTag, PairKeys},
    model::{
        BODY_LEN, CELL_LEN, CID_LEN, Cid, CircuitKey, Crew, Direction, DropCounters, DropReason,
        PacketBatch, SLOT_LEN, SLOTS,
    },
    wire::{BodyHeader, PairMessage, body_mut, cid_of, set_cid},
};

/// What a cell from the guard holds.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientVerdict {
    /// A body, opened, from one hop.
    Body {
        /// The circuit it came on.
        circuit: CircuitKey,
        /// The hop that sealed it, from 0.
        hop: usize,
        /// Its place in that hop's order.
        seq: u32,
        /// What it is.
        header: BodyHeader,
    },
    /// The first hop says something of its own.
    Neighbour {
        /// The circuit it concerns.
        circuit: CircuitKey,
        /// What it says.
        message: PairMessage,
    },
    /// No open circuit has this id: it may be the answer to a CREATE.
    Unknown,
    /// Nothing to do.
    Drop(DropReason),
}

/// All circuits of a client that have at least one hop.
pub struct ClientTable {
    rows: Vec<Option<Box<Row>>>,
    by_cid: HashMap<Cid, CircuitKey, RandomState>,
    written: Written,
    /// Of cells that are sealed together: the circuit of each and its numbers.
    begun: Vec<Option<Begun>>,
}

/// What came of one cell of a batch. It is kept from batch to batch.
pub struct Opened {
    step: Step,
    /// What it holds, if it was opened.
    pub body: Box<[u8; BODY_LEN]>,
}

impl Opened {
    /// What the cell is, told once.
    pub fn take_verdict(&mut self) -> ClientVerdict {
        match self.take_step() {
            Step::Said(verdict) => verdict,
            Step::Work(_) => unreachable!("settled before anybody asks"),
        }
    }

    fn take_step(&mut self) -> Step {
        std::mem::replace(&mut self.step, Step::Said(ClientVerdict::Unknown))
    }
}

impl Default for ClientTable {
    fn default() -> Self {
        Self {
            rows: Vec::new(),
            by_cid: HashMap::with_hasher(RandomState::default()),
            written: Written::default(),
            begun: Vec::new(),
        }
    }
}

impl ClientTable {
    /// Adds a circuit whose first hop stands at `guard` and shares `pair` with this client.
    pub fn open(
        &mut self,
        now: Instant,
        key: CircuitKey,
        cid: Cid,
        guard: SocketAddr,
        pair: &PairKeys,
        rng: &mut impl Rng,
    ) {
        if self.rows.len() <= key.index() {
            self.rows.resize_with(key.index() + 1, || None);
        }
        self.remove(key);
        self.by_cid.insert(cid, key);
        self.rows[key.index()] = Some(Box::new(Row {
            cid,
            guard,
            wraps: Vec::with_capacity(SLOTS),
            seqs: Vec::with_capacity(SLOTS),
            hops: Vec::with_capacity(SLOTS),
            tag: LinkTag::new(pair),
            pair: pair.clone(),
            window: ReplayWindow::default(),
            control_window: ReplayWindow::default(),
            next_control_seq: random_start(rng),
            packer: CircuitPacker::default(),
            reassembler: Reassembler::new(),
            last_heard: now,
            cells: [0; 2],
            bytes: [0; 2],
        }));
    }

    /// Appends a hop to a circuit.
    pub fn add_hop(&mut self, key: CircuitKey, keys: &HopKeys, rng: &mut impl Rng) {
        if let Some(row) = self.row_mut(key)
            && row.wraps.len() < SLOTS
        {
            row.wraps.push(ForwardWrap::new(keys));
            row.seqs.push(random_start(rng));
            row.hops.push(HopState {
                backward: BackwardLayer::new(keys),
                window: ReplayWindow::default(),
            });
        }
    }

    /// Forgets a circuit and its keys.
    pub fn remove(&mut self, key: CircuitKey) {
        if let Some(row) = self.rows.get_mut(key.index()).and_then(Option::take) {
            self.by_cid.remove(&row.cid);
        }
    }

    /// When the last hop was last heard on this circuit.
    pub fn last_heard(&self, key: CircuitKey) -> Option<Instant> {
        self.rows.get(key.index())?.as_ref().map(|row| row.last_heard)
    }

    /// Cells sent and received on this circuit.
    pub fn cells(&self, key: CircuitKey) -> [u64; 2] {
        self.rows.get(key.index()).and_then(Option::as_ref).map_or([0; 2], |row| row.cells)
    }

    /// Inner bytes sent and received on this circuit.
    pub fn bytes(&self, key: CircuitKey) -> [u64; 2] {
        self.rows.get(key.index()).and_then(Option::as_ref).map_or([0; 2], |row| row.bytes)
    }

    /// Appends an inner packet to the cells of a circuit. The last cell stays open for the next
    /// packet until [`Self::finish`].
    ///
    /// # Errors
    /// When the circuit is gone or used up, or the packet is none or too large.
    pub fn send_packet(
        &mut self,
        key: CircuitKey,
        packet: &[u8],
        outbox: &mut Outbox,
    ) -> Result<(), DropReason> {
        let row = self
            .rows
            .get_mut(key.index())
            .and_then(Option::as_deref_mut)
            .ok_or(DropReason::NoCircuit)?;
        if row.wraps.is_empty() {
            return Err(DropReason::NoCircuit);
        }
        if row.is_used_up() {
            return Err(DropReason::CounterExhausted);
        }
        self.written.push(key, &mut row.packer, row.guard, packet, outbox)?;
        row.bytes[Direction::Forward as usize] += packet.len() as u64;
        Ok(())
    }

    /// Takes in a cell of the exit: its body if it carried data, none if it carried something
    /// else. Appends every packet that is whole by that to `out`.
    pub fn reassemble(
        &mut self,
        key: CircuitKey,
        seq: u32,
        body: Option<&[u8; BODY_LEN]>,
        out: &mut PacketBatch,
        drops: &mut DropCounters,
    ) {
        if let Some(row) = self.row_mut(key) {
            let first = out.len();
            row.reassembler.push(seq, body, out, drops);
            let bytes: usize =
                (first..out.len()).filter_map(|index| out.get(index)).map(<[u8]>::len).sum();
            row.bytes[Direction::Backward as usize] += bytes as u64;
        }
    }

    /// Sends one body of its own to hop `hop` (from 0) of a circuit.
    ///
    /// # Errors
    /// When the circuit or the hop is gone, or its counters are used up.
    pub fn send_body(
        &mut self,
        key: CircuitKey,
        hop: usize,
        write: impl FnOnce(&mut [u8; BODY_LEN]),
        outbox: &mut Outbox,
        rng: &mut impl Rng,
    ) -> Result<(), DropReason> {
        let row = self
            .rows
            .get_mut(key.index())
            .and_then(Option::as_deref_mut)
            .ok_or(DropReason::NoCircuit)?;
        if hop >= row.wraps.len() {
            return Err(DropReason::NoCircuit);
        }
        if row.is_used_up() {
            return Err(DropReason::CounterExhausted);
        }
        let index = outbox.push(row.guard);
        let cell = outbox.cell_mut(index);
        write(body_mut(cell));
        let begun = row.begin(key, hop + 1, cell, rng);
        row.seal(&begun, cell);
        Ok(())
    }

    /// Closes and wraps every cell that [`Self::send_packet`] wrote; the outbox can then be sent.
    pub fn finish(&mut self, outbox: &mut Outbox, rng: &mut impl Rng, crew: &impl Crew) {
        let written = self.written.take();
        let mut begun = std::mem::take(&mut self.begun);
        begun.resize(outbox.len(), None);
        for (key, index) in &written {
            let Some(row) = self.row_mut(*key) else {
                // Never sent as it is: the body is still in clear.
                rng.fill_bytes(outbox.cell_mut(*index));
                continue;
            };
            row.packer.close(*index, outbox);
            begun[*index] = Some(row.begin(*key, row.wraps.len(), outbox.cell_mut(*index), rng));
        }
        let rows = &self.rows;
        crew.each(outbox.cells_mut(), &mut begun, |cell, begun| {
            if let Some(begun) = begun
                && let Some(row) = row_of(rows, begun.circuit)
            {
                row.seal(begun, cell);
            }
        });
        begun.clear();
        self.begun = begun;
        self.written.reuse(written);
    }

    /// Writes a neighbour cell to the first hop; returns where to send it.
    pub fn neighbour_cell(
        &mut self,
        key: CircuitKey,
        message: PairMessage,
        cell: &mut [u8; CELL_LEN],
    ) -> Option<SocketAddr> {
        let row = self.row_mut(key)?;
        row.next_control_seq = row.next_control_seq.wrapping_add(1);
        set_cid(cell, row.cid);
        message.emit(&mut cell[CID_LEN + SLOT_LEN..]);
        row.pair.control(Direction::Forward).seal(row.next_control_seq, cell);
        Some(row.guard)
    }

    /// Opens cells of one sender; what came of each is then in `opened`, in their order.
    pub fn handle_cells(
        &mut self,
        now: Instant,
        from: SocketAddr,
        cells: &mut [[u8; CELL_LEN]],
        opened: &mut Vec<Opened>,
        crew: &impl Crew,
    ) {
        if opened.len() < cells.len() {
            opened.resize_with(cells.len(), || Opened {
                step: Step::Said(ClientVerdict::Unknown),
                body: Box::new([0; BODY_LEN]),
            });
        }
        let opened = &mut opened[..cells.len()];
        for (cell, opened) in cells.iter_mut().zip(&mut *opened) {
            opened.step = self.admit(cell);
        }
        let rows = &self.rows;
        crew.each(cells, opened, |cell, Opened { step, body }| open(rows, step, cell, body));
        for opened in opened {
            let step = opened.take_step();
            opened.step = Step::Said(self.settle(now, from, step, &mut opened.body));
        }
    }

    /// Opens one cell; its body is then in `body`.
    pub fn handle_cell(
        &mut self,
        now: Instant,
        from: SocketAddr,
        cell: &mut [u8; CELL_LEN],
        body: &mut [u8; BODY_LEN],
    ) -> ClientVerdict {
        let mut step = self.admit(cell);
        open(&self.rows, &mut step, cell, body);
        self.settle(now, from, step, body)
    }

    fn admit(&mut self, cell: &mut [u8; CELL_LEN]) -> Step {
        let Some(&key) = self.by_cid.get(&cid_of(cell)) else {
            return Step::Said(ClientVerdict::Unknown);
        };
        let Some(row) = self.row_mut(key) else { return Step::Said(ClientVerdict::Unknown) };
        row.admit(key, cell).unwrap_or_else(|reason| Step::Said(ClientVerdict::Drop(reason)))
    }

    fn settle(
        &mut self,
        now: Instant,
        from: SocketAddr,
        step: Step,
        body: &mut [u8; BODY_LEN],
    ) -> ClientVerdict {
        let work = match step {
            Step::Said(verdict) => return verdict,
            Step::Work(work) => work,
        };
        let Some(row) = self.row_mut(work.circuit) else { return ClientVerdict::Unknown };
        row.settle(now, from, &work, body).unwrap_or_else(ClientVerdict::Drop)
    }

    fn row_mut(&mut self, key: CircuitKey) -> Option<&mut Row> {
        self.rows.get_mut(key.index())?.as_deref_mut()
    }
}

/// Takes the layers off a cell that was admitted.
fn open(
    rows: &[Option<Box<Row>>],
    step: &mut Step,
    cell: &mut [u8; CELL_LEN],
    body: &mut [u8; BODY_LEN],
) {
    if let Step::Work(work) = step
        && let Some(row) = row_of(rows, work.circuit)
    {
        row.open(work, cell, body);
    }
}

fn row_of(rows: &[Option<Box<Row>>], key: CircuitKey) -> Option<&Row> {
    rows.get(key.index())?.as_deref()
}
