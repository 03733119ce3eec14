//! Packets of this machine into cells, cells of guards into packets.
//!
//! In: packets of the TUN and of the proxies' stack, the socket's cells.
//! Out: cells to guards, packets to the TUN or the stack, whoever owns the flow.
//! Called by: the client's turn.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{super::device_queue, CELLS_PER_TURN, Client, READS_PER_TURN};
use crate::{
    capture::udp::RecvBatch,
    circuit::Group,
    forward::{
        ClientVerdict, ecn,
        flow::{FlowOwner, PacketFlow},
        inside::Slot,
        ip::Headers,
    },
    model::{
        BodyKind, CELL_LEN, CLIENT_INNER_V4, CLIENT_INNER_V6, CircuitKey, Crew, DropReason,
        EXIT_INNER_V4, EXIT_INNER_V6, PacketBatch,
    },
    stack::GroupedPackets,
    wire::BodyHeader,
};

impl Client {
    /// Every packet of the device into the cells of its flow's circuit, which are then sent.
    pub(super) fn read_device(&mut self, now: Instant) {
        let Some(device) = &mut self.device else { return };
        let (ready, drops) = (&mut self.reactor.device_ready, &mut self.link.drops);
        self.from_device
            .fill(now, &mut **device, ready, drops, |packet| (PacketFlow::queue_key(packet), ()));
        while self.outbox.len() < CELLS_PER_TURN
            && let Some(mut batch) = self.from_device.pop(now, &mut self.link.drops)
        {
            self.send_packets(now, &mut batch);
            self.from_device.give_back(batch);
        }
        self.table.finish(&mut self.outbox, &mut self.rng, &self.crew);
        self.link.flush(&mut self.outbox);
    }

    /// Everything that the stack sent, into the cells of its flows' circuits.
    pub(super) fn read_stack(&mut self, now: Instant) {
        let Some(stack) = &self.stack else { return };
        self.from_stack.clear();
        stack.take(&mut self.from_stack);
        let GroupedPackets { packets, groups } = &self.from_stack;
        for (packet, group) in packets.iter().zip(groups) {
            let (isolation, pool, rng) = (&mut self.isolation, &mut self.pool, &mut self.rng);
            let (targets, directory) = (&mut self.targets, self.directory.as_deref());
            let choose = || {
                if *group != 0 || is_for_exit(packet) {
                    return isolation.choose(now, Group::of_login(*group), pool, rng);
                }
                let packet = (packet, Slot::SHARED);
                targets.choose(now, packet, pool.active(), pool.spare(), directory)
            };
            let sent = self
                .flows
                .route_as(now, packet, FlowOwner::Stack, choose)
                .and_then(|circuit| self.table.send_packet(circuit, packet, &mut self.outbox));
            match sent {
                Ok(()) => {
                    self.link.traffic.packets_up += 1;
                    self.link.traffic.bytes_up += packet.len() as u64;
                }
                Err(reason) => self.link.drops.count(reason),
            }
        }
        self.table.finish(&mut self.outbox, &mut self.rng, &self.crew);
        self.link.flush(&mut self.outbox);
    }

    fn send_packets(&mut self, now: Instant, batch: &mut PacketBatch) {
        for packet in batch.iter_mut() {
            let sent = self
                .take_in(now, packet)
                .and_then(|circuit| self.table.send_packet(circuit, packet, &mut self.outbox));
            match sent {
                Ok(()) => {
                    self.link.traffic.packets_up += 1;
                    self.link.traffic.bytes_up += packet.len() as u64;
                }
                Err(DropReason::NoCircuit) if self.targets.hold(now, packet) => {}
                Err(reason) => self.link.drops.count(reason),
            }
        }
    }

    /// The circuit of a packet of the TUN, which then looks like one of this client: only packets
    /// from its inner addresses, or those of its devices, enter a circuit.
    fn take_in(&mut self, now: Instant, packet: &mut [u8]) -> Result<CircuitKey, DropReason> {
        let slot = Slot::of_source(packet)?;
        let (isolation, pool, rng) = (&mut self.isolation, &mut self.pool, &mut self.rng);
        let (targets, directory) = (&mut self.targets, self.directory.as_deref());
        let choose = || {
            let (own, spare) = if slot == Slot::SHARED {
                (pool.active(), pool.spare())
            } else {
                (isolation.choose(now, Group::Device(slot.number()), pool, rng), None)
            };
            targets.choose(now, (packet, slot), own, spare, directory)
        };
        let circuit = self.flows.route(now, packet, choose)?;
        self.inside.enter(slot, circuit, packet)?;
        Ok(circuit)
    }

    /// Packets that waited for a circuit, once one is there. Those that still find none wait on.
    pub(super) fn send_held(&mut self, now: Instant) {
        let (packets, late) = self.targets.take_held(now);
        (0..late).for_each(|_| self.link.drops.count(DropReason::NoCircuit));
        if packets.is_empty() {
            return;
        }
        let mut batch = PacketBatch::default();
        for packet in &packets {
            batch.push(&[packet.as_slice()]);
        }
        self.send_packets(now, &mut batch);
        self.table.finish(&mut self.outbox, &mut self.rng, &self.crew);
        self.link.flush(&mut self.outbox);
    }

    pub(super) fn read_socket(&mut self, now: Instant, batch: &mut RecvBatch) {
        for _ in 0..READS_PER_TURN {
            if !self.reactor.socket_ready {
                return;
            }
            match self.link.socket.recv(batch) {
                Ok(_) => {
                    for message in batch.messages_mut() {
                        let (from, way) = (message.from, (message.waited, message.ecn == ecn::MET));
                        let cells = self.link.cells_of(message);
                        self.handle_cells(now, from, way, cells);
                    }
                    self.write_device();
                    self.publish_bridges();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.reactor.socket_ready = false;
                }
                // An ICMP error of an earlier send, reported here; the next read goes on.
                Err(error) => log::trace!("socket: {error}"),
            }
        }
    }

    /// Cells that came over HTTP.
    pub(super) fn handle_http_cells(&mut self, now: Instant, from: SocketAddr, cells: &mut [u8]) {
        let (cells, _) = cells.as_chunks_mut();
        self.handle_cells(now, from, (Duration::ZERO, false), cells);
        self.write_device();
        self.publish_bridges();
    }

    /// Handles cells of one sender, given how long they waited and whether they came marked.
    fn handle_cells(
        &mut self,
        now: Instant,
        from: SocketAddr,
        way: (Duration, bool),
        cells: &mut [[u8; CELL_LEN]],
    ) {
        self.link.traffic.cells_in += cells.len() as u64;
        if !self.crew.shares(cells.len()) {
            for cell in cells {
                let verdict = self.table.handle_cell(now, from, cell, &mut self.body);
                self.act_on_verdict(now, way, verdict, cell);
            }
            return;
        }
        let mut opened = std::mem::take(&mut self.opened);
        self.table.handle_cells(now, from, cells, &mut opened, &self.crew);
        for (cell, opened) in cells.iter_mut().zip(&mut opened) {
            let verdict = opened.take_verdict();
            std::mem::swap(&mut self.body, &mut opened.body);
            self.act_on_verdict(now, way, verdict, cell);
        }
        self.opened = opened;
    }

    /// Does with one cell what its verdict says; its body, if it has one, lies in `self.body`.
    fn act_on_verdict(
        &mut self,
        now: Instant,
        (waited, marked): (Duration, bool),
        verdict: ClientVerdict,
        cell: &mut [u8; CELL_LEN],
    ) {
        let result = match verdict {
            ClientVerdict::Body { circuit, hop, seq, header } => {
                let marked = self.inbox.judge(now, waited, circuit) || marked;
                self.handle_body(now, circuit, hop, (seq, marked), header)
            }
            ClientVerdict::Neighbour { circuit, message } => {
                self.circuits.handle_neighbour(circuit, message);
                Ok(())
            }
            ClientVerdict::Unknown => self.circuits.handle_unknown(now, cell, &mut self.rng),
            ClientVerdict::Drop(reason) => Err(reason),
        };
        if let Err(reason) = result {
            self.link.drops.count(reason);
        }
    }

    fn handle_body(
        &mut self,
        now: Instant,
        circuit: CircuitKey,
        hop: usize,
        (seq, marked): (u32, bool),
        header: BodyHeader,
    ) -> Result<(), DropReason> {
        if header.kind == BodyKind::Bridge {
            return self.receive_bridge(circuit, hop);
        }
        if header.kind == BodyKind::Control && self.handle_share_control(circuit, hop) {
            return Ok(());
        }
        let row = self.circuits.get(circuit).ok_or(DropReason::UnknownCircuit)?;
        let is_data = header.kind == BodyKind::Data;
        if hop + 1 == row.path().len() {
            let body = is_data.then_some(&*self.body);
            let before = self.to_device.len();
            let drops = &mut self.link.drops;
            self.table.reassemble(circuit, seq, body, &mut self.to_device, drops);
            self.check_destinations(circuit, before);
            if marked {
                device_queue::tell(&mut self.to_device, before, &mut self.link.drops);
            }
        } else if is_data {
            return Err(DropReason::NotAnExit);
        }
        if is_data {
            return Ok(());
        }
        if header.kind == BodyKind::EchoReply && self.is_bench_reply(now, circuit, hop) {
            return Ok(());
        }
        self.circuits.handle_body(now, circuit, hop, header, &self.body, &mut self.rng)
    }

    /// Takes out what an exit addressed to anything but this client, and gives the rest the address
    /// of the device that the circuit serves.
    fn check_destinations(&mut self, circuit: CircuitKey, first: usize) {
        let (drops, inside) = (&mut self.link.drops, &self.inside);
        self.to_device.retain_from(first, |packet| {
            let result = if is_for_client(packet) {
                inside.leave(circuit, packet)
            } else {
                Err(DropReason::InnerSource)
            };
            result.inspect_err(|reason| drops.count(*reason)).is_ok()
        });
    }

    fn write_device(&mut self) {
        if self.to_device.is_empty() {
            return;
        }
        self.link.traffic.packets_down += self.to_device.len() as u64;
        self.link.traffic.bytes_down += self.to_device.byte_len() as u64;
        self.write_stack();
        let Some(device) = &mut self.device else { return self.to_device.clear() };
        if self.to_device.is_empty() {
            return;
        }
        let taken = device.send(&self.to_device).unwrap_or_else(|error| {
            log::debug!("the TUN refuses packets: {error}");
            0
        });
        (taken..self.to_device.len()).for_each(|_| self.link.drops.count(DropReason::DeviceError));
        self.to_device.clear();
    }

    /// Gives the stack what is for it: everything if there is no TUN, otherwise what its flows
    /// own.
    fn write_stack(&mut self) {
        let Some(stack) = &self.stack else { return };
        let (batch, flows) = (&mut self.to_stack, &self.flows);
        if self.device.is_none() {
            std::mem::swap(batch, &mut self.to_device);
        } else {
            self.to_device.retain_from(0, |packet| {
                let is_stacks = flows.owner_of_answer(packet) == FlowOwner::Stack;
                if is_stacks {
                    batch.push(&[packet]);
                }
                !is_stacks
            });
        }
        let taken = stack.give(batch);
        (taken..batch.len()).for_each(|_| self.link.drops.count(DropReason::QueueFull));
        batch.clear();
    }
}

/// Whether a packet of the stack asks the exit itself, whichever it is.
fn is_for_exit(packet: &[u8]) -> bool {
    Headers::parse(packet).is_ok_and(|headers| {
        let to = headers.destination(packet);
        to == EXIT_INNER_V4 || to == EXIT_INNER_V6
    })
}

fn is_for_client(packet: &[u8]) -> bool {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => packet.get(16..20) == Some(&CLIENT_INNER_V4.octets()),
        Some(6) => packet.get(24..40) == Some(&CLIENT_INNER_V6.octets()),
        _ => false,
    }
}
