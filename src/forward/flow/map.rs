//! Flows pinned to circuits: a bounded table, the least recently used flow leaves first.
//!
//! In: packets of the client's device, and a choice for those that start a flow.
//! Out: the circuit of each. Called by: the client's data path.

use std::{
    hash::BuildHasher,
    time::{Duration, Instant},
};

use hashbrown::HashTable;

use super::{FlowKey, PacketFlow};
use crate::{forward::ip::protocol, model::DropReason};

/// How long a silent TCP connection keeps its circuit (RFC 5382: two hours four minutes).
const TCP_IDLE: Duration = Duration::from_secs(2 * 3600 + 4 * 60);
/// How long a TCP connection lingers after this side's FIN or a RST.
const TCP_CLOSED: Duration = Duration::from_secs(60);
/// How long a silent UDP flow keeps its circuit (RFC 4787: five minutes recommended).
const UDP_IDLE: Duration = Duration::from_secs(300);
/// How long anything else does.
const OTHER_IDLE: Duration = Duration::from_secs(60);
/// How long the fragments of one datagram keep together.
const DATAGRAM_IDLE: Duration = Duration::from_secs(30);

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// No slot.
const NONE: u32 = u32::MAX;

/// Pins each flow to the circuit that it started on, `C` being the circuit's id.
///
/// Lookup, insertion and eviction take constant time; nothing is allocated per packet once the
/// table has grown to the number of flows there are.
#[derive(Debug)]
pub struct FlowMap<C> {
    index: HashTable<u32>,
    slots: Vec<Slot<C>>,
    free: Vec<u32>,
    newest: u32,
    oldest: u32,
    most: usize,
    hasher: foldhash::quality::RandomState,
}

/// Which of a client's devices a flow belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FlowOwner {
    /// The kernel, by the TUN device.
    #[default]
    Kernel,
    /// The user-space stack of the proxies.
    Stack,
}

#[derive(Debug)]
struct Slot<C> {
    key: FlowKey,
    circuit: C,
    owner: FlowOwner,
    expires: Instant,
    closing: bool,
    newer: u32,
    older: u32,
}

impl<C: Copy + PartialEq> FlowMap<C> {
    /// A map of at most `most` flows.
    pub fn new(most: usize) -> Self {
        Self {
            index: HashTable::new(),
            slots: Vec::new(),
            free: Vec::new(),
            newest: NONE,
            oldest: NONE,
            most: most.clamp(1, NONE as usize),
            hasher: foldhash::quality::RandomState::default(),
        }
    }

    /// The circuit for `packet`: that of its flow, or for the first packet of a flow the one that
    /// `choose` names, which the flow then keeps.
    ///
    /// All fragments of a datagram go where its first one went. An ICMP error goes where the
    /// packets of the flow go that it is about.
    ///
    /// # Errors
    ///
    /// `NoCircuit` when `choose` has none; the reasons of
    /// [`Headers::parse`](crate::forward::ip::Headers::parse).
    pub fn route(
        &mut self,
        now: Instant,
        packet: &[u8],
        choose: impl FnOnce() -> Option<C>,
    ) -> Result<C, DropReason> {
        self.route_as(now, packet, FlowOwner::default(), choose)
    }

    /// As [`Self::route`], for a packet of one of several devices, which the flow then belongs to.
    ///
    /// # Errors
    ///
    /// `FlowInUse` when the flow belongs to another device; otherwise as for [`Self::route`].
    pub fn route_as(
        &mut self,
        now: Instant,
        packet: &[u8],
        owner: FlowOwner,
        choose: impl FnOnce() -> Option<C>,
    ) -> Result<C, DropReason> {
        let found = PacketFlow::parse(packet)?;
        let circuit = match (found.flow, found.datagram) {
            (Some(flow), _) => self.pin(now, flow, &found, owner, choose),
            (None, Some(datagram)) => self.pin(now, datagram, &found, owner, choose),
            (None, None) => return Err(DropReason::BadInnerPacket),
        }?;
        if let (Some(_), Some(datagram)) = (found.flow, found.datagram) {
            self.set(now + DATAGRAM_IDLE, datagram, circuit, owner);
        }
        Ok(circuit)
    }

    /// Which device an answer is for; the kernel where no flow says otherwise.
    pub fn owner_of_answer(&self, packet: &[u8]) -> FlowOwner {
        PacketFlow::parse(packet)
            .ok()
            .and_then(|found| self.find(&found.flow?.reversed()))
            .map_or(FlowOwner::Kernel, |at| self.slots[at as usize].owner)
    }

    /// The circuit of a flow, without counting as use.
    pub fn get(&self, now: Instant, key: &FlowKey) -> Option<C> {
        let slot = &self.slots[self.find(key)? as usize];
        (slot.expires > now).then_some(slot.circuit)
    }

    /// How many flows are remembered.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether no flow is remembered.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// How many flows keep to `circuit`; looks at every flow.
    pub fn flows_of(&self, now: Instant, circuit: C) -> usize {
        self.in_use().filter(|slot| slot.circuit == circuit && slot.expires > now).count()
    }

    /// Forgets the flows of a circuit that is gone, so that they choose again; returns how many.
    pub fn forget_circuit(&mut self, circuit: C) -> usize {
        self.forget_where(|slot| slot.circuit == circuit)
    }

    /// Forgets the flows that fell silent; returns how many. Looks at every flow: for a timer of
    /// seconds.
    pub fn handle_timeout(&mut self, now: Instant) -> usize {
        self.forget_where(|slot| slot.expires <= now)
    }

    fn pin(
        &mut self,
        now: Instant,
        key: FlowKey,
        found: &PacketFlow,
        owner: FlowOwner,
        choose: impl FnOnce() -> Option<C>,
    ) -> Result<C, DropReason> {
        let choose = || choose().ok_or(DropReason::NoCircuit);
        let flags = found.tcp_flags.unwrap_or(0);
        let closes = flags & (FIN | RST) != 0;
        let idle = match found.protocol {
            _ if found.flow.is_none() => DATAGRAM_IDLE,
            _ if closes => TCP_CLOSED,
            protocol::TCP => TCP_IDLE,
            protocol::UDP | protocol::UDP_LITE => UDP_IDLE,
            _ => OTHER_IDLE,
        };
        let Some(at) = self.find(&key) else {
            let circuit = choose()?;
            let at = self.insert(now + idle, key, circuit, owner);
            self.slots[at as usize].closing = closes;
            return Ok(circuit);
        };
        let slot = &mut self.slots[at as usize];
        let starts_anew = slot.closing && flags & (SYN | ACK) == SYN;
        if slot.expires <= now || starts_anew {
            slot.circuit = choose()?;
            slot.owner = owner;
            slot.closing = false;
        } else if slot.owner != owner {
            return Err(DropReason::FlowInUse);
        }
        slot.closing |= closes;
        slot.expires = now + if slot.closing { TCP_CLOSED } else { idle };
        let circuit = slot.circuit;
        self.touch(at);
        Ok(circuit)
    }

    fn set(&mut self, expires: Instant, key: FlowKey, circuit: C, owner: FlowOwner) {
        match self.find(&key) {
            Some(at) => {
                let slot = &mut self.slots[at as usize];
                slot.circuit = circuit;
                slot.owner = owner;
                slot.expires = expires;
                self.touch(at);
            }
            None => {
                self.insert(expires, key, circuit, owner);
            }
        }
    }

    fn in_use(&self) -> impl Iterator<Item = &Slot<C>> {
        self.index.iter().map(|at| &self.slots[*at as usize])
    }

    fn find(&self, key: &FlowKey) -> Option<u32> {
        let hash = self.hasher.hash_one(key);
        self.index.find(hash, |at| self.slots[*at as usize].key == *key).copied()
    }

    fn insert(&mut self, expires: Instant, key: FlowKey, circuit: C, owner: FlowOwner) -> u32 {
        if self.index.len() >= self.most {
            self.remove(self.oldest);
        }
        let slot = Slot { key, circuit, owner, expires, closing: false, newer: NONE, older: NONE };
        let at = match self.free.pop() {
            Some(at) => {
                self.slots[at as usize] = slot;
                at
            }
            None => {
                self.slots.push(slot);
                self.slots.len() as u32 - 1
            }
        };
        let Self { index, slots, hasher, .. } = self;
        index
            .insert_unique(hasher.hash_one(key), at, |at| hasher.hash_one(slots[*at as usize].key));
        self.link_newest(at);
        at
    }

    fn remove(&mut self, at: u32) {
        let key = self.slots[at as usize].key;
        if let Ok(entry) = self.index.find_entry(self.hasher.hash_one(key), |other| *other == at) {
            entry.remove();
            self.unlink(at);
            self.free.push(at);
        }
    }

    fn forget_where(&mut self, is_gone: impl Fn(&Slot<C>) -> bool) -> usize {
        let before = self.len();
        let mut at = self.oldest;
        while at != NONE {
            let slot = &self.slots[at as usize];
            let newer = slot.newer;
            if is_gone(slot) {
                self.remove(at);
            }
            at = newer;
        }
        before - self.len()
    }

    fn touch(&mut self, at: u32) {
        if self.newest != at {
            self.unlink(at);
            self.link_newest(at);
        }
    }

    fn unlink(&mut self, at: u32) {
        let Slot { newer, older, .. } = self.slots[at as usize];
        match newer {
            NONE => self.newest = older,
            newer => self.slots[newer as usize].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.slots[older as usize].newer = newer,
        }
    }

    fn link_newest(&mut self, at: u32) {
        let older = self.newest;
        let slot = &mut self.slots[at as usize];
        slot.newer = NONE;
        slot.older = older;
        match older {
            NONE => self.oldest = at,
            older => self.slots[older as usize].newer = at,
        }
        self.newest = at;
    }
}
