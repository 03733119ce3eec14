//! Tracking codes at a relay (source 000): is the message mine? If not, whose is it next?
//!
//! In: cells of other members, this node's onion keys. Out: the cell, changed in place for the next
//! relay, or what arrived. Called by: the exit's bridges.
//!
//! ```text
//! set-up    one X25519 and one MAC for each onion key: recognised, or not for this node
//! message   one MAC under the keys of the set-up, found by the link's id
//! both      first slot out, a filler behind, payload changed, on to next_relay_id
//! ```

mod link;
mod route;
#[cfg(test)]
mod tests;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use foldhash::fast::RandomState;
use hashbrown::HashMap;

pub(super) use self::link::{CodeLink, CodeStage};
use super::join::OwnKeys;
use crate::{
    forward::ReplayWindow,
    keys::{CodeKeys, recognise},
    model::{CELL_LEN, Cid, DropReason, NodeId},
    wire::{
        cid_of, set_cid,
        share::{CodeGreeting, CodeHead, CodeSlot, MOST_EXPIRY_S, NextHop, NextRelayId},
    },
};

/// Links of codes at one relay.
const MOST_ROWS: usize = 8_192;
/// Set-ups taken a second: each costs an X25519.
const SETUPS_PER_SECOND: u32 = 200;
/// A link on which nothing came for this long is forgotten.
const IDLE_AFTER: Duration = Duration::from_secs(30);
/// How much a sender's clock may be ahead, in seconds.
const CLOCK_SLACK_S: u64 = 10;

/// What this node knows of one link of a code.
struct Row {
    keys: CodeKeys,
    window: ReplayWindow,
    last: Instant,
    /// No set-up is taken after this, so the row may go.
    exp: u64,
    /// The address of the relay that was last next.
    next: Option<(NextRelayId, SocketAddr)>,
    /// At the exit where messages arrive: the bridge, once its greeting was proved.
    arrives: Option<Cid>,
}

/// All links of codes that pass this node, or end here.
pub(super) struct Codes {
    rows: HashMap<Cid, Row, RandomState>,
    setups: u32,
    since: Option<Instant>,
}

/// What became of a set-up.
pub(super) enum SetUp {
    /// Its cell is ready for the next relay.
    Pass(SocketAddr),
    /// It is for this exit.
    Arrived {
        /// The link that it opens.
        cid: Cid,
        /// The key it came with.
        ephemeral: [u8; 32],
        /// What it says.
        greeting: CodeGreeting,
    },
}

/// What became of a message.
pub(super) enum Step {
    /// Its cell is ready for the next relay.
    Pass(SocketAddr),
    /// Its payload is open, for this bridge.
    Arrived(Cid),
}

impl Default for Codes {
    fn default() -> Self {
        let rows = HashMap::with_hasher(RandomState::default());
        Self { rows, setups: 0, since: None }
    }
}

impl Codes {
    /// Whether messages may come on this link.
    pub(super) fn has(&self, cid: Cid) -> bool {
        self.rows.contains_key(&cid)
    }

    /// Whether there is nothing to watch.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// A set-up of another member.
    pub(super) fn handle_setup(
        &mut self,
        (now, unix): (Instant, u64),
        cell: &mut [u8; CELL_LEN],
        (id, keys): (&NodeId, &OwnKeys<'_>),
        next_relay: impl Fn(NextRelayId) -> Option<SocketAddr>,
    ) -> Result<SetUp, DropReason> {
        let head = CodeHead::parse_setup(cell).ok_or(DropReason::BadCode)?;
        let CodeHead::SetUp { ephemeral, mac } = head else { return Err(DropReason::BadCode) };
        if self.since.is_none_or(|since| now.duration_since(since) >= Duration::from_secs(1)) {
            (self.setups, self.since) = (0, Some(now));
        }
        self.setups += 1;
        if self.setups > SETUPS_PER_SECOND {
            return Err(DropReason::RateLimited);
        }
        let cid = cid_of(cell);
        let (code, payload) = head.parts(cell);
        let opened = keys.iter().find_map(|own| {
            let mine = recognise(own, id, &ephemeral).ok()?;
            let slot = mine.keys.open(0, &mac, code, payload).ok()?;
            Some((mine, slot))
        });
        let (mine, slot) = opened.ok_or(DropReason::BadCode)?;
        let slot = CodeSlot::parse(&slot).map_err(|_| DropReason::BadCode)?;
        let exp = u64::from(slot.number);
        if unix > exp || exp > unix + MOST_EXPIRY_S + CLOCK_SLACK_S {
            return Err(DropReason::Replay);
        }
        if self.rows.len() >= MOST_ROWS {
            return Err(DropReason::QueueFull);
        }
        let window = ReplayWindow::default();
        let mut row = Row { keys: mine.keys, window, last: now, exp, next: None, arrives: None };
        let done = match slot.next {
            None => {
                let greeting = CodeGreeting::parse(payload).map_err(|_| DropReason::BadCode)?;
                SetUp::Arrived { cid, ephemeral, greeting }
            }
            Some(NextHop { relay, cid, mac }) => {
                let to = next_relay(relay).ok_or(DropReason::BadCode)?;
                row.next = Some((relay, to));
                CodeHead::SetUp { ephemeral: mine.next_ephemeral, mac }.emit(cell);
                set_cid(cell, cid);
                SetUp::Pass(to)
            }
        };
        self.rows.insert(cid, row);
        Ok(done)
    }

    /// A message on a link that was set up.
    pub(super) fn handle_message(
        &mut self,
        now: Instant,
        cell: &mut [u8; CELL_LEN],
        next_relay: impl Fn(NextRelayId) -> Option<SocketAddr>,
    ) -> Result<Step, DropReason> {
        let row = self.rows.get_mut(&cid_of(cell)).ok_or(DropReason::UnknownCircuit)?;
        let head = CodeHead::parse_message(cell);
        let CodeHead::Message { number, mac } = head else { return Err(DropReason::BadCode) };
        if !row.window.is_fresh(number) {
            return Err(DropReason::Replay);
        }
        let (code, payload) = head.parts(cell);
        let slot = row.keys.open(number, &mac, code, payload).map_err(|_| DropReason::BadCode)?;
        row.window.mark(number);
        row.last = now;
        let slot = CodeSlot::parse(&slot).map_err(|_| DropReason::BadCode)?;
        let Some(next) = slot.next else {
            return row.arrives.map(Step::Arrived).ok_or(DropReason::NoBridge);
        };
        let to = match row.next {
            Some((relay, to)) if relay == next.relay => to,
            _ => next_relay(next.relay).ok_or(DropReason::BadCode)?,
        };
        row.next = Some((next.relay, to));
        CodeHead::Message { number: slot.number, mac: next.mac }.emit(cell);
        set_cid(cell, next.cid);
        Ok(Step::Pass(to))
    }

    /// A greeting was proved: what comes on this link is for the bridge.
    fn trust(&mut self, cid: Cid, bridge: Cid) {
        if let Some(row) = self.rows.get_mut(&cid) {
            row.arrives = Some(bridge);
        }
    }

    /// A bridge is gone.
    pub(super) fn forget(&mut self, bridge: Cid) {
        for row in self.rows.values_mut().filter(|row| row.arrives == Some(bridge)) {
            row.arrives = None;
        }
    }

    /// Forgets links that are silent; relays may have moved meanwhile.
    pub(super) fn handle_timeout(&mut self, now: Instant, unix: u64) {
        self.rows.retain(|_, row| {
            unix <= row.exp || now.saturating_duration_since(row.last) < IDLE_AFTER
        });
    }

    /// A newer directory: addresses are looked up again.
    pub(super) fn on_directory(&mut self) {
        self.rows.values_mut().for_each(|row| row.next = None);
    }
}
