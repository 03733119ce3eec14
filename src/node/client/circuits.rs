//! Which circuits there are: built when wanted, installed, replaced.
//!
//! In: events of the circuits, the pool's wishes. Out: changes of the table, cells.
//! Called by: the client's turn.

use std::time::{Duration, Instant};

use rand::Rng;

use super::{
    Client,
    commands::Reply,
    targets::{Target, Wish},
};
use crate::{
    circuit::{ClientEvent, CloseReason},
    directory::{Directory, PathError, PathRules},
    model::{CELL_LEN, Carrier, CircuitKey, DestroyReason, Hop, HttpPeer, NodeId},
    telemetry::{
        CircuitInfo,
        control::{Refusal, RefusalKind},
    },
    wire::PairMessage,
};

/// How long a node that failed is left out of new paths.
const AVOID_FOR: Duration = Duration::from_secs(60);

impl Client {
    /// Builds as many circuits as the pool wants, and one for a destination that needs its own.
    pub(super) fn build_wanted(&mut self, now: Instant) {
        self.avoided.retain(|(_, until)| *until > now);
        while self.pool.wants_circuit(now) {
            match self.build(now, None) {
                Ok(key) => self.pool.on_building(now, key),
                Err(reason) => {
                    if self.reason.as_ref() != Some(&reason) {
                        log::warn!(event = "no_path"; "no circuit can be built: {reason}");
                    }
                    self.reason = Some(reason);
                    self.pool.on_no_path(now);
                }
            }
        }
        if let Some(wish) = self.targets.take_wish()
            && let Err(reason) = self.build(now, Some(wish))
        {
            log::debug!("no circuit for a port of its own: {reason}");
        }
    }

    /// Builds a circuit that somebody asked for; they are answered when it is ready or failed.
    pub(super) fn build_asked(&mut self, now: Instant, reply: Reply<CircuitInfo>) {
        match self.build(now, None) {
            Ok(key) => {
                self.pool.on_building(now, key);
                self.asked.push((key, reply));
            }
            // Whoever asked may be gone; here and below.
            Err(reason) => drop(reply.send(Err(Refusal::new(RefusalKind::Failed, reason)))),
        }
    }

    fn build(&mut self, now: Instant, wish: Option<Wish>) -> Result<CircuitKey, String> {
        let directory =
            self.directory.clone().ok_or_else(|| "waiting for the directory".to_owned())?;
        let path = self.choose_path(&directory, wish.map(|wish| wish.target))?;
        if self.guard.is_none() {
            self.trial_guard = path.first().map(|hop| hop.id);
        }
        let exit = path.last().and_then(|hop| directory.get(&hop.id));
        let policy = exit.map(|exit| exit.descriptor.exit_policy.clone()).unwrap_or_default();
        let key =
            self.circuits.build(now, path, &mut self.rng).map_err(|error| error.to_string())?;
        self.targets.on_building(key, policy, wish.map(|wish| wish.slot));
        self.numbers.push((key, self.next_number));
        self.next_number += 1;
        Ok(key)
    }

    /// A path by the rules. The nodes of the active circuit and nodes that failed of late are left
    /// out as long as the others suffice.
    fn choose_path(
        &mut self,
        directory: &Directory,
        target: Option<Target>,
    ) -> Result<Vec<Hop>, String> {
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
        let usable = |id: &NodeId| {
            let failed = self.avoided.iter().any(|(avoided, _)| avoided == id);
            !failed && directory.get(id).is_some()
        };
        // A pinned guard that is gone or failed of late is stood in for, not replaced.
        let guard = self.guard.or(self.trial_guard).filter(usable);
        let stand_in = self.stand_in.filter(usable);
        let rules = PathRules {
            hops: self.wish.hops,
            guard,
            exclude: &[],
            lab: self.wish.lab,
            fixed,
            suite: self.wish.suite,
            target,
        };
        let chosen = match self.choose_by(directory, rules.clone()) {
            // The guard may be the only exit that would do, or too close to all of them.
            Err(PathError::TooClose { .. }) if guard.is_some() && rules.fixed.is_none() => {
                let first = |guard| PathRules { guard, ..rules.clone() };
                let path = self.choose_by(directory, first(stand_in));
                let path = path.or_else(|_| self.choose_by(directory, first(None)));
                self.stand_in = path.iter().flatten().map(|hop| hop.id).next().or(stand_in);
                path
            }
            chosen => chosen,
        };
        chosen.map(|path| self.over_carrier(path)).map_err(|error| error.to_string())
    }

    /// A path by these rules, without the nodes of the other circuit and those that failed, as far
    /// as that goes.
    fn choose_by(
        &mut self,
        directory: &Directory,
        rules: PathRules<'_>,
    ) -> Result<Vec<Hop>, PathError> {
        // Active circuit and spare are built at once at first.
        let newest = || self.numbers.last().map(|(key, _)| *key);
        let other = self.pool.active().or_else(newest).and_then(|key| self.circuits.get(key));
        // What is given up first stands first.
        let mut exclude: Vec<NodeId> = other
            .map(|row| row.path().iter().map(|hop| hop.id))
            .into_iter()
            .flatten()
            .filter(|id| Some(*id) != rules.guard)
            .collect();
        exclude.extend(self.avoided.iter().map(|(id, _)| *id));
        let mut given_up = 0;
        loop {
            let rules = PathRules { exclude: &exclude[given_up..], ..rules.clone() };
            match self.links.choose(directory, &rules, &mut self.rng) {
                Err(_) if given_up < exclude.len() => given_up += 1,
                chosen => return chosen,
            }
        }
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
            ClientEvent::Stalled { key } => self.on_stalled(now, key),
            ClientEvent::Resumed { key } => self.on_resumed(now, key),
            ClientEvent::Echo { key, hop, rtt } => {
                self.on_echo(key, hop, rtt);
                if hop == 0 {
                    self.take_in_round_trips(key);
                }
            }
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
        self.targets.on_ready(now, key);
        if !self.targets.is_extra(key) {
            self.pool.on_ready(now, key, &mut self.rng);
            if let Some(share) = &self.share
                && let Some(last) = self.circuits.get(key).and_then(|row| row.path().last())
            {
                share.on_ready(key, number, last.id);
            }
        }
        for reply in self.take_asked(key) {
            self.pool.prefer(now, key, &mut self.rng);
            let info = self.circuit_info(now, key);
            let gone = || Refusal::new(RefusalKind::Failed, "the circuit was closed meanwhile");
            drop(reply.send(info.ok_or_else(gone)));
        }
        if self.guard.is_none()
            && self.wish.fixed.is_empty()
            && let Some(first) = self.circuits.get(key).and_then(|row| row.path().first())
        {
            self.guard = Some(first.id);
            (self.on_guard)(first);
        }
        self.send_held(now);
    }

    fn on_stalled(&mut self, now: Instant, key: CircuitKey) {
        let number = self.number(key);
        log::info!(
            circuit = number, event = "stalled";
            "circuit {number}: its first hop is silent; its flows wait"
        );
        if let Some(first) = self.circuits.get(key).and_then(|row| row.path().first()) {
            let first = first.id;
            self.avoid(now, first);
        }
        self.targets.set_stalled(key, true);
        if !self.targets.is_extra(key) {
            self.pool.on_stalled(now, key, &mut self.rng);
        }
        if self.pool.active().is_none() {
            let what = "the first hop is silent; check this machine's own network";
            self.reason = Some(what.to_owned());
        }
    }

    fn on_resumed(&mut self, now: Instant, key: CircuitKey) {
        let number = self.number(key);
        log::info!(circuit = number, event = "resumed"; "circuit {number} is heard again");
        // It was this machine's network that failed, not the nodes.
        self.avoided.clear();
        self.reason = None;
        self.targets.set_stalled(key, false);
        if !self.targets.is_extra(key) {
            self.pool.on_resumed(now, key, &mut self.rng);
        }
        self.send_held(now);
    }

    fn take_asked(&mut self, key: CircuitKey) -> Vec<Reply<CircuitInfo>> {
        self.asked.extract_if(.., |(asked, _)| *asked == key).map(|(_, reply)| reply).collect()
    }

    /// What the echoes say of the links of a circuit, for the choice of later paths.
    fn take_in_round_trips(&mut self, key: CircuitKey) {
        let Some(row) = self.circuits.get(key) else { return };
        let rtts: Vec<_> = (0..row.path().len()).map(|hop| row.health(hop).smoothed).collect();
        self.links.measured(row.path(), &rtts);
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
        self.isolation.on_closed(key);
        self.inside.on_closed(key);
        self.end_traces_of(key);
        self.end_bench_of(key);
        self.targets.on_closed(key);
        for reply in self.take_asked(key) {
            drop(reply.send(Err(Refusal::new(RefusalKind::Failed, reason.to_string()))));
        }
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
            self.avoid(now, failed.id);
        }
    }

    fn avoid(&mut self, now: Instant, failed: NodeId) {
        self.avoided.retain(|(id, _)| *id != failed);
        self.avoided.push((failed, now + AVOID_FOR));
    }

    /// The number people know a circuit by.
    pub(super) fn number(&self, key: CircuitKey) -> u32 {
        self.numbers.iter().find(|(known, _)| *known == key).map_or(0, |(_, number)| *number)
    }
}
