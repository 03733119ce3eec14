//! `cepa bench`: echoes to the exit of a circuit, as fast as it answers them.
//!
//! In: a request, replies of the exit, the time. Out: echo cells, an answer.
//! Called by: the client's turn.
//!
//! Its echoes carry numbers with the highest bit set, which those of the circuits never reach. As
//! many are out as the window says; it grows with every reply while the round trip stays low, shrinks
//! while it is high, and is halved when cells are lost.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{Client, commands::Reply};
use crate::{
    model::{BODY_HEADER_LEN, BODY_LEN, BodyKind, CircuitKey},
    telemetry::{
        BenchAnswer,
        control::{BenchArgs, Refusal, RefusalKind},
    },
    wire::BodyHeader,
};

/// Marks the numbers of these echoes.
const MARK: u64 = 1 << 63;
/// The least and the most cells that are out.
const WINDOW: [f64; 2] = [8.0, 2048.0];
/// The window grows while the round trip is less than so many times the shortest one.
const QUEUED: u32 = 3;
/// A round trip on the same machine is noise; below this nothing counts as queued.
const NO_QUEUE: Duration = Duration::from_millis(2);
/// An echo that is out for longer, and for so many round trips, is lost.
const LOST_AFTER: Duration = Duration::from_millis(300);
const LOST_TRIPS: u32 = 6;
/// Echoes written in one turn, so that others get theirs.
const PER_TURN: usize = 128;
/// The longest single measurement.
const LONGEST: Duration = Duration::from_secs(10);

/// A measurement that is under way.
pub(super) struct Bench {
    key: CircuitKey,
    hop: usize,
    started: Instant,
    until: Instant,
    window: f64,
    next: u64,
    out: HashMap<u64, Instant>,
    looked: Instant,
    sent: u64,
    lost: u64,
    rtts: Vec<Duration>,
    shortest: Duration,
    reply: Reply<BenchAnswer>,
}

impl Client {
    pub(super) fn start_bench(
        &mut self,
        now: Instant,
        args: &BenchArgs,
        reply: Reply<BenchAnswer>,
    ) {
        let key = match args.circuit {
            Some(number) => self.by_number(number),
            None => self.pool.active().ok_or_else(|| {
                Refusal::new(RefusalKind::Blocked, "expected an open circuit, got none")
            }),
        };
        let busy = self.bench.is_some();
        let refusal = match key {
            Err(refusal) => refusal,
            Ok(_) if busy => Refusal::new(
                RefusalKind::Failed,
                "another measurement is under way; try again when it has ended",
            ),
            Ok(key) => match self.circuits.get(key).filter(|row| row.ready().is_some()) {
                None => Refusal::new(RefusalKind::Failed, "the circuit is not open yet"),
                Some(row) => {
                    let hop = row.path().len() - 1;
                    self.bench = Some(Bench {
                        key,
                        hop,
                        started: now,
                        until: now + Duration::from_millis(args.millis).min(LONGEST),
                        window: f64::from(args.window).clamp(WINDOW[0], WINDOW[1]),
                        next: MARK,
                        out: HashMap::new(),
                        looked: now,
                        sent: 0,
                        lost: 0,
                        rtts: Vec::new(),
                        shortest: Duration::MAX,
                        reply,
                    });
                    return;
                }
            },
        };
        // Whoever asked may be gone; here and below.
        let _ = reply.send(Err(refusal));
    }

    /// Takes in a reply if it belongs to the measurement; says whether it did.
    pub(super) fn is_bench_reply(&mut self, now: Instant, key: CircuitKey, hop: usize) -> bool {
        let number =
            self.body[BODY_HEADER_LEN..].first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
        let Some(number) = number.filter(|number| number & MARK != 0) else { return false };
        if let Some(bench) = self.bench.as_mut().filter(|it| (it.key, it.hop) == (key, hop)) {
            bench.handle_reply(now, number);
        }
        true
    }

    /// Writes what the window has room for, and answers when the time is over.
    pub(super) fn handle_bench(&mut self, now: Instant) {
        let Some(bench) = &mut self.bench else { return };
        bench.give_up_late(now);
        if now < bench.until {
            for _ in 0..PER_TURN {
                if bench.out.len() >= bench.window as usize {
                    break;
                }
                let number = bench.next;
                let write = |body: &mut [u8; BODY_LEN]| {
                    body.fill(0);
                    BodyHeader::new(BodyKind::Echo).emit(body);
                    body[BODY_HEADER_LEN..BODY_HEADER_LEN + 8]
                        .copy_from_slice(&number.to_be_bytes());
                };
                let (key, hop) = (bench.key, bench.hop);
                let sent = self.table.send_body(key, hop, write, &mut self.outbox, &mut self.rng);
                if sent.is_err() {
                    return self.end_bench(Some("the circuit was closed meanwhile"));
                }
                bench.next += 1;
                bench.sent += 1;
                bench.out.insert(number, now);
            }
            self.link.flush(&mut self.outbox);
        } else if bench.out.is_empty() || now >= bench.until + LOST_AFTER {
            self.end_bench(None);
        }
    }

    /// When it has something to do without a reply.
    pub(super) fn bench_deadline(&self, now: Instant) -> Option<Instant> {
        let bench = self.bench.as_ref()?;
        let has_room = now < bench.until && bench.out.len() < bench.window as usize;
        Some(if has_room { now } else { now + Duration::from_millis(5) })
    }

    pub(super) fn end_bench_of(&mut self, key: CircuitKey) {
        if self.bench.as_ref().is_some_and(|bench| bench.key == key) {
            self.end_bench(Some("the circuit was closed meanwhile"));
        }
    }

    fn end_bench(&mut self, failure: Option<&str>) {
        let Some(bench) = self.bench.take() else { return };
        let answer = match failure {
            Some(message) => Err(Refusal::new(RefusalKind::Failed, message)),
            None => Ok(bench.answer(self.number(bench.key))),
        };
        let _ = bench.reply.send(answer);
    }
}

impl Bench {
    fn handle_reply(&mut self, now: Instant, number: u64) {
        let Some(sent) = self.out.remove(&number) else { return };
        let rtt = now.saturating_duration_since(sent);
        self.shortest = self.shortest.min(rtt);
        if now < self.until {
            self.rtts.push(rtt);
        }
        let queued = (self.shortest * QUEUED).max(NO_QUEUE);
        let step = if rtt < queued { 1.0 } else { -1.0 };
        self.window = (self.window + step).clamp(WINDOW[0], WINDOW[1]);
    }

    fn give_up_late(&mut self, now: Instant) {
        const LOOK_EVERY: Duration = Duration::from_millis(20);
        if now < self.looked + LOOK_EVERY {
            return;
        }
        self.looked = now;
        let trips = self.rtts.last().map_or(Duration::ZERO, |rtt| *rtt * LOST_TRIPS);
        let patience = LOST_AFTER.max(trips);
        let before = self.out.len();
        self.out.retain(|_, sent| now.saturating_duration_since(*sent) < patience);
        let lost = before - self.out.len();
        if lost > 0 {
            self.lost += lost as u64;
            self.window = (self.window / 2.0).max(WINDOW[0]);
        }
    }

    fn answer(&self, circuit: u32) -> BenchAnswer {
        let mut rtts = self.rtts.clone();
        rtts.sort_unstable();
        let at = |share: f64| {
            let last = rtts.len().checked_sub(1)?;
            let rtt = rtts.get((last as f64 * share).round() as usize)?;
            Some(rtt.as_secs_f64() * 1e3)
        };
        BenchAnswer {
            circuit,
            sent: self.sent,
            received: rtts.len() as u64,
            lost: self.lost + self.out.len() as u64,
            seconds: self.until.saturating_duration_since(self.started).as_secs_f64(),
            window: self.window as u32,
            rtt_min_ms: at(0.0),
            rtt_median_ms: at(0.5),
            rtt_p99_ms: at(0.99),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    fn bench(now: Instant) -> Bench {
        let (reply, _) = oneshot::channel();
        Bench {
            key: CircuitKey(0),
            hop: 2,
            started: now,
            until: now + Duration::from_secs(1),
            window: 8.0,
            next: MARK,
            out: HashMap::new(),
            looked: now,
            sent: 0,
            lost: 0,
            rtts: Vec::new(),
            shortest: Duration::MAX,
            reply,
        }
    }

    #[test]
    fn the_window_grows_while_replies_are_quick_and_shrinks_with_loss() {
        let now = Instant::now();
        let ms = Duration::from_millis;
        let mut bench = bench(now);
        for number in 0..20 {
            bench.out.insert(MARK | number, now);
        }
        for number in 0..10 {
            bench.handle_reply(now + ms(10), MARK | number);
        }
        assert_eq!(bench.window as u32, 18);
        for number in 10..15 {
            bench.handle_reply(now + ms(40), MARK | number);
        }
        assert_eq!(bench.window as u32, 13, "four times the shortest: cells queue");
        bench.handle_reply(now + ms(41), MARK | 3);
        assert_eq!(bench.rtts.len(), 15, "a reply counts once");
        bench.give_up_late(now + ms(200));
        assert_eq!((bench.lost, bench.window as u32), (0, 13));
        bench.give_up_late(now + ms(301));
        assert_eq!((bench.lost, bench.window as u32), (5, 8));
        let answer = bench.answer(4);
        assert_eq!((answer.circuit, answer.received, answer.lost), (4, 15, 5));
        assert_eq!((answer.rtt_min_ms, answer.rtt_p99_ms), (Some(10.0), Some(40.0)));
        assert!((answer.seconds - 1.0).abs() < 1e-9);
    }
}
