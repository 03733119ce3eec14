//! Which circuits there are: built when wanted, installed, replaced.
//!
//! In: events of the circuits, the pool's wishes. Out: changes of the table, cells.
//! Called by: the client's turn.

use std::time::{Duration, Instant};

use rand::Rng;

use super::Client;
use crate::{
    circuit::{ClientEvent, CloseReason},
    directory::{PathRules, choose_path},
    model::{CELL_LEN, Carrier, CircuitKey, DestroyReason, Hop, HttpPeer, NodeId},
    wire::PairMessage,
};

/// How long a node that failed is left out of new paths.
const AVOID_FOR: Duration = Duration::from_secs(60);

impl Client {
    /// Builds as many circuits as the pool wants.
    pub(super) fn build_wanted(&mut self, now: Instant) {
        self.avoided.retain(|(_, until)| *until > now);
        while self.pool.wants_circuit(now) {
            let built = self.choose_path().and_then(|path| {
                self.circuits.build(now, path, &mut self.rng).map_err(|error| error.to_string())
            });
            match built {
                Ok(key) => {
                    self.pool.on_building(now, key);
                    self.numbers.push((key, self.next_number));
                    self.next_number += 1;
                }
                Err(reason) => {
                    if self.reason.as_ref() != Some(&reason) {
                        log::warn!(event = "no_path"; "no circuit can be built: {reason}");
                    }
                    self.reason = Some(reason);
                    self.pool.on_no_path(now);
                }
            }
        }
    }

    /// A path by the rules. Nodes that failed of late are left out as long as the others suffice.
    fn choose_path(&mut self) -> Result<Vec<Hop>, String> {
        let directory =
            self.directory.clone().ok_or_else(|| "waiting for the directory".to_owned())?;
        directory.check_time(jiff::Timestamp::now()).map_err(|error| error.to_string())?;
        let fixed = if self.wish.fixed.is_empty() {
            None
        } else {
            let find = |name: &String| {
                directory
                    .find(name)
                    .map(|member| member.hop(None).id)
                    .ok_or_else(|| format!("expected a live node named {name:?}, got none"))
            };
            Some(self.wish.fixed.iter().map(find).collect::<Result<Vec<_>, _>>()?)
        };
        let avoided: Vec<NodeId> = self.avoided.iter().map(|(id, _)| *id).collect();
        // A pinned guard that is gone or failed of late is stood in for, not replaced.
        let guard = self.guard.filter(|id| !avoided.contains(id) && directory.get(id).is_some());
        let rules = PathRules {
            hops: self.wish.hops,
            guard,
            exclude: &avoided,
            lab: self.wish.lab,
            fixed,
            suite: self.wish.suite,
            target: None,
        };
        choose_path(&directory, &rules, &mut self.rng)
            .or_else(|_| {
                choose_path(&directory, &PathRules { exclude: &[], ..rules }, &mut self.rng)
            })
            .map(|path| self.over_carrier(path))
            .map_err(|error| error.to_string())
    }

    /// The path with a guard that is reached by the carrier of the settings.
    fn over_carrier(&self, mut path: Vec<Hop>) -> Vec<Hop> {
        if self.wish.carrier == Carrier::Http
            && let Some(guard) = path.first_mut()
        {
            guard.addr = HttpPeer::member(&guard.id).addr();
        }
        path
    }

    /// Carries out every event, then sends what they wrote.
    pub(super) fn act(&mut self, now: Instant) {
        while let Some(event) = self.circuits.poll_event() {
            self.act_on(now, event);
        }
        self.link.flush(&mut self.outbox);
    }

    fn act_on(&mut self, now: Instant, event: ClientEvent) {
        match event {
            ClientEvent::Send { to, cell } => self.link.send(to, cell.as_slice()),
            ClientEvent::Open { key, cid, guard, pair } => {
                self.table.open(now, key, cid, guard, &pair, &mut self.rng);
            }
            ClientEvent::AddHop { key, keys } => {
                self.table.add_hop(key, &keys, &mut self.rng);
                if let Some(share) = &mut self.share {
                    share.on_hop(key, &keys);
                }
            }
            ClientEvent::SendBody { key, hop, body } => {
                let sent = self.table.send_body(
                    key,
                    hop,
                    |out| *out = *body,
                    &mut self.outbox,
                    &mut self.rng,
                );
                if let Err(reason) = sent {
                    self.link.drops.count(reason);
                }
            }
            ClientEvent::Ready { key, took } => self.on_ready(now, key, took),
            ClientEvent::Echo { key, hop, rtt } => self.on_echo(key, hop, rtt),
            ClientEvent::Closed { key, path, reason, tell } => {
                self.avoid_failed(now, &path, &reason);
                self.on_closed(now, key, &reason, tell);
            }
        }
    }

    fn on_ready(&mut self, now: Instant, key: CircuitKey, took: Duration) {
        let number = self.number(key);
        log::info!(
            circuit = number, event = "ready";
            "circuit {number} is ready, built in {:.1} ms", took.as_secs_f64() * 1e3
        );
        self.reason = None;
        self.pool.on_ready(now, key, &mut self.rng);
        if let Some(share) = &self.share
            && let Some(last) = self.circuits.get(key).and_then(|row| row.path().last())
        {
            share.on_ready(key, number, last.id);
        }
        if self.guard.is_none()
            && self.wish.fixed.is_empty()
            && let Some(first) = self.circuits.get(key).and_then(|row| row.path().first())
        {
            self.guard = Some(first.id);
            (self.on_guard)(first);
        }
    }

    fn on_closed(&mut self, now: Instant, key: CircuitKey, reason: &CloseReason, tell: bool) {
        let number = self.number(key);
        log::info!(circuit = number, event = "closed"; "circuit {number}: {reason}");
        if tell {
            let mut cell = [0; CELL_LEN];
            self.rng.fill_bytes(&mut cell);
            let message = PairMessage::Destroy(DestroyReason::Finished);
            if let Some(to) = self.table.neighbour_cell(key, message, &mut cell) {
                self.link.send(to, &cell);
            }
        }
        self.table.remove(key);
        self.flows.forget_circuit(key);
        self.end_traces_of(key);
        if let Some(share) = &mut self.share {
            share.on_closed(key);
        }
        self.pool.on_closed(now, key, &mut self.rng);
        self.numbers.retain(|(known, _)| *known != key);
        if self.pool.active().is_none() {
            self.reason = Some(reason.to_string());
        }
    }

    fn avoid_failed(&mut self, now: Instant, path: &[Hop], reason: &CloseReason) {
        let hop = match reason {
            CloseReason::NoAnswer { hop }
            | CloseReason::Refused { hop, .. }
            | CloseReason::Handshake { hop, .. }
            | CloseReason::Silent { hop } => *hop,
            CloseReason::Asked | CloseReason::Destroyed(_) => return,
        };
        if let Some(failed) = path.get(hop) {
            self.avoided.retain(|(id, _)| *id != failed.id);
            self.avoided.push((failed.id, now + AVOID_FOR));
        }
    }

    /// The number people know a circuit by.
    pub(super) fn number(&self, key: CircuitKey) -> u32 {
        self.numbers.iter().find(|(known, _)| *known == key).map_or(0, |(_, number)| *number)
    }
}
