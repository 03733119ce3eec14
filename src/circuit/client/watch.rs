//! Open circuits, watched: echoes that are due, hops that fell silent.
//!
//! In: the time, when a circuit was last heard. Out: echoes, the end of circuits, circuits that
//! stall and resume. Called by: the client's circuits.
//!
//! ```text
//! echo unanswered -> suspicion: every hop is asked, often -> nothing heard for long enough
//!                        hop 2 or later is silent -> gone; its other circuits are doubted
//!                        hop 1 is silent          -> stalled -> heard again: open
//!                                                            -> held too long: gone
//! ```

use std::time::{Duration, Instant};

use super::{
    ClientCircuit, ClientCircuits, ClientEvent, ClientTimers, CloseReason, State, row_mut,
};
use crate::model::{CircuitKey, NodeId};

/// How often a stalled circuit is asked whether it is back.
const STALLED_ECHO: Duration = Duration::from_millis(200);

impl ClientCircuits {
    /// Sends the echoes that are due to an open circuit, or ends it. In suspicion every hop is
    /// asked, so that the silent one is known.
    pub(super) fn watch(&mut self, now: Instant, key: CircuitKey, heard: Option<Instant>) {
        let timers = self.timers.clone();
        let Some(row) = row_mut(&mut self.rows, key) else { return };
        let heard = heard.max(row.ready);
        if let Some(since) = row.stalled {
            if heard.is_some_and(|heard| heard > since) {
                row.stalled = None;
                row.doubted = false;
                self.events.push_back(ClientEvent::Resumed { key });
            } else if now.saturating_duration_since(since) >= timers.hold_for {
                return self.end(key, CloseReason::Silent { hop: 0 }, true);
            }
        } else if let Some(hop) = row.silent_hop(now, heard, &timers) {
            return self.fell_silent(now, key, hop);
        }
        let Some(row) = row_mut(&mut self.rows, key) else { return };
        if row.next_echo(&timers) <= now {
            let last = row.path.len() - 1;
            let every_hop = row.stalled.is_some()
                || row.echoes.is_suspicious(now, last, &timers)
                || row.echoes.every_hop_is_due();
            for hop in if every_hop { 0 } else { last }..=last {
                self.send_echo(now, key, hop);
            }
        }
    }

    fn fell_silent(&mut self, now: Instant, key: CircuitKey, hop: usize) {
        let Some(row) = row_mut(&mut self.rows, key) else { return };
        let silent = row.path[hop].id;
        if hop == 0 && self.timers.hold_for > Duration::ZERO {
            row.stalled = Some(now);
            self.events.push_back(ClientEvent::Stalled { key });
        } else {
            self.end(key, CloseReason::Silent { hop }, true);
        }
        self.doubt(now, silent);
    }

    /// A node is silent on one circuit: the others that it is on are asked at once and judged
    /// sooner.
    fn doubt(&mut self, now: Instant, silent: NodeId) {
        for index in 0..self.rows.len() {
            let key = CircuitKey(index as u32);
            let Some(row) = row_mut(&mut self.rows, key) else { continue };
            let concerned = matches!(row.state, State::Open)
                && row.stalled.is_none()
                && !row.doubted
                && row.path.iter().any(|hop| hop.id == silent);
            if concerned {
                row.doubted = true;
                for hop in 0..row.path.len() {
                    self.send_echo(now, key, hop);
                }
            }
        }
    }
}

impl ClientCircuit {
    /// The first silent hop, when an echo was unanswered and nothing heard for long enough.
    fn silent_hop(
        &mut self,
        now: Instant,
        heard: Option<Instant>,
        timers: &ClientTimers,
    ) -> Option<usize> {
        let last = self.path.len() - 1;
        let Some(oldest) = self.echoes.oldest_unanswered(last) else {
            // Every echo is answered, those of the doubt too.
            self.doubted = false;
            return None;
        };
        let after = if self.doubted { timers.doubted_after } else { timers.silent_after };
        // Time for the answers to what suspicion asks, which begins after two round trips.
        let after = after.max(self.health(last).smoothed.unwrap_or_default() * 4);
        let silent = |since: Instant| now.saturating_duration_since(since) >= after;
        let is_silent = silent(oldest) && heard.is_none_or(silent);
        if !is_silent {
            return None;
        }
        // A hop that answered before everybody was asked may have been cut off since, with all
        // others: then it is this machine's network, and the first hop is the silent one.
        let asked = self.echoes.suspicious_since(last, timers).unwrap_or(oldest);
        Some(self.echoes.first_silent_since(asked))
    }

    /// When the next echo to the last hop is due.
    pub(super) fn next_echo(&self, timers: &ClientTimers) -> Instant {
        let last = self.path.len() - 1;
        match self.echoes.last_sent(last) {
            Some(sent) if self.stalled.is_some() => sent + STALLED_ECHO,
            _ => self.echoes.next_due(last, self.started, timers),
        }
    }
}
