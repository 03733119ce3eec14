//! Every circuit that ends here.
//!
//! In: bodies of data cells; packets of the exit's device; the time. Out: packets for the device,
//! ICMP for clients, the circuit of an answer. Called by: the node's event loop.

use std::{
    hash::BuildHasher,
    time::{Duration, Instant},
};

use super::{
    AddressPool, ExitLimits, PoolAddress, PoolError, Rewrite,
    icmp::unreachable,
    limits::{Bucket, Connections, Rate},
    policy,
    rewrite::quotes_another,
};
use crate::{
    forward::{
        flow::PacketFlow,
        ip::{Headers, protocol},
        stream::Reassembler,
    },
    model::{BODY_LEN, CircuitKey, DropCounters, DropReason, ExitPolicy, PacketBatch},
};

/// How often silent circuits are looked at.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// After so long without a cell, parts of packets are given up.
const SILENT: Duration = Duration::from_secs(5);
/// ICMP errors per second and circuit, and at once.
const REPLIES_PER_SECOND: f64 = 20.0;
const REPLIES_AT_ONCE: f64 = 20.0;

/// No circuit.
const NOBODY: u32 = u32::MAX;

/// The circuits of one exit.
#[derive(Debug)]
pub struct ExitTable {
    rules: Rules,
    /// By circuit key.
    circuits: Vec<Option<Box<Circuit>>>,
    /// Circuit keys by the number of their address in the pool.
    owners: Vec<u32>,
    sweep_at: Instant,
}

/// What holds for every circuit.
#[derive(Debug)]
struct Rules {
    policy: ExitPolicy,
    limits: ExitLimits,
    pool: AddressPool,
    hasher: foldhash::quality::RandomState,
    /// Where the seconds of connections count from.
    start: Instant,
}

/// One circuit's state; with nothing under way it has nothing on the heap but itself.
#[derive(Debug)]
struct Circuit {
    rewrite: Rewrite,
    reassembler: Reassembler,
    rate: Rate,
    connections: Connections,
    replies: Bucket,
    last_cell: Instant,
}

/// What is known of one circuit, for status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExitCircuit {
    /// Its addresses in the pool.
    pub address: PoolAddress,
    /// Its conversations, some perhaps ended not long ago.
    pub connections: usize,
    /// Bytes that it takes here.
    pub memory_bytes: usize,
}

impl ExitTable {
    /// An exit without circuits.
    pub fn new(policy: ExitPolicy, limits: ExitLimits, pool: AddressPool, now: Instant) -> Self {
        Self {
            rules: Rules {
                policy,
                limits,
                pool,
                hasher: foldhash::quality::RandomState::default(),
                start: now,
            },
            circuits: Vec::new(),
            owners: Vec::new(),
            sweep_at: now + SWEEP_EVERY,
        }
    }

    /// Gives a circuit its addresses; one that has them keeps them.
    ///
    /// # Errors
    ///
    /// `Exhausted` when the pool has none left.
    pub fn attach(&mut self, key: CircuitKey, now: Instant) -> Result<PoolAddress, PoolError> {
        if let Some(circuit) = self.circuit(key) {
            return Ok(circuit.rewrite.pool_address());
        }
        let address = self.rules.pool.lease(now)?;
        if self.circuits.len() <= key.index() {
            self.circuits.resize_with(key.index() + 1, || None);
        }
        self.circuits[key.index()] = Some(Box::new(Circuit {
            rewrite: Rewrite::new(address),
            reassembler: Reassembler::new(),
            rate: Rate::new(now),
            connections: Connections::default(),
            replies: Bucket::new(now),
            last_cell: now,
        }));
        self.set_owner(address, key.0);
        Ok(address)
    }

    /// Forgets a circuit; its addresses come out of [`ExitTable::poll_released`]. Returns whether
    /// there was one.
    pub fn detach(&mut self, key: CircuitKey) -> bool {
        let Some(circuit) = self.circuits.get_mut(key.index()).and_then(Option::take) else {
            return false;
        };
        let address = circuit.rewrite.pool_address();
        self.set_owner(address, NOBODY);
        self.rules.pool.release(address);
        true
    }

    /// The next address that a circuit gave back: flush its connection tracking at once. It is
    /// used again only after this, and a rest.
    pub fn poll_released(&mut self, now: Instant) -> Option<PoolAddress> {
        self.rules.pool.poll_released(now)
    }

    /// How many circuits there are.
    pub fn len(&self) -> usize {
        self.rules.pool.in_use() as usize
    }

    /// Conversations of all circuits, some perhaps ended not long ago.
    pub fn connections(&self) -> usize {
        self.circuits.iter().flatten().map(|circuit| circuit.connections.len()).sum()
    }

    /// What one circuit may use.
    pub const fn limits(&self) -> &ExitLimits {
        &self.rules.limits
    }

    /// Whether there is no circuit.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pool, for the addresses of the device.
    pub fn pool(&self) -> &AddressPool {
        &self.rules.pool
    }

    /// What is known of a circuit.
    pub fn info(&self, key: CircuitKey) -> Option<ExitCircuit> {
        let circuit = self.circuit(key)?;
        Some(ExitCircuit {
            address: circuit.rewrite.pool_address(),
            connections: circuit.connections.len(),
            memory_bytes: size_of::<Circuit>()
                + circuit.reassembler.heap_bytes()
                + circuit.connections.heap_bytes(),
        })
    }

    /// Takes in cell `seq` of a circuit: its body if it carries data, none otherwise. What may
    /// leave is appended to `device` with the circuit's pool address as source, ICMP errors for
    /// the client to `replies`; the rest is counted in `drops`.
    #[expect(
        clippy::too_many_arguments,
        reason = "two batches and the counters belong to the shell"
    )]
    pub fn outbound(
        &mut self,
        now: Instant,
        key: CircuitKey,
        seq: u32,
        body: Option<&[u8; BODY_LEN]>,
        device: &mut PacketBatch,
        replies: &mut PacketBatch,
        drops: &mut DropCounters,
    ) {
        let rules = &self.rules;
        let Some(circuit) = self.circuits.get_mut(key.index()).and_then(Option::as_deref_mut)
        else {
            if body.is_some() {
                drops.count(DropReason::NotAnExit);
            }
            return;
        };
        circuit.last_cell = now;
        let before = device.len();
        circuit.reassembler.push(seq, body, device, drops);
        device.retain_from(before, |packet| {
            let headers = Headers::parse(packet);
            let result = headers.and_then(|headers| circuit.judge(now, rules, packet, &headers));
            if let Err(reason) = result {
                drops.count(reason);
                if let Ok(headers) = headers
                    && is_answered(reason)
                    && circuit.replies.take(now, REPLIES_PER_SECOND, REPLIES_AT_ONCE, 1.0)
                {
                    unreachable(packet, &headers, replies);
                }
            }
            result.is_ok()
        });
    }

    /// Finds the circuit of a packet of the device by its destination, which becomes the client's
    /// inner address.
    ///
    /// # Errors
    ///
    /// Why the packet is dropped.
    pub fn inbound(&self, packet: &mut [u8]) -> Result<CircuitKey, DropReason> {
        let headers = Headers::parse(packet)?;
        let destination = headers.destination(packet);
        let key = self
            .rules
            .pool
            .number(destination)
            .and_then(|number| self.owners.get(number as usize).copied())
            .map(CircuitKey)
            .ok_or(DropReason::NoSuchPoolAddress)?;
        let circuit = self.circuit(key).ok_or(DropReason::NoSuchPoolAddress)?;
        let source = headers.source(packet);
        if self.rules.pool.contains(source) {
            // The kernel's own errors come from the device's address.
            let device = self.rules.pool.device_address();
            if source != device.v4 && source != device.v6 {
                return Err(DropReason::PoolToPool);
            }
        }
        if quotes_another(packet, &headers, destination) {
            return Err(DropReason::BadInnerPacket);
        }
        circuit.rewrite.inbound(packet, &headers);
        Ok(key)
    }

    /// When [`ExitTable::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        (!self.is_empty()).then_some(self.sweep_at)
    }

    /// Frees what silent circuits hold.
    pub fn handle_timeout(&mut self, now: Instant, drops: &mut DropCounters) {
        if now < self.sweep_at {
            return;
        }
        self.sweep_at = now + SWEEP_EVERY;
        let now_s = self.rules.seconds(now);
        for circuit in self.circuits.iter_mut().flatten() {
            circuit.connections.sweep(now_s);
            if circuit.last_cell + SILENT <= now {
                circuit.reassembler.forget(drops);
            }
        }
    }

    fn circuit(&self, key: CircuitKey) -> Option<&Circuit> {
        self.circuits.get(key.index())?.as_deref()
    }

    fn set_owner(&mut self, address: PoolAddress, key: u32) {
        let Some(number) = self.rules.pool.number(address.v4.into()) else { return };
        let number = number as usize;
        if self.owners.len() <= number {
            self.owners.resize(number + 1, NOBODY);
        }
        self.owners[number] = key;
    }
}

impl Circuit {
    /// Lets a packet out, rewritten, or says why not.
    fn judge(
        &mut self,
        now: Instant,
        rules: &Rules,
        packet: &mut [u8],
        headers: &Headers,
    ) -> Result<(), DropReason> {
        self.rewrite.check_source(packet, headers)?;
        let asks_resolver = policy::asks_resolver(packet, headers);
        if !asks_resolver {
            policy::check(&rules.policy, &rules.pool, packet, headers)?;
        }
        self.rate.admit(now, &rules.limits, packet.len())?;
        if asks_resolver && headers.protocol == protocol::UDP {
            // Each question comes from a port of its own; the resolver has a limit of its own.
            self.rewrite.outbound(packet, headers);
            return Ok(());
        }
        let flow = PacketFlow::of(packet, headers);
        if let Some(key) = flow.flow {
            let hash = rules.hasher.hash_one(key);
            let (now_s, most) = (rules.seconds(now), rules.limits.connections);
            self.connections.admit(now_s, most, hash, flow.protocol, flow.tcp_flags)?;
        }
        self.rewrite.outbound(packet, headers);
        Ok(())
    }
}

/// Whether the client is told.
fn is_answered(reason: DropReason) -> bool {
    use DropReason::{ExitConnections, ExitPolicy, PoolToPool};
    matches!(reason, ExitPolicy | PoolToPool | ExitConnections)
}

impl Rules {
    fn seconds(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.start).as_secs() as u32
    }
}

#[cfg(test)]
mod tests;
