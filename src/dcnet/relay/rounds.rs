//! The rounds of one interval: sums that decode once everybody's share is in.
//!
//! In: shares in each party's order. Out: complete rounds. Called by: the relay core.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use curve25519_dalek::Scalar;

use crate::dcnet::{
    error::DcnetError,
    history::History,
    interval::SignedInterval,
    member::PartyRef,
    message::{NO_SLOT, RoundResult, Share},
};

use super::{Pace, records::Record};

/// Sums of a round, clients and trustees apart: trustees run ahead of the history.
pub(super) struct Round {
    cell: Vec<u8>,
    client_key: Scalar,
    trustee_key: Scalar,
    client_requests: Scalar,
    trustee_requests: Scalar,
    waiting: usize,
    pub(super) issued: Option<Issued>,
}

/// What the relay said when it opened a round.
#[derive(Debug, Clone, Copy)]
pub(super) struct Issued {
    pub(super) slot: u16,
    pub(super) accusation: bool,
    pub(super) h: Scalar,
    pub(super) at: Instant,
}

/// A decoded round.
pub(super) struct Decoded {
    pub(super) round: u64,
    pub(super) issued: Issued,
    pub(super) key: Scalar,
    pub(super) cell: Vec<u8>,
    pub(super) requests: Scalar,
}

/// Rounds of which the quickest tells how long the path is now: that one was not held up by a party
/// whose processor was elsewhere.
const FEW: usize = 8;
/// A path that takes so long holds several rounds at once.
const FAR: Duration = Duration::from_millis(5);
/// Rounds in flight at first.
const AT_FIRST: f64 = 2.0;

/// How many rounds are kept in flight: as many as the path takes without queueing (after Vegas).
#[derive(Debug)]
pub(super) struct Window {
    rounds: f64,
    most: f64,
    best: Duration,
    best_since: Option<Instant>,
    /// What the last few rounds took.
    recent: [Duration; FEW],
    next: usize,
}

impl Window {
    /// At most `most` rounds, and as many as `before`: who is there has changed, the path hardly.
    fn new(most: usize, before: Option<&Self>) -> Self {
        let most = f64::from(u32::try_from(most).unwrap_or(64));
        let rounds = before.map_or(AT_FIRST, |before| before.rounds);
        Self {
            rounds: rounds.min(most),
            most,
            best: Duration::MAX,
            best_since: None,
            recent: [Duration::MAX; FEW],
            next: 0,
        }
    }

    /// Whole rounds.
    pub(super) fn rounds(&self) -> usize {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 64")]
        let rounds = self.rounds as usize;
        rounds.max(1)
    }

    /// What the quickest recent round took, on a path that holds several rounds at once.
    pub(super) fn far(&self) -> Option<Duration> {
        self.best_since.map(|_| self.best).filter(|path| *path >= FAR)
    }

    fn measured(&mut self, now: Instant, took: Duration) {
        let stale =
            self.best_since.is_none_or(|at| now.duration_since(at) > Duration::from_secs(5));
        if stale || took < self.best {
            (self.best, self.best_since) = (took, Some(now));
        }
        self.recent[self.next] = took;
        self.next = (self.next + 1) % FEW;
        let took = self.recent.iter().min().map_or(0.0, Duration::as_secs_f64);
        let queued = self.rounds * (1.0 - self.best.as_secs_f64() / took.max(1e-9));
        if queued < 1.0 {
            self.rounds = (self.rounds + 1.0 / self.rounds).min(self.most);
        } else if queued > 2.0 {
            self.rounds = (self.rounds - 1.0 / self.rounds).max(AT_FIRST.min(self.most));
        }
    }
}

/// Rounds seen before the path is known.
const KNOWN: u32 = 16;
/// How long a slow round is remembered at least.
const RECENT: Duration = Duration::from_secs(5);

/// How long an answer may take: a multiple of what the slowest of the recent rounds took.
#[derive(Debug, Default)]
struct Tempo {
    /// Of the last five seconds, and of the five before.
    slowest: [Duration; 2],
    since: Option<Instant>,
    seen: u32,
    /// The round that was found overdue, and when.
    overdue: Option<(u64, Instant)>,
}

impl Tempo {
    fn measured(&mut self, now: Instant, took: Duration) {
        if now.duration_since(*self.since.get_or_insert(now)) > RECENT {
            self.slowest = [Duration::ZERO, self.slowest[0]];
            self.since = Some(now);
        }
        self.slowest[0] = self.slowest[0].max(took);
        self.seen = self.seen.saturating_add(1);
    }

    fn bound(&self, pace: &Pace) -> Duration {
        let slowest = self.slowest[0].max(self.slowest[1]);
        let known = (self.seen >= KNOWN).then(|| (slowest * 8).max(pace.hung));
        known.unwrap_or(pace.patience).min(pace.patience)
    }
}

/// One interval.
pub(super) struct Running {
    pub(super) signed: SignedInterval,
    pub(super) hash: [u8; 32],
    pub(super) history: History,
    pub(super) records: Vec<Record>,
    /// The next round each party answers, beside its record.
    next: Vec<u64>,
    rounds: VecDeque<Round>,
    /// The number of `rounds[0]`.
    pub(super) base: u64,
    pub(super) issued: u64,
    pub(super) credit: u64,
    pub(super) window: Window,
    tempo: Tempo,
    pub(super) results: Vec<RoundResult>,
    pub(super) last_issue: Option<Instant>,
    /// The round opened last brought data down: its pseudonym may have something to say to that.
    pub(super) has_told: bool,
    cell: usize,
    /// Finishes what is in flight and opens no more rounds.
    pub(super) draining: bool,
}

impl Running {
    pub(super) fn new(
        signed: SignedInterval,
        relay_key: &[u8; 32],
        before: Option<&Window>,
    ) -> Self {
        let hash = signed.interval.hash();
        let interval = &signed.interval;
        let records: Vec<Record> = interval
            .clients
            .iter()
            .map(|member| PartyRef::Client(member.index))
            .chain(interval.trustees.iter().map(|member| PartyRef::Trustee(member.index)))
            .map(|party| Record::new(party, &hash))
            .collect();
        Self {
            history: History::new(&hash, relay_key),
            next: vec![0; records.len()],
            records,
            rounds: VecDeque::new(),
            base: 0,
            issued: 0,
            credit: 0,
            window: Window::new(usize::from(interval.window), before),
            tempo: Tempo::default(),
            results: Vec::new(),
            last_issue: None,
            has_told: false,
            cell: usize::from(interval.cell_size),
            draining: false,
            hash,
            signed,
        }
    }

    pub(super) fn parties(&self) -> Vec<PartyRef> {
        self.records.iter().map(|record| record.party).collect()
    }

    pub(super) fn place(&self, party: PartyRef) -> Option<usize> {
        let interval = &self.signed.interval;
        match party {
            PartyRef::Client(at) => interval.clients.binary_search_by_key(&at, |m| m.index).ok(),
            PartyRef::Trustee(at) => {
                let place = interval.trustees.binary_search_by_key(&at, |m| m.index).ok()?;
                Some(interval.clients.len() + place)
            }
        }
    }

    /// Whether another round may be opened that leaves room for so many more.
    pub(super) fn has_room(&self, more: usize) -> bool {
        let in_flight = self.in_flight();
        !self.draining && (in_flight == 0 || in_flight + more < self.window.rounds())
    }

    pub(super) fn in_flight(&self) -> usize {
        usize::try_from(self.issued - self.base).unwrap_or(usize::MAX)
    }

    /// When the oldest open round is to be looked at by [`Running::is_overdue`].
    pub(super) fn overdue_at(&self, pace: &Pace) -> Option<Instant> {
        let bound = self.tempo.bound(pace);
        match self.tempo.overdue {
            Some((round, since)) if round == self.base => Some(since + bound / 4),
            _ => Some(self.rounds.front()?.issued?.at + bound),
        }
    }

    /// Whether the oldest open round was overdue for a while. Found only once, it may be the relay
    /// itself that was stopped: what has come meanwhile is read first.
    pub(super) fn is_overdue(&mut self, now: Instant, pace: &Pace) -> bool {
        if self.in_flight() == 0 || self.overdue_at(pace).is_none_or(|at| now < at) {
            return false;
        }
        let again = self.tempo.overdue.is_some_and(|(round, _)| round == self.base);
        self.tempo.overdue = Some((self.base, now));
        again
    }

    /// Parties whose share of the oldest open round is missing.
    pub(super) fn missing(&self) -> Vec<PartyRef> {
        let late = self.next.iter().zip(&self.records).filter(|(next, _)| **next <= self.base);
        late.map(|(_, record)| record.party).collect()
    }

    fn round_mut(&mut self, round: u64) -> &mut Round {
        let at = usize::try_from(round - self.base).unwrap_or(usize::MAX);
        while self.rounds.len() <= at {
            self.rounds.push_back(Round {
                cell: vec![0; self.cell],
                client_key: Scalar::ZERO,
                trustee_key: Scalar::ZERO,
                client_requests: Scalar::ZERO,
                trustee_requests: Scalar::ZERO,
                waiting: self.records.len(),
                issued: None,
            });
        }
        &mut self.rounds[at]
    }

    /// The relay opened the next round.
    pub(super) fn open(&mut self, issued: Issued) {
        let round = self.issued;
        self.round_mut(round).issued = Some(issued);
        self.issued += 1;
        self.last_issue = Some(issued.at);
    }

    /// Adds a party's share to its round.
    ///
    /// # Errors
    /// When it is malformed, or not the round whose turn it is.
    pub(super) fn add(&mut self, party: PartyRef, body: &[u8]) -> Result<(), DcnetError> {
        let share = Share::parse(body, self.cell)?;
        if share.number != self.signed.interval.number {
            // Of the interval before, overtaken by the change.
            return Ok(());
        }
        let Some(place) = self.place(party) else {
            return Err(DcnetError::OutOfPlace {
                what: format!("a share by {party}"),
                state: "the interval runs without it".into(),
            });
        };
        let trustee = matches!(party, PartyRef::Trustee(_));
        let limit = if trustee { self.credit } else { self.issued };
        if share.round != self.next[place] || share.round >= limit {
            return Err(DcnetError::malformed(
                "share",
                format!("round {} before {limit}", self.next[place]),
                share.round.to_string(),
            ));
        }
        let round = self.round_mut(share.round);
        let spoken_for = round.issued.is_none_or(|issued| issued.slot != NO_SLOT);
        if share.slot.is_some() != (trustee || spoken_for) {
            return Err(DcnetError::malformed(
                "share",
                "a cell exactly when a slot has its turn",
                "otherwise",
            ));
        }
        let (key, requests) = if trustee {
            (&mut round.trustee_key, &mut round.trustee_requests)
        } else {
            (&mut round.client_key, &mut round.client_requests)
        };
        *requests += share.requests;
        if let Some((share_key, cell)) = share.slot {
            *key += share_key;
            for (sum, byte) in round.cell.iter_mut().zip(cell) {
                *sum ^= byte;
            }
        }
        round.waiting -= 1;
        self.next[place] += 1;
        self.records[place].push(body)
    }

    /// The oldest round, when everybody's share is in.
    pub(super) fn take_complete(&mut self, now: Instant) -> Option<Decoded> {
        let first = self.rounds.front()?;
        let issued = first.issued?;
        if first.waiting > 0 {
            return None;
        }
        let round = self.rounds.pop_front()?;
        let number = self.base;
        self.base += 1;
        let took = now.duration_since(issued.at);
        self.window.measured(now, took);
        self.tempo.measured(now, took);
        Some(Decoded {
            round: number,
            key: round.client_key - issued.h * round.trustee_key,
            requests: round.client_requests - issued.h * round.trustee_requests,
            cell: round.cell,
            issued,
        })
    }
}

/// A downstream message, shared by all clients.
pub(super) type Shared = Arc<[u8]>;
