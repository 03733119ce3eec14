//! Bridges at an exit: two circuits joined, so that file data passes no tracker (source 001).
//!
//! In: orders of trackers, frames and datagrams of circuits, cells of other exits.
//! Out: cells changed in place and where they go; [`BridgeEvent`]s. Called by: the node's turn.
//!
//! ```text
//! uploader's circuit -> exit: open body -> seal to the other exit ->
//!                       other exit: open -> originate to the downloader's circuit, and back
//! ```

mod end;
mod fair;
mod join;
mod legs;
mod orders;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use rand::Rng;

use self::{
    end::{End, EndLink},
    fair::Shares,
    legs::Legs,
    orders::{Orders, needs_consent},
};
pub use self::{join::OwnKeys, orders::OrderError};
use crate::{
    keys::{ConsentKey, HopKeys},
    model::{BODY_LEN, BodyKind, CELL_LEN, Cid, CircuitKey, DropReason, NodeId, Suite},
    wire::{
        BodyHeader, ControlFragment, ControlType, body_mut, body_ref, cid_of,
        share::{
            BridgeDatagram, BridgeEnd, BridgeNotice, MAX_FRAME_LEN, Order, OrderKind, Session,
        },
    },
};

/// How often bridges are looked at.
const TICK: Duration = Duration::from_millis(100);
/// A silent exit is asked for an echo after this long.
const ECHO_AFTER: Duration = Duration::from_millis(500);
/// An exit that says nothing for this long is lost.
const LOST_AFTER: Duration = Duration::from_secs(2);
/// How long the other exit may take to join or to accept.
const JOIN_WITHIN: Duration = Duration::from_secs(8);
/// A bridge without a datagram for this long is taken down.
const IDLE_AFTER: Duration = Duration::from_secs(120);
/// Bridges of one exit.
const MOST_ENDS: usize = 4_096;
/// Bridges of one circuit.
const MOST_PER_CIRCUIT: usize = 64;

/// What the directory says of another exit.
#[derive(Clone, Copy, Debug)]
pub struct OtherExit {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Its onion key.
    pub onion_key: [u8; 32],
    /// That key's id.
    pub onion_key_id: [u8; 8],
    /// The suite it prefers.
    pub suite: Suite,
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

    /// A datagram of a circuit: its cell is changed in place for the other end.
    ///
    /// # Errors
    /// The reason to drop and count it.
    pub fn forward(
        &mut self,
        now: Instant,
        circuit: CircuitKey,
        cell: &mut [u8; CELL_LEN],
    ) -> Result<BridgeHop, DropReason> {
        let session = BridgeDatagram::session_of(body_ref(cell));
        let at = *self.by_session.get(&(circuit, session)).ok_or(DropReason::NoBridge)?;
        let end = self.ends[at].as_deref_mut().ok_or(DropReason::NoBridge)?;
        if !self.shares.take(&mut end.share) {
            return Err(DropReason::BridgeShare);
        }
        end.last_data = now;
        self.bytes += u64::from(u16::from_be_bytes([body_ref(cell)[10], body_ref(cell)[11]]));
        match &mut end.link {
            EndLink::Open(link) => Ok(BridgeHop::Exit(link.seal(end.bridge, cell)?)),
            EndLink::Local(other) => Ok(BridgeHop::Circuit(*other)),
            EndLink::Joining(_) | EndLink::Waiting => Err(DropReason::NoBridge),
        }
    }

    /// A datagram of the other exit, opened: whose it is.
    fn handle_opened(
        &mut self,
        now: Instant,
        at: usize,
        cell: &mut [u8; CELL_LEN],
    ) -> Result<Option<BridgeHop>, DropReason> {
        let end = self.ends[at].as_deref_mut().ok_or(DropReason::NoBridge)?;
        let header = BodyHeader::parse(body_ref(cell)).map_err(|_| DropReason::UnknownKind)?;
        match header.kind {
            BodyKind::Bridge => {
                // An exit cannot speak for another session than the bridge's.
                if BridgeDatagram::session_of(body_ref(cell)) != end.session {
                    return Err(DropReason::NoBridge);
                }
                end.last_data = now;
                Ok(Some(BridgeHop::Circuit(end.circuit)))
            }
            BodyKind::Echo => {
                BodyHeader::new(BodyKind::EchoReply).emit(body_mut(cell));
                let EndLink::Open(link) = &mut end.link else { return Ok(None) };
                link.seal(end.bridge, cell).map(|to| Some(BridgeHop::Exit(to)))
            }
            BodyKind::EchoReply => Ok(None),
            BodyKind::Control => {
                let fragment =
                    ControlFragment::parse(body_ref(cell)).map_err(|_| DropReason::BadControl)?;
                let notice =
                    BridgeNotice::parse(fragment.value).map_err(|_| DropReason::BadControl)?;
                if let Some(reason) = notice.end {
                    self.end(at, Some(reason), reason);
                }
                Ok(None)
            }
            BodyKind::Data | BodyKind::Cover => Err(DropReason::UnknownKind),
        }
    }

    /// An order of a tracker. `tracker_key` is its order key in the directory, `other` what the
    /// directory says of the other exit, `unix` the time in seconds since 1970.
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
        other: Option<OtherExit>,
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
        let link = match (order.to == self.id, order.kind) {
            (true, _) | (false, OrderKind::ReceiveBridge) => EndLink::Waiting,
            (false, _) => {
                let other = other.ok_or(OrderError::UnknownExit)?;
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
            self.ask_to_join(now, at, rng);
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

    /// Asks again, looks for lost exits and idle bridges, gives out new shares. `refused` cells did
    /// not fit the link since the last call.
    pub fn handle_timeout(&mut self, now: Instant, unix: u64, refused: u64, rng: &mut impl Rng) {
        if self.next_tick.is_none_or(|at| now < at) {
            return;
        }
        self.orders.handle_timeout(unix);
        let ends = &mut self.ends;
        self.shares.tick(refused, ends.iter_mut().flatten().map(|end| &mut end.share));
        for at in 0..self.ends.len() {
            self.watch(now, at, rng);
        }
        self.next_tick = (!self.is_empty()).then_some(now + TICK);
    }

    fn watch(&mut self, now: Instant, at: usize, rng: &mut impl Rng) {
        let Some(end) = self.ends[at].as_deref_mut() else { return };
        let over = |since: Instant, limit| now.saturating_duration_since(since) >= limit;
        match &mut end.link {
            EndLink::Joining(_) | EndLink::Waiting if over(end.since, JOIN_WITHIN) => {
                self.end(at, Some(BridgeEnd::ExitLost), BridgeEnd::ExitLost);
            }
            EndLink::Joining(joining) if now >= joining.next => self.ask_to_join(now, at, rng),
            EndLink::Open(link) if over(link.heard, LOST_AFTER) => {
                self.end(at, Some(BridgeEnd::ExitLost), BridgeEnd::ExitLost);
            }
            EndLink::Open(_) | EndLink::Local(_) if over(end.last_data, IDLE_AFTER) => {
                self.end(at, Some(BridgeEnd::Idle), BridgeEnd::Idle);
            }
            EndLink::Open(link) if over(link.heard, ECHO_AFTER) && over(link.asked, ECHO_AFTER) => {
                link.asked = now;
                let mut cell = Box::new([0; CELL_LEN]);
                BodyHeader::new(BodyKind::Echo).emit(body_mut(&mut cell));
                if let Ok(to) = link.seal(end.bridge, &mut cell) {
                    self.events.push_back(BridgeEvent::Send { to, cell });
                }
            }
            _ => {}
        }
    }

    fn insert(&mut self, end: End) -> usize {
        let key = (end.circuit, end.session);
        let at = self.ends.iter().position(Option::is_none).unwrap_or(self.ends.len());
        if at == self.ends.len() {
            self.ends.push(None);
        }
        self.ends[at] = Some(Box::new(end));
        self.by_session.insert(key, at);
        at
    }

    /// Takes an end down. Its client is told `tell_client`, the other end `tell_other`.
    fn end(&mut self, at: usize, tell_client: Option<BridgeEnd>, tell_other: BridgeEnd) {
        let Some(mut end) = self.ends.get_mut(at).and_then(Option::take) else { return };
        self.by_session.remove(&(end.circuit, end.session));
        if self.by_cid.get(&end.bridge) == Some(&at) {
            self.by_cid.remove(&end.bridge);
        }
        if let Some(reason) = tell_client {
            self.notice(&end, Some(reason));
        }
        match &mut end.link {
            EndLink::Open(link) => {
                let mut cell = Box::new([0; CELL_LEN]);
                let (session, role) = (end.session, end.role);
                let notice = BridgeNotice { session, role, end: Some(tell_other) }.emit();
                write_control(body_mut(&mut cell), ControlType::Bridge, &notice);
                if let Ok(to) = link.seal(end.bridge, &mut cell) {
                    self.events.push_back(BridgeEvent::Send { to, cell });
                }
            }
            EndLink::Local(other) => {
                if let Some(other) = self.by_session.get(&(*other, end.session)) {
                    self.end(*other, Some(tell_other), tell_other);
                }
            }
            EndLink::Joining(_) | EndLink::Waiting => {}
        }
    }

    /// Tells a client that its bridge stands, or why it fell.
    fn notice(&mut self, end: &End, reason: Option<BridgeEnd>) {
        let notice = BridgeNotice { session: end.session, role: end.role, end: reason };
        self.events.push_back(BridgeEvent::Control {
            circuit: end.circuit,
            kind: ControlType::Bridge,
            value: notice.emit().to_vec(),
        });
    }

    /// A cell whose id no circuit has: nothing if it is none of a bridge either.
    pub fn handle_cell(
        &mut self,
        now: Instant,
        from: SocketAddr,
        cell: &mut [u8; CELL_LEN],
        other: impl Fn(&NodeId) -> Option<OtherExit>,
        keys: &OwnKeys<'_>,
        rng: &mut impl Rng,
    ) -> Option<Result<Option<BridgeHop>, DropReason>> {
        let at = *self.by_cid.get(&cid_of(cell))?;
        let end = self.ends[at].as_deref_mut()?;
        Some(match &mut end.link {
            EndLink::Open(link) if link.is_join(cell) => {
                self.accept_again(at, from, rng);
                Ok(None)
            }
            EndLink::Open(link) => {
                link.open(now, from, cell).and_then(|()| self.handle_opened(now, at, cell))
            }
            EndLink::Waiting => self.handle_join(now, at, from, cell, &other, keys, rng),
            EndLink::Joining(_) => self.handle_accept(now, at, from, cell),
            EndLink::Local(_) => Err(DropReason::NoBridge),
        })
    }
}

/// Writes a control message of one fragment.
fn write_control(body: &mut [u8; BODY_LEN], kind: ControlType, value: &[u8]) {
    let fragment = ControlFragment { kind, request: 0, index: 0, count: 1, value };
    // A notice is far shorter than a body.
    let _ = fragment.emit(body);
}
