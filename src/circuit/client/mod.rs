//! The circuits of a client: built hop by hop, watched by echoes, ended.
//!
//! In: paths to build, cells on circuits without keys, control and echo bodies, the time.
//! Out: [`ClientEvent`]s, in the order in which they must be carried out.
//! Called by: the client's event loop.
//!
//! ```text
//! build -> AwaitingCreated -> AwaitingExtended (per further hop) -> Open <-> stalled -> gone
//!             |  ^ cookie         |  ^ cookie                        |
//!             +--+                +--+                               +- no echo, DESTROY, close
//! ```

mod build;
mod echo;
mod watch;

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::Rng;

pub use self::echo::HopHealth;
use self::{build::Building, echo::Echoes};
use super::ClientHandshake;
use crate::{
    keys::{HopKeys, PairKeys},
    model::{BODY_LEN, BodyKind, CELL_LEN, Cid, CircuitKey, DestroyReason, DropReason, Hop, Suite},
    wire::{BodyHeader, PairMessage},
};

/// Why a circuit is gone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CloseReason {
    /// The client asked for it.
    Asked,
    /// A hop did not answer the request to join in time.
    NoAnswer {
        /// The hop, from 0.
        hop: usize,
    },
    /// A hop refused to join.
    Refused {
        /// The hop, from 0.
        hop: usize,
        /// Its reason.
        reason: DestroyReason,
    },
    /// A hop's answer did not verify.
    Handshake {
        /// The hop, from 0.
        hop: usize,
        /// What was wrong.
        error: String,
    },
    /// A hop of an open circuit stopped answering echoes.
    Silent {
        /// The first hop that is silent, from 0.
        hop: usize,
    },
    /// A hop destroyed it.
    Destroyed(DestroyReason),
}

impl std::fmt::Display for CloseReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Asked => f.write_str("closed on request"),
            Self::NoAnswer { hop } => write!(f, "hop {} did not answer", hop + 1),
            Self::Refused { hop, reason } => {
                write!(f, "hop {} refused: {}", hop + 1, reason.words())
            }
            Self::Handshake { hop, error } => {
                write!(f, "the handshake with hop {} failed: {error}", hop + 1)
            }
            Self::Silent { hop } => write!(f, "hop {} stopped answering", hop + 1),
            Self::Destroyed(reason) => write!(f, "destroyed by a hop: {}", reason.words()),
        }
    }
}

/// What the event loop must do, in order.
pub enum ClientEvent {
    /// Send a cell as it is.
    Send {
        /// Where to.
        to: SocketAddr,
        /// The cell.
        cell: Box<[u8; CELL_LEN]>,
    },
    /// The first hop stands: open the circuit in the data path.
    Open {
        /// Its number.
        key: CircuitKey,
        /// Its id on the first link.
        cid: Cid,
        /// The first hop.
        guard: SocketAddr,
        /// The keys of the first link.
        pair: Box<PairKeys>,
    },
    /// A hop stands: append it in the data path.
    AddHop {
        /// The circuit.
        key: CircuitKey,
        /// The hop's keys.
        keys: Box<HopKeys>,
    },
    /// Send a body to a hop.
    SendBody {
        /// The circuit.
        key: CircuitKey,
        /// The hop, from 0.
        hop: usize,
        /// The body.
        body: Box<[u8; BODY_LEN]>,
    },
    /// All hops stand.
    Ready {
        /// The circuit.
        key: CircuitKey,
        /// How long it took to build.
        took: Duration,
    },
    /// The first hop of an open circuit is silent: it died, or this machine's own network did. The
    /// circuit keeps its keys and its flows, and takes no new ones.
    Stalled {
        /// The circuit.
        key: CircuitKey,
    },
    /// A stalled circuit is heard again.
    Resumed {
        /// The circuit.
        key: CircuitKey,
    },
    /// A hop answered an echo.
    Echo {
        /// The circuit.
        key: CircuitKey,
        /// The hop, from 0.
        hop: usize,
        /// The round trip.
        rtt: Duration,
    },
    /// The circuit is gone; take it out of the data path. `tell` says whether the first hop must
    /// be told.
    Closed {
        /// The circuit.
        key: CircuitKey,
        /// Its hops.
        path: Vec<Hop>,
        /// Why.
        reason: CloseReason,
        /// Tell the first hop before removing.
        tell: bool,
    },
}

/// How patient a client is.
#[derive(Clone, Debug)]
pub struct ClientTimers {
    /// The first wait for an answer before asking again, until it is known what hops take;
    /// doubles each time, up to two seconds.
    pub retransmit: Duration,
    /// How often to ask in all.
    pub attempts: u32,
    /// How often to send an echo to the exit of an open circuit.
    pub echo_every: Duration,
    /// An echo unanswered for this long, and for two round trips, raises suspicion.
    pub suspect_after: Duration,
    /// How often to send an echo while in suspicion, so that loss alone does not look like death.
    pub suspect_every: Duration,
    /// An open circuit with an unanswered echo and nothing heard for this long, and for four round
    /// trips, is gone.
    pub silent_after: Duration,
    /// The same for a circuit with a node that another circuit found silent.
    pub doubted_after: Duration,
    /// How long a circuit is held whose first hop is silent; zero: not at all.
    pub hold_for: Duration,
}

impl Default for ClientTimers {
    fn default() -> Self {
        Self {
            retransmit: Duration::from_millis(400),
            attempts: 8,
            echo_every: Duration::from_millis(400),
            suspect_after: Duration::from_millis(150),
            suspect_every: Duration::from_millis(25),
            silent_after: Duration::from_millis(1_200),
            doubted_after: Duration::from_millis(300),
            hold_for: Duration::ZERO,
        }
    }
}

enum State {
    Building(Box<Building>),
    Open,
}

/// One circuit.
pub struct ClientCircuit {
    path: Vec<Hop>,
    started: Instant,
    ready: Option<Instant>,
    state: State,
    echoes: Echoes,
    /// Another circuit found one of its nodes silent.
    doubted: bool,
    /// Since when its first hop is silent.
    stalled: Option<Instant>,
}

impl ClientCircuit {
    /// The hops in path order.
    pub fn path(&self) -> &[Hop] {
        &self.path
    }

    /// Since when all hops stand, if they do.
    pub fn ready(&self) -> Option<Instant> {
        self.ready
    }

    /// How long it took until all hops stood, if they do.
    pub fn took(&self) -> Option<Duration> {
        self.ready.map(|ready| ready.saturating_duration_since(self.started))
    }

    /// How many hops stand.
    pub fn hops_built(&self) -> usize {
        match &self.state {
            State::Building(building) => building.hop,
            State::Open => self.path.len(),
        }
    }

    /// Whether its first hop is silent at present.
    pub fn is_stalled(&self) -> bool {
        self.stalled.is_some()
    }

    /// Round trip and loss of a hop, by its echoes.
    pub fn health(&self, hop: usize) -> HopHealth {
        self.echoes.health(hop)
    }
}

/// All circuits of a client.
pub struct ClientCircuits {
    timers: ClientTimers,
    /// The suite this client prefers for its own link.
    link_suite: Suite,
    rows: Vec<Option<Box<ClientCircuit>>>,
    by_cid: HashMap<Cid, CircuitKey>,
    events: VecDeque<ClientEvent>,
    /// Circuits whose end waits among the events: until it is heard their keys are not used again.
    closing: Vec<CircuitKey>,
    next_request: u32,
    /// What a hop takes to answer, smoothed.
    hop_took: Option<Duration>,
}

impl ClientCircuits {
    /// A client without circuits.
    pub fn new(timers: ClientTimers, link_suite: Suite) -> Self {
        Self {
            timers,
            link_suite,
            rows: Vec::new(),
            by_cid: HashMap::new(),
            events: VecDeque::new(),
            closing: Vec::new(),
            next_request: 1,
            hop_took: None,
        }
    }

    /// What to do next; ask until there is nothing.
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        let event = self.events.pop_front();
        if let Some(ClientEvent::Closed { key, .. }) = &event {
            self.closing.retain(|closing| closing != key);
        }
        event
    }

    /// A circuit by its number.
    pub fn get(&self, key: CircuitKey) -> Option<&ClientCircuit> {
        self.rows.get(key.index())?.as_deref()
    }

    /// All circuits.
    pub fn iter(&self) -> impl Iterator<Item = (CircuitKey, &ClientCircuit)> {
        self.rows
            .iter()
            .enumerate()
            .filter_map(|(index, row)| Some((CircuitKey(index as u32), row.as_deref()?)))
    }

    /// A body from a hop that is not data.
    ///
    /// # Errors
    /// The reason to drop and count it, when it makes no sense.
    pub fn handle_body(
        &mut self,
        now: Instant,
        key: CircuitKey,
        hop: usize,
        header: BodyHeader,
        body: &[u8; BODY_LEN],
        rng: &mut impl Rng,
    ) -> Result<(), DropReason> {
        match header.kind {
            BodyKind::Control => self.handle_control(now, key, hop, body, rng),
            BodyKind::EchoReply => {
                let row = row_mut(&mut self.rows, key).ok_or(DropReason::UnknownCircuit)?;
                let rtt = row.echoes.handle_reply(now, hop, body).ok_or(DropReason::BadControl)?;
                self.events.push_back(ClientEvent::Echo { key, hop, rtt });
                Ok(())
            }
            BodyKind::Cover => Err(DropReason::Cover),
            _ => Err(DropReason::UnknownKind),
        }
    }

    /// The first hop said something of its own.
    pub fn handle_neighbour(&mut self, key: CircuitKey, message: PairMessage) {
        let PairMessage::Destroy(reason) = message;
        self.end(key, CloseReason::Destroyed(reason), false);
    }

    /// Ends a circuit on request.
    pub fn close(&mut self, key: CircuitKey) {
        self.end(key, CloseReason::Asked, true);
    }

    /// Sends an echo to a hop of a circuit.
    pub fn send_echo(&mut self, now: Instant, key: CircuitKey, hop: usize) {
        if let Some(row) = row_mut(&mut self.rows, key)
            && hop < row.hops_built()
        {
            let body = row.echoes.send(now, hop);
            self.events.push_back(ClientEvent::SendBody { key, hop, body });
        }
    }

    /// Asks again, sends due echoes, gives up. `last_heard` is the data path's knowledge.
    pub fn handle_timeout(
        &mut self,
        now: Instant,
        last_heard: impl Fn(CircuitKey) -> Option<Instant>,
        rng: &mut impl Rng,
    ) {
        for index in 0..self.rows.len() {
            let key = CircuitKey(index as u32);
            let Some(row) = row_mut(&mut self.rows, key) else { continue };
            match &row.state {
                State::Building(_) => self.retransmit(now, key, rng),
                State::Open => self.watch(now, key, last_heard(key)),
            }
        }
    }

    /// When [`Self::handle_timeout`] has something to do, and what.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.iter()
            .map(|(_, row)| match &row.state {
                State::Building(building) => (building.deadline, "retransmit"),
                State::Open => (row.next_echo(&self.timers), "echo"),
            })
            .min_by_key(|(at, _)| *at)
    }

    fn insert(&mut self, row: ClientCircuit) -> CircuitKey {
        let row = Some(Box::new(row));
        let is_free = |index: &usize| {
            self.rows[*index].is_none() && !self.closing.contains(&CircuitKey(*index as u32))
        };
        match (0..self.rows.len()).find(is_free) {
            Some(index) => {
                self.rows[index] = row;
                CircuitKey(index as u32)
            }
            None => {
                self.rows.push(row);
                CircuitKey(self.rows.len() as u32 - 1)
            }
        }
    }

    fn end(&mut self, key: CircuitKey, reason: CloseReason, tell: bool) {
        let Some(row) = self.rows.get_mut(key.index()).and_then(Option::take) else { return };
        if let State::Building(building) = &row.state {
            self.by_cid.remove(&building.cid);
        }
        self.closing.push(key);
        self.events.push_back(ClientEvent::Closed { key, path: row.path, reason, tell });
    }
}

fn row_mut(rows: &mut [Option<Box<ClientCircuit>>], key: CircuitKey) -> Option<&mut ClientCircuit> {
    rows.get_mut(key.index())?.as_deref_mut()
}

impl ClientHandshake {
    fn pair_keys(&self) -> PairKeys {
        PairKeys::derive(self.link_suite(), self.pair())
    }
}

#[cfg(test)]
mod tests;
