//! One end of a bridge that goes by tracking codes: greetings, messages, halves of datagrams.
//!
//! In: the route that the tracker sealed to this exit, what arrives by code. Out: cells for the first
//! relay of the route, datagrams. Called by: the exit's bridges.
//!
//! Each end sends over a route of its own. A set-up that is lost is made anew, with other keys and
//! other relays' links; every message tells the other side which of its set-ups arrived last.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::Rng;

use super::route::CodeRoute;
use crate::{
    forward::bridge::{
        BridgeEvent, BridgeHop, EndLink, ExitBridges, Members, OrderError, OtherNode, OwnKeys,
        join::joined_keys,
    },
    keys::{BridgeKeys, BridgeNames, OnionKey, open_route},
    model::{CELL_LEN, Cid, DropReason, NodeId},
    wire::{
        body_mut, body_ref,
        share::{
            BRIDGE_MTU, BridgeDatagram, BridgeNotice, CODE_PART_LEN, CodeBody, CodeGreeting,
            CodeHead, CodePart, CodeWord, JoinPrefix, Order, Piece, Session, ShareRole,
            parse_route,
        },
    },
};

/// Set-ups of one end, at most.
const MOST_ATTEMPTS: u8 = 16;
/// Halves of datagrams that wait for the other one.
const MOST_HALVES: usize = 16;
/// The pause before a set-up is made anew, doubled each time.
const ASK_AGAIN: Duration = Duration::from_millis(150);
/// The longest pause.
const ASK_AGAIN_AT_MOST: Duration = Duration::from_secs(1);

/// How far the link is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::forward::bridge) enum CodeStage {
    /// The uploader's exit asks.
    Joining { next: Instant },
    /// The downloader's exit waits to be asked.
    Waiting,
    /// Both exits have heard each other.
    Open,
}

/// One end's way to the other.
pub(in crate::forward::bridge) struct CodeLink {
    pub(in crate::forward::bridge) stage: CodeStage,
    /// When the other exit was last heard.
    pub(in crate::forward::bridge) heard: Instant,
    /// When an echo was last asked.
    pub(in crate::forward::bridge) asked: Instant,
    /// The relays between, and the other exit.
    relays: Vec<(NodeId, OtherNode)>,
    keys: Option<BridgeKeys>,
    join: Option<JoinPrefix>,
    routes: Vec<CodeRoute>,
    attempt: u8,
    /// The last of the other side's set-ups that arrived.
    heard_attempt: u8,
    exp: u32,
    datagrams: u16,
    halves: [Option<Half>; MOST_HALVES],
}

/// Half of a datagram; either may come first.
struct Half {
    number: u16,
    piece: Piece,
    bytes: Vec<u8>,
}

impl CodeLink {
    /// The end that an order makes.
    ///
    /// # Errors
    /// When the route is not for this exit, or names a node that is no relay.
    pub(in crate::forward::bridge) fn of_order(
        now: Instant,
        order: &Order,
        members: &impl Members,
        keys: &OwnKeys<'_>,
    ) -> Result<Self, OrderError> {
        let plain = open_route(keys, &order.route).map_err(|_| OrderError::Route)?;
        let ids = parse_route(&plain).map_err(|_| OrderError::Route)?;
        let mut relays = Vec::with_capacity(ids.len() + 1);
        for id in ids {
            relays.push((id, members.relay(&id).ok_or(OrderError::Route)?));
        }
        relays.push((order.to, members.exit(&order.to).ok_or(OrderError::UnknownExit)?));
        let stage = match order.kind.role() {
            Some(ShareRole::Uploader) => CodeStage::Joining { next: now },
            _ => CodeStage::Waiting,
        };
        Ok(Self {
            stage,
            heard: now,
            asked: now,
            relays,
            keys: None,
            join: None,
            routes: Vec::new(),
            attempt: 0,
            heard_attempt: 0,
            exp: u32::try_from(order.exp).unwrap_or(u32::MAX),
            datagrams: 0,
            halves: Default::default(),
        })
    }

    /// Prepares the join of the uploader's exit.
    ///
    /// # Errors
    /// When a key of the other exit cannot be used.
    pub(in crate::forward::bridge) fn prepare_join(
        &mut self,
        names: &BridgeNames,
        suite: crate::model::Suite,
        keys: &OwnKeys<'_>,
        rng: &mut impl Rng,
    ) -> Result<(), OrderError> {
        let own = keys.first().ok_or(OrderError::NoRoom)?;
        let (_, other) = self.relays.last().ok_or(OrderError::UnknownExit)?;
        let ephemeral = OnionKey::generate(rng).map_err(|_| OrderError::NoRoom)?;
        let suite = suite.max(other.suite);
        let made = BridgeKeys::of_maker(names, suite, own, &ephemeral, &other.onion_key);
        self.keys = Some(made.map_err(|_| OrderError::UnknownExit)?);
        self.join = Some(JoinPrefix {
            suite,
            receiver_key_id: other.onion_key_id,
            sender_key_id: own.id(),
            ephemeral: *ephemeral.public(),
            mac: [0; 16],
        });
        Ok(())
    }

    /// A set-up over a new route: the join, or the answer to one.
    fn greet(
        &mut self,
        now: Instant,
        bridge: Cid,
        rng: &mut impl Rng,
    ) -> Result<BridgeEvent, DropReason> {
        if self.attempt >= MOST_ATTEMPTS {
            return Err(DropReason::RateLimited);
        }
        let keys = self.keys.as_ref().ok_or(DropReason::NoBridge)?;
        self.attempt += 1;
        let route = CodeRoute::open(self.attempt, &self.relays, rng);
        let route = route.map_err(|_| DropReason::BadCode)?;
        let covered = covered(route.last_ephemeral(), bridge, self.attempt, self.heard_attempt);
        let word = match &self.join {
            Some(join) => {
                let bytes = [JoinPrefix::before_mac(&join.emit()), covered.as_slice()].concat();
                CodeWord::Join(JoinPrefix { mac: keys.join_mac(&bytes), ..*join }.emit())
            }
            None => CodeWord::Accept(keys.code_accept_mac(&covered)),
        };
        let (attempt, heard) = (self.attempt, self.heard_attempt);
        let mut cell = Box::new([0; CELL_LEN]);
        route.setup(self.exp, &CodeGreeting { bridge, attempt, heard, word }, &mut cell);
        let to = route.to();
        self.routes.push(route);
        if let CodeStage::Joining { next } = &mut self.stage {
            let pause = ASK_AGAIN.saturating_mul(1 << u32::from(attempt - 1).min(8));
            *next = now + pause.min(ASK_AGAIN_AT_MOST);
        }
        Ok(BridgeEvent::Send { to, cell })
    }

    /// The other side heard this set-up: its route is the one to use.
    fn confirm(&mut self, attempt: u8) {
        if self.routes.len() > 1 && self.routes.iter().any(|route| route.attempt == attempt) {
            self.routes.retain(|route| route.attempt == attempt);
        }
    }

    /// A message for the other exit, over the newest route, or the one that is known to stand.
    pub(in crate::forward::bridge) fn emit(
        &mut self,
        body: CodeBody<'_>,
        cell: &mut [u8; CELL_LEN],
    ) -> Result<SocketAddr, DropReason> {
        let route = self.routes.last_mut().ok_or(DropReason::NoBridge)?;
        route.message(&CodePart { heard: self.heard_attempt, body }, cell)
    }

    /// A datagram of a circuit: its cell becomes the message, or the second of two; the first is
    /// returned.
    pub(in crate::forward::bridge) fn forward(
        &mut self,
        cell: &mut [u8; CELL_LEN],
    ) -> Result<(SocketAddr, Option<BridgeEvent>), DropReason> {
        let datagram = BridgeDatagram::parse(body_ref(cell)).map_err(|_| DropReason::BadControl)?;
        let length = datagram.bytes.len();
        let mut bytes = [0; BRIDGE_MTU];
        bytes[..length].copy_from_slice(datagram.bytes);
        let bytes = &bytes[..length];
        self.datagrams = self.datagrams.wrapping_add(1);
        let number = self.datagrams;
        let Some((first, second)) = bytes.split_at_checked(CODE_PART_LEN) else {
            let to = self.emit(CodeBody::Datagram { piece: Piece::Whole, number, bytes }, cell)?;
            return Ok((to, None));
        };
        let mut before = Box::new([0; CELL_LEN]);
        let piece = CodeBody::Datagram { piece: Piece::First, number, bytes: first };
        let to = self.emit(piece, &mut before)?;
        let piece = CodeBody::Datagram { piece: Piece::Second, number, bytes: second };
        let event = BridgeEvent::Send { to, cell: before };
        Ok((self.emit(piece, cell)?, Some(event)))
    }

    /// Puts a datagram into the cell's body; false while half of it is missing.
    fn take_datagram(
        &mut self,
        session: Session,
        (piece, number): (Piece, u16),
        bytes: &[u8],
        cell: &mut [u8; CELL_LEN],
    ) -> bool {
        let fits = match piece {
            Piece::Whole => {
                BridgeDatagram { session, bytes }.emit(body_mut(cell));
                return true;
            }
            Piece::First => bytes.len() == CODE_PART_LEN,
            Piece::Second => bytes.len() <= BRIDGE_MTU - CODE_PART_LEN,
        };
        if !fits {
            return false;
        }
        let slot = &mut self.halves[usize::from(number) % MOST_HALVES];
        match slot.take() {
            Some(half) if half.number == number && half.piece != piece => {
                let whole = match piece {
                    Piece::Second => [half.bytes.as_slice(), bytes].concat(),
                    _ => [bytes, half.bytes.as_slice()].concat(),
                };
                BridgeDatagram { session, bytes: &whole }.emit(body_mut(cell));
                true
            }
            _ => {
                *slot = Some(Half { number, piece, bytes: bytes.to_vec() });
                false
            }
        }
    }
}

/// What the MAC of a greeting covers beside its words.
fn covered(ephemeral: &[u8; 32], bridge: Cid, attempt: u8, heard: u8) -> [u8; 50] {
    let mut bytes = [0; 50];
    bytes[..32].copy_from_slice(ephemeral);
    bytes[32..48].copy_from_slice(bridge.as_bytes());
    (bytes[48], bytes[49]) = (attempt, heard);
    bytes
}

impl ExitBridges {
    /// Greets the other exit by code, if this end is the one that joins.
    pub(in crate::forward::bridge) fn greet_by_code(
        &mut self,
        now: Instant,
        at: usize,
        rng: &mut impl Rng,
    ) {
        let Some(end) = self.ends[at].as_deref_mut() else { return };
        let EndLink::Code(link) = &mut end.link else { return };
        match link.greet(now, end.bridge, rng) {
            Ok(event) => self.events.push_back(event),
            // It asks no more, and the end is over when its time is.
            Err(_) => {
                if let CodeStage::Joining { next } = &mut link.stage {
                    *next = now + ASK_AGAIN_AT_MOST;
                }
            }
        }
    }

    /// A set-up has arrived: a join, or the answer to one.
    pub(in crate::forward::bridge) fn handle_greeting(
        &mut self,
        now: Instant,
        (cid, ephemeral): (Cid, [u8; 32]),
        greeting: &CodeGreeting,
        members: &impl Members,
        own: &OwnKeys<'_>,
        rng: &mut impl Rng,
    ) -> Result<(), DropReason> {
        let at = *self.by_cid.get(&greeting.bridge).ok_or(DropReason::NoBridge)?;
        let end = self.ends[at].as_deref_mut().ok_or(DropReason::NoBridge)?;
        let names = end.joined_names(self.id);
        let EndLink::Code(link) = &mut end.link else { return Err(DropReason::NoBridge) };
        let covered = covered(&ephemeral, greeting.bridge, greeting.attempt, greeting.heard);
        match (greeting.word, end.role) {
            (CodeWord::Join(bytes), ShareRole::Downloader) => {
                let join = JoinPrefix::parse(&bytes).map_err(|_| DropReason::BadCode)?;
                let keys = joined_keys(&names, &join, members, own, DropReason::BadCode)?;
                let bytes = [JoinPrefix::before_mac(&bytes), covered.as_slice()].concat();
                if !keys.proves_join(&bytes, &join.mac) {
                    return Err(DropReason::BadTag);
                }
                link.keys = Some(keys);
            }
            (CodeWord::Accept(mac), ShareRole::Uploader) => {
                let keys = link.keys.as_ref().ok_or(DropReason::NoBridge)?;
                if !keys.proves_code_accept(&covered, &mac) {
                    return Err(DropReason::BadTag);
                }
                link.confirm(greeting.heard);
            }
            _ => return Err(DropReason::BadCode),
        }
        link.heard = now;
        link.heard_attempt = greeting.attempt;
        let was_open = std::mem::replace(&mut link.stage, CodeStage::Open) == CodeStage::Open;
        self.codes.trust(cid, greeting.bridge);
        if matches!(greeting.word, CodeWord::Join(_)) {
            self.greet_by_code(now, at, rng);
        }
        if !was_open {
            self.opened(at);
        }
        Ok(())
    }

    /// A message has arrived; its payload lies open in the cell.
    pub(in crate::forward::bridge) fn handle_arrived(
        &mut self,
        now: Instant,
        bridge: Cid,
        cell: &mut [u8; CELL_LEN],
    ) -> Result<Option<BridgeHop>, DropReason> {
        let at = *self.by_cid.get(&bridge).ok_or(DropReason::NoBridge)?;
        let end = self.ends[at].as_deref_mut().ok_or(DropReason::NoBridge)?;
        let EndLink::Code(link) = &mut end.link else { return Err(DropReason::NoBridge) };
        let copy = *cell;
        let payload = CodeHead::payload_of_message(&copy);
        let part = CodePart::parse(payload).map_err(|_| DropReason::BadCode)?;
        link.heard = now;
        link.confirm(part.heard);
        match part.body {
            CodeBody::Echo => link.emit(CodeBody::EchoReply, cell).map(BridgeHop::Exit).map(Some),
            CodeBody::EchoReply => Ok(None),
            CodeBody::Notice(value) => {
                let notice = BridgeNotice::parse(value).map_err(|_| DropReason::BadCode)?;
                if let Some(reason) = notice.end {
                    self.end(at, Some(reason), reason);
                }
                Ok(None)
            }
            CodeBody::Datagram { piece, number, bytes } => {
                end.last_data = now;
                let is_whole = link.take_datagram(end.session, (piece, number), bytes, cell);
                Ok(is_whole.then_some(BridgeHop::Circuit(end.circuit)))
            }
        }
    }
}
