//! Bridges at an exit: two circuits joined, so that file data passes no tracker (source 001).
//!
//! In: orders of trackers, frames and datagrams of circuits, cells of other exits.
//! Out: cells changed in place and where they go; [`BridgeEvent`]s. Called by: the node's turn.
//!
//! ```text
//! uploader's circuit -> exit: open body -> seal to the other exit ->
//!                       other exit: open -> originate to the downloader's circuit, and back
//! ```
//! By tracking code (`code/`) the same datagrams pass further relays between the exits.

mod carry;
mod code;
mod end;
mod fair;
mod join;
mod legs;
mod orders;
#[cfg(test)]
mod tests;
mod watch;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use rand::Rng;

use self::{
    code::{CodeLink, Codes},
    end::{End, EndLink},
    fair::Shares,
    legs::Legs,
    orders::{Orders, needs_consent},
};
pub use self::{join::OwnKeys, orders::OrderError};
use crate::{
    keys::{ConsentKey, HopKeys},
    model::{CELL_LEN, Cid, CircuitKey, DropReason, NodeId, Suite},
    wire::{
        ControlType,
        share::{
            BridgeEnd, BridgeNotice, MAX_FRAME_LEN, NextRelayId, Order, OrderKind, Session, Via,
        },
    },
};

/// How often bridges are looked at.
const TICK: Duration = Duration::from_millis(100);
/// Bridges of one exit.
const MOST_ENDS: usize = 4_096;
/// Bridges of one circuit.
const MOST_PER_CIRCUIT: usize = 64;

/// What the directory says of another node.
#[derive(Clone, Copy, Debug)]
pub struct OtherNode {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Its onion key.
    pub onion_key: [u8; 32],
    /// That key's id.
    pub onion_key_id: [u8; 8],
    /// The suite it prefers.
    pub suite: Suite,
}

/// What bridges ask the directory.
pub trait Members {
    /// An exit.
    fn exit(&self, id: &NodeId) -> Option<OtherNode>;
    /// A node that passes cells on.
    fn relay(&self, id: &NodeId) -> Option<OtherNode>;
    /// Where the relay is that a tracking code names.
    fn next_relay(&self, relay: NextRelayId) -> Option<SocketAddr>;
    /// Whether a relay sends from this address.
    fn has_relay_at(&self, addr: SocketAddr) -> bool;
}

/// Where a cell goes that was changed in place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BridgeHop {
    /// To another exit, ready to send.
    Exit(SocketAddr),
    /// To the client of a circuit: its body is open, to be sealed backwards.
    Circuit(CircuitKey),
}

/// What the event loop must do.
#[derive(Debug)]
pub enum BridgeEvent {
    /// Post a frame to a tracker.
    Post {
        /// Which tracker.
        tracker: NodeId,
        /// The leg it belongs to.
        leg: Cid,
        /// The frame.
        frame: Vec<u8>,
    },
    /// Send a control body to the client of a circuit.
    Control {
        /// The circuit.
        circuit: CircuitKey,
        /// Its type.
        kind: ControlType,
        /// Its value.
        value: Vec<u8>,
    },
    /// Send a cell as it is.
    Send {
        /// Where to.
        to: SocketAddr,
        /// The cell.
        cell: Box<[u8; CELL_LEN]>,
    },
}

/// All bridges and tracker legs of an exit.
pub struct ExitBridges {
    id: NodeId,
    suite: Suite,
    consents: Vec<Option<ConsentKey>>,
    legs: Legs,
    orders: Orders,
    ends: Vec<Option<Box<End>>>,
    by_session: HashMap<(CircuitKey, Session), usize, RandomState>,
    by_cid: HashMap<Cid, usize, RandomState>,
    codes: Codes,
    shares: Shares,
    events: VecDeque<BridgeEvent>,
    next_tick: Option<Instant>,
    bytes: u64,
}

impl ExitBridges {
    /// An exit without bridges; `suite` is the one this machine is good at.
    pub fn new(id: NodeId, suite: Suite) -> Self {
        Self {
            id,
            suite,
            consents: Vec::new(),
            legs: Legs::default(),
            orders: Orders::default(),
            ends: Vec::new(),
            by_session: HashMap::with_hasher(RandomState::default()),
            by_cid: HashMap::with_hasher(RandomState::default()),
            codes: Codes::default(),
            shares: Shares::default(),
            events: VecDeque::new(),
            next_tick: None,
            bytes: 0,
        }
    }

    /// How many bridges stand or are being made.
    pub fn len(&self) -> usize {
        self.by_session.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_session.is_empty()
    }

    /// Datagram bytes that were carried.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What to do next; ask until there is nothing.
    pub fn poll_event(&mut self) -> Option<BridgeEvent> {
        self.events.pop_front()
    }

    /// When [`Self::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next_tick
    }

    /// A circuit was created here.
    pub fn on_circuit(&mut self, circuit: CircuitKey, keys: &HopKeys) {
        self.on_circuit_gone(circuit);
        if self.consents.len() <= circuit.index() {
            self.consents.resize_with(circuit.index() + 1, || None);
        }
        self.consents[circuit.index()] = Some(keys.consent_key());
    }

    /// A circuit is gone, and so are its legs and bridges.
    pub fn on_circuit_gone(&mut self, circuit: CircuitKey) {
        if self.consents.get_mut(circuit.index()).is_none_or(|key| key.take().is_none()) {
            return;
        }
        self.legs.remove(circuit);
        let mine: Vec<usize> =
            self.by_session.iter().filter(|(key, _)| key.0 == circuit).map(|(_, at)| *at).collect();
        for at in mine {
            self.end(at, None, BridgeEnd::CircuitLost);
        }
    }

    /// A client's frame for a tracker: `value` is the tracker's id and the frame.
    ///
    /// # Errors
    /// The reason to drop and count it.
    pub fn handle_tracker_up(
        &mut self,
        now: Instant,
        circuit: CircuitKey,
        value: &[u8],
        rng: &mut impl Rng,
    ) -> Result<(), DropReason> {
        let (id, frame) = value.split_first_chunk::<32>().ok_or(DropReason::BadControl)?;
        if frame.is_empty() || frame.len() > MAX_FRAME_LEN {
            return Err(DropReason::BadControl);
        }
        let tracker = NodeId::from_bytes(*id);
        let leg = self.legs.of(now, circuit, tracker, rng)?;
        self.events.push_back(BridgeEvent::Post { tracker, leg, frame: frame.to_vec() });
        Ok(())
    }

    /// A tracker's frame for the client of a leg; says whether there is such a leg.
    pub fn handle_tracker_down(&mut self, leg: Cid, frame: &[u8]) -> bool {
        let Some(leg) = self.legs.get(leg) else { return false };
        if !frame.is_empty() && frame.len() <= MAX_FRAME_LEN {
            let value = [leg.tracker.as_bytes().as_slice(), frame].concat();
            let (circuit, kind) = (leg.circuit, ControlType::TrackerDown);
            self.events.push_back(BridgeEvent::Control { circuit, kind, value });
        }
        true
    }

    /// A client says that it is done with a bridge.
    ///
    /// # Errors
    /// The reason to drop and count it.
    pub fn handle_notice(&mut self, circuit: CircuitKey, value: &[u8]) -> Result<(), DropReason> {
        let notice = BridgeNotice::parse(value).map_err(|_| DropReason::BadControl)?;
        let at = self.by_session.get(&(circuit, notice.session)).ok_or(DropReason::NoBridge)?;
        self.end(*at, None, BridgeEnd::Peer);
        Ok(())
    }

    /// A newer directory.
    pub fn on_directory(&mut self) {
        self.codes.on_directory();
    }

    /// An order of a tracker. `tracker_key` is its order key in the directory, `unix` the time in
    /// seconds since 1970.
    ///
    /// # Errors
    /// Why it is refused.
    #[expect(clippy::too_many_arguments, reason = "what an exit knows of the other, and its keys")]
    pub fn handle_order(
        &mut self,
        now: Instant,
        unix: u64,
        order: &Order,
        tracker_key: Option<&[u8; 32]>,
        members: &impl Members,
        keys: &OwnKeys<'_>,
        rng: &mut impl Rng,
    ) -> Result<(), OrderError> {
        self.orders.check(order, &self.id, tracker_key, unix)?;
        if !needs_consent(order.kind) {
            return self.handle_drop(order);
        }
        let leg = self.legs.get(order.leg_cid()).ok_or(OrderError::UnknownLeg)?;
        if leg.tracker != order.tracker {
            return Err(OrderError::UnknownLeg);
        }
        let circuit = leg.circuit;
        let key = self
            .consents
            .get(circuit.index())
            .and_then(Option::as_ref)
            .ok_or(OrderError::UnknownLeg)?;
        self.orders.consume(order, key, unix)?;
        let of_circuit = self.by_session.keys().filter(|(owner, _)| *owner == circuit).count();
        if self.len() >= MOST_ENDS || of_circuit >= MOST_PER_CIRCUIT {
            return Err(OrderError::NoRoom);
        }
        if self.by_session.contains_key(&(circuit, order.session)) {
            return Err(OrderError::ConsentUsed);
        }
        let link = match (order.to == self.id, order.kind, order.via) {
            (true, ..) => EndLink::Waiting,
            (false, _, Via::Code) => {
                let mut link = CodeLink::of_order(now, order, members, keys)?;
                if order.kind == OrderKind::MakeBridge {
                    link.prepare_join(&self.names_of(order), self.suite, keys, rng)?;
                }
                EndLink::Code(Box::new(link))
            }
            (false, OrderKind::ReceiveBridge, Via::Bridge) => EndLink::Waiting,
            (false, _, Via::Bridge) => {
                let other = members.exit(&order.to).ok_or(OrderError::UnknownExit)?;
                self.start_join(now, order, &other, keys, rng)?
            }
        };
        let role = order.kind.role().ok_or(OrderError::NoConsent)?;
        let (session, bridge) = (order.session, order.bridge_cid());
        let at = self.insert(End {
            circuit,
            session,
            role,
            other: order.to,
            bridge,
            since: now,
            last_data: now,
            share: Default::default(),
            link,
        });
        self.next_tick.get_or_insert(now + TICK);
        if order.to == self.id {
            self.join_locally(at);
        } else {
            self.by_cid.insert(bridge, at);
            match (order.via, order.kind) {
                (Via::Bridge, _) => self.ask_to_join(now, at, rng),
                (Via::Code, OrderKind::MakeBridge) => self.greet_by_code(now, at, rng),
                (Via::Code, _) => {}
            }
        }
        Ok(())
    }

    fn handle_drop(&mut self, order: &Order) -> Result<(), OrderError> {
        let ends: Vec<usize> = self
            .by_session
            .iter()
            .filter(|((_, session), _)| *session == order.session)
            .map(|(_, at)| *at)
            .collect();
        if ends.is_empty() {
            return Err(OrderError::UnknownSession);
        }
        for at in ends {
            self.end(at, Some(BridgeEnd::Tracker), BridgeEnd::Tracker);
        }
        Ok(())
    }
}
