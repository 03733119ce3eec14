//! What the circuits ask for, carried out in order.
//!
//! In: events of the circuits. Out: changes of the tables, cells. Called by: the node's turn.

use std::time::Instant;

use rand::Rng;

use super::Relay;
use crate::{
    circuit::NodeEvent,
    model::{CELL_LEN, DropReason},
    wire::body_mut,
};

impl Relay {
    /// Carries out every event, then sends what they wrote.
    pub(super) fn act(&mut self, now: Instant) {
        while let Some(event) = self.circuits.poll_event() {
            self.act_on(now, event);
        }
        self.link.flush(&mut self.outbox);
    }

    fn act_on(&mut self, now: Instant, event: NodeEvent) {
        match event {
            NodeEvent::Handshake(job) => {
                let cid = job.cid;
                if !self.handshakes.push(job, &self.onion_keys) {
                    self.circuits.forget_handshake(cid);
                    self.link.drops.count(DropReason::CreateOverload);
                }
            }
            NodeEvent::Install { key, from, cid, keys } => {
                self.table.install(now, key, from, cid, &keys, &mut self.rng);
                self.bridges.on_circuit(key, &keys.hop);
                log::debug!(circuit = key.0, event = "opened"; "circuit {key} opened");
            }
            NodeEvent::Extend { key, addr, cid, pair } => {
                self.table.extend(key, addr, cid, &pair);
                log::debug!(circuit = key.0, event = "extended"; "circuit {key} extended");
            }
            NodeEvent::Send { to, cell } => self.link.send(to, cell.as_slice()),
            NodeEvent::Answer { key, body } => {
                let mut cell = [0; CELL_LEN];
                *body_mut(&mut cell) = *body;
                match self.table.originate(key, &mut cell, &mut self.rng) {
                    Ok(to) => self.link.send(to, &cell),
                    Err(reason) => self.link.drops.count(reason),
                }
            }
            NodeEvent::Neighbour { key, direction, message } => {
                let mut cell = [0; CELL_LEN];
                self.rng.fill_bytes(&mut cell);
                if let Some(to) = self.table.neighbour_cell(key, direction, message, &mut cell) {
                    self.link.send(to, &cell);
                }
            }
            NodeEvent::Remove { key, reason } => {
                self.detach_exit(key);
                self.bridges.on_circuit_gone(key);
                self.table.remove(key);
                log::debug!(
                    circuit = key.0, event = "closed";
                    "circuit {key} closed: {}", reason.words()
                );
            }
        }
    }
}
