//! The client: answers every round with one share, speaks in its own slot.
//!
//! In: messages of the relay, bytes of local connections, randomness. Out: shares for the relay,
//! bytes for local connections, alarms. Called by: the client program and the tests.
//!
//! | message | answered with |
//! |---|---|
//! | INTERVAL | READY, once its signatures, set and nonce hold |
//! | DOWN | UP: pads alone, or the slot's sealed cell within them; once per round |
//! | ASK | ANSWER (see [`crate::dcnet::blame`]) |
//! | VERDICT | nothing; it is judged anew, and the convicted are remembered |

use std::collections::{BTreeSet, VecDeque};

use curve25519_dalek::Scalar;
use rand::Rng;

use crate::dcnet::{
    arq::{Arq, CELL_HEADER, SlotCell},
    blame::{self, Accusation, Blamed},
    error::DcnetError,
    hash,
    history::History,
    interval::SignedInterval,
    member::{self, Chain, Member, PartyRef},
    message::{self, Down, NO_SLOT, Outcome, RoundResult, Share, kind},
    mux::{Mux, MuxEvent},
    pads::Pads,
    sealing::{self, DownSeal, TAG},
};

/// The relay signs its history every so many rounds.
pub const SIGN_EVERY: u64 = 16;
/// Own rounds remembered for blame.
const SENT_MAX: usize = 512;

/// What the program has to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientEvent {
    /// Something of a local connection.
    Mux(MuxEvent),
    /// An interval began, with so many members.
    Interval(u32, usize),
    /// The set the pseudonym has spoken in became too small; it is silent from here on.
    Silent(usize),
    /// The first turn of the own slot came.
    FirstSlot,
    /// Somebody was convicted, or nobody could be.
    Verdict(Blamed),
}

/// Own cell of a round.
struct Sent {
    round: u64,
    spoke: bool,
    key: Scalar,
    cell: Vec<u8>,
}

struct Running {
    signed: SignedInterval,
    hash: [u8; 32],
    pads: Pads,
    history: History,
    seal: DownSeal,
    chain: Chain,
    round: u64,
    sent: VecDeque<Sent>,
    /// What an accusation round's key carries.
    accusation: VecDeque<Scalar>,
    /// Recent rounds with a slot, for blame.
    heard: VecDeque<blame::HeardRound>,
    /// Results of recent jammed rounds.
    jammed: VecDeque<blame::JammedRound>,
}

/// A client's state.
pub struct Client {
    /// Identity and keys.
    pub member: Member,
    slot: u16,
    pseudonym: Scalar,
    epoch: u32,
    running: Option<Running>,
    next: Option<Running>,
    last_number: u32,
    /// Local connections.
    pub mux: Mux,
    arq: Arq,
    next_conn: u32,
    spoken: Option<BTreeSet<u16>>,
    silent: bool,
    had_slot: bool,
    answers: blame::Answerer,
    out: Vec<u8>,
    events: VecDeque<ClientEvent>,
}

impl Client {
    /// A client that has not joined an interval yet.
    pub fn new(member: Member, slot: u16, pseudonym: Scalar, rng: &mut impl Rng) -> Self {
        let mut epoch = [0; 4];
        rng.fill_bytes(&mut epoch);
        Self {
            member,
            slot,
            pseudonym,
            epoch: u32::from_be_bytes(epoch),
            running: None,
            next: None,
            last_number: 0,
            mux: Mux::default(),
            arq: Arq::default(),
            next_conn: 0,
            spoken: None,
            silent: false,
            had_slot: false,
            answers: blame::Answerer::default(),
            out: Vec::new(),
            events: VecDeque::new(),
        }
    }

    /// Opens a local connection and gives its Conn#.
    pub fn open(&mut self) -> u32 {
        loop {
            self.next_conn = self.next_conn % 0x7fff_fffe + 1;
            if !self.mux.knows(self.next_conn) {
                self.mux.open(self.next_conn);
                return self.next_conn;
            }
        }
    }

    /// Bytes for the relay.
    pub fn poll_transmit(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.out);
    }

    /// What happened.
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        self.events.pop_front()
    }

    /// The current interval and its members.
    pub fn interval(&self) -> Option<(u32, usize)> {
        let running = self.running.as_ref()?;
        Some((running.signed.interval.number, running.signed.interval.clients.len()))
    }

    /// Whether the pseudonym stopped speaking because its set became too small.
    pub fn is_silent(&self) -> bool {
        self.silent
    }

    /// Whether cells of this client still wait for the relay.
    pub fn is_busy(&self) -> bool {
        self.arq.untaken() > 0 || self.mux.has_data()
    }

    /// One message of the relay.
    ///
    /// # Errors
    /// On anything an honest relay does not send; the link has to be closed.
    pub fn handle_message(
        &mut self,
        kind: u8,
        body: &[u8],
        rng: &mut impl Rng,
    ) -> Result<(), DcnetError> {
        match kind {
            kind::INTERVAL => self.handle_interval(body),
            kind::DOWN => self.handle_down(body, rng),
            kind::ASK => self.handle_ask(body, rng),
            kind::VERDICT => self.handle_verdict(body),
            other => Err(DcnetError::OutOfPlace {
                what: format!("message {other}"),
                state: "a client awaits INTERVAL, DOWN, ASK or VERDICT".into(),
            }),
        }
    }

    fn handle_interval(&mut self, body: &[u8]) -> Result<(), DcnetError> {
        let (relay_key, signed) = member::parse_interval(body)?;
        let number = signed.interval.number;
        if number <= self.last_number {
            return Err(DcnetError::malformed(
                "INTERVAL",
                format!("a number above {}", self.last_number),
                number.to_string(),
            ));
        }
        self.member.check_interval(&signed)?;
        let hash = signed.interval.hash();
        let mut relay_bytes = [0; 32];
        relay_bytes.copy_from_slice(&body[..32]);
        self.next = Some(Running {
            pads: self.member.pads(&signed.interval),
            history: History::new(&hash, &relay_bytes),
            seal: DownSeal::new(&(self.pseudonym * relay_key), &hash),
            chain: Chain::new(&hash),
            hash,
            signed,
            round: 0,
            sent: VecDeque::new(),
            accusation: VecDeque::new(),
            heard: VecDeque::new(),
            jammed: VecDeque::new(),
        });
        self.last_number = number;
        message::frame(&mut self.out, kind::READY, &[&number.to_be_bytes()]);
        Ok(())
    }

    /// Starts the prepared interval if `number` is its number.
    fn switch(&mut self, number: u32) {
        if let Some(next) = self.next.take_if(|next| next.signed.interval.number == number) {
            self.arq.all_lost();
            let members: BTreeSet<u16> =
                next.signed.interval.clients.iter().map(|m| m.index).collect();
            self.events.push_back(ClientEvent::Interval(number, members.len()));
            if let Some(spoken) = &self.spoken {
                let left = spoken.intersection(&members).count();
                if left < self.member.group.system.settings.min_anonymity_set && !self.silent {
                    self.silent = true;
                    self.events.push_back(ClientEvent::Silent(left));
                }
            }
            self.running = Some(next);
        }
    }

    fn handle_down(&mut self, body: &[u8], rng: &mut impl Rng) -> Result<(), DcnetError> {
        let cell_size = self.member.group.system.settings.cell_size;
        let down = Down::parse(body, cell_size)?;
        if self.running.as_ref().is_none_or(|r| r.signed.interval.number != down.number) {
            self.switch(down.number);
        }
        let running = match &mut self.running {
            Some(running)
                if running.signed.interval.number == down.number && running.round == down.round =>
            {
                running
            }
            other => {
                let state = other.as_ref().map_or_else(
                    || "no interval runs".into(),
                    |r| format!("awaiting round {} of {}", r.round, r.signed.interval.number),
                );
                let what = format!("DOWN of round {} of {}", down.round, down.number);
                return Err(DcnetError::OutOfPlace { what, state });
            }
        };
        check_signature(&self.member, running, &down)?;
        running.history.push(body);
        running.round += 1;
        let h = running.history.scalar();
        if down.next_slot != NO_SLOT {
            let heard = blame::HeardRound { round: down.round, slot: down.next_slot, scalar: h };
            remember(&mut running.heard, heard, SENT_MAX);
        }
        for result in &down.results {
            self.handle_result(result, rng);
        }
        self.handle_frames(&down)?;
        self.answer_round(&down, &h, rng);
        Ok(())
    }

    /// What became of an own round.
    fn handle_result(&mut self, result: &RoundResult, rng: &mut impl Rng) {
        let Some(running) = &mut self.running else { return };
        if let Outcome::Jammed(key, cell) = &result.outcome {
            let jammed = blame::JammedRound { round: result.round, key: *key, cell: cell.clone() };
            remember(&mut running.jammed, jammed, 64);
        }
        let Some(sent) = running.sent.iter().find(|sent| sent.round == result.round) else {
            return;
        };
        match &result.outcome {
            Outcome::Idle => {
                if sent.spoke {
                    self.arq.lost(result.round, running.round);
                }
            }
            Outcome::Taken => self.arq.taken(result.next_seq),
            Outcome::Refused => {
                self.arq.taken(result.next_seq);
                self.arq.lost(result.round, running.round);
            }
            Outcome::Jammed(key, cell) => {
                if sent.spoke {
                    self.arq.lost(result.round, running.round);
                }
                let accusation = Accusation::find(sent.round, &sent.key, &sent.cell, key, cell);
                running.accusation = accusation
                    .map(|found| {
                        let base = self.member.group.slots.base;
                        found.to_scalars(&running.hash, &self.pseudonym, &base, rng).into()
                    })
                    .unwrap_or_default();
            }
        }
    }

    fn handle_frames(&mut self, down: &Down<'_>) -> Result<(), DcnetError> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let mut events = Vec::new();
        for (_, sealed) in down.frames.iter().filter(|(slot, _)| *slot == self.slot) {
            let plain = running.seal.open(sealed).ok_or_else(|| {
                DcnetError::malformed("downstream frame", "one sealed to this pseudonym", "another")
            })?;
            self.mux.handle(&plain, false, &mut events)?;
        }
        self.events.extend(events.into_iter().map(ClientEvent::Mux));
        Ok(())
    }

    fn answer_round(&mut self, down: &Down<'_>, h: &Scalar, rng: &mut impl Rng) {
        let Some(running) = &mut self.running else { return };
        let cell_size = self.member.group.system.settings.cell_size;
        let mine = down.next_slot == self.slot;
        let mut cell = vec![0; if down.next_slot == NO_SLOT { 0 } else { cell_size }];
        let mut key = Scalar::ZERO;
        if mine {
            if !self.had_slot {
                self.had_slot = true;
                self.events.push_back(ClientEvent::FirstSlot);
            }
            let mut spoke = false;
            if down.accusation {
                key = running.accusation.pop_front().unwrap_or(Scalar::ZERO);
            } else if let Some(plain) = (!self.silent)
                .then(|| {
                    next_plain(
                        &mut self.arq,
                        &mut self.mux,
                        self.epoch,
                        cell_size,
                        &mut self.events,
                    )
                })
                .flatten()
            {
                spoke = true;
                key = hash::random_scalar(rng);
                cell = sealing::seal_slot(&key, plain);
                let now: BTreeSet<u16> =
                    running.signed.interval.clients.iter().map(|m| m.index).collect();
                self.spoken = Some(match self.spoken.take() {
                    Some(before) => before.intersection(&now).copied().collect(),
                    None => now,
                });
            }
            let sent = Sent { round: down.round, spoke, key, cell: cell.clone() };
            remember(&mut running.sent, sent, SENT_MAX);
        }
        let wants = !self.silent
            && (self.arq.has_lost() || (self.mux.has_data() && self.arq.has_room()))
            || !running.accusation.is_empty();
        let sums = running.pads.apply(down.round, &mut cell);
        let request = if wants { lane(self.slot) } else { Scalar::ZERO };
        let share = Share {
            number: down.number,
            round: down.round,
            requests: request + h * sums.request,
            slot: (down.next_slot != NO_SLOT).then(|| (key + h * sums.slot, cell.as_slice())),
        };
        running.chain.send(kind::UP, &share, &running.hash, &self.member.identity, &mut self.out);
    }

    fn handle_ask(&mut self, body: &[u8], rng: &mut impl Rng) -> Result<(), DcnetError> {
        let ask = blame::Ask::parse(body)?;
        let Some(running) = &self.running else {
            return Err(DcnetError::OutOfPlace {
                what: "ASK".into(),
                state: "no interval runs".into(),
            });
        };
        let view = blame::View {
            group: &self.member.group,
            interval: &running.signed.interval,
            hash: &running.hash,
            jammed: Some(&running.jammed),
            heard: Some(&running.heard),
        };
        let owner = (self.slot == ask.slot).then_some(&self.pseudonym);
        let sent = running.sent.iter().find(|sent| sent.round == ask.round).map(|sent| sent.key);
        let mut secrets = blame::Secrets {
            me: self.member.me,
            identity: &self.member.identity,
            secret: &self.member.secret,
            pads: &running.pads,
            owner,
            own_key: sent.unwrap_or(Scalar::ZERO),
        };
        if let Some(answer) = self.answers.answer(&ask, &view, &mut secrets, rng)? {
            message::frame(&mut self.out, kind::ANSWER, &[&answer]);
        }
        Ok(())
    }

    fn handle_verdict(&mut self, body: &[u8]) -> Result<(), DcnetError> {
        let Some(running) = &self.running else { return Ok(()) };
        let view = blame::View {
            group: &self.member.group,
            interval: &running.signed.interval,
            hash: &running.hash,
            jammed: Some(&running.jammed),
            heard: Some(&running.heard),
        };
        let case = blame::Case::parse(body)?;
        let blamed = case.judge(&view)?;
        if let Blamed::Party(party) = blamed {
            self.member.convicted.push(party);
        }
        self.events.push_back(ClientEvent::Verdict(blamed));
        Ok(())
    }

    /// The party this client is.
    pub fn me(&self) -> PartyRef {
        self.member.me
    }
}

/// The bit of a slot among the requests.
pub fn lane(slot: u16) -> Scalar {
    let mut bytes = [0; 32];
    bytes[usize::from(slot) / 8] = 1 << (slot % 8);
    Scalar::from_bytes_mod_order(bytes)
}

fn remember<T>(list: &mut VecDeque<T>, item: T, most: usize) {
    if list.len() >= most {
        list.pop_front();
    }
    list.push_back(item);
}

fn next_plain(
    arq: &mut Arq,
    mux: &mut Mux,
    epoch: u32,
    cell_size: usize,
    events: &mut VecDeque<ClientEvent>,
) -> Option<Vec<u8>> {
    let len = cell_size - TAG;
    let more = |arq: &Arq, mux: &Mux| arq.has_lost() || (mux.has_data() && arq.has_room());
    if arq.has_lost() {
        let (seq, frames) = arq.again()?;
        let frames = frames.to_vec();
        let more = more(arq, mux);
        return Some(SlotCell { epoch, seq, more, frames: &frames }.emit(len));
    }
    if !mux.has_data() || !arq.has_room() {
        return None;
    }
    let (mut frames, mut freed) = (Vec::new(), Vec::new());
    mux.fill(&mut frames, len - CELL_HEADER, &mut freed);
    events.extend(freed.into_iter().map(ClientEvent::Mux));
    if frames.is_empty() {
        return None;
    }
    let seq = arq.fresh(frames.clone());
    Some(SlotCell { epoch, seq, more: more(arq, mux), frames: &frames }.emit(len))
}

fn check_signature(member: &Member, running: &Running, down: &Down<'_>) -> Result<(), DcnetError> {
    let due = down.round > 0 && down.round.is_multiple_of(SIGN_EVERY);
    match &down.signature {
        None if due => Err(DcnetError::malformed("DOWN", "a signed history", "none")),
        None => Ok(()),
        Some(signature) => {
            let signed = running.history.signed(&running.hash, down.round);
            if member.group.relay.verify("history", &signed, signature) {
                Ok(())
            } else {
                Err(DcnetError::Equivocation { round: down.round })
            }
        }
    }
}
