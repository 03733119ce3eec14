//! Two exits with a bridge between them, and everyone who tries to misuse them.

use ed25519_dalek::{Signer, SigningKey};
use rand::{SeedableRng, rngs::StdRng};
use uuid::Uuid;

use super::*;
use crate::{
    keys::OnionKey,
    model::SLOT_LEN,
    wire::{
        body_mut, body_ref, cid_of,
        share::{BRIDGE_MTU, BridgeDatagram, Consent, ShareRole, Via},
    },
};

const UNIX: u64 = 1_700_000_000;

struct Exit {
    bridges: ExitBridges,
    id: NodeId,
    addr: SocketAddr,
    keys: Vec<OnionKey>,
    leg: Cid,
    consent: ConsentKey,
}

struct Net {
    up: Exit,
    down: Exit,
    tracker: NodeId,
    signing: SigningKey,
    seq: u64,
    now: Instant,
    rng: StdRng,
    session: Session,
    bridge: Cid,
}

const CIRCUIT: CircuitKey = CircuitKey(3);

/// A directory in which every node is an exit.
pub(super) struct Known(pub(super) Vec<(NodeId, OtherNode)>);

impl Members for Known {
    fn exit(&self, id: &NodeId) -> Option<OtherNode> {
        self.0.iter().find(|(known, _)| known == id).map(|(_, node)| *node)
    }

    fn relay(&self, id: &NodeId) -> Option<OtherNode> {
        self.exit(id)
    }

    fn next_relay(&self, relay: NextRelayId) -> Option<SocketAddr> {
        self.0.iter().find(|(id, _)| relay.names(id)).map(|(_, node)| node.addr)
    }

    fn has_relay_at(&self, addr: SocketAddr) -> bool {
        self.0.iter().any(|(_, node)| node.addr == addr)
    }
}

pub(super) fn hop_keys(byte: u8) -> HopKeys {
    HopKeys::derive(Suite::Aes128Gcm, &[byte; 32], &[byte; 96])
}

fn exit(byte: u8, tracker: NodeId, now: Instant, rng: &mut StdRng) -> Exit {
    let id = NodeId::from_bytes([byte; 32]);
    let mut bridges = ExitBridges::new(id, Suite::Aes128Gcm);
    bridges.on_circuit(CIRCUIT, &hop_keys(byte));
    let value = [tracker.as_bytes().as_slice(), b"frame"].concat();
    bridges.handle_tracker_up(now, CIRCUIT, &value, rng).unwrap();
    let Some(BridgeEvent::Post { tracker: to, leg, frame }) = bridges.poll_event() else {
        panic!("expected a post");
    };
    assert_eq!((to, frame.as_slice()), (tracker, b"frame".as_slice()));
    Exit {
        bridges,
        id,
        addr: ([10, 0, 0, byte], 5000).into(),
        keys: vec![OnionKey::from_secret([byte; 32]).unwrap()],
        leg,
        consent: hop_keys(byte).consent_key(),
    }
}

impl Exit {
    fn other(&self) -> OtherNode {
        OtherNode {
            addr: self.addr,
            onion_key: *self.keys[0].public(),
            onion_key_id: self.keys[0].id(),
            suite: Suite::Aes128Gcm,
        }
    }

    fn take_cell(&mut self) -> Option<Box<[u8; CELL_LEN]>> {
        std::iter::from_fn(|| self.bridges.poll_event()).find_map(|event| match event {
            BridgeEvent::Send { cell, .. } => Some(cell),
            _ => None,
        })
    }

    fn take_notice(&mut self) -> Option<BridgeNotice> {
        std::iter::from_fn(|| self.bridges.poll_event()).find_map(|event| match event {
            BridgeEvent::Control { kind: ControlType::Bridge, value, .. } => {
                BridgeNotice::parse(&value).ok()
            }
            _ => None,
        })
    }
}

impl Net {
    fn new() -> Self {
        let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(1));
        let tracker = NodeId::from_bytes([9; 32]);
        Self {
            up: exit(1, tracker, now, &mut rng),
            down: exit(2, tracker, now, &mut rng),
            tracker,
            signing: SigningKey::from_bytes(&[8; 32]),
            seq: 10,
            now,
            session: Session::random(&mut rng),
            bridge: Cid::random(&mut rng),
            rng,
        }
    }

    fn order(&mut self, kind: OrderKind) -> Order {
        let (own, other) = match kind {
            OrderKind::MakeBridge => (&self.up, &self.down),
            _ => (&self.down, &self.up),
        };
        let exp = UNIX + 30;
        let role = kind.role().unwrap_or(ShareRole::Downloader);
        let bytes = Order::consent_bytes(self.session, role, self.bridge, &other.id, exp);
        self.seq += 1;
        let mut order = Order {
            kind,
            session: self.session,
            leg: Uuid::from_bytes(*own.leg.as_bytes()),
            bridge: Uuid::from_bytes(*self.bridge.as_bytes()),
            to: other.id,
            node: own.id,
            tracker: self.tracker,
            via: Via::Bridge,
            route: Vec::new(),
            seq: self.seq,
            exp,
            token: Consent(own.consent.token(&bytes)),
            sig: [0; 64],
        };
        self.sign(&mut order);
        order
    }

    fn sign(&self, order: &mut Order) {
        order.sig = self.signing.sign(&order.signed_bytes()).to_bytes();
    }

    fn obey(&mut self, order: &Order) -> Result<(), OrderError> {
        let key = self.signing.verifying_key().to_bytes();
        self.obey_with(order, Some(&key), UNIX)
    }

    fn obey_with(
        &mut self,
        order: &Order,
        key: Option<&[u8; 32]>,
        unix: u64,
    ) -> Result<(), OrderError> {
        let members = self.members();
        let own = match order.kind {
            OrderKind::MakeBridge => &mut self.up,
            _ => &mut self.down,
        };
        let keys = own.keys.as_slice();
        own.bridges.handle_order(self.now, unix, order, key, &members, &keys, &mut self.rng)
    }

    fn members(&self) -> Known {
        Known([&self.up, &self.down].map(|exit| (exit.id, exit.other())).to_vec())
    }

    fn deliver(&mut self, to_down: bool, cell: &mut [u8; CELL_LEN]) -> Option<BridgeHop> {
        self.try_deliver(to_down, cell).unwrap()
    }

    fn try_deliver(
        &mut self,
        to_down: bool,
        cell: &mut [u8; CELL_LEN],
    ) -> Result<Option<BridgeHop>, DropReason> {
        let members = self.members();
        let (own, other) =
            if to_down { (&mut self.down, &self.up) } else { (&mut self.up, &self.down) };
        let (from, keys, rng) = (other.addr, own.keys.as_slice(), &mut self.rng);
        let handled = own.bridges.handle_cell(self.now, UNIX, from, cell, &members, &keys, rng);
        handled.expect("a cell of a bridge")
    }

    /// Makes the bridge.
    fn open(&mut self) {
        let receive = self.order(OrderKind::ReceiveBridge);
        self.obey(&receive).unwrap();
        let make = self.order(OrderKind::MakeBridge);
        self.obey(&make).unwrap();
        let mut join = self.up.take_cell().expect("a join");
        assert_eq!(self.deliver(true, &mut join), None);
        let mut accept = self.down.take_cell().expect("an acceptance");
        let notice = self.down.take_notice();
        assert_eq!(self.deliver(false, &mut accept), None);
        let stands = |role| Some(BridgeNotice { session: self.session, role, end: None });
        // The acceptance was polled before the notice.
        assert!(notice.is_none() || notice == stands(ShareRole::Downloader));
        assert_eq!(self.up.take_notice(), stands(ShareRole::Uploader));
    }

    fn datagram(&self, bytes: &[u8]) -> [u8; CELL_LEN] {
        let mut cell = [0x55; CELL_LEN];
        BridgeDatagram { session: self.session, bytes }.emit(body_mut(&mut cell));
        cell
    }
}

#[test]
fn datagrams_cross_in_place_both_ways() {
    let mut net = Net::new();
    net.open();
    for (to_down, length) in [(true, 0), (true, BRIDGE_MTU), (false, 700)] {
        let bytes: Vec<u8> = (0..length).map(|at| at as u8).collect();
        let plain = net.datagram(&bytes);
        let mut cell = plain;
        let (sender, receiver) =
            if to_down { (&mut net.up, net.down.addr) } else { (&mut net.down, net.up.addr) };
        let hop = sender.bridges.forward(net.now, CIRCUIT, &mut cell).unwrap();
        assert_eq!(hop, BridgeHop::Exit(receiver));
        assert_eq!(cid_of(&cell), net.bridge);
        let same = (16 + SLOT_LEN..CELL_LEN).filter(|at| cell[*at] == plain[*at]).count();
        assert!(same < 40, "no byte of the datagram is readable on the way: {same}");
        assert_eq!(net.deliver(to_down, &mut cell), Some(BridgeHop::Circuit(CIRCUIT)));
        let read = BridgeDatagram::parse(body_ref(&cell)).unwrap();
        assert_eq!((read.session, read.bytes), (net.session, bytes.as_slice()));
    }
}

#[test]
fn cells_that_are_changed_repeated_or_made_up_are_dropped() {
    let mut net = Net::new();
    net.open();
    let mut cell = net.datagram(b"data");
    net.up.bridges.forward(net.now, CIRCUIT, &mut cell).unwrap();
    for at in (16..CELL_LEN).step_by(37) {
        let mut flipped = cell;
        flipped[at] ^= 1;
        assert!(net.try_deliver(true, &mut flipped).is_err(), "byte {at}");
    }
    let mut again = cell;
    assert!(net.try_deliver(true, &mut cell).is_ok());
    assert_eq!(net.try_deliver(true, &mut again), Err(DropReason::Replay));
    let mut other = net.datagram(b"data");
    other[BODY_AT_SESSION] ^= 1;
    let forwarded = net.up.bridges.forward(net.now, CIRCUIT, &mut other);
    assert_eq!(forwarded, Err(DropReason::NoBridge), "another session");
    let mut mine = net.datagram(b"data");
    let forwarded = net.up.bridges.forward(net.now, CircuitKey(4), &mut mine);
    assert_eq!(forwarded, Err(DropReason::NoBridge), "another circuit");
}

const BODY_AT_SESSION: usize = crate::model::BODY_AT + crate::model::BODY_HEADER_LEN;

#[test]
fn orders_are_obeyed_only_when_everything_fits() {
    let mut net = Net::new();
    let good = net.order(OrderKind::ReceiveBridge);
    let key = net.signing.verifying_key().to_bytes();
    assert_eq!(net.obey_with(&good, None, UNIX), Err(OrderError::UnknownTracker));

    let stranger = SigningKey::from_bytes(&[7; 32]);
    let mut forged = good.clone();
    forged.sig = stranger.sign(&forged.signed_bytes()).to_bytes();
    assert_eq!(net.obey(&forged), Err(OrderError::Signature));
    let mut changed = good.clone();
    changed.to = NodeId::from_bytes([5; 32]);
    assert_eq!(net.obey(&changed), Err(OrderError::Signature));
    let mut elsewhere = good.clone();
    elsewhere.node = NodeId::from_bytes([5; 32]);
    net.sign(&mut elsewhere);
    assert_eq!(net.obey(&elsewhere), Err(OrderError::OtherNode));

    assert_eq!(net.obey_with(&good, Some(&key), UNIX + 31), Err(OrderError::Expired));
    let mut far = good.clone();
    far.exp = UNIX + 600;
    net.sign(&mut far);
    assert_eq!(net.obey(&far), Err(OrderError::Expired));

    assert_eq!(net.obey(&good), Ok(()));
    assert_eq!(net.obey(&good), Err(OrderError::Replayed));
    let mut old = good.clone();
    old.seq -= 1;
    net.sign(&mut old);
    assert_eq!(net.obey(&old), Err(OrderError::Replayed));
    let mut renumbered = good;
    renumbered.seq += 1;
    net.sign(&mut renumbered);
    assert_eq!(net.obey(&renumbered), Err(OrderError::ConsentUsed));
}

/// Whoever has the tracker's key, but not the client's consent, gets nothing.
#[test]
fn a_stolen_tracker_key_cannot_attach_to_a_circuit() {
    let changes: [&dyn Fn(&mut Order); 6] = [
        &|order| order.token = Consent([0; 16]),
        &|order| order.session.0[0] ^= 1,
        &|order| order.bridge = Uuid::from_bytes([1; 16]),
        &|order| order.to = NodeId::from_bytes([6; 32]),
        &|order| order.exp += 1,
        &|order| order.kind = OrderKind::MakeBridge,
    ];
    for (index, change) in changes.iter().enumerate() {
        let mut net = Net::new();
        let mut order = net.order(OrderKind::ReceiveBridge);
        change(&mut order);
        net.sign(&mut order);
        let key = net.signing.verifying_key().to_bytes();
        let (members, keys, rng) = (net.members(), net.down.keys.as_slice(), &mut net.rng);
        let result =
            net.down.bridges.handle_order(net.now, UNIX, &order, Some(&key), &members, &keys, rng);
        assert_eq!(result, Err(OrderError::NoConsent), "change {index}");
        assert!(net.down.bridges.is_empty());
    }
    let mut net = Net::new();
    let mut order = net.order(OrderKind::ReceiveBridge);
    order.leg = Uuid::from_bytes([1; 16]);
    net.sign(&mut order);
    assert_eq!(net.obey(&order), Err(OrderError::UnknownLeg));
}

#[test]
fn a_join_by_anyone_but_the_named_exit_is_dropped() {
    let mut net = Net::new();
    let receive = net.order(OrderKind::ReceiveBridge);
    net.obey(&receive).unwrap();
    let make = net.order(OrderKind::MakeBridge);
    // A third node with keys of its own, that has seen the order.
    net.up.keys = vec![OnionKey::from_secret([77; 32]).unwrap()];
    net.obey(&make).unwrap();
    let mut join = net.up.take_cell().unwrap();
    let real = OnionKey::from_secret([1; 32]).unwrap();
    let info = OtherNode { onion_key: *real.public(), onion_key_id: real.id(), ..net.up.other() };
    let (keys, members) = (net.down.keys.as_slice(), Known(vec![(net.up.id, info)]));
    let (from, rng) = (net.up.addr, &mut net.rng);
    let handled =
        net.down.bridges.handle_cell(net.now, UNIX, from, &mut join, &members, &keys, rng);
    assert_eq!(handled, Some(Err(DropReason::UnknownOnionKey)));
}

#[test]
fn a_lost_acceptance_is_given_again() {
    let mut net = Net::new();
    let receive = net.order(OrderKind::ReceiveBridge);
    net.obey(&receive).unwrap();
    let make = net.order(OrderKind::MakeBridge);
    net.obey(&make).unwrap();
    let mut join = net.up.take_cell().unwrap();
    net.deliver(true, &mut join);
    let _lost = net.down.take_cell().unwrap();
    net.now += Duration::from_millis(150);
    net.up.bridges.handle_timeout(net.now, UNIX, 0, &mut net.rng);
    let mut join = net.up.take_cell().expect("the join once more");
    assert_eq!(net.deliver(true, &mut join), None);
    let mut accept = net.down.take_cell().expect("the acceptance once more");
    assert_eq!(net.deliver(false, &mut accept), None);
    assert!(net.up.take_notice().is_some());
}

#[test]
fn either_side_takes_a_bridge_down_and_the_other_is_told() {
    for by_circuit in [false, true] {
        let mut net = Net::new();
        net.open();
        if by_circuit {
            net.up.bridges.on_circuit_gone(CIRCUIT);
        } else {
            let notice = BridgeNotice {
                session: net.session,
                role: ShareRole::Uploader,
                end: Some(BridgeEnd::Peer),
            };
            net.up.bridges.handle_notice(CIRCUIT, &notice.emit()).unwrap();
        }
        assert!(net.up.bridges.is_empty());
        let mut cell = net.up.take_cell().expect("a word to the other exit");
        assert_eq!(net.deliver(true, &mut cell), None);
        assert!(net.down.bridges.is_empty());
        let expected = if by_circuit { BridgeEnd::CircuitLost } else { BridgeEnd::Peer };
        assert_eq!(net.down.take_notice().unwrap().end, Some(expected));
    }
}

#[test]
fn the_tracker_takes_a_bridge_down_without_consent() {
    let mut net = Net::new();
    net.open();
    let mut drop = net.order(OrderKind::DropBridge);
    drop.token = Consent([0; 16]);
    net.sign(&mut drop);
    net.obey(&drop).unwrap();
    assert!(net.down.bridges.is_empty());
    let again = net.order(OrderKind::DropBridge);
    assert_eq!(net.obey(&again), Err(OrderError::UnknownSession));
}

#[test]
fn a_silent_exit_is_lost_after_two_seconds_and_echoes_keep_it() {
    let mut net = Net::new();
    net.open();
    let start = net.now;
    for step in 1..=40 {
        net.now = start + Duration::from_millis(step * 100);
        net.up.bridges.handle_timeout(net.now, UNIX, 0, &mut net.rng);
        while let Some(mut echo) = net.up.take_cell() {
            let hop = net.deliver(true, &mut echo);
            assert_eq!(hop, Some(BridgeHop::Exit(net.up.addr)));
            assert_eq!(net.deliver(false, &mut echo), None);
        }
    }
    assert_eq!(net.up.bridges.len(), 1, "echoes keep it");
    let before = net.now;
    for step in 1..=25 {
        net.now = before + Duration::from_millis(step * 100);
        net.up.bridges.handle_timeout(net.now, UNIX, 0, &mut net.rng);
    }
    assert!(net.up.bridges.is_empty(), "silence ends it");
}

#[test]
fn two_circuits_of_one_exit_are_joined_here() {
    let mut net = Net::new();
    let other = CircuitKey(5);
    net.up.bridges.on_circuit(other, &hop_keys(5));
    let value = [net.tracker.as_bytes().as_slice(), b"x"].concat();
    net.up.bridges.handle_tracker_up(net.now, other, &value, &mut net.rng).unwrap();
    let Some(BridgeEvent::Post { leg, .. }) = net.up.bridges.poll_event() else { panic!() };
    for (kind, leg, key) in [
        (OrderKind::ReceiveBridge, leg, hop_keys(5).consent_key()),
        (OrderKind::MakeBridge, net.up.leg, net.up.consent.clone()),
    ] {
        let mut order = net.order(kind);
        (order.node, order.to) = (net.up.id, net.up.id);
        order.leg = Uuid::from_bytes(*leg.as_bytes());
        let role = kind.role().unwrap();
        let bytes = Order::consent_bytes(order.session, role, net.bridge, &net.up.id, order.exp);
        order.token = Consent(key.token(&bytes));
        net.sign(&mut order);
        let own_key = net.signing.verifying_key().to_bytes();
        let (keys, members) = (net.up.keys.as_slice(), Known(Vec::new()));
        net.up
            .bridges
            .handle_order(net.now, UNIX, &order, Some(&own_key), &members, &keys, &mut net.rng)
            .unwrap();
    }
    let mut cell = net.datagram(b"local");
    let hop = net.up.bridges.forward(net.now, CIRCUIT, &mut cell).unwrap();
    assert_eq!(hop, BridgeHop::Circuit(other));
    let hop = net.up.bridges.forward(net.now, other, &mut net.datagram(b"back")).unwrap();
    assert_eq!(hop, BridgeHop::Circuit(CIRCUIT));
    net.up.bridges.on_circuit_gone(other);
    assert!(net.up.bridges.is_empty());
}

#[test]
fn frames_of_a_tracker_reach_only_the_leg_they_name() {
    let mut net = Net::new();
    assert!(net.up.bridges.handle_tracker_down(net.up.leg, b"down"));
    let Some(BridgeEvent::Control { circuit, kind, value }) = net.up.bridges.poll_event() else {
        panic!()
    };
    assert_eq!((circuit, kind), (CIRCUIT, ControlType::TrackerDown));
    assert_eq!(value, [net.tracker.as_bytes().as_slice(), b"down"].concat());
    assert!(!net.up.bridges.handle_tracker_down(net.down.leg, b"down"));
    net.up.bridges.on_circuit_gone(CIRCUIT);
    assert!(!net.up.bridges.handle_tracker_down(net.up.leg, b"down"));
}

#[test]
fn a_circuit_that_floods_the_tracker_is_slowed_down() {
    let mut net = Net::new();
    let value = [net.tracker.as_bytes().as_slice(), b"x"].concat();
    let mut send =
        |now| net.up.bridges.handle_tracker_up(now, CIRCUIT, &value, &mut net.rng).is_ok();
    assert!((0..200).filter(|_| send(net.now)).count() < 70);
    assert!(send(net.now + Duration::from_secs(1)));
}
