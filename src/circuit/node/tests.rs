//! Unit and property tests of a node's circuits.

use std::collections::HashSet;

use proptest::prelude::*;
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    circuit::{
        ClientHandshake, respond,
        test_nodes::{self, TestNode, node},
    },
    keys::{mac1, mac2, open_cookie, seal_cookie},
    model::{CID_LEN, Suite},
    wire::{
        ANSWER_LEN, Answer, CREATE_LEN, ControlFragment, ControlType, ExtendValue, cid_of,
        fragments, set_cid,
    },
};

struct Fixture {
    node: TestNode,
    circuits: NodeCircuits,
    now: Instant,
    rng: StdRng,
}

type Cell = [u8; CELL_LEN];

fn source() -> SocketAddr {
    ([198, 51, 100, 7], 40_000).into()
}

fn next() -> SocketAddr {
    ([192, 0, 2, 200], 5000).into()
}

fn member(to: &str) -> Option<SocketAddr> {
    (to == "next").then(next)
}

impl Fixture {
    fn new(limits: NodeLimits) -> Self {
        let (node, now, mut rng) = (node(0), Instant::now(), StdRng::seed_from_u64(9));
        let keys = vec![node.onion.id()];
        let circuits = NodeCircuits::new(node.identity.id(), keys, limits, now, &mut rng);
        Self { node, circuits, now, rng }
    }

    fn handshake(&mut self) -> ClientHandshake {
        self.node.handshake(&mut self.rng)
    }

    fn cell(&mut self, cid: Cid, client: &ClientHandshake) -> Cell {
        test_nodes::cell(cid, client.prefix(), &mut self.rng)
    }

    fn cid(&mut self) -> Cid {
        Cid::random(&mut self.rng)
    }

    fn receive(&mut self, from: SocketAddr, cell: &Cell) -> Result<(), DropReason> {
        self.circuits.handle_unknown(self.now, from, cell, &mut self.rng)
    }

    fn events(&mut self) -> Vec<NodeEvent> {
        std::iter::from_fn(|| self.circuits.poll_event()).collect()
    }

    fn job(&mut self) -> HandshakeJob {
        match self.circuits.poll_event() {
            Some(NodeEvent::Handshake(job)) => job,
            _ => panic!("expected a handshake"),
        }
    }

    fn compute(&mut self, job: &HandshakeJob) -> Result<(), DropReason> {
        let TestNode { identity, onion, .. } = &self.node;
        let done = respond(identity, onion, &job.prefix, job.status, &mut self.rng).ok();
        self.circuits.handle_handshake(self.now, job, done, &mut self.rng)
    }

    /// Opens a circuit as its client would; its key, its id and its answer.
    fn open(&mut self) -> (CircuitKey, Cid, [u8; ANSWER_LEN]) {
        let (cid, client) = (self.cid(), self.handshake());
        let cell = self.cell(cid, &client);
        self.receive(source(), &cell).unwrap();
        let job = self.job();
        self.compute(&job).unwrap();
        let events = self.events();
        let [NodeEvent::Install { key, .. }, NodeEvent::Send { cell, .. }] = &events[..] else {
            panic!("expected an installed circuit and its answer")
        };
        (*key, cid, answer_of(cell))
    }

    fn control(&mut self, key: CircuitKey, body: &[u8; BODY_LEN]) -> Result<(), DropReason> {
        self.circuits.handle_control(self.now, key, body, member, &mut self.rng)
    }

    /// An EXTEND to "next", the handshake in it, and its body.
    fn extend(&mut self, request: u32) -> (ClientHandshake, Box<[u8; BODY_LEN]>) {
        let handshake = self.handshake();
        let body = extend_body(request, "next", &handshake);
        (handshake, body)
    }

    /// Opens a circuit and has it ask for an extension; the id of the new link with it.
    fn extending(&mut self, request: u32) -> (CircuitKey, Cid, ClientHandshake) {
        let (key, ..) = self.open();
        let (handshake, body) = self.extend(request);
        self.control(key, &body).unwrap();
        let events = self.events();
        let [NodeEvent::Send { to, cell }] = &events[..] else { panic!("expected a CREATE") };
        assert_eq!(*to, next());
        assert_eq!(cell[CID_LEN..][..CREATE_LEN], handshake.prefix().as_bytes()[..]);
        (key, cid_of(cell), handshake)
    }

    /// The next node's answer to an extension.
    fn created(&mut self, cid: Cid, handshake: &ClientHandshake) -> Cell {
        let TestNode { identity, onion, .. } = &self.node;
        let done =
            respond(identity, onion, handshake.prefix(), Status::Open, &mut self.rng).unwrap();
        let mut cell = [0u8; CELL_LEN];
        self.rng.fill_bytes(&mut cell);
        set_cid(&mut cell, cid);
        cell[CID_LEN..][..ANSWER_LEN].copy_from_slice(&done.answer);
        cell
    }
}

fn extend_body(request: u32, to: &str, handshake: &ClientHandshake) -> Box<[u8; BODY_LEN]> {
    let value = ExtendValue {
        to: to.into(),
        relay: Box::new(*handshake.prefix().as_bytes()),
        pair: zeroize::Zeroizing::new(*handshake.pair()),
        link_suite: handshake.link_suite(),
    }
    .emit();
    control_body(ControlType::Extend, request, &value)
}

fn control_body(kind: ControlType, request: u32, value: &[u8]) -> Box<[u8; BODY_LEN]> {
    let mut body = Box::new([0u8; BODY_LEN]);
    fragments(kind, request, value).unwrap()[0].emit(&mut body).unwrap();
    body
}

fn answer_of(cell: &Cell) -> [u8; ANSWER_LEN] {
    *cell[CID_LEN..].first_chunk().unwrap()
}

/// The control message in an answer to the client.
fn told(event: &NodeEvent) -> (ControlType, u32, Vec<u8>) {
    let NodeEvent::Answer { body, .. } = event else { panic!("expected an answer") };
    let fragment = ControlFragment::parse(body).unwrap();
    (fragment.kind, fragment.request, fragment.value.to_vec())
}

fn failed(request: u32, reason: DestroyReason) -> (ControlType, u32, Vec<u8>) {
    (ControlType::ExtendFailed, request, vec![reason as u8])
}

#[test]
fn noise_costs_no_handshake() {
    let mut fixture = Fixture::new(NodeLimits::default());
    let mut cell = [0u8; CELL_LEN];
    for round in 0..2000 {
        fixture.rng.fill_bytes(&mut cell);
        let expected = if round % 2 == 0 {
            DropReason::UnknownCircuit
        } else {
            // The right version, and nothing else.
            cell[16..18].copy_from_slice(&[0, 1]);
            DropReason::BadCreate
        };
        assert_eq!(fixture.receive(source(), &cell), Err(expected));
    }
    let (cid, handshake) = (fixture.cid(), fixture.handshake());
    let good = fixture.cell(cid, &handshake);
    for bit in CID_LEN * 8..(CID_LEN + CREATE_LEN - 16) * 8 {
        let mut changed = good;
        changed[bit / 8] ^= 1 << (bit % 8);
        let dropped = fixture.receive(source(), &changed).unwrap_err();
        assert!(matches!(dropped, DropReason::BadCreate | DropReason::UnknownCircuit));
    }
    assert!(fixture.events().is_empty() && fixture.circuits.is_empty());
    assert_eq!(fixture.receive(source(), &good), Ok(()), "none of it is held against the client");
}

#[test]
fn a_create_for_another_node_or_onion_key_is_dropped() {
    let mut fixture = Fixture::new(NodeLimits::default());
    let (cid, other) = (fixture.cid(), node(1));
    let handshake = other.handshake(&mut fixture.rng);
    let cell = fixture.cell(cid, &handshake);
    assert_eq!(fixture.receive(source(), &cell), Err(DropReason::BadCreate));
    let mut hop = fixture.node.hop.clone();
    hop.onion_key_id = [7; 8];
    let handshake = ClientHandshake::start(hop, Suite::Aes128Gcm, &mut fixture.rng).unwrap();
    let cell = fixture.cell(cid, &handshake);
    assert_eq!(fixture.receive(source(), &cell), Err(DropReason::UnknownOnionKey));
    assert!(fixture.events().is_empty());
}

#[test]
fn the_previous_onion_key_is_accepted_until_it_is_gone() {
    let mut fixture = Fixture::new(NodeLimits::default());
    let (old, new) = (fixture.node.onion.id(), [9; 8]);
    let (cid, early) = (fixture.cid(), fixture.handshake());
    let cell = fixture.cell(cid, &early);
    fixture.receive(source(), &cell).unwrap();
    let job = fixture.job();
    fixture.circuits.set_onion_keys(vec![new, old]);
    fixture.compute(&job).unwrap();
    let (cid, late) = (fixture.cid(), fixture.handshake());
    let cell = fixture.cell(cid, &late);
    assert_eq!(fixture.receive(source(), &cell), Ok(()));
    // What was seen under the old key is still known while that key lives.
    let cid = fixture.cid();
    let cell = fixture.cell(cid, &early);
    assert_eq!(fixture.receive(source(), &cell), Err(DropReason::ReplayedCreate));
    fixture.circuits.set_onion_keys(vec![new]);
    let (cid, too_late) = (fixture.cid(), fixture.handshake());
    let cell = fixture.cell(cid, &too_late);
    assert_eq!(fixture.receive(source(), &cell), Err(DropReason::UnknownOnionKey));
}

#[test]
fn a_repeated_create_costs_one_handshake_and_has_one_answer() {
    let mut fixture = Fixture::new(NodeLimits::default());
    let (cid, handshake, other) = (fixture.cid(), fixture.handshake(), fixture.handshake());
    let cell = fixture.cell(cid, &handshake);
    fixture.receive(source(), &cell).unwrap();
    let job = fixture.job();
    // Again, padded anew, while it is being computed; and another one under the same id.
    let again = fixture.cell(cid, &handshake);
    assert_ne!(again, cell);
    assert_eq!(fixture.receive(source(), &again), Ok(()));
    let another = fixture.cell(cid, &other);
    assert_eq!(fixture.receive(source(), &another), Err(DropReason::BadCreate));
    assert!(fixture.events().is_empty());
    fixture.compute(&job).unwrap();
    let events = fixture.events();
    let [NodeEvent::Install { key, .. }, NodeEvent::Send { to, cell }] = &events[..] else {
        panic!("expected an installed circuit and its answer")
    };
    assert_eq!(*to, source());
    for _ in 0..3 {
        let elsewhere = ([198, 51, 100, 8], 1).into();
        fixture.circuits.handle_repeated_create(*key, elsewhere, cid, &mut fixture.rng);
        let events = fixture.events();
        let [NodeEvent::Send { to, cell: repeated }] = &events[..] else { panic!() };
        assert_eq!((*to, cid_of(repeated)), (elsewhere, cid));
        assert_eq!(answer_of(repeated), answer_of(cell), "the exact answer");
        assert_ne!(repeated[CID_LEN + ANSWER_LEN..], cell[CID_LEN + ANSWER_LEN..], "new padding");
    }
}

#[test]
fn an_ephemeral_is_taken_once() {
    let mut fixture = Fixture::new(NodeLimits::default());
    let (cid, handshake) = (fixture.cid(), fixture.handshake());
    let cell = fixture.cell(cid, &handshake);
    fixture.receive(source(), &cell).unwrap();
    let job = fixture.job();
    for _ in 0..2 {
        let cid = fixture.cid();
        let replayed = fixture.cell(cid, &handshake);
        assert_eq!(fixture.receive(source(), &replayed), Err(DropReason::ReplayedCreate));
        assert!(fixture.events().is_empty(), "refused before the RSA operation");
        let _ = fixture.compute(&job);
        fixture.events();
    }
}

#[test]
fn a_handshake_that_found_no_room_may_come_again() {
    let mut fixture = Fixture::new(NodeLimits::default());
    let (cid, handshake) = (fixture.cid(), fixture.handshake());
    let cell = fixture.cell(cid, &handshake);
    fixture.receive(source(), &cell).unwrap();
    let job = fixture.job();
    fixture.circuits.forget_handshake(job.cid);
    assert_eq!(fixture.receive(source(), &cell), Ok(()), "its retransmission");
    let job = fixture.job();
    assert_eq!(fixture.compute(&job), Ok(()));
}

#[test]
fn a_block_that_does_not_open_is_counted_and_leaves_nothing() {
    let mut fixture = Fixture::new(NodeLimits::default());
    let (cid, handshake) = (fixture.cid(), fixture.handshake());
    let mut prefix = CreatePrefix::new(
        fixture.node.hop.onion_key_id,
        handshake.prefix().ephemeral(),
        &[0x17; 384],
    );
    prefix.set_mac1(mac1(&fixture.node.identity.id(), prefix.before_mac1()));
    let cell = test_nodes::cell(cid, &prefix, &mut fixture.rng);
    fixture.receive(source(), &cell).unwrap();
    let job = fixture.job();
    assert_eq!(fixture.compute(&job), Err(DropReason::BadCreate));
    assert!(fixture.events().is_empty() && fixture.circuits.is_empty());
    assert_eq!(fixture.compute(&job), Err(DropReason::BadCreate), "a job comes back once");
}

#[test]
fn a_source_over_its_rate_is_held_back_alone() {
    let limits = NodeLimits { creates_per_second: 10, create_burst: 3, ..NodeLimits::default() };
    let mut fixture = Fixture::new(limits);
    let mut create = |from: [u8; 4], now: Duration| {
        let (cid, handshake) = (fixture.cid(), fixture.handshake());
        let cell = fixture.cell(cid, &handshake);
        let now = fixture.now + now;
        fixture.circuits.handle_unknown(now, (from, 9).into(), &cell, &mut fixture.rng)
    };
    for _ in 0..3 {
        assert_eq!(create([1; 4], Duration::ZERO), Ok(()));
    }
    assert_eq!(create([1; 4], Duration::ZERO), Err(DropReason::RateLimited));
    assert_eq!(create([2; 4], Duration::ZERO), Ok(()));
    assert_eq!(create([1; 4], Duration::from_millis(101)), Ok(()));
    assert_eq!(create([1; 4], Duration::from_millis(102)), Err(DropReason::RateLimited));
    assert_eq!(fixture.events().len(), 5, "no handshake for what was held back");
}

#[test]
fn a_full_node_refuses_and_repeats_its_refusal() {
    let mut fixture = Fixture::new(NodeLimits { max_circuits: 1, ..NodeLimits::default() });
    let (key, ..) = fixture.open();
    let (cid, handshake) = (fixture.cid(), fixture.handshake());
    let cell = fixture.cell(cid, &handshake);
    fixture.receive(source(), &cell).unwrap();
    let job = fixture.job();
    assert_eq!(job.status, Status::Refused(DestroyReason::ResourceLimit));
    fixture.compute(&job).unwrap();
    let refusal = fixture.events();
    let [NodeEvent::Send { cell: refusal, .. }] = &refusal[..] else { panic!() };
    assert_eq!((fixture.circuits.len(), fixture.circuits.refused()), (1, 1));
    // The refusal was lost: the CREATE comes again, and gets the exact same answer for free.
    let again = fixture.cell(cid, &handshake);
    assert_eq!(fixture.receive(source(), &again), Ok(()));
    let events = fixture.events();
    let [NodeEvent::Send { cell: repeated, .. }] = &events[..] else { panic!("no repetition") };
    assert_eq!((cid_of(repeated), answer_of(repeated)), (cid, answer_of(refusal)));
    // What it has works on, and there is room again when it ends.
    fixture.circuits.destroy(key, DestroyReason::Finished);
    fixture.events();
    fixture.open();
}

#[test]
fn a_loaded_node_answers_with_a_cookie_that_only_the_source_can_use() {
    // A quarter of one is none: this node is always under load.
    let mut fixture = Fixture::new(NodeLimits { max_handshakes: 1, ..NodeLimits::default() });
    let (cid, handshake) = (fixture.cid(), fixture.handshake());
    let cell = fixture.cell(cid, &handshake);
    assert_eq!(fixture.receive(source(), &cell), Err(DropReason::CreateOverload));
    let events = fixture.events();
    let [NodeEvent::Send { to, cell: answer }] = &events[..] else { panic!("expected a cookie") };
    assert_eq!((*to, cid_of(answer)), (source(), cid));
    let Ok(Answer::Cookie { salt, sealed_cookie }) = Answer::parse(&answer[CID_LEN..]) else {
        panic!("expected a cookie")
    };
    let id = fixture.node.identity.id();
    let cookie = open_cookie(&id, &salt, &handshake.prefix().mac1(), &sealed_cookie).unwrap();
    assert!(open_cookie(&id, &salt, &[0; 16], &sealed_cookie).is_err(), "for this CREATE only");

    let proved = |handshake: &ClientHandshake, cookie| {
        let mut prefix = handshake.prefix().clone();
        prefix.set_mac2(mac2(cookie, prefix.before_mac2()));
        prefix
    };
    let good = proved(&handshake, &cookie);
    let good = test_nodes::cell(cid, &good, &mut fixture.rng);
    let wrong = proved(&handshake, &[1; 16]);
    let wrong = test_nodes::cell(cid, &wrong, &mut fixture.rng);
    assert_eq!(fixture.receive(source(), &wrong), Err(DropReason::CreateOverload));
    let elsewhere = ([198, 51, 100, 7], 40_001).into();
    assert_eq!(fixture.receive(elsewhere, &good), Err(DropReason::CreateOverload));
    assert_eq!(fixture.events().len(), 2, "a cookie for each");
    assert_eq!(fixture.receive(source(), &good), Ok(()));
    fixture.job();
    // One is being computed, and one is all: even with proof.
    let (cid, second) = (fixture.cid(), fixture.handshake());
    let second = proved(&second, &cookie);
    let second = test_nodes::cell(cid, &second, &mut fixture.rng);
    assert_eq!(fixture.receive(source(), &second), Err(DropReason::CreateOverload));
    assert!(fixture.events().is_empty());
}

#[test]
fn remembered_ephemerals_are_bounded_and_new_clients_are_served() {
    let limits = NodeLimits {
        max_ephemerals: 16,
        create_burst: 1000,
        max_handshakes: 1000,
        ..NodeLimits::default()
    };
    let mut fixture = Fixture::new(limits);
    let mut handshakes = Vec::new();
    for number in 0..100 {
        let (cid, handshake) = (fixture.cid(), fixture.handshake());
        let cell = fixture.cell(cid, &handshake);
        assert_eq!(fixture.receive(source(), &cell), Ok(()), "CREATE {number}");
        handshakes.push(handshake);
    }
    // At least the newest half is still known.
    for handshake in &handshakes[92..] {
        let cid = fixture.cid();
        let cell = fixture.cell(cid, handshake);
        assert_eq!(fixture.receive(source(), &cell), Err(DropReason::ReplayedCreate));
    }
}

#[test]
fn an_extension_carries_the_create_and_its_exact_answer() {
    let mut fixture = Fixture::new(NodeLimits::default());
    let (key, cid, handshake) = fixture.extending(5);
    let body = extend_body(5, "next", &handshake);
    // The client asks again: so does the node, under the same id.
    fixture.control(key, &body).unwrap();
    let events = fixture.events();
    let [NodeEvent::Send { to, cell }] = &events[..] else { panic!("expected the CREATE again") };
    assert_eq!((*to, cid_of(cell)), (next(), cid));
    assert_eq!(cell[CID_LEN..][..CREATE_LEN], handshake.prefix().as_bytes()[..]);
    // Another request while this one is under way makes no sense.
    let (_, other) = fixture.extend(6);
    assert_eq!(fixture.control(key, &other), Err(DropReason::BadControl));

    let created = fixture.created(cid, &handshake);
    for bit in (CID_LEN * 8..(CID_LEN + ANSWER_LEN) * 8).step_by(3) {
        let mut changed = created;
        changed[bit / 8] ^= 1 << (bit % 8);
        // A CREATED that turns into a COOKIE is another matter: it proves nothing.
        if changed[CID_LEN] != 2 {
            assert!(fixture.receive(next(), &changed).is_err(), "bit {bit}");
        }
    }
    assert!(fixture.events().is_empty());
    fixture.receive(next(), &created).unwrap();
    let events = fixture.events();
    let [NodeEvent::Extend { addr, cid: linked, .. }, answer] = &events[..] else {
        panic!("expected the link and the answer")
    };
    assert_eq!((*addr, *linked), (next(), cid));
    let extended = (ControlType::Extended, 5, answer_of(&created).to_vec());
    assert_eq!(told(answer), extended);
    // The answer was lost: asked again, told again, and the next node is left alone.
    fixture.control(key, &body).unwrap();
    let events = fixture.events();
    assert_eq!((events.len(), told(&events[0])), (1, extended));
    // Late copies of the answer, and further requests, change nothing.
    assert!(fixture.receive(next(), &created).is_err());
    let (_, other) = fixture.extend(6);
    assert_eq!(fixture.control(key, &other), Err(DropReason::BadControl));
    assert!(fixture.events().is_empty());
}

#[test]
fn only_members_are_extended_to() {
    let mut fixture = Fixture::new(NodeLimits::default());
    let (key, ..) = fixture.open();
    let handshake = fixture.handshake();
    for to in ["", "127.0.0.1:22", "198.51.100.1:5000", "NEXT", "next\0"] {
        let body = extend_body(3, to, &handshake);
        fixture.control(key, &body).unwrap();
        let events = fixture.events();
        assert_eq!((events.len(), told(&events[0])), (1, failed(3, DestroyReason::NotAMember)));
    }
    // The circuit lives on and can be extended elsewhere.
    let (_, body) = fixture.extend(4);
    fixture.control(key, &body).unwrap();
    assert!(matches!(fixture.events()[..], [NodeEvent::Send { .. }]));
}

#[test]
fn control_bodies_that_make_no_sense_are_dropped() {
    let mut fixture = Fixture::new(NodeLimits::default());
    let (key, ..) = fixture.open();
    let handshake = fixture.handshake();
    let good = extend_body(3, "next", &handshake);
    let mut bodies = vec![
        control_body(ControlType::Extended, 3, &[0; ANSWER_LEN]),
        control_body(ControlType::ExtendFailed, 3, &[1]),
        control_body(ControlType::Extend, 3, b"{}"),
        control_body(ControlType::Extend, 3, &[]),
        control_body(ControlType::Extend, 3, &[0xff; 1293]),
    ];
    for (at, value) in [(9, 0x01), (9, 0x10), (12, 0), (12, 9), (17, 0xff)] {
        let mut body = good.clone();
        body[at] = value;
        bodies.push(body);
    }
    // A relay that is no CREATE of this version.
    let mut prefix = *handshake.prefix().as_bytes();
    prefix[1] = 2;
    let value = ExtendValue {
        to: "next".into(),
        relay: Box::new(prefix),
        pair: zeroize::Zeroizing::new([0; 32]),
        link_suite: Suite::Aes128Gcm,
    };
    bodies.push(control_body(ControlType::Extend, 3, &value.emit()));
    for body in bodies {
        assert_eq!(fixture.control(key, &body), Err(DropReason::BadControl));
    }
    assert_eq!(fixture.control(CircuitKey(9), &good), Err(DropReason::UnknownCircuit));
    assert!(fixture.events().is_empty());
}

#[test]
fn a_next_node_that_does_not_answer_is_given_up() {
    let mut fixture = Fixture::new(NodeLimits::default());
    let (key, cid, handshake) = fixture.extending(5);
    let start = fixture.now;
    fixture.circuits.handle_timeout(start + Duration::from_secs(10), |_| Some(start));
    assert!(fixture.events().is_empty());
    let later = start + Duration::from_secs(11);
    fixture.circuits.handle_timeout(later, |_| Some(later));
    let events = fixture.events();
    assert_eq!((events.len(), told(&events[0])), (1, failed(5, DestroyReason::NextHopGone)));
    // Its late answer finds nobody; the request is answered as before; another may follow.
    let created = fixture.created(cid, &handshake);
    assert_eq!(fixture.receive(next(), &created), Err(DropReason::UnknownCircuit));
    fixture.control(key, &extend_body(5, "next", &handshake)).unwrap();
    assert_eq!(told(&fixture.events()[0]), failed(5, DestroyReason::NextHopGone));
    let (_, body) = fixture.extend(6);
    fixture.control(key, &body).unwrap();
    assert!(matches!(fixture.events()[..], [NodeEvent::Send { .. }]));
}

#[test]
fn a_cookie_of_the_next_node_goes_to_the_client_who_asks_anew() {
    let mut fixture = Fixture::new(NodeLimits::default());
    let (key, cid, handshake) = fixture.extending(5);
    let salt = [8; 32];
    let id = fixture.node.identity.id();
    let sealed_cookie = seal_cookie(&id, &salt, &handshake.prefix().mac1(), &[4; 16]);
    let mut bytes = [0u8; ANSWER_LEN];
    Answer::Cookie { salt, sealed_cookie }.emit(&mut bytes);
    let mut cell = [0u8; CELL_LEN];
    set_cid(&mut cell, cid);
    cell[CID_LEN..][..ANSWER_LEN].copy_from_slice(&bytes);
    fixture.receive(next(), &cell).unwrap();
    let events = fixture.events();
    assert_eq!(told(&events[0]), (ControlType::Extended, 5, bytes.to_vec()));
    let (proved, body) = fixture.extend(6);
    fixture.control(key, &body).unwrap();
    let events = fixture.events();
    let [NodeEvent::Send { cell, .. }] = &events[..] else { panic!("expected a CREATE") };
    assert_ne!(cid_of(cell), cid, "an id that was never used");
    let created = fixture.created(cid_of(cell), &proved);
    fixture.receive(next(), &created).unwrap();
    assert!(matches!(fixture.events()[..], [NodeEvent::Extend { .. }, NodeEvent::Answer { .. }]));
}

#[test]
fn an_idle_circuit_ends_and_tells_both_neighbours() {
    let mut fixture = Fixture::new(NodeLimits::default());
    let (idle, ..) = fixture.open();
    let (busy, ..) = fixture.open();
    let (start, later) = (fixture.now, fixture.now + Duration::from_secs(121));
    let active = |key| Some(if key == busy { later } else { start });
    fixture.circuits.handle_timeout(later, active);
    let told: Vec<_> = fixture
        .events()
        .iter()
        .map(|event| match event {
            NodeEvent::Neighbour { key, direction, message } => {
                assert_eq!(*message, PairMessage::Destroy(DestroyReason::Idle));
                (*key, Some(*direction))
            }
            NodeEvent::Remove { key, reason: DestroyReason::Idle } => (*key, None),
            _ => panic!("expected the end of a circuit"),
        })
        .collect();
    assert_eq!(
        told,
        [(idle, Some(Direction::Backward)), (idle, Some(Direction::Forward)), (idle, None)]
    );
    assert_eq!(fixture.circuits.len(), 1);
}

#[test]
fn a_destroy_goes_on_the_same_way_and_frees_everything() {
    let mut fixture = Fixture::new(NodeLimits::default());
    for direction in [Direction::Forward, Direction::Backward] {
        let (key, cid, handshake) = fixture.extending(1);
        let message = PairMessage::Destroy(DestroyReason::ShuttingDown);
        fixture.circuits.handle_neighbour(key, direction, message);
        let events = fixture.events();
        assert!(matches!(
            events[..],
            [
                NodeEvent::Neighbour { key: told, direction: way, message: said },
                NodeEvent::Remove { key: gone, reason: DestroyReason::ShuttingDown },
            ] if (told, way, said, gone) == (key, direction, message, key)
        ));
        assert!(fixture.circuits.is_empty());
        let created = fixture.created(cid, &handshake);
        assert_eq!(fixture.receive(next(), &created), Err(DropReason::UnknownCircuit));
        fixture.circuits.handle_neighbour(key, direction, message);
        fixture.circuits.destroy(key, DestroyReason::Finished);
        assert!(fixture.events().is_empty(), "it ends once");
    }
}

#[test]
fn a_node_that_shuts_down_ends_every_circuit() {
    let mut fixture = Fixture::new(NodeLimits::default());
    for _ in 0..3 {
        fixture.open();
    }
    fixture.circuits.destroy_all(DestroyReason::ShuttingDown);
    assert!(fixture.circuits.is_empty());
    assert_eq!(fixture.events().len(), 9);
}

/// What may happen to a node, by numbers that a property test draws.
#[derive(Clone, Debug)]
enum Step {
    Noise,
    /// A CREATE, changed at a bit or not, under an id of a few.
    Create {
        client: usize,
        cid: usize,
        bit: Option<usize>,
    },
    /// The oldest job comes back, computed or not.
    Computed {
        opens: bool,
    },
    Control {
        key: u32,
        client: usize,
        request: u32,
        change: Option<(usize, u8)>,
    },
    /// An answer to the newest link, changed or not.
    Answer {
        client: usize,
        bit: Option<usize>,
    },
    Neighbour {
        key: u32,
        forward: bool,
    },
    Wait {
        seconds: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let bit = || prop::option::weighted(0.3, 0..(CREATE_LEN * 8));
    prop_oneof![
        Just(Step::Noise),
        (0..6usize, 0..6usize, bit()).prop_map(|(client, cid, bit)| Step::Create {
            client,
            cid,
            bit
        }),
        any::<bool>().prop_map(|opens| Step::Computed { opens }),
        (0..4u32, 0..6usize, 0..4u32, prop::option::of((0..BODY_LEN, any::<u8>()))).prop_map(
            |(key, client, request, change)| Step::Control { key, client, request, change }
        ),
        (0..6usize, bit()).prop_map(|(client, bit)| Step::Answer { client, bit }),
        (0..4u32, any::<bool>()).prop_map(|(key, forward)| Step::Neighbour { key, forward }),
        (0..200u64).prop_map(|seconds| Step::Wait { seconds }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever comes, in whatever order: nothing panics, bounds hold, each cell leads to an event
    /// or a reason, and circuits that are installed are removed once.
    #[test]
    fn bounds_hold_whatever_comes(steps in prop::collection::vec(step(), 1..60)) {
        let limits = NodeLimits {
            max_circuits: 3, max_handshakes: 4, max_ephemerals: 8, ..NodeLimits::default()
        };
        let mut fixture = Fixture::new(limits);
        let clients: Vec<_> = (0..6).map(|_| fixture.handshake()).collect();
        let cids: Vec<_> = (0..6).map(|_| fixture.cid()).collect();
        let mut jobs = VecDeque::new();
        let mut links = Vec::new();
        let mut installed = HashSet::new();
        for step in steps {
            let result = match step {
                Step::Noise => {
                    let mut cell = [0u8; CELL_LEN];
                    fixture.rng.fill_bytes(&mut cell);
                    let known = fixture.rng.random_range(0..2) == 0;
                    if known { set_cid(&mut cell, cids[0]); }
                    fixture.receive(source(), &cell)
                }
                Step::Create { client: number, cid, bit } => {
                    let mut cell = fixture.cell(cids[cid], &clients[number]);
                    if let Some(bit) = bit { cell[CID_LEN + bit / 8] ^= 1 << (bit % 8); }
                    fixture.receive(source(), &cell)
                }
                Step::Computed { opens } => match jobs.pop_front() {
                    Some(job) if opens => fixture.compute(&job),
                    Some(job) => {
                        let job: HandshakeJob = job;
                        fixture.circuits.handle_handshake(
                            fixture.now, &job, None, &mut fixture.rng)
                    }
                    None => Ok(()),
                },
                Step::Control { key, client, request, change } => {
                    let mut body = extend_body(request, "next", &clients[client]);
                    if let Some((at, value)) = change { body[at] = value; }
                    fixture.control(CircuitKey(key), &body)
                }
                Step::Answer { client, bit } => {
                    let Some(cid) = links.last() else { continue };
                    let mut cell = fixture.created(*cid, &clients[client]);
                    if let Some(bit) = bit { cell[CID_LEN + bit / 8] ^= 1 << (bit % 8); }
                    fixture.receive(next(), &cell)
                }
                Step::Neighbour { key, forward } => {
                    let direction =
                        if forward { Direction::Forward } else { Direction::Backward };
                    let message = PairMessage::Destroy(DestroyReason::Finished);
                    fixture.circuits.handle_neighbour(CircuitKey(key), direction, message);
                    Ok(())
                }
                Step::Wait { seconds } => {
                    let last = fixture.now;
                    fixture.now += Duration::from_secs(seconds);
                    fixture.circuits.handle_timeout(fixture.now, |_| Some(last));
                    Ok(())
                }
            };
            let _counted: Result<(), DropReason> = result;
            for event in fixture.events() {
                match event {
                    NodeEvent::Handshake(job) => jobs.push_back(job),
                    NodeEvent::Install { key, .. } => prop_assert!(installed.insert(key)),
                    NodeEvent::Remove { key, .. } => prop_assert!(installed.remove(&key)),
                    NodeEvent::Send { to, cell } if to == next() => links.push(cid_of(&cell)),
                    NodeEvent::Send { to, .. } => prop_assert_eq!(to, source()),
                    NodeEvent::Extend { key, .. }
                    | NodeEvent::Answer { key, .. } => prop_assert!(installed.contains(&key)),
                    NodeEvent::Neighbour { .. } => {}
                }
            }
            prop_assert!(fixture.circuits.len() <= 3);
            prop_assert_eq!(fixture.circuits.len(), installed.len());
            prop_assert!(fixture.circuits.computing.len() <= 4);
            prop_assert!(fixture.circuits.awaiting.len() <= 3);
        }
    }
}
