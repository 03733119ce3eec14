//! The life of bridges: asked again, found silent, taken down; their clients are told.
//!
//! In: the time. Out: cells for other exits, notices. Called by: the exit's bridges.

use std::time::{Duration, Instant};

use rand::Rng;

use super::{BridgeEvent, EndLink, ExitBridges, TICK, code::CodeStage, end::End};
use crate::{
    model::{BODY_LEN, BodyKind, CELL_LEN},
    wire::{
        BodyHeader, ControlFragment, ControlType, body_mut,
        share::{BridgeEnd, BridgeNotice, CodeBody},
    },
};

/// A silent exit is asked for an echo after this long.
const ECHO_AFTER: Duration = Duration::from_millis(500);
/// An exit that says nothing for this long is lost.
const LOST_AFTER: Duration = Duration::from_secs(2);
/// How long the other exit may take to join or to accept.
const JOIN_WITHIN: Duration = Duration::from_secs(8);
/// A bridge without a datagram for this long is taken down.
const IDLE_AFTER: Duration = Duration::from_secs(120);

impl ExitBridges {
    /// Asks again, looks for lost exits and idle bridges, gives out new shares. `refused` cells did
    /// not fit the link since the last call.
    pub fn handle_timeout(&mut self, now: Instant, unix: u64, refused: u64, rng: &mut impl Rng) {
        if self.next_tick.is_none_or(|at| now < at) {
            return;
        }
        self.orders.handle_timeout(unix);
        self.codes.handle_timeout(now, unix);
        let ends = &mut self.ends;
        self.shares.tick(refused, ends.iter_mut().flatten().map(|end| &mut end.share));
        for at in 0..self.ends.len() {
            self.watch(now, at, rng);
        }
        let is_idle = self.is_empty() && self.codes.is_empty();
        self.next_tick = (!is_idle).then_some(now + TICK);
    }

    fn watch(&mut self, now: Instant, at: usize, rng: &mut impl Rng) {
        let Some(end) = self.ends[at].as_deref_mut() else { return };
        let over = |since: Instant, limit| now.saturating_duration_since(since) >= limit;
        match &mut end.link {
            EndLink::Joining(_) | EndLink::Waiting if over(end.since, JOIN_WITHIN) => {
                self.end(at, Some(BridgeEnd::ExitLost), BridgeEnd::ExitLost);
            }
            EndLink::Joining(joining) if now >= joining.next => self.ask_to_join(now, at, rng),
            EndLink::Open(link) if over(link.heard, LOST_AFTER) => {
                self.end(at, Some(BridgeEnd::ExitLost), BridgeEnd::ExitLost);
            }
            EndLink::Code(link) if link.stage != CodeStage::Open => match link.stage {
                _ if over(end.since, JOIN_WITHIN) => {
                    self.end(at, Some(BridgeEnd::ExitLost), BridgeEnd::ExitLost);
                }
                CodeStage::Joining { next } if now >= next => self.greet_by_code(now, at, rng),
                _ => {}
            },
            EndLink::Code(link) if over(link.heard, LOST_AFTER) => {
                self.end(at, Some(BridgeEnd::ExitLost), BridgeEnd::ExitLost);
            }
            EndLink::Open(_) | EndLink::Local(_) | EndLink::Code(_)
                if over(end.last_data, IDLE_AFTER) =>
            {
                self.end(at, Some(BridgeEnd::Idle), BridgeEnd::Idle);
            }
            EndLink::Open(link) if over(link.heard, ECHO_AFTER) && over(link.asked, ECHO_AFTER) => {
                link.asked = now;
                let mut cell = Box::new([0; CELL_LEN]);
                BodyHeader::new(BodyKind::Echo).emit(body_mut(&mut cell));
                if let Ok(to) = link.seal(end.bridge, &mut cell) {
                    self.events.push_back(BridgeEvent::Send { to, cell });
                }
            }
            EndLink::Code(link) if over(link.heard, ECHO_AFTER) && over(link.asked, ECHO_AFTER) => {
                link.asked = now;
                let mut cell = Box::new([0; CELL_LEN]);
                if let Ok(to) = link.emit(CodeBody::Echo, &mut cell) {
                    self.events.push_back(BridgeEvent::Send { to, cell });
                }
            }
            _ => {}
        }
    }

    pub(super) fn insert(&mut self, end: End) -> usize {
        let key = (end.circuit, end.session);
        let at = self.ends.iter().position(Option::is_none).unwrap_or(self.ends.len());
        if at == self.ends.len() {
            self.ends.push(None);
        }
        self.ends[at] = Some(Box::new(end));
        self.by_session.insert(key, at);
        at
    }

    /// Takes an end down. Its client is told `tell_client`, the other end `tell_other`.
    pub(super) fn end(&mut self, at: usize, tell_client: Option<BridgeEnd>, tell_other: BridgeEnd) {
        let Some(mut end) = self.ends.get_mut(at).and_then(Option::take) else { return };
        self.by_session.remove(&(end.circuit, end.session));
        if self.by_cid.get(&end.bridge) == Some(&at) {
            self.by_cid.remove(&end.bridge);
        }
        if let Some(reason) = tell_client {
            self.notice(&end, Some(reason));
        }
        match &mut end.link {
            EndLink::Open(link) => {
                let mut cell = Box::new([0; CELL_LEN]);
                let (session, role) = (end.session, end.role);
                let notice = BridgeNotice { session, role, end: Some(tell_other) }.emit();
                write_control(body_mut(&mut cell), ControlType::Bridge, &notice);
                if let Ok(to) = link.seal(end.bridge, &mut cell) {
                    self.events.push_back(BridgeEvent::Send { to, cell });
                }
            }
            EndLink::Local(other) => {
                if let Some(other) = self.by_session.get(&(*other, end.session)) {
                    self.end(*other, Some(tell_other), tell_other);
                }
            }
            EndLink::Code(link) => {
                self.codes.forget(end.bridge);
                let mut cell = Box::new([0; CELL_LEN]);
                let (session, role) = (end.session, end.role);
                let notice = BridgeNotice { session, role, end: Some(tell_other) }.emit();
                if let Ok(to) = link.emit(CodeBody::Notice(&notice), &mut cell) {
                    self.events.push_back(BridgeEvent::Send { to, cell });
                }
            }
            EndLink::Joining(_) | EndLink::Waiting => {}
        }
    }

    /// Tells a client that its bridge stands, or why it fell.
    pub(super) fn notice(&mut self, end: &End, reason: Option<BridgeEnd>) {
        let notice = BridgeNotice { session: end.session, role: end.role, end: reason };
        self.events.push_back(BridgeEvent::Control {
            circuit: end.circuit,
            kind: ControlType::Bridge,
            value: notice.emit().to_vec(),
        });
    }
}

/// Writes a control message of one fragment.
fn write_control(body: &mut [u8; BODY_LEN], kind: ControlType, value: &[u8]) {
    let fragment = ControlFragment { kind, request: 0, index: 0, count: 1, value };
    // A notice is far shorter than a body.
    let _ = fragment.emit(body);
}
