//! `ping` and `trace`: echoes to hops, counted one by one.
//!
//! In: requests, replies of hops, the time. Out: answers. Called by: the client's turn.

use std::time::{Duration, Instant};

use super::{Client, commands::Reply};
use crate::{
    model::CircuitKey,
    telemetry::{
        PingAnswer, TraceAnswer, TraceHop,
        control::{PingArgs, Refusal, RefusalKind, TraceArgs},
    },
};

/// How long the last echo of a trace may take.
const LAST_REPLY: Duration = Duration::from_secs(2);
/// Traces and pings at once.
const MOST_TRACES: usize = 16;
/// Echoes of one trace to one hop.
const MOST_ECHOES: u32 = 1_000;

enum Asked {
    Ping(Reply<PingAnswer>),
    Trace(Reply<TraceAnswer>),
}

/// A ping or trace that is under way.
pub(super) struct Trace {
    key: CircuitKey,
    /// The hops that are asked, from 0, and the round trips of each so far.
    hops: Vec<(usize, Vec<Duration>)>,
    rounds: u32,
    sent: u32,
    interval: Duration,
    next: Instant,
    patience: Duration,
    asked: Asked,
}

impl Trace {
    /// When it has something to do.
    pub(super) fn deadline(&self) -> Instant {
        self.next
    }

    fn is_answered(&self) -> bool {
        self.sent == self.rounds
            && self.hops.iter().all(|(_, rtts)| rtts.len() >= self.rounds as usize)
    }
}

impl Client {
    pub(super) fn start_ping(&mut self, now: Instant, args: &PingArgs, reply: Reply<PingAnswer>) {
        let found = self.numbers.iter().find_map(|(key, _)| {
            let row = self.circuits.get(*key).filter(|row| row.ready().is_some())?;
            let hop = row.path().iter().position(|hop| {
                hop.name == args.node || hop.id.to_string().starts_with(&args.node)
            })?;
            Some((*key, hop))
        });
        let Some((key, hop)) = found else {
            let refusal = Refusal::new(
                RefusalKind::Failed,
                format!(
                    "expected a node on an open circuit, got {:?}; `cepa circuits` lists them",
                    args.node
                ),
            );
            let _ = reply.send(Err(refusal));
            return;
        };
        let patience = Duration::from_millis(args.timeout_ms.clamp(10, 60_000));
        self.start(now, key, vec![hop], 1, Duration::ZERO, patience, Asked::Ping(reply));
    }

    pub(super) fn start_trace(
        &mut self,
        now: Instant,
        args: &TraceArgs,
        reply: Reply<TraceAnswer>,
    ) {
        let key = match args.circuit {
            Some(number) => self.by_number(number),
            None => self.pool.active().ok_or_else(|| {
                let reason = self.reason.clone().unwrap_or_else(|| "none is open yet".to_owned());
                Refusal::new(RefusalKind::Blocked, format!("expected an open circuit: {reason}"))
            }),
        };
        let key = match key {
            Ok(key) => key,
            Err(refusal) => {
                let _ = reply.send(Err(refusal));
                return;
            }
        };
        let hops = self.circuits.get(key).map_or(0, |row| row.hops_built());
        let rounds = args.count.clamp(1, MOST_ECHOES);
        let interval = Duration::from_millis(args.interval_ms.clamp(1, 10_000));
        let asked = Asked::Trace(reply);
        self.start(now, key, (0..hops).collect(), rounds, interval, LAST_REPLY, asked);
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one trace, named at both calls")]
    fn start(
        &mut self,
        now: Instant,
        key: CircuitKey,
        hops: Vec<usize>,
        rounds: u32,
        interval: Duration,
        patience: Duration,
        asked: Asked,
    ) {
        if self.traces.len() >= MOST_TRACES {
            return refuse(asked, "too many pings and traces are under way; try again in a moment");
        }
        let hops = hops.into_iter().map(|hop| (hop, Vec::new())).collect();
        self.traces.push(Trace {
            key,
            hops,
            rounds,
            sent: 0,
            interval,
            next: now,
            patience,
            asked,
        });
    }

    pub(super) fn on_echo(&mut self, key: CircuitKey, hop: usize, rtt: Duration) {
        for trace in self.traces.iter_mut().filter(|trace| trace.key == key) {
            if let Some((_, rtts)) = trace.hops.iter_mut().find(|(asked, _)| *asked == hop)
                && rtts.len() < trace.sent as usize
            {
                rtts.push(rtt);
            }
        }
    }

    pub(super) fn handle_traces(&mut self, now: Instant) {
        let mut ended = Vec::new();
        for (index, trace) in self.traces.iter_mut().enumerate() {
            if trace.is_answered() || (now >= trace.next && trace.sent == trace.rounds) {
                ended.push(index);
            } else if now >= trace.next {
                for (hop, _) in &trace.hops {
                    self.circuits.send_echo(now, trace.key, *hop);
                }
                trace.sent += 1;
                let last = trace.sent == trace.rounds;
                trace.next = now + if last { trace.patience } else { trace.interval };
            }
        }
        for index in ended.into_iter().rev() {
            let trace = self.traces.remove(index);
            self.answer(trace);
        }
    }

    /// A circuit is gone: what was asked of it is answered with what is known.
    pub(super) fn end_traces_of(&mut self, key: CircuitKey) {
        let (ended, running) = std::mem::take(&mut self.traces)
            .into_iter()
            .partition(|trace: &Trace| trace.key == key);
        self.traces = running;
        let ended: Vec<Trace> = ended;
        ended.into_iter().for_each(|trace| refuse(trace.asked, "the circuit was closed meanwhile"));
    }

    fn answer(&self, trace: Trace) {
        let number = self.number(trace.key);
        let names: Vec<String> = self
            .circuits
            .get(trace.key)
            .map(|row| row.path().iter().map(|hop| hop.name.clone()).collect())
            .unwrap_or_default();
        let name = |hop: usize| names.get(hop).cloned().unwrap_or_default();
        // Whoever asked may be gone.
        match trace.asked {
            Asked::Ping(reply) => {
                let (hop, rtts) = trace.hops.into_iter().next().unwrap_or_default();
                let _ = reply.send(Ok(PingAnswer {
                    node: name(hop),
                    circuit: number,
                    hop: hop as u8 + 1,
                    rtt_ms: rtts.first().map(|rtt| rtt.as_secs_f64() * 1e3),
                }));
            }
            Asked::Trace(reply) => {
                let hops = trace.hops.into_iter().map(|(hop, mut rtts)| {
                    rtts.sort_unstable();
                    let received = rtts.len() as u32;
                    TraceHop {
                        name: name(hop),
                        rtt_ms: rtts.get(rtts.len() / 2).map(|rtt| rtt.as_secs_f64() * 1e3),
                        loss: 1.0 - f64::from(received) / f64::from(trace.sent.max(1)),
                        sent: trace.sent,
                        received,
                    }
                });
                let _ = reply.send(Ok(TraceAnswer { circuit: number, hops: hops.collect() }));
            }
        }
    }
}

fn refuse(asked: Asked, message: &str) {
    let refusal = Refusal::new(RefusalKind::Failed, message);
    // Whoever asked may be gone.
    match asked {
        Asked::Ping(reply) => drop(reply.send(Err(refusal))),
        Asked::Trace(reply) => drop(reply.send(Err(refusal))),
    }
}
