//! Peers, the tracker and a network in between, without I/O.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    keys::OnionKey,
    model::{Cid, NodeId},
    wire::share::{
        ChannelFrame, Consent, FileId, ListedFile, Order, OrderKind, Session, ToPeer, ToTracker,
        Via,
    },
};

const UNIX_US: u64 = 1_700_000_000_000_000;

struct World {
    state: TrackerState,
    keys: Vec<OnionKey>,
    peers: HashMap<Cid, (PeerChannel, Vec<ToPeer>)>,
    orders: Vec<Order>,
    kept: Vec<Change>,
    now: Instant,
    rng: StdRng,
}

fn file(name: &str) -> ListedFile {
    ListedFile { size: 7, ..ListedFile::named(name) }
}

fn cid(number: u8) -> Cid {
    Cid::from_bytes([number; 16])
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let orders = OrderKey::new(&[4; 32], NodeId::from_bytes([9; 32]));
        Self {
            state: TrackerState::new(now, orders, TrackerLimits::default()),
            keys: vec![OnionKey::from_secret([7; 32]).unwrap()],
            peers: HashMap::new(),
            orders: Vec::new(),
            kept: Vec::new(),
            now,
            rng: StdRng::seed_from_u64(1),
        }
    }

    /// A peer whose circuit ends at exit `exit`, sharing `files`.
    fn peer(&mut self, number: u8, exit: u8, files: &[&str]) -> Cid {
        let cid = cid(number);
        let exit = NodeId::from_bytes([exit; 32]);
        let channel = PeerChannel::open(self.now, *self.keys[0].public(), exit).unwrap();
        self.peers.insert(cid, (channel, Vec::new()));
        self.run();
        let files = files.iter().map(|name| file(name)).collect();
        self.say(cid, ToTracker::Ls { files, more: false });
        cid
    }

    fn say(&mut self, from: Cid, message: ToTracker) {
        let (channel, _) = self.peers.get_mut(&from).unwrap();
        channel.conversation().unwrap().send(&message.emit()).unwrap();
        self.run();
    }

    /// Moves frames until nobody has anything to say.
    fn run(&mut self) {
        loop {
            let mut is_quiet = true;
            for (cid, (channel, heard)) in &mut self.peers {
                while let Some(frame) = channel.poll_transmit(self.now) {
                    is_quiet = false;
                    let keys = &self.keys;
                    self.state
                        .handle_frame(self.now, UNIX_US, *cid, &frame, keys, &mut self.rng)
                        .unwrap();
                }
                while let Some(message) =
                    channel.conversation().and_then(Conversation::poll_message)
                {
                    heard.push(ToPeer::parse(&message).unwrap());
                }
            }
            while let Some(event) = self.state.poll_event() {
                is_quiet = false;
                match event {
                    TrackerEvent::Post { leg, frame, .. } => {
                        if let Some((channel, _)) = self.peers.get_mut(&leg) {
                            channel.handle_frame(self.now, &frame).unwrap();
                        }
                    }
                    TrackerEvent::Order(order) => self.orders.push(*order),
                    TrackerEvent::Keep(change) => self.kept.push(change),
                }
            }
            if is_quiet {
                return;
            }
        }
    }

    fn heard(&mut self, by: Cid) -> Vec<ToPeer> {
        std::mem::take(&mut self.peers.get_mut(&by).unwrap().1)
    }

    fn request(&mut self, from: Cid, name: &str, sources: u8, avoid: Vec<Session>) {
        self.request_via(from, name, sources, avoid, Via::Bridge);
    }

    fn request_via(&mut self, from: Cid, name: &str, sources: u8, avoid: Vec<Session>, via: Via) {
        let message = ToTracker::Request {
            ask: 1,
            file: file(name).id,
            key: [1; 32],
            sources,
            avoid,
            via,
            note: b"hello".to_vec(),
        };
        self.say(from, message);
    }

    /// The session that an uploader was asked for.
    fn asked(&mut self, uploader: Cid) -> Session {
        let heard = self.heard(uploader);
        heard
            .iter()
            .find_map(|message| match message {
                ToPeer::Request { session, note, .. } => {
                    assert_eq!(note, b"hello");
                    Some(*session)
                }
                _ => None,
            })
            .unwrap_or_else(|| panic!("no request among {heard:?}"))
    }

    fn agree(&mut self, uploader: Cid, downloader: Cid) -> Session {
        let session = self.asked(uploader);
        let token = Consent([2; 16]);
        self.say(uploader, ToTracker::Answer { session, key: [3; 32], note: vec![5], token });
        self.say(downloader, ToTracker::Consent { session, token: Consent([6; 16]) });
        session
    }
}

/// An exit that knows a leg no more says so: nobody waits for the peer behind it.
#[test]
fn a_leg_that_is_gone_takes_its_files_and_its_sessions_along() {
    let mut world = World::new();
    let (up, down) = (world.peer(1, 21, &["x"]), world.peer(2, 22, &[]));
    world.request(down, "x", 1, Vec::new());
    world.asked(up);
    world.heard(down);
    world.state.handle_leg_gone(world.now, UNIX_US, up);
    world.run();
    assert!(matches!(world.heard(down).last(), Some(ToPeer::Dropped { .. })));
    assert_eq!(world.state.summary().files, 0);
    assert!(world.kept.iter().any(|change| matches!(change, Change::LegGone(cid) if *cid == up)));
    world.request(down, "x", 1, Vec::new());
    assert!(matches!(world.heard(down).last(), Some(ToPeer::Asked { sources: 0, .. })));
}

/// By tracking code, each exit gets a route of its own that nobody else can read: relays of the
/// directory, neither of the two exits among them.
#[test]
fn routes_of_tracking_codes_are_for_their_exit_alone() {
    let mut world = World::new();
    let up = world.peer(1, 21, &["x"]);
    let down = world.peer(2, 22, &[]);
    world.request_via(down, "x", 1, Vec::new(), Via::Code);
    let heard = world.heard(down);
    let refused = |message: &ToPeer| matches!(message, ToPeer::Refused { ask: Some(1), .. });
    assert!(heard.iter().any(refused), "no relays yet: {heard:?}");
    let key = |byte: u8| OnionKey::from_secret([byte; 32]).unwrap();
    let relays = [21, 22, 31, 32, 33].map(|byte| TrackerMember {
        id: NodeId::from_bytes([byte; 32]),
        onion_key: *key(byte).public(),
    });
    world.state.set_relays(relays.to_vec());
    world.request_via(down, "x", 1, Vec::new(), Via::Code);
    let session = world.asked(up);
    let token = Consent([2; 16]);
    world.say(up, ToTracker::Answer { session, key: [3; 32], note: vec![5], token });
    world.say(down, ToTracker::Consent { session, token });
    assert_eq!(world.orders.len(), 2);
    for order in &world.orders {
        assert_eq!(order.via, Via::Code);
        let exit = order.node.as_bytes()[0];
        let plain = crate::keys::open_route(&[key(exit)], &order.route).unwrap();
        let route = crate::wire::share::parse_route(&plain).unwrap();
        assert_eq!(route.len(), 2);
        assert!(route.iter().all(|id| id.as_bytes()[0] > 30), "{route:?}");
        let other = key(43 - exit);
        assert!(crate::keys::open_route(&[other], &order.route).is_err());
    }
}

#[test]
fn a_request_becomes_two_signed_orders_with_both_consents() {
    let mut world = World::new();
    let uploader = world.peer(1, 10, &["borat", "titanic"]);
    let downloader = world.peer(2, 20, &[]);
    world.request(downloader, "borat", 1, Vec::new());
    let session = world.asked(uploader);
    assert!(world.orders.is_empty(), "nothing without consent");
    let token = Consent([2; 16]);
    world.say(uploader, ToTracker::Answer { session, key: [3; 32], note: vec![5], token });
    assert!(world.orders.is_empty(), "nothing without the downloader's consent");
    let offer = world.heard(downloader).pop().unwrap();
    let ToPeer::Offer { ask: 1, key, note, bridge, .. } = offer else { panic!("{offer:?}") };
    assert_eq!((key, note), ([3; 32], vec![5]));
    assert_eq!(bridge.to, NodeId::from_bytes([10; 32]), "the uploader's exit");
    world.say(downloader, ToTracker::Consent { session, token: Consent([6; 16]) });
    let [receive, make] = world.orders.as_slice() else { panic!("{:?}", world.orders) };
    assert_eq!((receive.kind, make.kind), (OrderKind::ReceiveBridge, OrderKind::MakeBridge));
    assert_eq!((receive.leg_cid(), make.leg_cid()), (downloader, uploader));
    assert_eq!((receive.node, receive.to), (make.to, make.node));
    assert_eq!((receive.token, make.token), (Consent([6; 16]), Consent([2; 16])));
    assert!(receive.seq < make.seq);
    assert!(world.kept.iter().any(|change| matches!(change, Change::Session(_))));
}

#[test]
fn strangers_cannot_speak_for_a_session() {
    let mut world = World::new();
    let uploader = world.peer(1, 10, &["borat"]);
    let downloader = world.peer(2, 20, &[]);
    let stranger = world.peer(3, 30, &[]);
    world.request(downloader, "borat", 1, Vec::new());
    let session = world.asked(uploader);
    let token = Consent([2; 16]);
    world.say(stranger, ToTracker::Answer { session, key: [3; 32], note: vec![], token });
    world.say(downloader, ToTracker::Consent { session, token });
    world.say(stranger, ToTracker::Consent { session, token });
    world.say(stranger, ToTracker::Drop { session });
    assert!(world.orders.is_empty());
    world.say(uploader, ToTracker::Answer { session, key: [3; 32], note: vec![], token });
    assert!(matches!(world.heard(downloader).last(), Some(ToPeer::Offer { .. })));
}

#[test]
fn up_to_four_uploaders_on_exits_of_their_own_and_none_twice() {
    let mut world = World::new();
    let downloader = world.peer(100, 20, &[]);
    // Six sharers: two behind the downloader's exit, two behind one other, two alone.
    for (number, exit) in [(1, 20), (2, 20), (3, 11), (4, 11), (5, 12), (6, 13)] {
        world.peer(number, exit, &["borat"]);
    }
    world.request(downloader, "borat", 3, Vec::new());
    let asked = |world: &mut World| {
        (1..=6)
            .filter(|number| {
                let heard = world.heard(cid(*number));
                heard.iter().any(|message| matches!(message, ToPeer::Request { .. }))
            })
            .collect::<Vec<u8>>()
    };
    let first = asked(&mut world);
    assert_eq!(first.len(), 3);
    assert!(first.contains(&5) && first.contains(&6), "{first:?}");
    assert!(first.contains(&3) != first.contains(&4), "{first:?}");
    world.request(downloader, "borat", 4, Vec::new());
    assert_eq!(asked(&mut world).len(), 4);
}

#[test]
fn avoided_uploaders_are_not_asked_again_and_nobody_is_an_answer() {
    let mut world = World::new();
    let uploader = world.peer(1, 10, &["borat"]);
    let downloader = world.peer(2, 20, &["borat"]);
    world.request(downloader, "borat", 4, Vec::new());
    let session = world.agree(uploader, downloader);
    world.heard(downloader);
    world.request(downloader, "borat", 4, vec![session]);
    assert_eq!(world.heard(downloader), [ToPeer::Asked { ask: 1, sources: 0 }]);
    // The same once it is over, until the peer forgives.
    world.say(downloader, ToTracker::Drop { session });
    world.request(downloader, "borat", 4, vec![session]);
    assert_eq!(world.heard(downloader), [ToPeer::Asked { ask: 1, sources: 0 }]);
    world.request(downloader, "borat", 4, Vec::new());
    assert_eq!(world.heard(downloader), [ToPeer::Asked { ask: 1, sources: 1 }]);
    world.request(downloader, "unknown", 4, Vec::new());
    assert_eq!(world.heard(downloader), [ToPeer::Asked { ask: 1, sources: 0 }]);
}

#[test]
fn a_session_that_ends_is_dropped_at_both_exits_and_the_other_peer_is_told() {
    let mut world = World::new();
    let uploader = world.peer(1, 10, &["borat"]);
    let downloader = world.peer(2, 20, &[]);
    world.request(downloader, "borat", 1, Vec::new());
    let session = world.agree(uploader, downloader);
    world.orders.clear();
    world.say(downloader, ToTracker::Drop { session });
    let nodes: Vec<_> = world.orders.iter().map(|order| (order.kind, order.node)).collect();
    assert_eq!(nodes.len(), 2);
    assert!(nodes.iter().all(|(kind, _)| *kind == OrderKind::DropBridge));
    assert!(matches!(world.heard(uploader).last(), Some(ToPeer::Dropped { .. })));
    assert!(world.kept.iter().any(|change| matches!(change, Change::SessionGone(_))));
}

#[test]
fn who_does_not_agree_in_time_is_given_up() {
    let mut world = World::new();
    let _uploader = world.peer(1, 10, &["borat"]);
    let downloader = world.peer(2, 20, &[]);
    world.request(downloader, "borat", 1, Vec::new());
    world.now += Duration::from_secs(9);
    world.state.handle_timeout(world.now, UNIX_US);
    world.run();
    let heard = world.heard(downloader);
    assert!(
        matches!(heard.last(), Some(ToPeer::Dropped { reason, .. }) if reason.contains("answer")),
        "{heard:?}"
    );
    assert!(world.orders.is_empty());
}

#[test]
fn silent_circuits_and_what_they_share_expire() {
    let mut world = World::new();
    let _uploader = world.peer(1, 10, &["borat"]);
    let downloader = world.peer(2, 20, &[]);
    world.now += Duration::from_secs(170);
    world.say(downloader, ToTracker::Ls { files: Vec::new(), more: false });
    world.now += Duration::from_secs(20);
    world.state.handle_timeout(world.now, UNIX_US);
    world.heard(downloader);
    world.request(downloader, "borat", 1, Vec::new());
    assert_eq!(world.heard(downloader), [ToPeer::Asked { ask: 1, sources: 0 }]);
    assert!(
        world.kept.iter().any(|change| matches!(change, Change::LegGone(gone) if *gone == cid(1)))
    );
}

#[test]
fn the_catalogue_shows_public_names_in_pages_and_never_link_shares() {
    let mut world = World::new();
    let sharer = world.peer(1, 10, &[]);
    let link = ListedFile { id: FileId([1; 32]), name: String::new(), size: 1, key: None };
    world.say(sharer, ToTracker::Ls { files: vec![link.clone()], more: false });
    for part in 0..40 {
        let files = (0..50).map(|number| file(&format!("Film {part}-{number}"))).collect();
        world.now += Duration::from_secs(1);
        world.say(sharer, ToTracker::Ls { files, more: true });
    }
    let reader = world.peer(2, 20, &[]);
    let mut names = Vec::new();
    loop {
        world.now += Duration::from_secs(1);
        world.heard(reader);
        let skip = names.len() as u32;
        world.say(reader, ToTracker::Catalogue { ask: 5, filter: "fILM 1".into(), skip });
        let Some(ToPeer::Catalogue { entries, total, .. }) = world.heard(reader).pop() else {
            panic!()
        };
        names.extend(entries.into_iter().map(|entry| entry.name));
        if names.len() as u32 >= total {
            break;
        }
    }
    assert_eq!(names.len(), 11 * 50, "1-*, 10-* to 19-*");
    world.say(reader, ToTracker::Catalogue { ask: 6, filter: String::new(), skip: 0 });
    let Some(ToPeer::Catalogue { total, .. }) = world.heard(reader).pop() else { panic!() };
    assert_eq!(total, 2_000, "the link share is not counted");
    world.request(reader, "x", 1, Vec::new());
    let request = ToTracker::Request {
        ask: 9,
        file: link.id,
        key: [1; 32],
        sources: 1,
        avoid: vec![],
        via: Via::Bridge,
        note: vec![],
    };
    world.heard(reader);
    world.say(reader, request);
    assert_eq!(world.heard(reader), [ToPeer::Asked { ask: 9, sources: 1 }], "but it is found");
}

#[test]
fn a_flood_of_files_meets_the_quota_and_is_told() {
    let mut world = World::new();
    world.state = TrackerState::new(
        world.now,
        OrderKey::new(&[4; 32], NodeId::from_bytes([9; 32])),
        TrackerLimits {
            quota: Quota { files: 10, ..Quota::default() },
            ..TrackerLimits::default()
        },
    );
    let flooder = world.peer(1, 10, &[]);
    let files = (0..25).map(|number| file(&format!("{number}"))).chain([file("../../etc/x")]);
    world.say(flooder, ToTracker::Ls { files: files.collect(), more: false });
    let Some(ToPeer::Listed { files: 10, refused: 16, .. }) = world.heard(flooder).pop() else {
        panic!()
    };
}

#[test]
fn after_a_restart_files_and_sessions_are_there_and_peers_greet_again() {
    let mut world = World::new();
    let uploader = world.peer(1, 10, &["borat"]);
    let downloader = world.peer(2, 20, &[]);
    world.request(downloader, "borat", 1, Vec::new());
    let session = world.agree(uploader, downloader);
    let kept = std::mem::take(&mut world.kept);
    let orders = OrderKey::new(&[4; 32], NodeId::from_bytes([9; 32]));
    world.state = TrackerState::new(world.now, orders, TrackerLimits::default());
    world.state.restore(world.now, kept);
    assert_eq!(world.state.summary().files, 1);
    // Both peers speak in their old channels, are told to greet again, and do.
    for leg in [uploader, downloader] {
        let (channel, _) = world.peers.get_mut(&leg).unwrap();
        channel.conversation().unwrap().send(b"{}").unwrap();
    }
    world.run();
    world.now += Duration::from_secs(1);
    world.run();
    assert_eq!(world.state.summary().circuits, 2);
    world.orders.clear();
    world.say(downloader, ToTracker::Drop { session });
    assert_eq!(world.orders.len(), 2, "the session outlived the restart");
}

#[test]
fn frames_of_strangers_are_refused_with_a_reason() {
    let mut world = World::new();
    let mut frame = |bytes: &[u8]| {
        let (state, keys) = (&mut world.state, &world.keys);
        state.handle_frame(world.now, UNIX_US, cid(50), bytes, keys, &mut world.rng).unwrap_err()
    };
    assert!(matches!(frame(&[9]), TrackerError::Wire(_)));
    assert!(matches!(frame(&ChannelFrame::Hello(&[1; 80]).emit()), TrackerError::Seal));
    let data = ChannelFrame::Data { nonce: 1, sealed: &[0; 40] }.emit();
    assert!(matches!(frame(&data), TrackerError::Wire(_)));
    assert!(matches!(frame(&ChannelFrame::Reset.emit()), TrackerError::Wire(_)));
}
