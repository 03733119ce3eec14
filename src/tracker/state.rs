//! The tracker's state: legs of circuits, what they share, their sessions; without I/O.
//!
//! In: frames of legs, the time. Out: [`TrackerEvent`]s, in order. Called by: node.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use rand::Rng;

use super::{
    Conversation, Quota, TrackerError, accept,
    catalogue::Catalogue,
    orders::OrderKey,
    sessions::{Row, SessionRecord, Stage},
};
use crate::{
    keys::OnionKey,
    model::{Cid, NodeId},
    wire::share::{
        ChannelFrame, ListedFile, MAX_AVOIDED, MAX_MESSAGE_LEN, Order, Session, ShareWireError,
        ToPeer, ToTracker,
    },
};

/// Messages a leg may send at once, and how many come back a second.
const BURST: u32 = 100;
const PER_SECOND: u32 = 20;

/// The limits of a tracker.
#[derive(Clone, Debug)]
pub struct TrackerLimits {
    /// Circuits at once.
    pub legs: usize,
    /// What one circuit may announce.
    pub quota: Quota,
    /// An announcement holds for this long without another.
    pub expiry: Duration,
    /// Channels that may be opened a second, by all.
    pub hellos_per_second: u32,
}

impl Default for TrackerLimits {
    fn default() -> Self {
        Self {
            legs: 65_536,
            quota: Quota::default(),
            expiry: Duration::from_secs(180),
            hellos_per_second: 500,
        }
    }
}

/// A node of the directory, as the tracker needs it for routes.
#[derive(Clone, Copy, Debug)]
pub struct TrackerMember {
    /// Its id.
    pub id: NodeId,
    /// Its onion key: a route is sealed to it.
    pub onion_key: [u8; 32],
}

/// What the event loop must do.
#[derive(Debug)]
pub enum TrackerEvent {
    /// Post a frame to a leg's exit.
    Post {
        /// The exit.
        exit: NodeId,
        /// The leg.
        leg: Cid,
        /// The frame.
        frame: Vec<u8>,
    },
    /// Post an order to its exit; orders to one exit stay in order.
    Order(Box<Order>),
    /// Keep something over a restart.
    Keep(Change),
}

/// What is kept over a restart.
#[derive(Clone, Debug)]
pub enum Change {
    /// A leg and the exit it belongs to.
    Leg(Cid, NodeId),
    /// A leg is gone, with its files.
    LegGone(Cid),
    /// What a leg shares.
    Files(Cid, Vec<ListedFile>),
    /// A session whose exits were ordered.
    Session(SessionRecord),
    /// A session is over.
    SessionGone(Session),
}

/// How things stand, for status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrackerSummary {
    /// Circuits that were heard of late.
    pub circuits: usize,
    /// Files that they share.
    pub files: usize,
    /// Sessions.
    pub sessions: usize,
}

pub(super) struct Leg {
    pub(super) exit: NodeId,
    conversation: Option<Conversation>,
    /// The hello that opened the conversation and its answer.
    hello: Option<([u8; 32], Vec<u8>)>,
    seen: Instant,
    allowance: u32,
    refilled: Instant,
    /// Its last downloads that ended, and who gave them; it may ask not to get those again.
    ended: VecDeque<(Session, Cid)>,
}

/// Everything a tracker knows.
pub struct TrackerState {
    limits: TrackerLimits,
    pub(super) orders: OrderKey,
    pub(super) legs: HashMap<Cid, Leg>,
    /// Nodes that pass cells on.
    pub(super) relays: Vec<TrackerMember>,
    pub(super) catalogue: Catalogue,
    pub(super) sessions: HashMap<Session, Row>,
    pub(super) events: VecDeque<TrackerEvent>,
    hellos: u32,
    hellos_since: Instant,
}

impl TrackerState {
    /// A tracker that knows nobody.
    pub fn new(now: Instant, orders: OrderKey, limits: TrackerLimits) -> Self {
        Self {
            catalogue: Catalogue::new(limits.quota.clone()),
            limits,
            orders,
            legs: HashMap::new(),
            relays: Vec::new(),
            sessions: HashMap::new(),
            events: VecDeque::new(),
            hellos: 0,
            hellos_since: now,
        }
    }

    /// Takes over what was kept before a restart. Channels are opened again by the peers.
    pub fn restore(&mut self, now: Instant, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            match change {
                Change::Leg(cid, exit) => {
                    self.legs.insert(cid, Leg::new(now, exit));
                }
                Change::Files(cid, files) if self.legs.contains_key(&cid) => {
                    for file in files {
                        self.catalogue.add(cid, file);
                    }
                }
                Change::Session(record) => {
                    self.sessions.insert(record.session, Row::restored(now, record));
                }
                Change::Files(..) | Change::LegGone(_) | Change::SessionGone(_) => {}
            }
        }
    }

    /// A newer directory: the nodes that pass cells on.
    pub fn set_relays(&mut self, relays: Vec<TrackerMember>) {
        self.relays = relays;
    }

    /// What to do next; ask until there is nothing.
    pub fn poll_event(&mut self) -> Option<TrackerEvent> {
        self.events.pop_front()
    }

    /// How things stand.
    pub fn summary(&self) -> TrackerSummary {
        TrackerSummary {
            circuits: self.legs.values().filter(|leg| leg.conversation.is_some()).count(),
            files: self.catalogue.len(),
            sessions: self.sessions.values().filter(|row| row.stage == Stage::Ordered).count(),
        }
    }

    pub(super) fn is_open(&self, leg: Cid) -> bool {
        self.legs.get(&leg).is_some_and(|leg| leg.conversation.is_some())
    }

    /// A frame of a leg. `unix_us` is the time in microseconds since 1970, `keys` are the tracker's
    /// onion keys.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn handle_frame(
        &mut self,
        now: Instant,
        unix_us: u64,
        cid: Cid,
        frame: &[u8],
        keys: &[OnionKey],
        rng: &mut impl Rng,
    ) -> Result<(), TrackerError> {
        match ChannelFrame::parse(frame)? {
            ChannelFrame::Hello(hello) => self.handle_hello(now, cid, hello, keys)?,
            ChannelFrame::Data { nonce, sealed } => {
                let Some(leg) = self.legs.get_mut(&cid) else {
                    return Err(ShareWireError::Malformed {
                        expected: "the CID of a leg that was opened",
                        got: "an unknown one".to_owned(),
                    }
                    .into());
                };
                let Some(conversation) = &mut leg.conversation else {
                    let (exit, frame) = (leg.exit, ChannelFrame::Reset.emit());
                    self.events.push_back(TrackerEvent::Post { exit, leg: cid, frame });
                    return Ok(());
                };
                conversation.handle_data(now, nonce, sealed)?;
                leg.seen = now;
                self.read(now, unix_us, cid, rng);
            }
            ChannelFrame::Welcome(_) | ChannelFrame::Reset => {
                return Err(ShareWireError::Malformed {
                    expected: "a frame of a peer",
                    got: "one of a tracker".to_owned(),
                }
                .into());
            }
        }
        self.transmit(now, cid);
        Ok(())
    }

    fn handle_hello(
        &mut self,
        now: Instant,
        cid: Cid,
        hello: &[u8],
        keys: &[OnionKey],
    ) -> Result<(), TrackerError> {
        let hash = *blake3::hash(hello).as_bytes();
        if let Some(leg) = self.legs.get(&cid)
            && let Some((known, welcome)) = &leg.hello
            && *known == hash
        {
            let (exit, frame) = (leg.exit, welcome.clone());
            self.events.push_back(TrackerEvent::Post { exit, leg: cid, frame });
            return Ok(());
        }
        if now.saturating_duration_since(self.hellos_since) >= Duration::from_secs(1) {
            (self.hellos, self.hellos_since) = (0, now);
        }
        self.hellos += 1;
        if self.hellos > self.limits.hellos_per_second
            || (self.legs.len() >= self.limits.legs && !self.legs.contains_key(&cid))
        {
            return Err(TrackerError::NoRoom);
        }
        let accepted = keys
            .iter()
            .find_map(|key| accept(now, key.secret(), hello).ok())
            .ok_or(TrackerError::Seal)?;
        let leg = self.legs.entry(cid).or_insert_with(|| Leg::new(now, accepted.exit));
        leg.exit = accepted.exit;
        leg.conversation = Some(accepted.conversation);
        leg.hello = Some((hash, accepted.welcome.clone()));
        leg.seen = now;
        let exit = accepted.exit;
        self.events.push_back(TrackerEvent::Keep(Change::Leg(cid, exit)));
        self.events.push_back(TrackerEvent::Post { exit, leg: cid, frame: accepted.welcome });
        Ok(())
    }

    /// Every whole message of a leg.
    fn read(&mut self, now: Instant, unix_us: u64, cid: Cid, rng: &mut impl Rng) {
        while let Some(message) = self.next_message(cid) {
            let is_allowed = self.legs.get_mut(&cid).is_some_and(|leg| leg.take_allowance(now));
            match ToTracker::parse(&message) {
                _ if !is_allowed => {
                    let reason = "too many messages; wait a second".to_owned();
                    self.tell(now, cid, &ToPeer::Refused { ask: None, reason });
                }
                Ok(message) => self.handle_message(now, unix_us, cid, message, rng),
                Err(error) => {
                    let reason = error.to_string();
                    self.tell(now, cid, &ToPeer::Refused { ask: None, reason });
                }
            }
        }
    }

    fn next_message(&mut self, cid: Cid) -> Option<Vec<u8>> {
        self.legs.get_mut(&cid)?.conversation.as_mut()?.poll_message()
    }

    fn handle_message(
        &mut self,
        now: Instant,
        unix_us: u64,
        cid: Cid,
        message: ToTracker,
        rng: &mut impl Rng,
    ) {
        match message {
            ToTracker::Ls { files, more } => self.handle_ls(now, cid, files, more),
            ToTracker::Catalogue { ask, filter, skip } => {
                let room = MAX_MESSAGE_LEN - 256;
                let (entries, total) = self.catalogue.page(&filter, skip as usize, room);
                self.tell(now, cid, &ToPeer::Catalogue { ask, entries, total });
            }
            request @ ToTracker::Request { .. } => {
                self.handle_request(now, unix_us, cid, request, rng);
            }
            ToTracker::Answer { session, key, note, token } => {
                self.handle_answer(now, cid, session, key, note, token);
            }
            ToTracker::Consent { session, token } => {
                self.handle_consent(now, unix_us, cid, (session, token), rng);
            }
            ToTracker::Drop { session } => self.handle_drop(now, unix_us, cid, session),
        }
    }

    /// An announcement: replaces what the circuit shared, unless it is a further part.
    fn handle_ls(&mut self, now: Instant, cid: Cid, files: Vec<ListedFile>, more: bool) {
        if !more {
            self.catalogue.remove_leg(cid);
        }
        let mut refused = 0;
        for file in files {
            refused += u32::from(!self.catalogue.add(cid, file));
        }
        let all: Vec<ListedFile> = self.catalogue.of(cid).cloned().collect();
        let files = all.len() as u32;
        self.events.push_back(TrackerEvent::Keep(Change::Files(cid, all)));
        let again_s = (self.limits.expiry.as_secs() / 3).max(1) as u32;
        self.tell(now, cid, &ToPeer::Listed { files, refused, again_s });
    }

    /// Queues a message for a leg's peer and sends what can be sent.
    pub(super) fn tell(&mut self, now: Instant, cid: Cid, message: &ToPeer) {
        let conversation = self.legs.get_mut(&cid).and_then(|leg| leg.conversation.as_mut());
        if let Some(conversation) = conversation {
            // A peer that does not acknowledge loses messages, and its sessions expire.
            let _ = conversation.send(&message.emit());
            self.transmit(now, cid);
        }
    }

    fn transmit(&mut self, now: Instant, cid: Cid) {
        let Some(leg) = self.legs.get_mut(&cid) else { return };
        let Some(conversation) = &mut leg.conversation else { return };
        while let Some(frame) = conversation.poll_transmit(now) {
            self.events.push_back(TrackerEvent::Post { exit: leg.exit, leg: cid, frame });
        }
        if conversation.is_dead() {
            leg.conversation = None;
            leg.hello = None;
        }
    }

    /// A circuit is gone, with what it shared.
    pub fn handle_leg_gone(&mut self, now: Instant, unix_us: u64, cid: Cid) {
        if self.legs.contains_key(&cid) {
            self.end_sessions_of(now, unix_us, cid);
            self.legs.remove(&cid);
            self.catalogue.remove_leg(cid);
            self.events.push_back(TrackerEvent::Keep(Change::LegGone(cid)));
        }
    }

    /// Sends again, expires what is over. Call a few times a second.
    pub fn handle_timeout(&mut self, now: Instant, unix_us: u64) {
        let silent = |leg: &Leg| now.saturating_duration_since(leg.seen) >= self.limits.expiry;
        let gone: Vec<Cid> =
            self.legs.iter().filter(|(_, leg)| silent(leg)).map(|(cid, _)| *cid).collect();
        for cid in gone {
            self.handle_leg_gone(now, unix_us, cid);
        }
        self.expire_sessions(now, unix_us);
        let due: Vec<Cid> = self
            .legs
            .iter()
            .filter(|(_, leg)| {
                let conversation = leg.conversation.as_ref();
                conversation.and_then(Conversation::poll_timeout).is_some_and(|at| now >= at)
            })
            .map(|(cid, _)| *cid)
            .collect();
        for cid in due {
            self.transmit(now, cid);
        }
    }
}

impl Leg {
    fn new(now: Instant, exit: NodeId) -> Self {
        Self {
            exit,
            conversation: None,
            hello: None,
            seen: now,
            allowance: BURST,
            refilled: now,
            ended: VecDeque::new(),
        }
    }

    /// Notes that a download of this leg ended.
    pub(super) fn remember(&mut self, session: Session, uploader: Cid) {
        self.ended.truncate(MAX_AVOIDED - 1);
        self.ended.push_front((session, uploader));
    }

    /// Who gave it a download that ended.
    pub(super) fn ended(&self, session: &Session) -> Option<Cid> {
        self.ended.iter().find(|(ended, _)| ended == session).map(|(_, uploader)| *uploader)
    }

    fn take_allowance(&mut self, now: Instant) -> bool {
        let millis = now.saturating_duration_since(self.refilled).as_millis() as u32;
        let refill = millis.saturating_mul(PER_SECOND) / 1000;
        if refill > 0 {
            self.allowance = self.allowance.saturating_add(refill).min(BURST);
            self.refilled = now;
        }
        let is_allowed = self.allowance > 0;
        self.allowance = self.allowance.saturating_sub(1);
        is_allowed
    }
}
