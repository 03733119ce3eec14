//! The circuits of a node: who created them, where they go on, when they end.
//!
//! In: cells on circuits without keys, control bodies, neighbours' messages, finished handshakes,
//! the time. Out: [`NodeEvent`]s, in the order in which they must be carried out.
//! Called by: the node's event loop.
//!
//! ```text
//! CREATE -> handshake (another thread) -> open -> EXTEND -> awaiting CREATED -> linked
//!                                          |                      |               |
//!                                          +------- DESTROY, idle, timeout -------+-> gone
//! ```

mod create;
mod ephemerals;
mod extend;
mod rows;

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::Rng;

use self::{
    ephemerals::{Ephemeral, Ephemerals},
    rows::{Link, NodeCircuit, Rows},
};
use super::{NodeHandshake, source_rate::SourceRate};
use crate::{
    keys::{CookieJar, PairKeys, RelayKeys},
    model::{BODY_LEN, CELL_LEN, Cid, CircuitKey, DestroyReason, Direction, DropReason, NodeId},
    wire::{ANSWER_LEN, CreatePrefix, PairMessage, Status},
};

/// What bounds a node.
#[derive(Clone, Debug)]
pub struct NodeLimits {
    /// The most circuits at once; a CREATE beyond is refused with a reason.
    pub max_circuits: usize,
    /// A circuit without an authenticated cell for this long ends.
    pub idle: Duration,
    /// How long the next node may take to answer a CREATE.
    pub extend_timeout: Duration,
    /// CREATEs per second and source.
    pub creates_per_second: u32,
    /// CREATEs of one source at once.
    pub create_burst: u32,
    /// Handshakes that may wait; from a quarter of it on, sources must prove their address.
    pub max_handshakes: usize,
    /// Ephemeral keys remembered per onion key, to refuse their replay; the oldest are forgotten.
    pub max_ephemerals: usize,
}

impl Default for NodeLimits {
    fn default() -> Self {
        Self {
            max_circuits: 16_384,
            idle: Duration::from_secs(120),
            extend_timeout: Duration::from_secs(10),
            creates_per_second: 100,
            create_burst: 200,
            max_handshakes: 256,
            max_ephemerals: 1 << 18,
        }
    }
}

/// A handshake to be computed elsewhere.
#[derive(Debug)]
pub struct HandshakeJob {
    /// Where the CREATE came from.
    pub from: SocketAddr,
    /// The circuit id it came under.
    pub cid: Cid,
    /// The CREATE itself.
    pub prefix: CreatePrefix,
    /// What the answer will say.
    pub status: Status,
}

/// What the event loop must do, in order.
pub enum NodeEvent {
    /// Compute the handshake and bring it back to [`NodeCircuits::handle_handshake`].
    Handshake(HandshakeJob),
    /// Install the circuit in the data path.
    Install {
        /// Its number.
        key: CircuitKey,
        /// Where its client, or the hop before, is.
        from: SocketAddr,
        /// Its id on that link.
        cid: Cid,
        /// Its keys.
        keys: Box<RelayKeys>,
    },
    /// Extend the circuit in the data path.
    Extend {
        /// Its number.
        key: CircuitKey,
        /// The next node.
        addr: SocketAddr,
        /// Its id on that link.
        cid: Cid,
        /// The keys of that link.
        pair: Box<PairKeys>,
    },
    /// Send a cell as it is.
    Send {
        /// Where to.
        to: SocketAddr,
        /// The cell.
        cell: Box<[u8; CELL_LEN]>,
    },
    /// Send a body back to the client.
    Answer {
        /// The circuit.
        key: CircuitKey,
        /// The body.
        body: Box<[u8; BODY_LEN]>,
    },
    /// Tell a neighbour.
    Neighbour {
        /// The circuit.
        key: CircuitKey,
        /// Towards the exit or towards the client.
        direction: Direction,
        /// What to tell.
        message: PairMessage,
    },
    /// Take the circuit out of the data path.
    Remove {
        /// The circuit.
        key: CircuitKey,
        /// Why, for the log.
        reason: DestroyReason,
    },
}

/// Refusals remembered, to be repeated when one was lost.
const MOST_REFUSALS: usize = 64;

/// A CREATE whose handshake is being computed.
struct Computing {
    /// BLAKE3 of its prefix.
    create: [u8; 32],
    ephemeral: Ephemeral,
}

/// The answer to a CREATE that was refused.
struct Refusal {
    cid: Cid,
    create: [u8; 32],
    answer: [u8; ANSWER_LEN],
}

/// All circuits of a node.
pub struct NodeCircuits {
    id: NodeId,
    limits: NodeLimits,
    rows: Rows,
    computing: HashMap<Cid, Computing>,
    refusals: VecDeque<Refusal>,
    /// Ids of links towards the exit that await CREATED.
    awaiting: HashMap<Cid, CircuitKey>,
    /// Ephemerals seen under the current and the previous onion key.
    ephemerals: [Ephemerals; 2],
    onion_keys: Vec<[u8; 8]>,
    jar: CookieJar,
    rate: SourceRate,
    events: VecDeque<NodeEvent>,
    refused: u64,
}

impl NodeCircuits {
    /// A node without circuits; `onion_keys` are the ids it accepts, the current one first.
    pub fn new(
        id: NodeId,
        onion_keys: Vec<[u8; 8]>,
        limits: NodeLimits,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Self {
        Self {
            id,
            rate: SourceRate::new(limits.creates_per_second, limits.create_burst),
            limits,
            rows: Rows::default(),
            computing: HashMap::new(),
            refusals: VecDeque::new(),
            awaiting: HashMap::new(),
            ephemerals: Default::default(),
            onion_keys,
            jar: CookieJar::new(now, rng),
            events: VecDeque::new(),
            refused: 0,
        }
    }

    /// The onion keys rotated: `onion_keys` are the ids now accepted, the current one first.
    pub fn set_onion_keys(&mut self, onion_keys: Vec<[u8; 8]>) {
        if self.onion_keys.first() != onion_keys.first() {
            self.ephemerals.swap(0, 1);
            self.ephemerals[0].clear();
        }
        self.onion_keys = onion_keys;
    }

    /// How many circuits there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// CREATEs whose handshake is being computed.
    pub fn waiting(&self) -> usize {
        self.computing.len()
    }

    /// CREATEs that were refused with a reason.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// The circuits, and whether each goes on to a next node.
    pub fn iter(&self) -> impl Iterator<Item = (CircuitKey, Instant, bool)> + '_ {
        self.rows.iter().map(|(key, row)| (key, row.since, matches!(row.link, Link::Linked)))
    }

    /// What to do next; ask until there is nothing.
    pub fn poll_event(&mut self) -> Option<NodeEvent> {
        self.events.pop_front()
    }

    /// A neighbour said something of its own; what it says goes on to the other neighbour.
    pub fn handle_neighbour(
        &mut self,
        key: CircuitKey,
        direction: Direction,
        message: PairMessage,
    ) {
        let PairMessage::Destroy(reason) = message;
        if self.rows.get(key).is_some() {
            self.events.push_back(NodeEvent::Neighbour { key, direction, message });
            self.remove(key, reason);
        }
    }

    /// Ends a circuit from here, telling both neighbours.
    pub fn destroy(&mut self, key: CircuitKey, reason: DestroyReason) {
        if self.rows.get(key).is_none() {
            return;
        }
        for direction in [Direction::Backward, Direction::Forward] {
            let message = PairMessage::Destroy(reason);
            self.events.push_back(NodeEvent::Neighbour { key, direction, message });
        }
        self.remove(key, reason);
    }

    /// Ends every circuit: the node shuts down.
    pub fn destroy_all(&mut self, reason: DestroyReason) {
        for key in self.rows.keys() {
            self.destroy(key, reason);
        }
    }

    /// Ends idle circuits and gives up on next nodes that do not answer. Call about once a second;
    /// `last_active` is the data path's knowledge.
    pub fn handle_timeout(
        &mut self,
        now: Instant,
        last_active: impl Fn(CircuitKey) -> Option<Instant>,
    ) {
        for key in self.rows.keys() {
            let Some(row) = self.rows.get(key) else { continue };
            if let Link::Awaiting { request, since, .. } = row.link
                && now.saturating_duration_since(since) > self.limits.extend_timeout
            {
                self.fail_extend(key, request, DestroyReason::NextHopGone);
            }
            let active = last_active(key).unwrap_or(now);
            if now.saturating_duration_since(active) > self.limits.idle {
                self.destroy(key, DestroyReason::Idle);
            }
        }
    }

    /// A cell whose circuit id the data path does not know.
    ///
    /// # Errors
    /// The reason to drop and count it, when nothing comes of it.
    pub fn handle_unknown(
        &mut self,
        now: Instant,
        from: SocketAddr,
        cell: &[u8; CELL_LEN],
        rng: &mut impl Rng,
    ) -> Result<(), DropReason> {
        let cid = crate::wire::cid_of(cell);
        match self.awaiting.get(&cid) {
            Some(key) => self.handle_answer(*key, cell),
            None => self.handle_create(now, from, cid, cell, rng),
        }
    }

    /// A handshake came back from its thread.
    pub fn handle_handshake(
        &mut self,
        now: Instant,
        job: &HandshakeJob,
        done: Option<NodeHandshake>,
        rng: &mut impl Rng,
    ) -> Result<(), DropReason> {
        let Computing { create, .. } =
            self.computing.remove(&job.cid).ok_or(DropReason::BadCreate)?;
        let done = done.ok_or(DropReason::BadCreate)?;
        if job.status == Status::Open {
            let row = NodeCircuit::new(now, done.answer);
            let key = self.rows.insert(row);
            let keys = Box::new(RelayKeys { hop: done.hop, pair: done.pair, create });
            let (from, cid) = (job.from, job.cid);
            self.events.push_back(NodeEvent::Install { key, from, cid, keys });
        } else {
            self.refused += 1;
            self.refusals.truncate(MOST_REFUSALS - 1);
            self.refusals.push_front(Refusal { cid: job.cid, create, answer: done.answer });
        }
        self.send(job.from, job.cid, &done.answer, rng);
        Ok(())
    }

    /// A handshake could not be computed: its CREATE may come again.
    pub fn forget_handshake(&mut self, cid: Cid) {
        if let Some(Computing { ephemeral, .. }) = self.computing.remove(&cid) {
            self.ephemerals.iter_mut().for_each(|seen| seen.forget(&ephemeral));
        }
    }

    /// Sends a message that opens a cell, with random padding behind it.
    fn send(&mut self, to: SocketAddr, cid: Cid, message: &[u8], rng: &mut impl Rng) {
        let mut cell = Box::new([0u8; CELL_LEN]);
        rng.fill_bytes(cell.as_mut_slice());
        crate::wire::set_cid(&mut cell, cid);
        cell[crate::model::CID_LEN..][..message.len()].copy_from_slice(message);
        self.events.push_back(NodeEvent::Send { to, cell });
    }

    fn remove(&mut self, key: CircuitKey, reason: DestroyReason) {
        if let Some(row) = self.rows.remove(key) {
            if let Link::Awaiting { cid, .. } = row.link {
                self.awaiting.remove(&cid);
            }
            self.events.push_back(NodeEvent::Remove { key, reason });
        }
    }
}

#[cfg(test)]
mod tests;
