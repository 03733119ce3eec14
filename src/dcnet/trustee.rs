//! The trustee: signs intervals, sends pads ahead of the rounds, carries nobody's traffic.
//!
//! In: messages of the relay, time. Out: signatures, pads up to the relay's credit.
//! Called by: the trustee program and the tests.
//!
//! | message | answered with |
//! |---|---|
//! | PROPOSE | SIGN, when the set is large enough, holds this link's nonce and removes few |
//! | INTERVAL | READY |
//! | CREDIT | PAD for every round up to it; once per round |
//! | ASK, VERDICT, PAST | as a client |

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use curve25519_dalek::Scalar;
use rand::Rng;

use crate::dcnet::{
    blame::{self, Blamed},
    error::DcnetError,
    interval::Interval,
    member::Member,
    memory::TrusteeMemory,
    message::{self, Reader, Share, kind},
    part::{self, Own, Part},
};

const HOUR: Duration = Duration::from_secs(3600);
/// Rounds a relay may ask for at once, whatever it says.
const AHEAD_MAX: u64 = 8192;

/// A trustee's state.
pub struct Trustee {
    /// Identity and keys.
    pub member: Member,
    running: Option<Part>,
    next: Option<Part>,
    last_signed: u32,
    last_number: u32,
    last_clients: BTreeSet<u16>,
    removals: VecDeque<Instant>,
    answers: blame::Answerer,
    out: Vec<u8>,
    verdicts: VecDeque<Blamed>,
    /// What the next program has to know has changed.
    changed: bool,
}

impl Trustee {
    /// A trustee that has not joined an interval yet.
    pub fn new(member: Member) -> Self {
        Self {
            member,
            running: None,
            next: None,
            last_signed: 0,
            last_number: 0,
            last_clients: BTreeSet::new(),
            removals: VecDeque::new(),
            answers: blame::Answerer::default(),
            out: Vec::new(),
            verdicts: VecDeque::new(),
            changed: false,
        }
    }

    /// What the next program has to know, if it has changed: to be kept before
    /// [`Trustee::poll_transmit`] has left. `unix` is the time in Unix seconds.
    pub fn poll_memory(&mut self, now: Instant, unix: u64) -> Option<TrusteeMemory> {
        std::mem::take(&mut self.changed).then(|| TrusteeMemory {
            members: self.last_clients.clone(),
            removals: self
                .removals
                .iter()
                .map(|at| unix.saturating_sub(now.saturating_duration_since(*at).as_secs()))
                .collect(),
            convicted: self.member.convicted.clone(),
        })
    }

    /// Takes over what the program before has left.
    pub fn recall(&mut self, memory: TrusteeMemory, now: Instant, unix: u64) {
        let ago = |at: &u64| now.checked_sub(Duration::from_secs(unix.saturating_sub(*at)));
        self.removals = memory.removals.iter().map(|at| ago(at).unwrap_or(now)).collect();
        self.last_clients = memory.members;
        self.member.convicted = memory.convicted;
    }

    /// Starts over for a new link. Who was removed and who was convicted is not forgotten: a relay
    /// that drops the link would be rid of both.
    pub fn rejoin(&mut self, member: Member) {
        let mut fresh = Self::new(member);
        fresh.member.convicted = std::mem::take(&mut self.member.convicted);
        fresh.last_clients = std::mem::take(&mut self.last_clients);
        fresh.removals = std::mem::take(&mut self.removals);
        *self = fresh;
    }

    /// Bytes for the relay.
    pub fn poll_transmit(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.out);
    }

    /// A verdict this trustee has checked.
    pub fn poll_verdict(&mut self) -> Option<Blamed> {
        self.verdicts.pop_front()
    }

    /// One message of the relay.
    ///
    /// # Errors
    /// On anything an honest relay does not send; the link has to be closed.
    pub fn handle_message(
        &mut self,
        now: Instant,
        kind: u8,
        body: &[u8],
        rng: &mut impl Rng,
    ) -> Result<(), DcnetError> {
        match kind {
            kind::PROPOSE => self.handle_propose(now, body),
            kind::INTERVAL => self.handle_interval(body),
            kind::CREDIT => self.handle_credit(body),
            kind::ASK => self.handle_ask(body, rng),
            kind::VERDICT => self.handle_verdict(body),
            kind::PAST => self.member.hear_past(body),
            other => Err(DcnetError::OutOfPlace {
                what: format!("message {other}"),
                state: "a trustee awaits PROPOSE, INTERVAL, CREDIT, ASK, VERDICT or PAST".into(),
            }),
        }
    }

    fn handle_propose(&mut self, now: Instant, body: &[u8]) -> Result<(), DcnetError> {
        let interval = Interval::parse(body)?;
        if interval.number <= self.last_signed {
            return Err(DcnetError::malformed(
                "PROPOSE",
                format!("a number above {}", self.last_signed),
                interval.number.to_string(),
            ));
        }
        interval.check(&self.member.group, &self.member.convicted)?;
        self.member.check_own(&interval)?;
        let clients: BTreeSet<u16> = interval.clients.iter().map(|member| member.index).collect();
        while self.removals.front().is_some_and(|at| now.duration_since(*at) > HOUR) {
            self.removals.pop_front();
        }
        let cap = self.member.group.system.settings.removals_per_hour;
        let gone: Vec<u16> = self.last_clients.difference(&clients).copied().collect();
        let removals = self.removals.len() + gone.len();
        if !gone.is_empty() && removals > cap {
            return Err(DcnetError::malformed(
                "PROPOSE",
                format!("at most {cap} members left out per hour"),
                removals.to_string(),
            ));
        }
        for client in gone {
            log::info!("interval {} goes on without client {client}", interval.number);
            self.removals.push_back(now);
        }
        self.changed |= self.last_clients != clients;
        self.last_clients = clients;
        self.last_signed = interval.number;
        let signature = self.member.identity.sign("interval", &interval.to_bytes());
        message::frame(&mut self.out, kind::SIGN, &[&interval.number.to_be_bytes(), &signature.0]);
        Ok(())
    }

    fn handle_interval(&mut self, body: &[u8]) -> Result<(), DcnetError> {
        let (_, part) = self.member.prepare(body, self.last_number)?;
        self.last_number = part.number();
        self.next = Some(part);
        message::frame(&mut self.out, kind::READY, &[&self.last_number.to_be_bytes()]);
        Ok(())
    }

    fn handle_credit(&mut self, body: &[u8]) -> Result<(), DcnetError> {
        let mut reader = Reader::new("CREDIT", body);
        let (number, until) = (reader.u32()?, reader.u64()?);
        reader.end()?;
        if let Some(next) = self.next.take_if(|next| next.number() == number) {
            self.running = Some(next);
        }
        let Some(running) = &mut self.running else { return Err(part::no_interval("CREDIT")) };
        if running.number() != number {
            return Ok(());
        }
        if until.saturating_sub(running.round) > AHEAD_MAX {
            return Err(DcnetError::malformed(
                "CREDIT",
                format!("at most {AHEAD_MAX} rounds ahead"),
                (until - running.round).to_string(),
            ));
        }
        while running.round < until {
            let round = running.round;
            let mut pad = vec![0; usize::from(running.signed.interval.cell_size)];
            let sums = running.pads.apply(round, &mut pad);
            let share =
                Share { number, round, requests: sums.request, slot: Some((sums.slot, &pad)) };
            running.send(kind::PAD, &share, &self.member, &mut self.out);
            running.round += 1;
        }
        Ok(())
    }

    fn handle_ask(&mut self, body: &[u8], rng: &mut impl Rng) -> Result<(), DcnetError> {
        let ask = blame::Ask::parse(body)?;
        let Some(running) = &self.running else { return Err(part::no_interval("ASK")) };
        let view =
            blame::View::of_trustee(&self.member.group, &running.signed.interval, &running.hash);
        let answers = &mut self.answers;
        let own = Own { view, owner: None, key: Scalar::ZERO };
        running.answer(&ask, &self.member, &own, answers, rng, &mut self.out)
    }

    fn handle_verdict(&mut self, body: &[u8]) -> Result<(), DcnetError> {
        let Some(running) = &self.running else { return Ok(()) };
        let view =
            blame::View::of_trustee(&self.member.group, &running.signed.interval, &running.hash);
        let blamed = self.member.judge(body, &view)?;
        self.member.convict(blamed);
        self.changed = true;
        self.verdicts.push_back(blamed);
        Ok(())
    }
}
