//! Two exits joined by tracking codes over four relays, loss, and everyone who tries to misuse them.

use ed25519_dalek::{Signer, SigningKey};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use uuid::Uuid;

use super::*;
use crate::{
    forward::bridge::{
        BridgeEvent, BridgeHop, EndLink, ExitBridges, Members, OrderError, OtherNode,
        tests::{Known, hop_keys},
    },
    keys::{OnionKey, seal_route},
    model::{CircuitKey, Suite},
    wire::{
        ControlType, body_mut, body_ref,
        share::{
            BRIDGE_MTU, BridgeDatagram, BridgeEnd, BridgeNotice, Consent, Order, OrderKind,
            Session, ShareRole, Via,
        },
    },
};

const UNIX: u64 = 1_700_000_000;
const CIRCUIT: CircuitKey = CircuitKey(2);
const UP: usize = 0;
const DOWN: usize = 1;

struct Node {
    bridges: ExitBridges,
    id: NodeId,
    addr: SocketAddr,
    keys: Vec<OnionKey>,
    leg: Cid,
    /// What its circuit's client got, and what it was told.
    datagrams: Vec<Vec<u8>>,
    notices: Vec<BridgeNotice>,
}

/// Nodes 0 and 1 are the exits, 2 to 5 relays.
struct Net {
    nodes: Vec<Node>,
    signing: SigningKey,
    session: Session,
    bridge: Cid,
    now: Instant,
    rng: StdRng,
    loss: f64,
    /// Every cell that was on a link: from, to, the cell.
    seen: Vec<(usize, usize, Box<[u8; CELL_LEN]>)>,
    dropped: Vec<DropReason>,
}

impl Net {
    fn new(seed: u64) -> Self {
        let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(seed));
        let tracker = NodeId::from_bytes([99; 32]);
        let nodes = (0..6u8).map(|byte| {
            let id = NodeId::from_bytes([byte + 1; 32]);
            let mut bridges = ExitBridges::new(id, Suite::Aes128Gcm);
            bridges.on_circuit(CIRCUIT, &hop_keys(byte));
            let value = [tracker.as_bytes().as_slice(), b"x"].concat();
            bridges.handle_tracker_up(now, CIRCUIT, &value, &mut rng).unwrap();
            let Some(BridgeEvent::Post { leg, .. }) = bridges.poll_event() else { panic!() };
            Node {
                bridges,
                id,
                addr: ([10, 0, 0, byte + 1], 5000).into(),
                keys: vec![OnionKey::from_secret([byte + 1; 32]).unwrap()],
                leg,
                datagrams: Vec::new(),
                notices: Vec::new(),
            }
        });
        let nodes = nodes.collect();
        Self {
            nodes,
            signing: SigningKey::from_bytes(&[8; 32]),
            session: Session::random(&mut rng),
            bridge: Cid::random(&mut rng),
            now,
            rng,
            loss: 0.0,
            seen: Vec::new(),
            dropped: Vec::new(),
        }
    }

    fn members(&self) -> Known {
        let node = |node: &Node| {
            let key = &node.keys[0];
            let (onion_key, onion_key_id) = (*key.public(), key.id());
            (
                node.id,
                OtherNode { addr: node.addr, onion_key, onion_key_id, suite: Suite::Aes128Gcm },
            )
        };
        Known(self.nodes.iter().map(node).collect())
    }

    fn order(&mut self, at: usize, relays: &[usize]) -> Order {
        let (kind, other) = match at {
            UP => (OrderKind::MakeBridge, DOWN),
            _ => (OrderKind::ReceiveBridge, UP),
        };
        let exp = UNIX + 50;
        let (to, node) = (self.nodes[other].id, self.nodes[at].id);
        let role = kind.role().unwrap();
        let bytes = Order::consent_bytes(self.session, role, self.bridge, &to, exp);
        let ids: Vec<NodeId> = relays.iter().map(|relay| self.nodes[*relay].id).collect();
        let fresh = OnionKey::generate(&mut self.rng).unwrap();
        let mut order = Order {
            kind,
            session: self.session,
            leg: Uuid::from_bytes(*self.nodes[at].leg.as_bytes()),
            bridge: Uuid::from_bytes(*self.bridge.as_bytes()),
            to,
            node,
            tracker: NodeId::from_bytes([99; 32]),
            via: Via::Code,
            route: seal_route(self.nodes[at].keys[0].public(), &fresh, &ids).unwrap(),
            seq: self.rng.random_range(1..u64::MAX / 2),
            exp,
            token: Consent(hop_keys(at as u8).consent_key().token(&bytes)),
            sig: [0; 64],
        };
        order.sig = self.signing.sign(&order.signed_bytes()).to_bytes();
        order
    }

    fn obey(&mut self, at: usize, order: &Order) -> Result<(), OrderError> {
        let (key, members) = (self.signing.verifying_key().to_bytes(), self.members());
        let node = &mut self.nodes[at];
        let (keys, rng) = (node.keys.as_slice(), &mut self.rng);
        node.bridges.handle_order(self.now, UNIX, order, Some(&key), &members, &keys, rng)
    }

    /// Hands a cell to a node, and on to wherever it goes from there.
    fn deliver(&mut self, from: usize, to: SocketAddr, mut cell: Box<[u8; CELL_LEN]>) {
        let Some(at) = self.nodes.iter().position(|node| node.addr == to) else { return };
        self.seen.push((from, at, cell.clone()));
        if self.rng.random_bool(self.loss) {
            return;
        }
        let (members, addr) = (self.members(), self.nodes[from].addr);
        let node = &mut self.nodes[at];
        let (keys, rng) = (node.keys.as_slice(), &mut self.rng);
        let handled =
            node.bridges.handle_cell(self.now, UNIX, addr, &mut cell, &members, &keys, rng);
        match handled {
            Some(Ok(Some(BridgeHop::Exit(to)))) => self.deliver(at, to, cell),
            Some(Ok(Some(BridgeHop::Circuit(circuit)))) => {
                assert_eq!(circuit, CIRCUIT);
                let datagram = BridgeDatagram::parse(body_ref(&cell)).unwrap();
                assert_eq!(datagram.session, self.session);
                self.nodes[at].datagrams.push(datagram.bytes.to_vec());
            }
            Some(Err(reason)) => self.dropped.push(reason),
            Some(Ok(None)) | None => {}
        }
        self.act();
    }

    fn act(&mut self) {
        for at in 0..self.nodes.len() {
            while let Some(event) = self.nodes[at].bridges.poll_event() {
                match event {
                    BridgeEvent::Send { to, cell } => self.deliver(at, to, cell),
                    BridgeEvent::Control { kind: ControlType::Bridge, value, .. } => {
                        self.nodes[at].notices.push(BridgeNotice::parse(&value).unwrap());
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(100);
            for at in 0..self.nodes.len() {
                self.nodes[at].bridges.handle_timeout(self.now, UNIX, 0, &mut self.rng);
            }
            self.act();
        }
    }

    fn open(&mut self) {
        let receive = self.order(DOWN, &[2, 3]);
        self.obey(DOWN, &receive).unwrap();
        let make = self.order(UP, &[4, 5]);
        self.obey(UP, &make).unwrap();
        self.act();
    }

    fn say(&mut self, at: usize, bytes: &[u8]) {
        let mut cell = Box::new([0x55; CELL_LEN]);
        BridgeDatagram { session: self.session, bytes }.emit(body_mut(&mut cell));
        let hop = self.nodes[at].bridges.forward(self.now, CIRCUIT, &mut cell).unwrap();
        let BridgeHop::Exit(to) = hop else { panic!("{hop:?}") };
        // As at a node: what is changed in place goes before what waits, the second half first.
        self.deliver(at, to, cell);
    }

    fn is_open(&self, at: usize) -> bool {
        self.nodes[at].notices.iter().any(|notice| notice.end.is_none())
    }
}

#[test]
fn datagrams_of_any_length_cross_by_code_both_ways_over_relays_of_their_own() {
    let mut net = Net::new(1);
    net.open();
    assert!(net.is_open(UP) && net.is_open(DOWN), "{:?}", net.dropped);
    net.seen.clear();
    for (at, other, relays) in [(UP, DOWN, [4, 5]), (DOWN, UP, [2, 3])] {
        for length in [0, 1, 980, 981, 982, 1200, BRIDGE_MTU] {
            let bytes: Vec<u8> = (0..length).map(|at| (at * 7) as u8).collect();
            net.say(at, &bytes);
            assert_eq!(net.nodes[other].datagrams.pop(), Some(bytes), "{length}");
        }
        let path = [(at, relays[0]), (relays[0], relays[1]), (relays[1], other)];
        let mut links: Vec<_> = net.seen.drain(..).map(|(from, to, _)| (from, to)).collect();
        links.dedup();
        assert!(links.chunks(3).all(|links| links == path), "{links:?}");
    }
    assert!(net.dropped.is_empty(), "{:?}", net.dropped);
}

/// No cell shares more with what it was on another link than chance gives, and all have one length.
#[test]
fn a_message_is_another_on_every_link() {
    let mut net = Net::new(2);
    net.open();
    net.say(UP, &[0; 900]);
    net.say(UP, &[0; 900]);
    let cells: Vec<_> = net.seen.iter().map(|(.., cell)| cell).collect();
    assert!(cells.len() >= 12);
    for (one, cell) in cells.iter().enumerate() {
        for other in &cells[..one] {
            let same = cell[36..].iter().zip(&other[36..]).filter(|(a, b)| a == b).count();
            assert!(same < 30, "{same} bytes of two cells are the same");
            for window in cell[16..].windows(8) {
                assert!(!other.windows(8).any(|other| other == window), "8 bytes in a row");
            }
        }
    }
}

#[test]
fn lost_set_ups_are_made_anew_until_both_sides_heard_each_other() {
    for seed in 0..30 {
        let mut net = Net::new(seed);
        net.loss = 0.1;
        net.open();
        for _ in 0..75 {
            if !net.is_open(UP) {
                net.pass(Duration::from_millis(100));
            }
        }
        assert!(net.is_open(UP), "{seed}");
        net.loss = 0.0;
        net.say(UP, b"up");
        net.say(DOWN, b"down");
        net.say(UP, b"up");
        assert_eq!(
            net.nodes[UP].datagrams.last().map(Vec::as_slice),
            Some(b"down".as_slice()),
            "{seed}"
        );
        assert_eq!(
            net.nodes[DOWN].datagrams.last().map(Vec::as_slice),
            Some(b"up".as_slice()),
            "{seed}"
        );
    }
}

#[test]
fn replays_changes_and_strangers_get_nowhere() {
    let mut net = Net::new(3);
    net.open();
    net.say(UP, b"hello");
    let seen = std::mem::take(&mut net.seen);
    net.nodes[DOWN].datagrams.clear();
    net.dropped.clear();
    for (from, to, cell) in &seen {
        let to = net.nodes[*to].addr;
        net.deliver(*from, to, cell.clone());
    }
    assert!(net.nodes[DOWN].datagrams.is_empty());
    assert_eq!(net.seen.len(), seen.len(), "a replay is passed on by nobody");
    let (from, to, cell) = seen.last().unwrap();
    for at in (16..CELL_LEN).step_by(91) {
        let (mut cell, to) = (cell.clone(), net.nodes[*to].addr);
        cell[at] ^= 1;
        net.deliver(*from, to, cell);
    }
    assert!(net.nodes[DOWN].datagrams.is_empty());
    // A set-up from an address that no member has.
    let (_, to, cell) = &seen[0];
    let members = net.members();
    let node = &mut net.nodes[*to];
    let (mut cell, keys) = (cell.clone(), node.keys.as_slice());
    set_cid(&mut cell, Cid::from_bytes([1; 16]));
    let stranger = ([192, 0, 2, 1], 5000).into();
    let handled =
        node.bridges.handle_cell(net.now, UNIX, stranger, &mut cell, &members, &keys, &mut net.rng);
    assert!(handled.is_none());
}

#[test]
fn set_ups_expire_and_their_number_is_limited() {
    let mut net = Net::new(4);
    net.open();
    let (_, to, cell) = net.seen[0].clone();
    let members = net.members();
    let mut codes = Codes::default();
    let keys = net.nodes[to].keys.as_slice();
    let own = (&net.nodes[to].id, &keys);
    let next = |relay| members.next_relay(relay);
    for unix in [UNIX + 51, UNIX - 30] {
        let late = codes.handle_setup((net.now, unix), &mut cell.clone(), own, next);
        assert!(matches!(late, Err(DropReason::Replay)), "{unix}");
    }
    assert!(codes.handle_setup((net.now, UNIX), &mut cell.clone(), own, next).is_ok());
    let mut noise = cell.clone();
    noise[60] ^= 1;
    let taken = (0..1000)
        .filter(|_| {
            let result = codes.handle_setup((net.now, UNIX), &mut noise.clone(), own, next);
            matches!(result, Err(DropReason::BadCode))
        })
        .count();
    assert!(taken <= 200, "each costs an X25519");
    codes.handle_timeout(net.now + Duration::from_secs(60), UNIX + 60);
    assert!(codes.is_empty());
}

#[test]
fn a_route_for_another_exit_or_over_a_stranger_is_refused() {
    let mut net = Net::new(5);
    let mut order = net.order(UP, &[4, 5]);
    let fresh = OnionKey::generate(&mut net.rng).unwrap();
    let stranger = NodeId::from_bytes([77; 32]);
    let own = *net.nodes[UP].keys[0].public();
    let other = *net.nodes[DOWN].keys[0].public();
    let good = net.nodes[4].id;
    for route in [
        Vec::new(),
        vec![7; 300],
        seal_route(&other, &fresh, &[good]).unwrap(),
        seal_route(&own, &fresh, &[good, stranger]).unwrap(),
        seal_route(&own, &fresh, &[]).unwrap(),
        seal_route(&own, &fresh, &[good; 8]).unwrap(),
    ] {
        let mut net = Net::new(5);
        order.leg = Uuid::from_bytes(*net.nodes[UP].leg.as_bytes());
        order.route = route;
        order.sig = net.signing.sign(&order.signed_bytes()).to_bytes();
        assert_eq!(net.obey(UP, &order), Err(OrderError::Route));
        assert!(net.nodes[UP].bridges.is_empty());
    }
}

#[test]
fn a_join_by_code_is_proved_by_the_exit_that_was_named() {
    let mut net = Net::new(6);
    let receive = net.order(DOWN, &[2, 3]);
    net.obey(DOWN, &receive).unwrap();
    let make = net.order(UP, &[4, 5]);
    // Somebody else at the uploader's place, who has seen the order.
    let real =
        std::mem::replace(&mut net.nodes[UP].keys, vec![OnionKey::from_secret([66; 32]).unwrap()]);
    let fresh = OnionKey::generate(&mut net.rng).unwrap();
    let ids = [net.nodes[4].id, net.nodes[5].id];
    let mut forged = make;
    forged.route = seal_route(net.nodes[UP].keys[0].public(), &fresh, &ids).unwrap();
    forged.sig = net.signing.sign(&forged.signed_bytes()).to_bytes();
    net.obey(UP, &forged).unwrap();
    // The directory has the real exit's key.
    net.nodes[UP].keys = real;
    net.act();
    assert!(!net.is_open(DOWN) && !net.is_open(UP));
    assert!(net.dropped.contains(&DropReason::UnknownOnionKey), "{:?}", net.dropped);
}

#[test]
fn a_bridge_by_code_is_taken_down_by_either_side_and_by_silence() {
    let mut net = Net::new(7);
    net.open();
    net.pass(Duration::from_secs(5));
    assert_eq!(net.nodes[UP].bridges.len() + net.nodes[DOWN].bridges.len(), 2, "echoes keep it");
    let end = Some(BridgeEnd::Peer);
    let notice = BridgeNotice { session: net.session, role: ShareRole::Uploader, end };
    net.nodes[UP].bridges.handle_notice(CIRCUIT, &notice.emit()).unwrap();
    net.act();
    assert!(net.nodes[DOWN].bridges.is_empty());
    assert_eq!(net.nodes[DOWN].notices.last().unwrap().end, end);

    let mut net = Net::new(8);
    net.open();
    net.loss = 1.0;
    net.pass(Duration::from_secs(3));
    for at in [UP, DOWN] {
        assert_eq!(net.nodes[at].notices.last().unwrap().end, Some(BridgeEnd::ExitLost));
    }
}

#[test]
fn a_code_passes_at_most_eight_relays_and_every_length_arrives() {
    for count in 1..=7usize {
        let mut net = Net::new(20 + count as u64);
        let relays: Vec<usize> = (0..count).map(|at| 2 + at % 4).collect();
        let receive = net.order(DOWN, &relays);
        net.obey(DOWN, &receive).unwrap();
        let make = net.order(UP, &relays);
        net.obey(UP, &make).unwrap();
        net.act();
        net.say(UP, &[9; 1000]);
        assert_eq!(net.nodes[DOWN].datagrams, [vec![9; 1000]], "{count}");
    }
}

proptest! {
    /// Whatever another member sends, nothing is passed on and nothing stops.
    #[test]
    fn any_cell_of_a_member_is_dropped(seed: u64, bytes in prop::collection::vec(any::<u8>(), 1392)) {
        let mut net = Net::new(seed);
        net.open();
        net.seen.clear();
        let cids: Vec<Cid> = net.nodes[2].bridges.codes.rows.keys().copied().collect();
        for cid in cids.into_iter().chain([Cid::from_bytes([3; 16])]) {
            let mut cell = Box::new([0; CELL_LEN]);
            cell[16..].copy_from_slice(&bytes);
            if seed % 2 == 0 {
                (cell[16], cell[17]) = (3, 1);
            }
            set_cid(&mut cell, cid);
            let to = net.nodes[2].addr;
            net.deliver(3, to, cell);
        }
        prop_assert!(net.seen.iter().all(|(_, to, _)| *to == 2));
    }
}

#[test]
fn the_end_of_a_bridge_by_code_is_no_plain_bridge() {
    let mut net = Net::new(9);
    net.open();
    let end = net.nodes[DOWN].bridges.ends.iter().flatten().next().unwrap();
    assert!(matches!(end.link, EndLink::Code(_)));
    let mut cell = Box::new([0; CELL_LEN]);
    set_cid(&mut cell, net.bridge);
    let to = net.nodes[DOWN].addr;
    net.deliver(UP, to, cell);
    assert_eq!(net.dropped, [DropReason::NoBridge]);
}
