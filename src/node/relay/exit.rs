//! The exit: inner packets out of the device, packets from outside back into cells.
//!
//! In: data bodies, packets of the device. Out: packets to the device, cells to clients.
//! Called by: the node's turn.

use std::{os::fd::RawFd, time::Instant};

use super::{
    super::device_queue::{self, DeviceQueue},
    CELLS_PER_TURN, Relay,
};
use crate::{
    capture::{PacketDevice, nat::ExitNat},
    forward::exit::ExitTable,
    model::{BODY_LEN, CircuitKey, DropReason, PacketBatch},
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

/// An exit's device, its addresses and its rules.
pub(crate) struct Exit {
    device: Box<dyn PacketDevice>,
    table: ExitTable,
    nat: ExitNat,
    interface: String,
    policy: String,
    /// Packets to the device.
    out: PacketBatch,
    /// Refusals to the client whose packet was just handled.
    refusals: PacketBatch,
    /// Packets from the device, by circuit.
    back: DeviceQueue,
}

impl Exit {
    /// An exit on a device whose kernel side is ready.
    pub(crate) fn new(
        device: Box<dyn PacketDevice>,
        table: ExitTable,
        nat: ExitNat,
        interface: String,
        policy: String,
    ) -> Self {
        Self {
            device,
            table,
            nat,
            interface,
            policy,
            out: PacketBatch::default(),
            refusals: PacketBatch::default(),
            back: DeviceQueue::default(),
        }
    }

    pub(super) fn raw_fd(&self) -> RawFd {
        self.device.raw_fd()
    }

    /// Whether packets of the device wait for their turn.
    pub(super) fn has_waiting(&self) -> bool {
        !self.back.is_empty()
    }

    pub(super) fn status(&self) -> ExitStatus {
        ExitStatus {
            interface: self.interface.clone(),
            policy: self.policy.clone(),
            circuits: self.table.len(),
            connections: self.table.connections(),
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
        self.table.finish(&mut self.outbox, &mut self.rng);
        self.link.flush(&mut self.outbox);
        let Some(exit) = &mut self.exit else { return };
        if exit.out.is_empty() {
            return;
        }
        self.link.traffic.bytes_up += exit.out.byte_len() as u64;
        let taken = exit.device.send(&exit.out).unwrap_or_else(|error| {
            log::debug!("the exit's device refuses packets: {error}");
            0
        });
        (taken..exit.out.len()).for_each(|_| self.link.drops.count(DropReason::DeviceError));
        exit.out.clear();
    }

    /// Packets from outside, back into the cells of their circuits.
    pub(super) fn read_device(&mut self, now: Instant) {
        let Some(exit) = &mut self.exit else { return };
        let Exit { device, back, .. } = exit;
        back.fill(
            now,
            &mut **device,
            &mut self.reactor.device_ready,
            &mut self.link.drops,
            destination_of,
        );
        while self.outbox.len() < CELLS_PER_TURN
            && let Some(mut batch) = exit.back.pop(now, &mut self.link.drops)
        {
            for packet in batch.iter_mut() {
                let sent = exit.table.inbound(packet).and_then(|circuit| {
                    self.link.traffic.packets_down += 1;
                    self.link.traffic.bytes_down += packet.len() as u64;
                    self.table.send_packet(circuit, packet, &mut self.outbox)
                });
                if let Err(reason) = sent {
                    self.link.drops.count(reason);
                }
            }
            exit.back.give_back(batch);
        }
        self.table.finish(&mut self.outbox, &mut self.rng);
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
                    if let Err(error) = exit.nat.forget(address) {
                        log::warn!("connections of a closed circuit stay tracked: {error}");
                    }
                }
            }
        }
    }
}
