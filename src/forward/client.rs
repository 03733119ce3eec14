//! A client's data path: packets into wrapped cells, cells into bodies.
//!
//! In: inner packets and bodies for hops; cells from the guard. Out: cells in an [`Outbox`]; opened
//! bodies. Called by: the client's event loop.

use std::{net::SocketAddr, time::Instant};

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use rand::Rng;

use super::{
    Outbox, ReplayWindow,
    packing::{CircuitPacker, Written},
    relay::{open_neighbour, random_start},
    stream::Reassembler,
};
use crate::{
    keys::{BackwardLayer, ForwardWrap, HopKeys, LinkTag, PairControl, PairKeys, wrap},
    model::{
        BODY_LEN, CELL_LEN, CID_LEN, Cid, CircuitKey, Direction, DropCounters, DropReason,
        PacketBatch, SLOT_LEN, SLOTS,
    },
    wire::{BodyHeader, PairMessage, body_mut, cid_of, first_seq, set_cid},
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

/// The expanded keys of one hop and the counters that go with them.
struct HopState {
    backward: BackwardLayer,
    window: ReplayWindow,
}

struct Row {
    cid: Cid,
    guard: SocketAddr,
    wraps: Vec<ForwardWrap>,
    seqs: Vec<u32>,
    hops: Vec<HopState>,
    tag: LinkTag,
    pair: PairKeys,
    window: ReplayWindow,
    control_window: ReplayWindow,
    next_control_seq: u32,
    packer: CircuitPacker,
    reassembler: Reassembler,
    last_heard: Instant,
    cells: [u64; 2],
    bytes: [u64; 2],
}

/// All circuits of a client that have at least one hop.
pub struct ClientTable {
    rows: Vec<Option<Box<Row>>>,
    by_cid: HashMap<Cid, CircuitKey, RandomState>,
    written: Written,
}

impl Default for ClientTable {
    fn default() -> Self {
        Self {
            rows: Vec::new(),
            by_cid: HashMap::with_hasher(RandomState::default()),
            written: Written::default(),
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
        row.wrap(hop + 1, cell, rng);
        Ok(())
    }

    /// Closes and wraps every cell that [`Self::send_packet`] wrote; the outbox can then be sent.
    pub fn finish(&mut self, outbox: &mut Outbox, rng: &mut impl Rng) {
        let written = self.written.take();
        for (key, index) in &written {
            let Some(row) = self.row_mut(*key) else {
                // Never sent as it is: the body is still in clear.
                rng.fill_bytes(outbox.cell_mut(*index));
                continue;
            };
            row.packer.close(*index, outbox);
            row.wrap(row.wraps.len(), outbox.cell_mut(*index), rng);
        }
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

    /// Opens one cell; its body is then in `body`.
    pub fn handle_cell(
        &mut self,
        now: Instant,
        from: SocketAddr,
        cell: &mut [u8; CELL_LEN],
        body: &mut [u8; BODY_LEN],
    ) -> ClientVerdict {
        let Some(&key) = self.by_cid.get(&cid_of(cell)) else { return ClientVerdict::Unknown };
        let Some(row) = self.row_mut(key) else { return ClientVerdict::Unknown };
        row.open(now, key, from, cell, body).unwrap_or_else(ClientVerdict::Drop)
    }

    fn row_mut(&mut self, key: CircuitKey) -> Option<&mut Row> {
        self.rows.get_mut(key.index())?.as_deref_mut()
    }
}

impl Row {
    /// Room for the cells of a batch is kept, so that no counter runs out between check and wrap.
    fn is_used_up(&self) -> bool {
        const MARGIN: u32 = 0x1_0000;
        self.seqs.iter().any(|seq| *seq >= PairControl::SEQ_BIT - MARGIN)
    }

    fn wrap(&mut self, hops: usize, cell: &mut [u8; CELL_LEN], rng: &mut impl Rng) {
        wrap(&mut self.wraps[..hops], &self.seqs[..hops], cell, rng);
        set_cid(cell, self.cid);
        for seq in &mut self.seqs[..hops] {
            *seq += 1;
        }
        self.cells[Direction::Forward as usize] += 1;
    }

    fn open(
        &mut self,
        now: Instant,
        key: CircuitKey,
        from: SocketAddr,
        cell: &mut [u8; CELL_LEN],
        body: &mut [u8; BODY_LEN],
    ) -> Result<ClientVerdict, DropReason> {
        let seq = first_seq(cell);
        if PairControl::is_neighbour_seq(seq) {
            let message = open_neighbour(
                &self.pair,
                Direction::Backward,
                &mut self.control_window,
                cell,
                seq,
            )?;
            return Ok(ClientVerdict::Neighbour { circuit: key, message });
        }
        if !self.window.is_fresh(seq) {
            return Err(DropReason::Replay);
        }
        self.tag.verify(cell).map_err(|_| DropReason::BadTag)?;
        if self.window.mark(seq) {
            self.guard = from;
        }
        self.cells[Direction::Backward as usize] += 1;
        let (hop, seq) = self.find_originator(cell, body).ok_or(DropReason::BadTag)?;
        let window = &mut self.hops[hop].window;
        if !window.is_fresh(seq) {
            return Err(DropReason::Replay);
        }
        window.mark(seq);
        if hop + 1 == self.hops.len() {
            self.last_heard = now;
        }
        let header = BodyHeader::parse(body).map_err(|_| DropReason::UnknownKind)?;
        Ok(ClientVerdict::Body { circuit: key, hop, seq, header })
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
