//! The relay: collects shares, decodes rounds, schedules slots, keeps the set of members.
//!
//! In: messages of clients and trustees, bytes of exit connections, time, randomness.
//! Out: messages to parties, bytes for exit connections. Called by: the relay program, the tests.
//!
//! ```text
//! membership  who is online -> PROPOSE, SIGN, INTERVAL, READY -> a running interval
//! rounds      shares -> sums -> keys, cells, requests
//! slots       cells -> connections; connections -> sealed frames
//! records     what each party sent, with its checkpoints
//! trial       a jammed round -> accusation -> questions -> case
//! ```

mod membership;
mod pump;
mod records;
mod rounds;
mod slots;
mod trial;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use rand::Rng;

use crate::dcnet::{
    blame::{Blamed, Case, VerdictFile},
    error::DcnetError,
    group::Group,
    identity::Identity,
    interval::{Nonce, SignedInterval},
    member::PartyRef,
    message::kind,
    mux::MuxEvent,
};

use membership::{Prepared, Proposal};
use rounds::Running;
use slots::Slot;
use trial::Trial;

/// How the relay paces itself.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Rounds follow each other at once for so long after somebody spoke: an answer is near.
    pub eager: Duration,
    /// Between rounds while somebody spoke within the last second.
    pub idle: Duration,
    /// Between rounds otherwise.
    pub asleep: Duration,
    /// A party that does not answer for so long is left out, whatever the path is like.
    pub patience: Duration,
    /// On a path known to be quick, this much is enough: eight times the slowest recent round, but
    /// not less than this.
    pub hung: Duration,
    /// How long the set has to be quiet before an interval is proposed.
    pub settle: Duration,
    /// Slots by turns only, as the source has it, instead of on request.
    pub round_robin: bool,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            eager: Duration::from_millis(20),
            idle: Duration::from_millis(1),
            asleep: Duration::from_millis(10),
            patience: Duration::from_secs(3),
            hung: Duration::from_millis(600),
            settle: Duration::from_millis(20),
            round_robin: false,
        }
    }
}

/// Bytes for links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transmit {
    /// To one party.
    To(PartyRef, Vec<u8>),
    /// To all clients of the set last named.
    Clients(Arc<[u8]>),
    /// From here on, these are the clients.
    Set(Vec<PartyRef>),
    /// This link is to be closed, for this reason.
    Disconnect(PartyRef, String),
}

/// What the program has to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelayEvent {
    /// Something of a slot's connection.
    Exit(u16, MuxEvent),
    /// An interval began.
    Interval(SignedInterval),
    /// Somebody was convicted, or nobody could be; the bytes are the case.
    Verdict(Blamed, Vec<u8>),
}

/// Counters since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Rounds decoded.
    pub rounds: u64,
    /// Cells taken.
    pub cells: u64,
    /// Rounds that did not open.
    pub jammed: u64,
    /// Rounds whose requests made no sense.
    pub requests_jammed: u64,
    /// Rounds given up at a change of the set.
    pub void: u64,
    /// Intervals begun.
    pub intervals: u64,
    /// Payload bytes up and down.
    pub bytes: [u64; 2],
}

/// The relay's state.
pub struct Relay {
    group: Arc<Group>,
    identity: Identity,
    pace: Pace,
    links: BTreeMap<PartyRef, Nonce>,
    banned: Vec<PartyRef>,
    /// The verdicts that convicted them, for whoever joins.
    past: Vec<VerdictFile>,
    running: Option<Running>,
    proposal: Option<Proposal>,
    prepared: Option<Prepared>,
    last_number: u32,
    changed: Option<Instant>,
    slots: Vec<Slot>,
    /// The slot that had the last turn, and the one that had the last turn unasked.
    turn: usize,
    unasked: usize,
    trial: Option<Trial>,
    last_blame: Option<Blamed>,
    last_trial: Option<Duration>,
    last_data: Option<Instant>,
    /// A slot that was not active asked for a turn, and no round was opened since.
    asked_anew: bool,
    counters: Counters,
    out: VecDeque<Transmit>,
    events: VecDeque<RelayEvent>,
}

/// What `status` shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayStatus {
    /// Parties with a link.
    pub online: Vec<PartyRef>,
    /// The interval's number and clients, if one runs.
    pub interval: Option<(u32, Vec<u16>)>,
    /// Rounds in flight, and the window.
    pub in_flight: (usize, usize),
    /// Slots that speak.
    pub open_slots: usize,
    /// Connections behind the relay.
    pub connections: usize,
    /// Since the start.
    pub counters: Counters,
    /// The last verdict.
    pub last_blame: Option<Blamed>,
    /// From its first jammed cell to the verdict.
    pub last_trial: Option<Duration>,
}

impl Relay {
    /// A relay without links; intervals count on from `last_number`.
    pub fn new(group: Arc<Group>, identity: Identity, last_number: u32, pace: Pace) -> Self {
        let slots = (0..group.slots.keys.len()).map(|_| Slot::default()).collect();
        Self {
            group,
            identity,
            pace,
            links: BTreeMap::new(),
            banned: Vec::new(),
            past: Vec::new(),
            running: None,
            proposal: None,
            prepared: None,
            last_number,
            changed: None,
            slots,
            turn: 0,
            unasked: 0,
            trial: None,
            last_blame: None,
            last_trial: None,
            last_data: None,
            asked_anew: false,
            counters: Counters::default(),
            out: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Takes a verdict of an earlier start over: its party stays out.
    ///
    /// # Errors
    /// When the case is not what it claims to be.
    pub fn recall(&mut self, verdict: VerdictFile) -> Result<(), DcnetError> {
        if let Blamed::Party(party) = verdict.judge(&self.group)? {
            self.banned.push(party);
            self.past.push(verdict);
        }
        Ok(())
    }

    /// The next bytes for a link.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.out.pop_front()
    }

    /// What happened.
    pub fn poll_event(&mut self) -> Option<RelayEvent> {
        self.events.pop_front()
    }

    /// What `status` shows.
    pub fn status(&self) -> RelayStatus {
        RelayStatus {
            online: self.links.keys().copied().collect(),
            interval: self.running.as_ref().map(|running| {
                let interval = &running.signed.interval;
                (interval.number, interval.clients.iter().map(|member| member.index).collect())
            }),
            in_flight: self
                .running
                .as_ref()
                .map_or((0, 0), |running| (running.in_flight(), running.window.rounds())),
            open_slots: self.slots.iter().filter(|slot| slot.active).count(),
            connections: self.slots.iter().map(|slot| slot.mux.len()).sum(),
            counters: self.counters.clone(),
            last_blame: self.last_blame,
            last_trial: self.last_trial,
        }
    }

    /// One message of a party.
    ///
    /// # Errors
    /// On anything an honest party does not send; the link has to be closed, and
    /// [`Relay::handle_leave`] called.
    pub fn handle_message(
        &mut self,
        now: Instant,
        party: PartyRef,
        kind: u8,
        body: &[u8],
        rng: &mut impl Rng,
    ) -> Result<(), DcnetError> {
        match (kind, party) {
            (kind::UP, PartyRef::Client(_)) | (kind::PAD, PartyRef::Trustee(_)) => {
                self.handle_share(now, party, body)
            }
            (kind::CHECK, _) => self.handle_check(now, party, body),
            (kind::SIGN, PartyRef::Trustee(at)) => self.handle_sign(now, at, body, rng),
            (kind::READY, _) => self.handle_ready(now, party, body),
            (kind::ANSWER, _) => self.handle_answer(now, party, body),
            (other, _) => Err(DcnetError::OutOfPlace {
                what: format!("message {other} by {party}"),
                state: "only its own role's messages are read".into(),
            }),
        }
    }

    /// When [`Relay::handle_timeout`] has to be called at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let changed = self.changed.map(|at| at + self.pace.settle);
        let membership = self.membership_deadline();
        let pump = self.pump_deadline();
        let trial = self.trial.as_ref().map(|trial| trial.deadline);
        [changed, membership, pump, trial].into_iter().flatten().min()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.membership_timeout(now);
        self.trial_timeout(now);
        self.stalled(now);
        self.pump(now);
    }

    fn disconnect(&mut self, party: PartyRef, why: impl Into<String>) {
        self.out.push_back(Transmit::Disconnect(party, why.into()));
    }

    /// A case that was judged: its party is out at the next interval.
    fn close_case(&mut self, now: Instant, blamed: Blamed, case: &Case) {
        let bytes = case.to_bytes();
        let mut framed = Vec::new();
        crate::dcnet::message::frame(&mut framed, kind::VERDICT, &[&bytes]);
        if let Some(running) = &self.running {
            for party in running.parties() {
                self.out.push_back(Transmit::To(party, framed.clone()));
            }
        }
        self.last_blame = Some(blamed);
        self.events.push_back(RelayEvent::Verdict(blamed, bytes));
        self.last_trial = self.trial.take().map(|trial| now.duration_since(trial.started));
        if let (Blamed::Party(party), Some(running)) = (blamed, &self.running) {
            let interval = running.signed.to_bytes();
            self.past.push(VerdictFile { interval, case: case.to_bytes() });
            self.banned.push(party);
            self.disconnect(party, "convicted of disrupting the group");
            self.changed = Some(now);
        }
    }
}
