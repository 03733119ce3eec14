//! A trial: from a jammed round to a case, while rounds go on.
//!
//! In: a round that did not open, accusation keys, answers, checkpoints. Out: questions, a case.
//! Called by: the relay core. The steps stand in [`crate::dcnet::blame`].

use std::{
    collections::{BTreeMap, VecDeque},
    time::Instant,
};

use curve25519_dalek::Scalar;

use crate::dcnet::{
    blame::{
        ACCUSATION_ROUNDS, Accusation, Answer, Ask, Blamed, Case, Content, Evidence, Question, View,
    },
    error::DcnetError,
    member::PartyRef,
    message::{self, Share, kind},
};

use super::{Relay, Transmit, rounds::Decoded};

/// A round that may be asked about.
#[derive(Debug, Clone, Copy)]
struct Suspect {
    round: u64,
    h: Scalar,
    k: Scalar,
}

enum Stage {
    /// The owner's accusation is on its way in the keys of a few rounds.
    Accusing { opened: u8, keys: Vec<Suspect> },
    /// A question is out.
    Asking(Box<Asking>),
}

struct Asking {
    ask: Ask,
    answers: BTreeMap<PartyRef, Vec<u8>>,
    read: BTreeMap<PartyRef, Answer>,
    trustees_asked: bool,
    pair: Option<(Ask, Option<Vec<u8>>)>,
}

/// One trial.
pub(super) struct Trial {
    slot: u16,
    first: Suspect,
    cell: Vec<u8>,
    stage: Stage,
    /// Rounds whose key shares are still to be proven.
    suspects: VecDeque<Suspect>,
    pub(super) deadline: Instant,
    pub(super) started: Instant,
}

impl Trial {
    /// Records from this round on are needed.
    pub(super) fn keep_from(&self) -> u64 {
        self.first.round
    }
}

impl Relay {
    pub(super) fn trial_jammed(&mut self, now: Instant, decoded: &Decoded) {
        if self.trial.is_some() {
            return;
        }
        self.trial = Some(Trial {
            slot: decoded.issued.slot,
            first: Suspect { round: decoded.round, h: decoded.issued.h, k: decoded.key },
            cell: decoded.cell.clone(),
            stage: Stage::Accusing { opened: 0, keys: Vec::new() },
            suspects: VecDeque::new(),
            deadline: now + self.pace.patience,
            started: now,
        });
    }

    /// The accuser's turn while its accusation is awaited: slot, accused round, part. The result
    /// that tells of the jam leaves with the same message or has left before.
    pub(super) fn trial_turn(&mut self) -> Option<(u16, u64, u8)> {
        let trial = self.trial.as_mut()?;
        match &mut trial.stage {
            Stage::Accusing { opened, .. } if usize::from(*opened) < ACCUSATION_ROUNDS => {
                *opened += 1;
                Some((trial.slot, trial.first.round, *opened - 1))
            }
            _ => None,
        }
    }

    pub(super) fn trial_key(&mut self, now: Instant, decoded: &Decoded) {
        let Some(trial) = &mut self.trial else { return };
        let Stage::Accusing { keys, .. } = &mut trial.stage else { return };
        keys.push(Suspect { round: decoded.round, h: decoded.issued.h, k: decoded.key });
        if keys.len() < ACCUSATION_ROUNDS {
            return;
        }
        let keys = std::mem::take(keys);
        let (slot, first) = (trial.slot, trial.first);
        let scalars: Vec<Scalar> = keys.iter().map(|key| key.k).collect();
        let silent = scalars.iter().all(|key| *key == Scalar::ZERO);
        let accusation = Accusation::from_scalars(&scalars)
            .filter(|accusation| accusation.round() == first.round)
            .filter(|accusation| {
                self.with_view(|view| accusation.verify(view, slot)) == Some(true)
            });
        let Some(trial) = &mut self.trial else { return };
        let set = |bit: u32| {
            let bit = bit as usize;
            trial.cell.get(bit / 8).is_some_and(|byte| byte >> (7 - bit % 8) & 1 == 1)
        };
        match accusation {
            Some(accusation @ Accusation::Bit(_, bit, _)) if set(bit) => {
                trial.suspects = [first].into();
                self.ask(now, first, Question::Bit(accusation, Vec::new()));
            }
            // A cleared bit proves nothing; the next jam sets one with a chance of a half.
            Some(Accusation::Cleared(..)) => self.trial = None,
            // Without form and not silent: the accusation itself was jammed.
            None if !silent => {
                trial.suspects = keys.into_iter().chain([first]).collect();
                self.ask_next_key(now);
            }
            _ => {
                trial.suspects = [first].into();
                self.ask_next_key(now);
            }
        }
    }

    fn with_view<T>(&self, look: impl FnOnce(&View<'_>) -> T) -> Option<T> {
        let running = self.running.as_ref()?;
        Some(look(&View::of_trustee(&self.group, &running.signed.interval, &running.hash)))
    }

    fn ask_next_key(&mut self, now: Instant) {
        let Some(trial) = &mut self.trial else { return };
        if let Some(suspect) = trial.suspects.pop_front() {
            self.ask(now, suspect, Question::Key);
        }
    }

    fn signed_ask(&self, suspect: Suspect, slot: u16, question: Question) -> Option<Ask> {
        let running = self.running.as_ref()?;
        let ask = Ask {
            number: running.signed.interval.number,
            round: suspect.round,
            slot,
            h: suspect.h,
            k: suspect.k,
            question,
            signature: [0; 64],
        };
        Some(ask.signed(&running.hash, &self.identity))
    }

    fn ask(&mut self, now: Instant, suspect: Suspect, question: Question) {
        let Some(slot) = self.trial.as_ref().map(|trial| trial.slot) else { return };
        let only_clients = matches!(question, Question::Bit(..));
        let Some(ask) = self.signed_ask(suspect, slot, question) else { return };
        self.send_ask(&ask, |party| !only_clients || matches!(party, PartyRef::Client(_)));
        if let Some(trial) = &mut self.trial {
            trial.deadline = now + self.pace.patience;
            trial.stage = Stage::Asking(Box::new(Asking {
                ask,
                answers: BTreeMap::new(),
                read: BTreeMap::new(),
                trustees_asked: !only_clients,
                pair: None,
            }));
        }
    }

    fn send_ask(&mut self, ask: &Ask, to: impl Fn(PartyRef) -> bool) {
        let mut framed = Vec::new();
        message::frame(&mut framed, kind::ASK, &[&ask.to_bytes()]);
        let Some(running) = &self.running else { return };
        for party in running.parties().into_iter().filter(|party| to(*party)) {
            self.out.push_back(Transmit::To(party, framed.clone()));
        }
    }

    pub(super) fn handle_answer(
        &mut self,
        now: Instant,
        party: PartyRef,
        body: &[u8],
    ) -> Result<(), DcnetError> {
        let Some(answer) = self.with_view(|view| Answer::parse(body, view)) else { return Ok(()) };
        let answer = answer?;
        if answer.party != party {
            return Err(DcnetError::malformed(
                "ANSWER",
                party.to_string(),
                answer.party.to_string(),
            ));
        }
        let Some(trial) = &mut self.trial else { return Ok(()) };
        let Stage::Asking(asking) = &mut trial.stage else { return Ok(()) };
        if let Some((pair_ask, reveal)) = &mut asking.pair
            && answer.ask == pair_ask.id()
        {
            reveal.get_or_insert_with(|| body.to_vec());
        } else if answer.ask == asking.ask.id() {
            let fits = matches!(
                (&asking.ask.question, &answer.content),
                (Question::Bit(..), Content::Bits(_)) | (Question::Key, Content::Key(..))
            );
            if !fits {
                return Err(DcnetError::malformed(
                    "ANSWER",
                    "an answer to the question",
                    "another",
                ));
            }
            asking.answers.insert(party, body.to_vec());
            asking.read.insert(party, answer);
        }
        self.trial_progress(now);
        Ok(())
    }

    /// Goes on where everything needed is there.
    pub(super) fn trial_progress(&mut self, now: Instant) {
        let Some(running) = &self.running else { return };
        let parties = running.parties();
        let Some(trial) = &mut self.trial else { return };
        let (slot, first) = (trial.slot, trial.first);
        let Stage::Asking(asking) = &mut trial.stage else { return };
        let missing = |wanted: fn(&PartyRef) -> bool| {
            parties.iter().filter(|p| wanted(p)).any(|p| !asking.answers.contains_key(p))
        };
        if missing(|party| matches!(party, PartyRef::Client(_))) {
            return;
        }
        if !asking.trustees_asked {
            asking.trustees_asked = true;
            if let Question::Bit(accusation, _) = asking.ask.question {
                let answers = asking.answers.values().cloned().collect();
                let question = Question::Bit(accusation, answers);
                if let Some(ask) = self.signed_ask(first, slot, question) {
                    self.send_ask(&ask, |party| matches!(party, PartyRef::Trustee(_)));
                }
            }
            return;
        }
        if missing(|_| true) || asking.pair.as_ref().is_some_and(|(_, reveal)| reveal.is_none()) {
            return;
        }
        // A wrong share convicts only with its checkpoint, which comes within a few rounds.
        let round = asking.ask.round;
        if asking.pair.is_none() && !running.records.iter().all(|record| record.covers(round)) {
            return;
        }
        let case = Case {
            ask: asking.ask.to_bytes(),
            answers: asking.answers.values().cloned().collect(),
            pair: asking
                .pair
                .as_ref()
                .and_then(|(ask, reveal)| Some((ask.to_bytes(), reveal.clone()?))),
            evidence: if asking.pair.is_none() { self.find_evidence() } else { None },
        };
        match self.with_view(|view| case.judge(view)) {
            Some(Ok(Blamed::Pair(client, trustee))) => self.ask_pair(now, client, trustee),
            Some(Ok(Blamed::Nobody)) => {
                let more = self.trial.as_ref().is_some_and(|trial| !trial.suspects.is_empty());
                if more {
                    self.ask_next_key(now);
                } else {
                    self.slots[usize::from(slot)].muted = true;
                    self.close_case(now, Blamed::Nobody, &case);
                }
            }
            Some(Ok(blamed)) => self.close_case(now, blamed, &case),
            Some(Err(error)) => {
                log::warn!("a case fell apart: {error}");
                self.trial = None;
            }
            None => {}
        }
    }

    fn ask_pair(&mut self, now: Instant, client: u16, trustee: u16) {
        let Some(trial) = &self.trial else { return };
        let Stage::Asking(asking) = &trial.stage else { return };
        let answer = |party| asking.answers.get(&party).cloned().unwrap_or_default();
        let question = Question::Pair {
            client,
            trustee,
            ask: asking.ask.to_bytes(),
            answers: [answer(PartyRef::Client(client)), answer(PartyRef::Trustee(trustee))],
        };
        let Some(ask) = self.signed_ask(trial.first, trial.slot, question) else { return };
        self.send_ask(&ask, |party| {
            party == PartyRef::Client(client) || party == PartyRef::Trustee(trustee)
        });
        if let Some(trial) = &mut self.trial {
            trial.deadline = now + self.pace.patience;
            if let Stage::Asking(asking) = &mut trial.stage {
                asking.pair = Some((ask, None));
            }
        }
    }

    /// A party that sent something else than it says now.
    fn find_evidence(&self) -> Option<Evidence> {
        let Stage::Asking(asking) = &self.trial.as_ref()?.stage else { return None };
        let running = self.running.as_ref()?;
        let cell_size = usize::from(running.signed.interval.cell_size);
        let round = asking.ask.round;
        running.records.iter().find_map(|record| {
            let share = Share::parse(record.share(round)?, cell_size).ok()?;
            let (key, cell) = share.slot?;
            let honest = match (&asking.read.get(&record.party)?.content, &asking.ask.question) {
                (Content::Bits(bits), Question::Bit(Accusation::Bit(_, bit, _), _)) => {
                    let bit = *bit as usize;
                    let sent = cell.get(bit / 8)? >> (7 - bit % 8) & 1 == 1;
                    sent == bits.iter().fold(false, |sum, bit| sum ^ bit)
                }
                (Content::Key(claimed, ..), _) => *claimed == key,
                _ => true,
            };
            if honest { None } else { record.evidence(round) }
        })
    }

    pub(super) fn trial_timeout(&mut self, now: Instant) {
        let Some(trial) = self.trial.as_ref().filter(|trial| now >= trial.deadline) else { return };
        let Some(running) = &self.running else { return };
        let late: Vec<PartyRef> = match &trial.stage {
            Stage::Accusing { .. } => Vec::new(),
            Stage::Asking(asking) => running
                .parties()
                .into_iter()
                .filter(|party| asking.trustees_asked || matches!(party, PartyRef::Client(_)))
                .filter(|party| !asking.answers.contains_key(party))
                .collect(),
        };
        for party in late {
            self.disconnect(party, "it does not answer a question of blame");
        }
        self.trial = None;
    }
}
