//! New flows, one after the other: when did which one get its answer?
//!
//! In: a server, a pace. Out: the times of each. Called by: rig::agent.

use std::{
    net::{IpAddr, UdpSocket},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{echo::connected, port};

/// A flow without an answer for this long counts as lost, until the answer comes all the same.
const LOST_AFTER: Duration = Duration::from_millis(100);
/// So many lost flows make a gap, and so many answered ones behind it its end.
const GAP: usize = 3;
const WORKS_AGAIN: usize = 5;

/// The times of one flow, in microseconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FlowTimes {
    /// When its first datagram was sent.
    pub sent_us: u64,
    /// When that came back.
    pub answered_us: Option<u64>,
}

/// How the flows went, in the order in which they were started.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct FlowsAnswer {
    /// The flows.
    pub flows: Vec<FlowTimes>,
}

/// The time that processes of one machine have in common.
pub fn clock_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// One new flow every so often: for `most`, or until there was a gap and flows work again. Says when
/// the first one was answered.
pub(super) fn new_flows(
    to: IpAddr,
    every: Duration,
    most: Duration,
    works: fn() -> Result<()>,
) -> Result<FlowsAnswer> {
    let mut works = Some(works);
    let mut flows: Vec<FlowTimes> = Vec::new();
    let mut open: Vec<(usize, Instant, UdpSocket)> = Vec::new();
    let mut buffer = [0; 64];
    let started = Instant::now();
    let mut next = started;
    while started.elapsed() < most {
        let now = Instant::now();
        if now >= next {
            next += every;
            let socket = connected(to, port::ECHO)?;
            socket.set_nonblocking(true)?;
            flows.push(FlowTimes { sent_us: clock_us(), answered_us: None });
            // A full queue is a lost flow.
            let _ = socket.send(b"is anybody there?");
            open.push((flows.len() - 1, now, socket));
        }
        open.retain(|(index, _, socket)| {
            let answered = socket.recv(&mut buffer).is_ok();
            if answered {
                flows[*index].answered_us = Some(clock_us());
            }
            !answered
        });
        if flows.iter().any(|flow| flow.answered_us.is_some())
            && let Some(works) = works.take()
        {
            works()?;
        }
        let lost: Vec<usize> =
            open.iter().filter(|flow| flow.1.elapsed() > LOST_AFTER).map(|flow| flow.0).collect();
        if lost.len() >= GAP
            && let Some(last) = lost.last()
            && flows[last + 1..].iter().filter(|flow| flow.answered_us.is_some()).count()
                >= WORKS_AGAIN
        {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(FlowsAnswer { flows })
}
