//! The exit: inner packets out of the device, packets from outside back into cells.
//!
//! In: data bodies, packets of the device. Out: packets to the device, cells to clients.
//! Called by: the node's turn.

use std::{os::fd::RawFd, sync::Arc, time::Instant};

use super::{
    super::{
        device_queue::{self, DeviceQueue},
        link::Link,
    },
    CELLS_PER_TURN, Relay,
};
use crate::{
    capture::{PacketDevice, nat::ExitNat},
    exit::Service,
    forward::{Outbox, RelayTable, exit::ExitTable, flow::PacketFlow},
    model::{BODY_LEN, CircuitKey, DropReason, EXIT_INNER_V4, EXIT_INNER_V6, PacketBatch},
    stack::GroupedPackets,
    telemetry::ExitStatus,
};

/// Where a packet goes, which names its circuit.
fn destination_of(packet: &[u8]) -> [u8; 16] {
    let mut destination = [0; 16];
    let bytes = match packet.first().map(|first| first >> 4) {
        Some(4) => packet.get(16..20),
        _ => packet.get(24..40),
    };
    if let Some(bytes) = bytes {
        destination[..bytes.len()].copy_from_slice(bytes);
    }
    destination
}

/// Packets from outside, into the cells of the circuits they are for.
fn send_back(
    packets: &mut PacketBatch,
    exits: &mut ExitTable,
    table: &mut RelayTable,
    outbox: &mut Outbox,
    link: &mut Link,
) {
    for packet in packets.iter_mut() {
        let sent = exits.inbound(packet).and_then(|circuit| {
            link.traffic.packets_down += 1;
            link.traffic.bytes_down += packet.len() as u64;
            table.send_packet(circuit, packet, outbox)
        });
        if let Err(reason) = sent {
            link.drops.count(reason);
        }
    }
}

/// The kernel's side of an exit.
pub(crate) struct KernelExit {
    pub(crate) device: Box<dyn PacketDevice>,
    pub(crate) nat: ExitNat,
}

/// An exit's way out, its addresses and its rules.
pub(crate) struct Exit {
    /// None: everything leaves by the service's sockets.
    kernel: Option<KernelExit>,
    /// The resolver; without the kernel everything.
    service: Service,
    table: ExitTable,
    interface: String,
    policy: String,
    /// Packets to the device.
    out: PacketBatch,
    /// Refusals to the client whose packet was just handled.
    refusals: PacketBatch,
    /// Packets from the device, by circuit.
    back: DeviceQueue,
    /// Packets to the service, and from it.
    to_service: PacketBatch,
    from_service: GroupedPackets,
}

impl Exit {
    /// An exit whose kernel side, if it has one, is ready.
    pub(crate) fn new(
        kernel: Option<KernelExit>,
        service: Service,
        table: ExitTable,
        interface: String,
        policy: String,
    ) -> Self {
        Self {
            kernel,
            service,
            table,
            interface,
            policy,
            out: PacketBatch::default(),
            refusals: PacketBatch::default(),
            back: DeviceQueue::default(),
            to_service: PacketBatch::default(),
            from_service: GroupedPackets::default(),
        }
    }

    pub(super) fn raw_fd(&self) -> Option<RawFd> {
        self.kernel.as_ref().map(|kernel| kernel.device.raw_fd())
    }

    pub(super) fn set_waker(&self, waker: Arc<mio::Waker>) {
        self.service.set_waker(waker);
    }

    /// Takes out of `out` what is for the service, and says how much of it was lost.
    fn give_service(&mut self) -> usize {
        let batch = &mut self.to_service;
        if self.kernel.is_none() {
            std::mem::swap(batch, &mut self.out);
        } else {
            self.out.retain_from(0, |packet| {
                let is_own = is_for_exit(packet);
                if is_own {
                    batch.push(&[packet]);
                }
                !is_own
            });
        }
        let lost = batch.len() - self.service.give(batch);
        batch.clear();
        lost
    }

    /// Whether packets of the device wait for their turn.
    pub(super) fn has_waiting(&self) -> bool {
        !self.back.is_empty()
    }

    pub(super) fn status(&self) -> ExitStatus {
        let limits = self.table.limits();
        ExitStatus {
            interface: self.interface.clone(),
            policy: self.policy.clone(),
            circuits: self.table.len(),
            connections: self.table.connections(),
            circuit_connections: limits.connections,
            circuit_packet_rate: limits.packets_per_second,
            circuit_byte_rate: limits.bytes_per_second,
        }
    }
}

impl Relay {
    /// A data body of a circuit that ends here.
    pub(super) fn exit_data(
        &mut self,
        now: Instant,
        circuit: CircuitKey,
        (seq, marked): (u32, bool),
        body: &[u8; BODY_LEN],
    ) -> Result<(), DropReason> {
        let exit = self.exit.as_mut().ok_or(DropReason::NotAnExit)?;
        exit.table.attach(circuit, now).map_err(|_| DropReason::ExitConnections)?;
        let before = exit.out.len();
        exit.table.outbound(
            now,
            circuit,
            seq,
            Some(body),
            &mut exit.out,
            &mut exit.refusals,
            &mut self.link.drops,
        );
        if marked {
            device_queue::tell(&mut exit.out, before, &mut self.link.drops);
        }
        self.link.traffic.packets_up += (exit.out.len() - before) as u64;
        let mut refused = Ok(());
        for packet in exit.refusals.iter() {
            refused = refused.and(self.table.send_packet(circuit, packet, &mut self.outbox));
        }
        exit.refusals.clear();
        refused
    }

    /// A cell of a circuit that was not data: its number is no gap in the stream.
    pub(super) fn skip_at_exit(&mut self, circuit: CircuitKey, seq: u32) {
        if let Some(exit) = &mut self.exit {
            exit.table.outbound(
                Instant::now(),
                circuit,
                seq,
                None,
                &mut exit.out,
                &mut exit.refusals,
                &mut self.link.drops,
            );
        }
    }

    /// Writes what the last cells brought to the device.
    pub(super) fn write_device(&mut self) {
        self.table.finish(&mut self.outbox, &mut self.rng, &self.crew);
        self.link.flush(&mut self.outbox);
        let Some(exit) = &mut self.exit else { return };
        if exit.out.is_empty() {
            return;
        }
        self.link.traffic.bytes_up += exit.out.byte_len() as u64;
        let lost = exit.give_service();
        (0..lost).for_each(|_| self.link.drops.count(DropReason::QueueFull));
        let Some(kernel) = exit.kernel.as_mut().filter(|_| !exit.out.is_empty()) else { return };
        let taken = kernel.device.send(&exit.out).unwrap_or_else(|error| {
            log::debug!("the exit's device refuses packets: {error}");
            0
        });
        (taken..exit.out.len()).for_each(|_| self.link.drops.count(DropReason::DeviceError));
        exit.out.clear();
    }

    /// Packets from outside, back into the cells of their circuits.
    pub(super) fn read_device(&mut self, now: Instant) {
        let Some(exit) = &mut self.exit else { return };
        let Exit { kernel: Some(kernel), back, .. } = exit else { return };
        back.fill(
            now,
            &mut *kernel.device,
            &mut self.reactor.device_ready,
            &mut self.link.drops,
            |packet| (destination_of(packet), PacketFlow::queue_key(packet)),
        );
        while self.outbox.len() < CELLS_PER_TURN
            && let Some(mut batch) = exit.back.pop(now, &mut self.link.drops)
        {
            let (table, outbox, link) = (&mut self.table, &mut self.outbox, &mut self.link);
            send_back(&mut batch, &mut exit.table, table, outbox, link);
            exit.back.give_back(batch);
        }
        self.table.finish(&mut self.outbox, &mut self.rng, &self.crew);
        self.link.flush(&mut self.outbox);
    }

    /// Packets of the exit's own service, into the cells of their circuits.
    pub(super) fn read_service(&mut self) {
        let Some(exit) = &mut self.exit else { return };
        exit.from_service.clear();
        exit.service.take(&mut exit.from_service);
        if exit.from_service.packets.is_empty() {
            return;
        }
        let (table, outbox, link) = (&mut self.table, &mut self.outbox, &mut self.link);
        send_back(&mut exit.from_service.packets, &mut exit.table, table, outbox, link);
        self.table.finish(&mut self.outbox, &mut self.rng, &self.crew);
        self.link.flush(&mut self.outbox);
    }

    pub(super) fn detach_exit(&mut self, circuit: CircuitKey) {
        if let Some(exit) = &mut self.exit {
            exit.table.detach(circuit);
        }
    }

    /// Frees what silent circuits hold, and has the kernel forget the addresses that came back.
    pub(super) fn tick_exit(&mut self, now: Instant) {
        if let Some(exit) = &mut self.exit {
            exit.table.handle_timeout(now, &mut self.link.drops);
            while let Some(address) = exit.table.poll_released(now) {
                for address in [address.v4.into(), address.v6.into()] {
                    if !exit.service.forget(address) {
                        log::debug!("the exit's service is busy; connections end by themselves");
                    }
                    let Some(kernel) = &exit.kernel else { continue };
                    if let Err(error) = kernel.nat.forget(address) {
                        log::warn!(event = "conntrack"; "connections of a closed circuit stay tracked: {error}");
                    }
                }
            }
        }
    }
}

/// Whether the policy let a packet through because it is for the exit itself.
fn is_for_exit(packet: &[u8]) -> bool {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => packet.get(16..20) == Some(&EXIT_INNER_V4.octets()),
        Some(6) => packet.get(24..40) == Some(&EXIT_INNER_V6.octets()),
        _ => false,
    }
}
