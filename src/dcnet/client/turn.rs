//! A client's turns: what became of the last ones, the share of this one, the cell of the next.
//!
//! In: DOWN messages the client has checked. Out: its share, what came for its pseudonym, a sealed
//! cell that waits for its turn. Called by: the client core.
//!
//! Until the share has left, owner and others do the same work: the cell is sealed beforehand, and
//! whoever hears of a jammed cell makes an accusation, of which all but the owner's is thrown away.

use curve25519_dalek::Scalar;
use rand::Rng;

use crate::dcnet::{
    arq::{CELL_HEADER, SlotCell},
    blame::{Accusation, JammedRound},
    hash,
    message::{Down, NO_SLOT, Outcome, RoundResult, Share, kind},
    sealing::{self, TAG},
};

use super::{Client, ClientEvent, SENT_MAX, Sent, lane, remember};

/// Idle cells that wait: as many turns may come before the next are sealed.
const IDLE_READY: usize = 8;

/// A sealed cell that waits for its turn.
pub(super) struct Ready {
    key: Scalar,
    cell: Vec<u8>,
    /// Its number; none for an idle one.
    seq: Option<u32>,
}

impl Client {
    /// Opens what came for the pseudonym and seals its next cell. To be called once what
    /// [`Client::poll_transmit`] gave has left, and after local connections wrote.
    pub fn settle(&mut self, rng: &mut impl Rng) {
        self.open_heard();
        self.seal_next(rng);
    }

    /// What became of a round.
    pub(super) fn handle_result(&mut self, result: &RoundResult) {
        let Some(running) = &mut self.running else { return };
        if let Outcome::Jammed(key, cell) = &result.outcome {
            let jammed = JammedRound { round: result.round, key: *key, cell: cell.clone() };
            remember(&mut running.jammed, jammed, 64);
        }
        let sent = running.sent.iter().find(|sent| sent.round == result.round);
        let Some(speech) = sent.map(|sent| sent.speech) else { return };
        if matches!(result.outcome, Outcome::Taken | Outcome::Refused) {
            self.arq.taken(result.next_seq);
            let arq = &self.arq;
            self.ready.retain(|ready| ready.seq.is_none_or(|seq| arq.awaits(seq)));
        }
        if speech == Speech::Data && result.outcome != Outcome::Taken {
            let now_at = self.running.as_ref().map_or(0, |running| running.part.round);
            if self.arq.lost(result.round, now_at) {
                self.ready.clear();
            }
        }
    }

    /// Signs what happened to the slot in a jammed round.
    pub(super) fn accuse(&mut self, accused: u64, rng: &mut impl Rng) {
        let Some(running) = &mut self.running else { return };
        let Some(jammed) = running.jammed.iter().find(|jammed| jammed.round == accused) else {
            return;
        };
        let sent = running.sent.iter().find(|sent| sent.round == accused);
        let (key, cell) = sent.map_or((&jammed.key, &jammed.cell), |sent| (&sent.key, &sent.cell));
        let found = Accusation::find(accused, key, cell, &jammed.key, &jammed.cell);
        let base = self.member.group.slots.base;
        let scalars = found.unwrap_or(Accusation::Cleared(accused, [0; 64])).to_scalars(
            &running.part.hash,
            &self.pseudonym,
            &base,
            rng,
        );
        running.accusation = if sent.is_some() && found.is_some() { scalars } else { Vec::new() };
    }

    fn wants_turn(&self) -> bool {
        let fresh = self.mux.has_data() && self.arq.has_room();
        let waiting = self.ready.iter().any(|ready| ready.seq.is_some());
        waiting || self.arq.has_lost() || fresh
    }

    pub(super) fn answer_round(&mut self, down: &Down<'_>, h: &Scalar) {
        let wants = !self.paused && self.wants_turn();
        let Some(running) = &mut self.running else { return };
        let cell_size = self.member.group.system.settings.cell_size;
        let mut cell = vec![0; if down.next_slot == NO_SLOT { 0 } else { cell_size }];
        let mut key = Scalar::ZERO;
        if down.next_slot == self.slot {
            if !self.had_slot {
                self.had_slot = true;
                self.events.push_back(ClientEvent::FirstSlot);
            }
            let mut speech = Speech::None;
            if let Some((_, part)) = down.accusation {
                key = running.accusation.get(usize::from(part)).copied().unwrap_or(Scalar::ZERO);
            } else if !self.paused
                && let Some(ready) = self.ready.pop_front()
            {
                speech = if ready.seq.is_some() { Speech::Data } else { Speech::Idle };
                (key, cell) = (ready.key, ready.cell);
            }
            let sent = Sent { round: down.round, speech, key, cell: cell.clone() };
            remember(&mut running.sent, sent, SENT_MAX);
        }
        let sums = running.part.pads.apply(down.round, &mut cell);
        let request = if wants { lane(self.slot) } else { Scalar::ZERO };
        let share = Share {
            number: down.number,
            round: down.round,
            requests: request + h * sums.request,
            slot: (down.next_slot != NO_SLOT).then(|| (key + h * sums.slot, cell.as_slice())),
        };
        running.part.send(kind::UP, &share, &self.member, &mut self.out);
    }

    /// Reads the frames that came since the last answer. A frame that does not open is the relay's
    /// doing; to leave for it would tell the relay whose slot this is.
    pub(super) fn open_heard(&mut self) {
        let heard = std::mem::take(&mut self.heard);
        let cell_size = self.member.group.system.settings.cell_size;
        let Some(running) = &mut self.running else { return };
        let mut events = Vec::new();
        for body in heard {
            let Ok(down) = Down::parse(&body, cell_size) else { continue };
            for (_, sealed) in down.frames.iter().filter(|(slot, _)| *slot == self.slot) {
                if running.garbled {
                    break;
                }
                let opened = running.seal.open(sealed);
                let read = opened.map(|plain| self.mux.handle(&plain, false, &mut events));
                running.garbled = !matches!(read, Some(Ok(())));
            }
        }
        self.events.extend(events.into_iter().map(ClientEvent::Mux));
        if running.garbled && !self.mux.is_empty() {
            self.mux.reset();
            self.events.push_back(ClientEvent::Garbled);
        }
    }

    /// Seals cells for the next own turns, as many as may come at once. A pseudonym with open
    /// connections seals an idle cell where it has nothing to say: a relay that told it something
    /// else than the others cannot see from the cell, which it cannot open, whether it reacts.
    fn seal_next(&mut self, rng: &mut impl Rng) {
        if self.running.is_none() || self.paused {
            return;
        }
        let settings = &self.member.group.system.settings;
        let (len, most) = (settings.cell_size - TAG, settings.client_window);
        while self.ready.len() < most {
            let Some((seq, frames)) = self.next_frames(len - CELL_HEADER) else { break };
            self.ready.retain(|ready| ready.seq.is_some());
            self.seal(Some(seq), &frames, len, rng);
        }
        if !self.is_live() {
            self.ready.clear();
        }
        while self.is_live() && self.ready.len() < most.min(IDLE_READY) {
            self.seal(None, &[], len, rng);
        }
    }

    /// Whether the pseudonym has anything open: it may speak in any of its turns.
    pub(super) fn is_live(&self) -> bool {
        !self.mux.is_empty() || self.arq.untaken() > 0
    }

    /// What is to be sent again, or else what connections have to say.
    fn next_frames(&mut self, limit: usize) -> Option<(u32, Vec<u8>)> {
        if self.arq.has_lost() {
            return self.arq.again().map(|(seq, frames)| (seq, frames.to_vec()));
        }
        if !self.mux.has_data() || !self.arq.has_room() {
            return None;
        }
        let (mut frames, mut freed) = (Vec::new(), Vec::new());
        self.mux.fill(&mut frames, limit, &mut freed);
        self.events.extend(freed.into_iter().map(ClientEvent::Mux));
        (!frames.is_empty()).then(|| (self.arq.fresh(&frames), frames))
    }

    fn seal(&mut self, seq: Option<u32>, frames: &[u8], len: usize, rng: &mut impl Rng) {
        let Some(running) = &self.running else { return };
        let more = self.arq.has_lost() || (self.mux.has_data() && self.arq.has_room());
        let plain = SlotCell { epoch: self.epoch, seq, more, frames }.emit(len);
        let key = hash::random_scalar(rng);
        self.ready.push_back(Ready { key, cell: sealing::seal_slot(&key, plain), seq });
        let members = &running.part.signed.interval.clients;
        let here = |index: &u16| members.iter().any(|member| member.index == *index);
        if self.spoken_in == running.part.signed.interval.number {
            return;
        }
        self.spoken_in = running.part.signed.interval.number;
        match &mut self.spoken {
            Some(spoken) => spoken.retain(here),
            None => self.spoken = Some(members.iter().map(|member| member.index).collect()),
        }
    }
}

/// What an own turn carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speech {
    /// Nothing, or a part of an accusation.
    None,
    /// A sealed cell without data.
    Idle,
    /// Data.
    Data,
}
