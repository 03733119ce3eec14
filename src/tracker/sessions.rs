//! Sessions: from a request to two ordered exits.
//!
//! In: messages of peers. Out: messages to peers, orders. Called by: the tracker's state.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use rand::{
    Rng,
    seq::{IteratorRandom, SliceRandom},
};
use uuid::Uuid;

use super::{
    orders::Half,
    state::{Change, TrackerEvent, TrackerState},
};
use crate::{
    keys::{OnionKey, seal_route},
    model::{Cid, NodeId},
    wire::share::{Consent, FileId, Order, OrderKind, Proposal, Session, ToPeer, ToTracker, Via},
};

/// How long a proposal to an exit may be acted on, in seconds: below what exits accept.
const PROPOSAL_S: u64 = 55;
/// How long a peer may take to agree.
const AGREE_WITHIN: Duration = Duration::from_secs(8);
/// A session is forgotten after this long, whatever its peers say.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Relays between two exits that are joined by tracking codes, where there are enough.
const CODE_RELAYS: usize = 2;

/// What is kept of a session over a restart: `{session: (circuit, circuit)}` of source 000.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionRecord {
    /// The session.
    pub session: Session,
    /// The leg of the uploader's circuit.
    pub uploader: Cid,
    /// The leg of the downloader's circuit.
    pub downloader: Cid,
    /// The link between the exits.
    pub bridge: Cid,
    /// The file.
    pub file: FileId,
}

pub(super) struct Row {
    pub(super) record: SessionRecord,
    ask: u32,
    via: Via,
    exp: u64,
    since: Instant,
    pub(super) stage: Stage,
}

/// How far a session is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// The uploader was asked.
    Asked,
    /// The uploader agreed, the downloader was offered it.
    Offered { uploader: Consent },
    /// The exits were ordered.
    Ordered,
}

impl Row {
    pub(super) fn restored(now: Instant, record: SessionRecord) -> Self {
        Self { record, ask: 0, via: Via::Bridge, exp: 0, since: now, stage: Stage::Ordered }
    }
}

impl TrackerState {
    /// Chooses uploaders of a file and asks them.
    pub(super) fn handle_request(
        &mut self,
        now: Instant,
        unix_us: u64,
        from: Cid,
        request: ToTracker,
        rng: &mut impl Rng,
    ) {
        let ToTracker::Request { ask, file, key, sources, avoid, via, note } = request else {
            return;
        };
        if via == Via::Code && self.relays.len() < 3 {
            let reason =
                "a tracking code needs a relay between the two exits, and the network has \
                          no third node"
                    .to_owned();
            return self.tell(now, from, &ToPeer::Refused { ask: Some(ask), reason });
        }
        // Of sessions that run and of those that are over: both were this circuit's.
        let running = |session| {
            let row = self.sessions.get(session).filter(|row| row.record.downloader == from);
            row.map(|row| row.record.uploader)
        };
        let ended = |session| self.legs.get(&from).and_then(|leg| leg.ended(session));
        let avoid: HashSet<Cid> = avoid
            .iter()
            .filter_map(|session| running(session).or_else(|| ended(session)))
            .collect();
        let chosen = self.choose(from, &file, &avoid, usize::from(sources), rng);
        self.tell(now, from, &ToPeer::Asked { ask, sources: chosen.len() as u8 });
        let Some(own_exit) = self.legs.get(&from).map(|leg| leg.exit) else { return };
        let exp = unix_us / 1_000_000 + PROPOSAL_S;
        for uploader in chosen {
            let record = SessionRecord {
                session: Session::random(rng),
                uploader,
                downloader: from,
                bridge: Cid::random(rng),
                file,
            };
            let bridge = Proposal {
                bridge_cid: Uuid::from_bytes(*record.bridge.as_bytes()),
                to: own_exit,
                exp,
            };
            let session = record.session;
            let row = Row { record, ask, via, exp, since: now, stage: Stage::Asked };
            self.sessions.insert(session, row);
            let request = ToPeer::Request { session, file, key, note: note.clone(), bridge };
            self.tell(now, uploader, &request);
        }
    }

    /// Up to `sources` circuits that share the file: on exits of their own first, and not on the
    /// downloader's; then those with the fewest sessions.
    fn choose(
        &self,
        from: Cid,
        file: &FileId,
        avoid: &HashSet<Cid>,
        sources: usize,
        rng: &mut impl Rng,
    ) -> Vec<Cid> {
        let mut candidates: Vec<Cid> = self
            .catalogue
            .sharers(file)
            .filter(|leg| *leg != from && !avoid.contains(leg) && self.is_open(*leg))
            .collect();
        candidates.shuffle(rng);
        candidates.sort_by_key(|leg| {
            self.sessions.values().filter(|row| row.record.uploader == *leg).count()
        });
        let mut used: Vec<_> = self.legs.get(&from).map(|leg| leg.exit).into_iter().collect();
        let mut chosen: Vec<Cid> = Vec::new();
        for take_any in [false, true] {
            for leg in &candidates {
                let Some(exit) = self.legs.get(leg).map(|leg| leg.exit) else { continue };
                if chosen.len() < sources
                    && !chosen.contains(leg)
                    && (take_any || !used.contains(&exit))
                {
                    used.push(exit);
                    chosen.push(*leg);
                }
            }
        }
        chosen
    }

    /// An uploader agrees: its offer goes to the downloader.
    pub(super) fn handle_answer(
        &mut self,
        now: Instant,
        from: Cid,
        session: Session,
        key: [u8; 32],
        note: Vec<u8>,
        token: Consent,
    ) {
        let Some(exit) = self.legs.get(&from).map(|leg| leg.exit) else { return };
        let Some(row) = self.sessions.get_mut(&session) else { return };
        if row.record.uploader != from || row.stage != Stage::Asked {
            return;
        }
        row.stage = Stage::Offered { uploader: token };
        row.since = now;
        let (ask, downloader) = (row.ask, row.record.downloader);
        let bridge = Proposal {
            bridge_cid: Uuid::from_bytes(*row.record.bridge.as_bytes()),
            to: exit,
            exp: row.exp,
        };
        self.tell(now, downloader, &ToPeer::Offer { ask, session, key, note, bridge });
    }

    /// A downloader agrees: both exits are ordered, the one that waits first.
    pub(super) fn handle_consent(
        &mut self,
        now: Instant,
        unix_us: u64,
        from: Cid,
        (session, token): (Session, Consent),
        rng: &mut impl Rng,
    ) {
        let Some(row) = self.sessions.get_mut(&session) else { return };
        let Stage::Offered { uploader: uploader_token } = row.stage else { return };
        if row.record.downloader != from {
            return;
        }
        let (record, via, exp) = (row.record, row.via, row.exp);
        let exits = (self.legs.get(&record.uploader), self.legs.get(&record.downloader));
        let (Some(uploader), Some(downloader)) = exits else { return };
        let (up, down) = (uploader.exit, downloader.exit);
        row.stage = Stage::Ordered;
        let mut routes = [Vec::new(), Vec::new()];
        if via == Via::Code && up != down {
            for (route, (node, to)) in routes.iter_mut().zip([(down, up), (up, down)]) {
                match self.draw_route(&node, &to, rng) {
                    Some(sealed) => *route = sealed,
                    None => {
                        let reason = "no relay is left for a tracking code";
                        return self.end_session(now, unix_us, session, reason, None);
                    }
                }
            }
        }
        let halves = [
            (OrderKind::ReceiveBridge, Half { leg: record.downloader, node: down, to: up, token }),
            (
                OrderKind::MakeBridge,
                Half { leg: record.uploader, node: up, to: down, token: uploader_token },
            ),
        ];
        for ((kind, half), route) in halves.into_iter().zip(routes) {
            let (bridge, orders) = (record.bridge, &mut self.orders);
            let order = orders.sign(unix_us, kind, session, bridge, &half, via, route, exp);
            self.events.push_back(TrackerEvent::Order(Box::new(order)));
        }
        self.events.push_back(TrackerEvent::Keep(Change::Session(record)));
    }

    /// Relays for tracking codes from exit `node` to exit `to`, sealed to `node`.
    fn draw_route(&self, node: &NodeId, to: &NodeId, rng: &mut impl Rng) -> Option<Vec<u8>> {
        let onion_key = self.relays.iter().find(|relay| relay.id == *node)?.onion_key;
        let others = self.relays.iter().map(|relay| relay.id).filter(|id| id != node && id != to);
        let route: Vec<NodeId> = others.sample(rng, CODE_RELAYS);
        let fresh = OnionKey::generate(rng).ok().filter(|_| !route.is_empty())?;
        seal_route(&onion_key, &fresh, &route).ok()
    }

    /// A peer is done with a session, or does not want it.
    pub(super) fn handle_drop(&mut self, now: Instant, unix_us: u64, from: Cid, session: Session) {
        let Some(row) = self.sessions.get(&session) else { return };
        let record = row.record;
        if from != record.uploader && from != record.downloader {
            return;
        }
        let reason = if from == record.uploader {
            "the uploader does not share it any more"
        } else {
            "the downloader is done"
        };
        self.end_session(now, unix_us, session, reason, Some(from));
    }

    /// An exit refused an order, or did not answer.
    pub fn handle_order_failed(&mut self, now: Instant, unix_us: u64, order: &Order, why: &str) {
        if order.kind != OrderKind::DropBridge {
            log::debug!("an exit refused an order: {why}");
            self.end_session(now, unix_us, order.session, "an exit refused the bridge", None);
        }
    }

    /// Ends a session; everyone but `by` is told.
    pub(super) fn end_session(
        &mut self,
        now: Instant,
        unix_us: u64,
        session: Session,
        reason: &str,
        by: Option<Cid>,
    ) {
        let Some(row) = self.sessions.remove(&session) else { return };
        let record = row.record;
        if let Some(leg) = self.legs.get_mut(&record.downloader) {
            leg.remember(session, record.uploader);
        }
        for (leg, other) in
            [(record.uploader, record.downloader), (record.downloader, record.uploader)]
        {
            if row.stage == Stage::Ordered
                && let (Some(node), Some(to)) = (
                    self.legs.get(&leg).map(|leg| leg.exit),
                    self.legs.get(&other).map(|leg| leg.exit),
                )
            {
                let half = Half { leg, node, to, token: Consent([0; 16]) };
                let exp = unix_us / 1_000_000 + PROPOSAL_S;
                let order = self.orders.sign(
                    unix_us,
                    OrderKind::DropBridge,
                    session,
                    record.bridge,
                    &half,
                    row.via,
                    Vec::new(),
                    exp,
                );
                self.events.push_back(TrackerEvent::Order(Box::new(order)));
            }
            if by != Some(leg) {
                self.tell(now, leg, &ToPeer::Dropped { session, reason: reason.to_owned() });
            }
        }
        if row.stage == Stage::Ordered {
            self.events.push_back(TrackerEvent::Keep(Change::SessionGone(session)));
        }
    }

    /// Ends what nobody agreed to in time, and what is far too old.
    pub(super) fn expire_sessions(&mut self, now: Instant, unix_us: u64) {
        let age = |row: &Row| now.saturating_duration_since(row.since);
        let over: Vec<(Session, &str)> = self
            .sessions
            .iter()
            .filter_map(|(session, row)| match row.stage {
                Stage::Asked if age(row) > AGREE_WITHIN => {
                    Some((*session, "the uploader does not answer"))
                }
                Stage::Offered { .. } if age(row) > AGREE_WITHIN => {
                    Some((*session, "the downloader does not answer"))
                }
                Stage::Ordered if age(row) > LONGEST => Some((*session, "it is a day old")),
                _ => None,
            })
            .collect();
        for (session, reason) in over {
            self.end_session(now, unix_us, session, reason, None);
        }
    }

    /// Ends the sessions of a circuit that is gone.
    pub(super) fn end_sessions_of(&mut self, now: Instant, unix_us: u64, leg: Cid) {
        let of_leg: Vec<Session> = self
            .sessions
            .values()
            .filter(|row| row.record.uploader == leg || row.record.downloader == leg)
            .map(|row| row.record.session)
            .collect();
        for session in of_leg {
            self.end_session(now, unix_us, session, "a circuit is gone", Some(leg));
        }
    }
}
