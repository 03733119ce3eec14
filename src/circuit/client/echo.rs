//! Echoes to the hops of a circuit: is each there, how far, how lossy.
//!
//! In: times of echoes and replies. Out: bodies to send, health per hop. Called by: the client's
//! circuits.
//!
//! ```text
//! body of an echo and of its reply: 12 number 8 | zeros
//! ```

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::ClientTimers;
use crate::{
    model::{BODY_HEADER_LEN, BODY_LEN, BodyKind},
    wire::BodyHeader,
};

/// Echoes remembered per hop.
const REMEMBERED: usize = 64;
/// Of the regular echoes to the last hop the first so many go to every hop,
const FIRST_TO_EVERY_HOP: u64 = 3;
/// and after that one of so many.
const ONE_TO_EVERY_HOP: u64 = 16;
/// An echo without a reply for this long counts as lost.
const LOST_AFTER: Duration = Duration::from_secs(3);

/// What the echoes of a hop say.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct HopHealth {
    /// The last round trip.
    pub last: Option<Duration>,
    /// The smoothed round trip (RFC 6298).
    pub smoothed: Option<Duration>,
    /// Echoes sent, in all.
    pub sent: u64,
    /// Replies received, in all.
    pub received: u64,
}

#[derive(Default)]
struct HopEchoes {
    waiting: VecDeque<(u64, Instant)>,
    last_sent: Option<Instant>,
    last_reply: Option<Instant>,
    health: HopHealth,
}

impl HopEchoes {
    fn patience(&self, timers: &ClientTimers) -> Duration {
        timers.suspect_after.max(self.health.smoothed.unwrap_or_default() * 2)
    }
}

/// The echoes of one circuit.
pub(super) struct Echoes {
    hops: Vec<HopEchoes>,
    next: u64,
}

impl Echoes {
    pub(super) fn new(hops: usize) -> Self {
        Self { hops: (0..hops).map(|_| HopEchoes::default()).collect(), next: 1 }
    }

    pub(super) fn send(&mut self, now: Instant, hop: usize) -> Box<[u8; BODY_LEN]> {
        let number = self.next;
        self.next += 1;
        let mut body = Box::new([0u8; BODY_LEN]);
        BodyHeader::new(BodyKind::Echo).emit(&mut body);
        body[BODY_HEADER_LEN..BODY_HEADER_LEN + 8].copy_from_slice(&number.to_be_bytes());
        let hop = &mut self.hops[hop];
        hop.waiting.retain(|(_, sent)| now.saturating_duration_since(*sent) < LOST_AFTER);
        if hop.waiting.len() >= REMEMBERED {
            hop.waiting.pop_front();
        }
        hop.waiting.push_back((number, now));
        hop.last_sent = Some(now);
        hop.health.sent += 1;
        body
    }

    /// Takes in a reply and returns its round trip; `None` when nothing was asked.
    pub(super) fn handle_reply(
        &mut self,
        now: Instant,
        hop: usize,
        body: &[u8; BODY_LEN],
    ) -> Option<Duration> {
        let hop = self.hops.get_mut(hop)?;
        let number = u64::from_be_bytes(*body[BODY_HEADER_LEN..].first_chunk()?);
        let index = hop.waiting.iter().position(|(waiting, _)| *waiting == number)?;
        let (_, sent) = hop.waiting.remove(index)?;
        let rtt = now.saturating_duration_since(sent);
        // What was sent before an answered echo no longer counts as silence.
        hop.waiting.drain(..index.min(hop.waiting.len()));
        hop.health.received += 1;
        hop.health.last = Some(rtt);
        hop.health.smoothed =
            Some(hop.health.smoothed.map_or(rtt, |smoothed| (smoothed * 7 + rtt) / 8));
        hop.last_reply = Some(now);
        Some(rtt)
    }

    pub(super) fn oldest_unanswered(&self, hop: usize) -> Option<Instant> {
        self.hops.get(hop)?.waiting.front().map(|(_, sent)| *sent)
    }

    /// When the next echo to a hop is due: soon, while one is unanswered for suspiciously long.
    pub(super) fn next_due(&self, hop: usize, start: Instant, timers: &ClientTimers) -> Instant {
        let echoes = &self.hops[hop];
        let Some(last_sent) = echoes.last_sent else { return start };
        let regular = last_sent + timers.echo_every;
        let Some((_, oldest)) = echoes.waiting.front() else { return regular };
        regular.min((*oldest + echoes.patience(timers)).max(last_sent + timers.suspect_every))
    }

    /// Whether an echo to a hop is unanswered for suspiciously long.
    pub(super) fn is_suspicious(&self, now: Instant, hop: usize, timers: &ClientTimers) -> bool {
        self.suspicious_since(hop, timers).is_some_and(|since| now >= since)
    }

    /// From when on an echo to a hop is unanswered for suspiciously long, and every hop is asked.
    pub(super) fn suspicious_since(&self, hop: usize, timers: &ClientTimers) -> Option<Instant> {
        self.oldest_unanswered(hop).map(|oldest| oldest + self.hops[hop].patience(timers))
    }

    /// When the last echo to a hop was sent.
    pub(super) fn last_sent(&self, hop: usize) -> Option<Instant> {
        self.hops.get(hop)?.last_sent
    }

    /// Whether the next regular echo goes to every hop, so that the round trip of each is known.
    pub(super) fn every_hop_is_due(&self) -> bool {
        let sent = self.hops.last().map_or(0, |hop| hop.health.sent);
        sent < FIRST_TO_EVERY_HOP || sent.is_multiple_of(ONE_TO_EVERY_HOP)
    }

    /// The first hop that answered nothing since `since`; the last one if all did.
    pub(super) fn first_silent_since(&self, since: Instant) -> usize {
        let silent = |echoes: &HopEchoes| echoes.last_reply.is_none_or(|reply| reply < since);
        self.hops.iter().position(silent).unwrap_or(self.hops.len().saturating_sub(1))
    }

    pub(super) fn health(&self, hop: usize) -> HopHealth {
        self.hops.get(hop).map_or_else(HopHealth::default, |hop| hop.health)
    }
}
