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
//! | VERDICT, PAST | nothing; it is judged anew, and the convicted are remembered |
//!
//! The relay must not see from a client's link which slot is its own. So nothing that depends on
//! it happens before the answers have left: what came for the pseudonym is opened, and its next
//! cell sealed, in [`Client::settle`]; and whatever came, the link goes on.

use std::collections::{BTreeSet, VecDeque};

use curve25519_dalek::Scalar;
use rand::Rng;
use zeroize::Zeroizing;

use crate::dcnet::{
    arq::Arq,
    blame::{self, Blamed},
    error::DcnetError,
    history::History,
    member::{Member, PartyRef},
    message::{self, Down, NO_SLOT, kind},
    mux::{CONNECTIONS_MAX, Mux, MuxEvent},
    part::Part,
    sealing::DownSeal,
};

mod memory;
mod trial;
mod turn;

use turn::Ready;

/// The relay signs its history every so many rounds.
pub const SIGN_EVERY: u64 = 32;
/// Own rounds remembered for blame.
const SENT_MAX: usize = 512;

/// What the program has to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientEvent {
    /// Something of a local connection.
    Mux(MuxEvent),
    /// An interval began, with so many members.
    Interval(u32, usize),
    /// The sets the pseudonym has spoken in and the present one have so few members in common
    /// that it pauses.
    Paused(usize),
    /// Enough of them are back; it speaks again.
    Resumed(usize),
    /// [`Client::memory`] has changed, and has to be kept before anything more is handled.
    Remember,
    /// The relay sent the pseudonym what no honest relay sends; its connections are gone.
    Garbled,
    /// The first turn of the own slot came.
    FirstSlot,
    /// Somebody was convicted, or nobody could be.
    Verdict(Blamed),
}

/// Own cell of a round.
struct Sent {
    round: u64,
    speech: turn::Speech,
    key: Scalar,
    cell: Vec<u8>,
}

struct Running {
    part: Part,
    history: History,
    seal: DownSeal,
    /// A frame did not open: the seal is out of step until the next interval.
    garbled: bool,
    sent: VecDeque<Sent>,
    /// What the keys of accusation rounds carry.
    accusation: Vec<Scalar>,
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
    pseudonym: Zeroizing<Scalar>,
    epoch: u32,
    running: Option<Running>,
    next: Option<Running>,
    last_number: u32,
    /// Local connections.
    pub mux: Mux,
    arq: Arq,
    next_conn: u32,
    /// The members of every set the pseudonym has spoken in.
    spoken: Option<BTreeSet<u16>>,
    /// The interval that stands in it already; 0 for none.
    spoken_in: u32,
    paused: bool,
    had_slot: bool,
    /// The sealed cells of the next own turns.
    ready: VecDeque<Ready>,
    /// DOWN bodies whose frames are still to be looked at.
    heard: Vec<Vec<u8>>,
    answers: blame::Answerer,
    out: Vec<u8>,
    events: VecDeque<ClientEvent>,
}

impl Client {
    /// A client that has not joined an interval yet.
    pub fn new(
        member: Member,
        slot: u16,
        pseudonym: Zeroizing<Scalar>,
        rng: &mut impl Rng,
    ) -> Self {
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
            spoken_in: 0,
            paused: false,
            had_slot: false,
            ready: VecDeque::new(),
            heard: Vec::new(),
            answers: blame::Answerer::default(),
            out: Vec::new(),
            events: VecDeque::new(),
        }
    }

    /// Whether there has been an interval on this link.
    pub fn has_joined(&self) -> bool {
        self.last_number > 0
    }

    /// Starts over for a new link. Connections of the old one are gone; what protects the
    /// pseudonym is not: the sets it has spoken in, and who was convicted.
    pub fn rejoin(&mut self, member: Member, rng: &mut impl Rng) {
        let mut fresh = Self::new(member, self.slot, self.pseudonym.clone(), rng);
        fresh.member.convicted = std::mem::take(&mut self.member.convicted);
        (fresh.spoken, fresh.paused) = (self.spoken.take(), self.paused);
        if !self.has_joined() {
            // Nothing of these was sent yet.
            (fresh.mux, fresh.next_conn) = (std::mem::take(&mut self.mux), self.next_conn);
        }
        *self = fresh;
    }

    /// Opens a local connection and gives its Conn#; none when there are too many.
    pub fn open(&mut self) -> Option<u32> {
        if self.mux.len() >= CONNECTIONS_MAX {
            return None;
        }
        loop {
            self.next_conn = self.next_conn % 0x7fff_fffe + 1;
            if !self.mux.knows(self.next_conn) {
                self.mux.open(self.next_conn);
                return Some(self.next_conn);
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
        Some((running.part.number(), running.part.signed.interval.clients.len()))
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
            kind::PAST => self.member.hear_past(body),
            other => Err(DcnetError::OutOfPlace {
                what: format!("message {other}"),
                state: "a client awaits INTERVAL, DOWN, ASK, VERDICT or PAST".into(),
            }),
        }
    }

    fn handle_interval(&mut self, body: &[u8]) -> Result<(), DcnetError> {
        let (relay_key, part) = self.member.prepare(body, self.last_number)?;
        let mut relay_bytes = [0; 32];
        relay_bytes.copy_from_slice(&body[..32]);
        self.last_number = part.number();
        self.next = Some(Running {
            history: History::new(&part.hash, &relay_bytes),
            seal: DownSeal::new(&(*self.pseudonym * relay_key), &part.hash),
            garbled: false,
            part,
            sent: VecDeque::new(),
            accusation: Vec::new(),
            heard: VecDeque::new(),
            jammed: VecDeque::new(),
        });
        message::frame(&mut self.out, kind::READY, &[&self.last_number.to_be_bytes()]);
        self.events.push_back(ClientEvent::Remember);
        Ok(())
    }

    /// Starts the prepared interval if `number` is its number.
    fn switch(&mut self, number: u32) {
        self.open_heard();
        if let Some(next) = self.next.take_if(|next| next.part.number() == number) {
            self.arq.all_lost();
            self.ready.clear();
            let members = members(&next.part);
            self.events.push_back(ClientEvent::Interval(number, members.len()));
            if let Some(spoken) = &self.spoken {
                let left = spoken.intersection(&members).count();
                let paused = left < self.member.group.system.settings.min_anonymity_set;
                if paused != self.paused {
                    let event = if paused { ClientEvent::Paused } else { ClientEvent::Resumed };
                    self.events.push_back(event(left));
                }
                self.paused = paused;
            }
            self.running = Some(next);
        }
    }

    fn handle_down(&mut self, body: &[u8], rng: &mut impl Rng) -> Result<(), DcnetError> {
        let cell_size = self.member.group.system.settings.cell_size;
        let down = Down::parse(body, cell_size)?;
        if self.running.as_ref().is_none_or(|r| r.part.number() != down.number) {
            self.switch(down.number);
        }
        let running = match &mut self.running {
            Some(running)
                if running.part.number() == down.number && running.part.round == down.round =>
            {
                running
            }
            other => {
                let state = other.as_ref().map_or_else(
                    || "no interval runs".into(),
                    |r| format!("awaiting round {} of {}", r.part.round, r.part.number()),
                );
                let what = format!("DOWN of round {} of {}", down.round, down.number);
                return Err(DcnetError::OutOfPlace { what, state });
            }
        };
        check_signature(&self.member, running, &down)?;
        running.history.push(body);
        running.part.round += 1;
        let h = running.history.scalar();
        if down.next_slot != NO_SLOT {
            let heard = blame::HeardRound { round: down.round, slot: down.next_slot, scalar: h };
            remember(&mut running.heard, heard, SENT_MAX);
        }
        for result in &down.results {
            self.handle_result(result);
        }
        if let Some((accused, 0)) = down.accusation {
            self.accuse(accused, rng);
        }
        self.answer_round(&down, &h);
        if !down.frames.is_empty() {
            self.heard.push(body.to_vec());
        }
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

fn members(part: &Part) -> BTreeSet<u16> {
    part.signed.interval.clients.iter().map(|member| member.index).collect()
}

fn remember<T>(list: &mut VecDeque<T>, item: T, most: usize) {
    if list.len() >= most {
        list.pop_front();
    }
    list.push_back(item);
}

fn check_signature(member: &Member, running: &Running, down: &Down<'_>) -> Result<(), DcnetError> {
    let due = down.round > 0 && down.round.is_multiple_of(SIGN_EVERY);
    match &down.signature {
        None if due => Err(DcnetError::malformed("DOWN", "a signed history", "none")),
        None => Ok(()),
        Some(signature) => {
            let signed = running.history.signed(&running.part.hash, down.round);
            if member.group.relay.verify("history", &signed, signature) {
                Ok(())
            } else {
                Err(DcnetError::Equivocation { round: down.round })
            }
        }
    }
}
