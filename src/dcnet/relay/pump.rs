//! The heart: opens rounds, takes complete ones apart, gives slots their turns.
//!
//! In: shares, exit bytes, time. Out: DOWN and CREDIT messages, exit events.
//! Called by: the relay core.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use curve25519_dalek::Scalar;

use crate::dcnet::{
    client::SIGN_EVERY,
    error::DcnetError,
    member::PartyRef,
    message::{self, Down, NO_SLOT, Outcome, Reader, RoundResult, kind},
    mux::MuxEvent,
    sealing,
};

use super::{
    Relay, RelayEvent, Transmit,
    rounds::{Decoded, Issued, Shared},
    slots::Slot,
};

/// Results one message tells: at least as many as rounds can be in flight, so that none waits.
const RESULTS_MAX: usize = 128;
/// Downstream bytes of one round.
const DOWN_MAX: usize = 8 * 1024;
/// Of these, bytes of one slot.
const DOWN_SLOT_MAX: usize = 4 * 1024;
/// Who spoke within this time may speak again.
const LATELY: Duration = Duration::from_secs(1);
/// Turns that a long path holds at once.
const TURNS: u32 = 4;
/// Every so many rounds an idle slot has its turn unasked, lest jammed requests starve it.
const UNASKED: u64 = 32;

impl Relay {
    pub(super) fn handle_share(
        &mut self,
        now: Instant,
        party: PartyRef,
        body: &[u8],
    ) -> Result<(), DcnetError> {
        let Some(running) = &mut self.running else { return Ok(()) };
        running.add(party, body)?;
        let mut any = false;
        while let Some(decoded) = self.running.as_mut().and_then(|r| r.take_complete(now)) {
            any = true;
            self.handle_decoded(now, decoded);
        }
        if any {
            self.try_switch();
            self.pump(now);
        }
        Ok(())
    }

    pub(super) fn handle_check(
        &mut self,
        now: Instant,
        party: PartyRef,
        body: &[u8],
    ) -> Result<(), DcnetError> {
        let keep = self.trial.as_ref().map_or(u64::MAX, |trial| trial.keep_from());
        let Some(running) = &mut self.running else { return Ok(()) };
        let mut reader = Reader::new("CHECK", body);
        if reader.u32()? != running.signed.interval.number {
            return Ok(());
        }
        let hash = running.hash;
        if let Some(place) = running.place(party) {
            running.records[place].check(&self.group, &hash, &mut reader, keep)?;
            reader.end()?;
        }
        self.trial_progress(now);
        Ok(())
    }

    fn handle_decoded(&mut self, now: Instant, decoded: Decoded) {
        self.counters.rounds += 1;
        self.read_requests(&decoded.requests);
        let slot = decoded.issued.slot;
        if slot == NO_SLOT {
            return;
        }
        let at = usize::from(slot);
        let silent = decoded.key == Scalar::ZERO && decoded.cell.iter().all(|byte| *byte == 0);
        let outcome = if decoded.issued.accusation {
            self.trial_key(now, &decoded);
            Outcome::Idle
        } else if silent {
            self.slots[at].active = self.slots[at].wanted;
            Outcome::Idle
        } else if let Some(plain) = sealing::open_slot(&decoded.key, &decoded.cell) {
            self.take_cell(now, slot, &plain)
        } else {
            self.counters.jammed += 1;
            self.trial_jammed(now, &decoded);
            Outcome::Jammed(decoded.key, decoded.cell)
        };
        let next_seq = self.slots[at].next_seq;
        if let Some(running) = &mut self.running {
            running.results.push(RoundResult { round: decoded.round, outcome, next_seq });
        }
    }

    fn take_cell(&mut self, now: Instant, slot: u16, plain: &[u8]) -> Outcome {
        let mut events = Vec::new();
        let at = usize::from(slot);
        let outcome = self.slots[at].handle(plain, &mut events);
        if outcome == Outcome::Idle {
            self.slots[at].active = self.slots[at].wanted;
        } else {
            self.slots.iter_mut().for_each(|slot| slot.held = false);
            self.slots[at].held = true;
            self.last_data = Some(now);
        }
        if outcome == Outcome::Taken {
            self.counters.cells += 1;
        }
        for event in events {
            if let MuxEvent::Data(_, bytes) = &event {
                self.counters.bytes[0] += bytes.len() as u64;
            }
            self.events.push_back(RelayEvent::Exit(slot, event));
        }
        outcome
    }

    fn read_requests(&mut self, requests: &Scalar) {
        if *requests == Scalar::ZERO {
            return;
        }
        let bits = requests.as_bytes();
        let known = self.slots.len();
        let set = |at: usize| bits[at / 8] >> (at % 8) & 1 == 1;
        if (known..256).any(set) {
            self.counters.requests_jammed += 1;
            return;
        }
        for (at, slot) in self.slots.iter_mut().enumerate() {
            if set(at) && !slot.muted {
                self.asked_anew |= !slot.active;
                slot.wanted = true;
                slot.active = true;
            }
        }
    }

    /// Bytes of an exit connection for its pseudonym; the caller keeps to [`Relay::exit_room`].
    pub fn handle_exit_data(&mut self, now: Instant, slot: u16, conn: u32, bytes: &[u8]) {
        self.slots[usize::from(slot)].mux.write(conn, bytes);
        self.counters.bytes[1] += bytes.len() as u64;
        self.last_data = Some(now);
        self.pump(now);
    }

    /// The exit closed a connection.
    pub fn handle_exit_close(&mut self, now: Instant, slot: u16, conn: u32) {
        self.slots[usize::from(slot)].mux.close(conn);
        self.pump(now);
    }

    /// The exit's connection is gone.
    pub fn handle_exit_stop(&mut self, now: Instant, slot: u16, conn: u32) {
        self.slots[usize::from(slot)].mux.stop(conn);
        self.pump(now);
    }

    /// The exit took bytes of a connection.
    pub fn handle_exit_consumed(&mut self, slot: u16, conn: u32, bytes: usize) {
        self.slots[usize::from(slot)].mux.consumed(conn, bytes);
    }

    /// Bytes that may be handed over for a connection.
    pub fn exit_room(&self, slot: u16, conn: u32) -> usize {
        self.slots[usize::from(slot)].mux.room(conn)
    }

    /// Whether turns are called for; on a long path, more of them than come anyway.
    fn is_hot(&self, is_far: bool) -> bool {
        let mut active = self.slots.iter().filter(|slot| slot.active && !slot.muted);
        let calls = match active.next() {
            Some(slot) => !is_far || slot.more || active.next().is_some(),
            None => false,
        };
        calls || self.trial.is_some() || self.pace.round_robin
    }

    /// When [`Relay::pump`] or [`Relay::stalled`] has something to do.
    pub(super) fn pump_deadline(&self) -> Option<Instant> {
        let running = self.running.as_ref()?;
        let overdue = running.overdue_at(&self.pace).filter(|_| running.in_flight() > 0);
        [overdue, self.due()].into_iter().flatten().min()
    }

    /// When the next round after the first may be opened, if nothing happens before; past: at once.
    fn due(&self) -> Option<Instant> {
        let running = self.running.as_ref()?;
        let last = running.last_issue?;
        let far = running.window.far();
        let is_urgent = self.asked_anew || self.slots.iter().any(|slot| slot.mux.has_data());
        if is_urgent && running.has_room(0) {
            return Some(last);
        }
        // On a long path turns come evenly, and one place is kept for what is urgent.
        if !running.has_room(usize::from(far.is_some())) {
            return None;
        }
        let hot = self.is_hot(far.is_some()).then(|| {
            let rounds = u32::try_from(running.window.rounds()).unwrap_or(1);
            last + far.unwrap_or_default() / rounds
        });
        [hot, self.idle_due()].into_iter().flatten().min()
    }

    /// When the next round is due that nobody asked for. While somebody spoke lately and the path
    /// takes long, several are under way: a turn is never further off than a part of the path.
    fn idle_due(&self) -> Option<Instant> {
        let running = self.running.as_ref()?;
        let last = running.last_issue?;
        let quiet = self.last_data.map(|at| last.saturating_duration_since(at));
        let lately = quiet.is_some_and(|quiet| quiet < LATELY);
        match running.window.far().filter(|_| lately) {
            Some(_) if running.has_told => Some(last + self.pace.idle),
            Some(path) => Some(last + path / TURNS),
            None if running.in_flight() > 0 => None,
            None if quiet.is_some_and(|quiet| quiet < self.pace.eager) => Some(last),
            None if lately => Some(last + self.pace.idle),
            None => Some(last + self.pace.asleep),
        }
    }

    /// Parties that keep the oldest round open for too long are left out.
    pub(super) fn stalled(&mut self, now: Instant) {
        let Some(running) = &mut self.running else { return };
        if running.is_overdue(now, &self.pace) {
            for party in running.missing() {
                self.disconnect(party, "it does not answer a round");
            }
        }
    }

    /// Opens as many rounds as there is use and room for.
    pub(super) fn pump(&mut self, now: Instant) {
        loop {
            let Some(running) = &self.running else { return };
            let first = running.last_issue.is_none() && running.has_room(0);
            if !first && self.due().is_none_or(|at| now < at) {
                return;
            }
            self.issue(now);
        }
    }

    fn issue(&mut self, now: Instant) {
        let (slot, accusation) = self.next_turn();
        let frames = self.fill_frames();
        self.asked_anew = false;
        let Some(running) = &mut self.running else { return };
        running.has_told = !frames.is_empty();
        let number = running.signed.interval.number;
        let ahead = self.group.system.settings.trustee_window as u64;
        let round = running.issued;
        if running.credit < round + 1 + ahead / 2 {
            running.credit = round + 1 + ahead;
            let mut credit = Vec::new();
            message::frame(
                &mut credit,
                kind::CREDIT,
                &[&number.to_be_bytes(), &running.credit.to_be_bytes()],
            );
            for member in &running.signed.interval.trustees {
                self.out.push_back(Transmit::To(PartyRef::Trustee(member.index), credit.clone()));
            }
        }
        let signature = (round > 0 && round.is_multiple_of(SIGN_EVERY)).then(|| {
            self.identity.sign("history", &running.history.signed(&running.hash, round)).0
        });
        let count = running.results.len().min(RESULTS_MAX);
        let down = Down {
            number,
            round,
            next_slot: slot,
            accusation,
            results: running.results.drain(..count).collect(),
            signature,
            frames: frames.iter().map(|(slot, sealed)| (*slot, sealed.as_slice())).collect(),
        };
        let body = down.to_bytes();
        running.history.push(&body);
        let (h, accuses) = (running.history.scalar(), accusation.is_some());
        running.open(Issued { slot, accusation: accuses, h, at: now });
        let mut framed = Vec::with_capacity(body.len() + 5);
        message::frame(&mut framed, kind::DOWN, &[&body]);
        let shared: Shared = Arc::from(framed);
        self.out.push_back(Transmit::Clients(shared));
    }

    /// Whose turn it is, and which part of an accusation it carries.
    fn next_turn(&mut self) -> (u16, Option<(u64, u8)>) {
        if let Some((slot, accused, part)) = self.trial_turn() {
            return (slot, Some((accused, part)));
        }
        let round = self.running.as_ref().map_or(0, |running| running.issued);
        let number = |at: usize| u16::try_from(at).unwrap_or(NO_SLOT);
        if self.pace.round_robin || round % UNASKED == UNASKED - 1 {
            // With a turn of its own, or slots that speak would always come first.
            if let Some(at) = self.next_slot(self.unasked, |slot| !slot.muted) {
                self.unasked = at;
                self.slots[at].wanted = false;
                return (number(at), None);
            }
        }
        if let Some(at) = self.next_slot(self.turn, |slot| !slot.muted && slot.active) {
            self.turn = at;
            self.slots[at].wanted = false;
            return (number(at), None);
        }
        // Nobody asked: who spoke last may answer without asking.
        let held = self.slots.iter().position(|slot| slot.held && !slot.muted);
        (held.map_or(NO_SLOT, number), None)
    }

    /// The first slot after `last` that is wanted.
    fn next_slot(&self, last: usize, wanted: impl Fn(&Slot) -> bool) -> Option<usize> {
        let count = self.slots.len();
        (1..=count).map(|step| (last + step) % count).find(|at| wanted(&self.slots[*at]))
    }

    /// Sealed frames of the slots that have something, in turns.
    fn fill_frames(&mut self) -> Vec<(u16, Vec<u8>)> {
        let mut frames = Vec::new();
        let mut total = 0;
        let count = self.slots.len();
        let start = self.turn;
        for step in 0..count {
            let at = (start + step) % count;
            let slot = &mut self.slots[at];
            while total < DOWN_MAX && slot.mux.has_data() {
                let (mut plain, mut freed) = (Vec::new(), Vec::new());
                slot.mux.fill(&mut plain, DOWN_SLOT_MAX, &mut freed);
                let Some(seal) = slot.seal.as_mut().filter(|_| !plain.is_empty()) else { break };
                seal.seal(&mut plain);
                total += plain.len();
                let number = u16::try_from(at).unwrap_or(NO_SLOT);
                frames.push((number, plain));
                self.events.extend(freed.into_iter().map(|event| RelayEvent::Exit(number, event)));
            }
        }
        frames
    }
}
