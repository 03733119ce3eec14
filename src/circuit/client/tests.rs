//! Unit and property tests of a client's circuits.

use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    circuit::{
        respond,
        test_nodes::{TestNode, node},
    },
    keys::seal_cookie,
    model::{BODY_HEADER_LEN, CID_LEN},
    wire::{
        ANSWER_LEN, Answer, CREATE_LEN, ControlFragment, ControlType, CreatePrefix, ExtendValue,
        Status, cid_of, fragments, set_cid,
    },
};

struct Fixture {
    nodes: Vec<TestNode>,
    circuits: ClientCircuits,
    now: Instant,
    rng: StdRng,
}

type Cell = [u8; CELL_LEN];
type Body = Box<[u8; BODY_LEN]>;

impl Fixture {
    fn new() -> Self {
        Self {
            nodes: (0..3).map(node).collect(),
            circuits: ClientCircuits::new(ClientTimers::default(), Suite::Aes128Gcm),
            now: Instant::now(),
            rng: StdRng::seed_from_u64(4),
        }
    }

    fn build(&mut self, hops: usize) -> CircuitKey {
        let path = self.nodes[..hops].iter().map(|node| node.hop.clone()).collect();
        self.circuits.build(self.now, path, &mut self.rng).unwrap()
    }

    fn events(&mut self) -> Vec<ClientEvent> {
        std::iter::from_fn(|| self.circuits.poll_event()).collect()
    }

    /// The one CREATE cell that waits to be sent.
    fn create(&mut self) -> Box<Cell> {
        let events = self.events();
        let [ClientEvent::Send { to, .. }] = &events[..] else { panic!("expected one CREATE") };
        assert_eq!(*to, self.nodes[0].hop.addr);
        match events.into_iter().next() {
            Some(ClientEvent::Send { cell, .. }) => cell,
            _ => unreachable!(),
        }
    }

    /// A node's answer to a CREATE prefix.
    fn answer(&mut self, node: usize, prefix: &[u8], status: Status) -> [u8; ANSWER_LEN] {
        let TestNode { identity, onion, .. } = &self.nodes[node];
        let prefix = CreatePrefix::parse(prefix).unwrap();
        respond(identity, onion, &prefix, status, &mut self.rng).unwrap().answer
    }

    /// The cell that answers a CREATE cell.
    fn created(&mut self, create: &Cell) -> Cell {
        let answer = self.answer(0, &create[CID_LEN..], Status::Open);
        answer_cell(cid_of(create), &answer)
    }

    fn receive(&mut self, cell: &Cell) -> Result<(), DropReason> {
        self.circuits.handle_unknown(self.now, cell, &mut self.rng)
    }

    fn body(&mut self, key: CircuitKey, hop: usize, body: &Body) -> Result<(), DropReason> {
        let header = BodyHeader::parse(body).unwrap();
        self.circuits.handle_body(self.now, key, hop, header, body, &mut self.rng)
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.circuits.handle_timeout(self.now, |_| None, &mut self.rng);
    }

    /// Answers every EXTEND that waits, until nothing happens; true when the circuit is ready.
    fn extend_all(&mut self, key: CircuitKey) -> bool {
        let mut next = 1;
        loop {
            let mut asked = None;
            for event in self.events() {
                match event {
                    ClientEvent::SendBody { hop, body, .. } => {
                        assert_eq!(hop + 1, next);
                        asked = Some(body);
                    }
                    ClientEvent::Ready { .. } => return true,
                    ClientEvent::Closed { .. } => return false,
                    _ => {}
                }
            }
            let Some(asked) = asked else { return false };
            let (request, value) = extend(&asked);
            let answer = self.answer(next, value.relay.as_slice(), Status::Open);
            self.body(key, next - 1, &control(ControlType::Extended, request, &answer)).unwrap();
            next += 1;
        }
    }

    fn open(&mut self, hops: usize) -> CircuitKey {
        let key = self.build(hops);
        let create = self.create();
        let created = self.created(&create);
        self.receive(&created).unwrap();
        assert!(self.extend_all(key));
        key
    }
}

fn answer_cell(cid: Cid, answer: &[u8; ANSWER_LEN]) -> Cell {
    let mut cell = [0x66; CELL_LEN];
    set_cid(&mut cell, cid);
    cell[CID_LEN..][..ANSWER_LEN].copy_from_slice(answer);
    cell
}

fn cookie(node: &TestNode, prefix: &[u8], salt: u8) -> [u8; ANSWER_LEN] {
    let mac1 = CreatePrefix::parse(prefix).unwrap().mac1();
    let salt = [salt; 32];
    let sealed_cookie = seal_cookie(&node.hop.id, &salt, &mac1, &[0x0c; 16]);
    let mut bytes = [0; ANSWER_LEN];
    Answer::Cookie { salt, sealed_cookie }.emit(&mut bytes);
    bytes
}

fn control(kind: ControlType, request: u32, value: &[u8]) -> Body {
    let mut body = Box::new([0u8; BODY_LEN]);
    fragments(kind, request, value).unwrap()[0].emit(&mut body).unwrap();
    body
}

/// The request in an EXTEND body.
fn extend(body: &Body) -> (u32, ExtendValue) {
    let fragment = ControlFragment::parse(body).unwrap();
    assert_eq!(fragment.kind, ControlType::Extend);
    (fragment.request, ExtendValue::parse(fragment.value).unwrap())
}

fn only_body(events: &[ClientEvent]) -> &Body {
    let bodies: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            ClientEvent::SendBody { body, .. } => Some(body),
            _ => None,
        })
        .collect();
    assert_eq!(bodies.len(), 1);
    bodies[0]
}

fn closed(events: &[ClientEvent]) -> Option<&CloseReason> {
    events.iter().find_map(|event| match event {
        ClientEvent::Closed { reason, .. } => Some(reason),
        _ => None,
    })
}

#[test]
fn a_circuit_is_built_hop_by_hop() {
    let mut fixture = Fixture::new();
    for hops in 1..=3 {
        let key = fixture.open(hops);
        let row = fixture.circuits.get(key).unwrap();
        assert_eq!((row.hops_built(), row.path().len()), (hops, hops));
        assert_eq!(row.ready(), Some(fixture.now));
    }
}

#[test]
fn a_create_is_asked_again_with_the_same_prefix_and_given_up_at_last() {
    let mut fixture = Fixture::new();
    fixture.build(1);
    let first = fixture.create();
    let mut waits = Vec::new();
    let (mut since, start) = (Duration::ZERO, fixture.now);
    let reason = loop {
        fixture.wait(Duration::from_millis(25));
        since += Duration::from_millis(25);
        let events = fixture.events();
        match &events[..] {
            [] => {}
            [ClientEvent::Send { cell, .. }] => {
                waits.push(since.as_millis());
                since = Duration::ZERO;
                assert_eq!(cell[..CID_LEN + CREATE_LEN], first[..CID_LEN + CREATE_LEN]);
                assert_ne!(cell[CID_LEN + CREATE_LEN..], first[CID_LEN + CREATE_LEN..]);
            }
            _ => break closed(&events).cloned().unwrap(),
        }
        assert!(fixture.now - start < Duration::from_secs(60));
    };
    assert_eq!(reason, CloseReason::NoAnswer { hop: 0 });
    assert_eq!(waits, [400, 800, 1600, 2000, 2000, 2000, 2000]);
}

#[test]
fn an_extend_is_asked_again_under_the_same_request() {
    let mut fixture = Fixture::new();
    let key = fixture.build(2);
    let create = fixture.create();
    let created = fixture.created(&create);
    fixture.receive(&created).unwrap();
    let first = fixture.events();
    let first = only_body(&first);
    fixture.wait(Duration::from_millis(450));
    let again = fixture.events();
    assert_eq!(only_body(&again), first);
    let (request, value) = extend(first);
    assert_eq!(value.to, fixture.nodes[1].hop.id.to_string());
    let answer = fixture.answer(1, value.relay.as_slice(), Status::Open);
    let extended = control(ControlType::Extended, request, &answer);
    fixture.body(key, 0, &extended).unwrap();
    assert!(matches!(
        fixture.events()[..],
        [ClientEvent::AddHop { .. }, ClientEvent::Ready { .. }]
    ));
    // Both questions were answered: the second answer changes nothing.
    assert_eq!(fixture.body(key, 0, &extended), Ok(()));
    assert!(fixture.events().is_empty());
}

#[test]
fn an_answer_that_the_neighbour_did_not_make_is_dropped() {
    let mut fixture = Fixture::new();
    let key = fixture.build(1);
    let create = fixture.create();
    let good = fixture.created(&create);
    for bit in CID_LEN * 8..(CID_LEN + ANSWER_LEN) * 8 {
        let mut changed = good;
        changed[bit / 8] ^= 1 << (bit % 8);
        if changed[CID_LEN] != 2 {
            assert!(fixture.receive(&changed).is_err(), "bit {bit}");
        }
    }
    let mut elsewhere = good;
    set_cid(&mut elsewhere, Cid::ZERO);
    assert_eq!(fixture.receive(&elsewhere), Err(DropReason::UnknownCircuit));
    assert!(fixture.events().is_empty());
    assert_eq!(fixture.receive(&good), Ok(()));
    assert!(fixture.extend_all(key) || fixture.circuits.get(key).is_some());
    assert_eq!(fixture.receive(&good), Err(DropReason::UnknownCircuit), "again");
}

#[test]
fn an_extended_of_a_node_without_the_keys_ends_the_circuit() {
    let mut fixture = Fixture::new();
    let key = fixture.build(2);
    let create = fixture.create();
    let created = fixture.created(&create);
    fixture.receive(&created).unwrap();
    let asked = fixture.events();
    let (request, value) = extend(only_body(&asked));
    let mut answer = fixture.answer(1, value.relay.as_slice(), Status::Open);
    answer[40] ^= 1;
    fixture.body(key, 0, &control(ControlType::Extended, request, &answer)).unwrap();
    let events = fixture.events();
    assert!(matches!(closed(&events), Some(CloseReason::Handshake { hop: 1, .. })));
    assert!(matches!(events[..], [ClientEvent::Closed { tell: true, .. }]));
}

#[test]
fn refusals_name_the_hop_and_its_reason() {
    let mut fixture = Fixture::new();
    fixture.build(1);
    let create = fixture.create();
    let status = Status::Refused(DestroyReason::ResourceLimit);
    let answer = fixture.answer(0, &create[CID_LEN..], status);
    fixture.receive(&answer_cell(cid_of(&create), &answer)).unwrap();
    let refused = |hop, reason| CloseReason::Refused { hop, reason };
    let events = fixture.events();
    assert_eq!(closed(&events), Some(&refused(0, DestroyReason::ResourceLimit)));

    let key = fixture.build(2);
    let create = fixture.create();
    let created = fixture.created(&create);
    fixture.receive(&created).unwrap();
    let asked = fixture.events();
    let (request, _) = extend(only_body(&asked));
    let failed = control(ControlType::ExtendFailed, request, &[DestroyReason::NextHopGone as u8]);
    fixture.body(key, 0, &failed).unwrap();
    let events = fixture.events();
    assert_eq!(closed(&events), Some(&refused(1, DestroyReason::NextHopGone)));
}

#[test]
fn control_bodies_that_make_no_sense_are_dropped() {
    let mut fixture = Fixture::new();
    let key = fixture.build(3);
    let create = fixture.create();
    let created = fixture.created(&create);
    fixture.receive(&created).unwrap();
    let asked = fixture.events();
    let (request, value) = extend(only_body(&asked));
    let answer = fixture.answer(1, value.relay.as_slice(), Status::Open);
    let good = control(ControlType::Extended, request, &answer);
    assert_eq!(fixture.body(key, 1, &good), Err(DropReason::BadControl), "not the last hop");
    let other = control(ControlType::Extended, request + 1, &answer);
    assert_eq!(fixture.body(key, 0, &other), Ok(()), "another request's");
    let mut fragment = good.clone();
    fragment[9] = 0x01;
    for body in [
        control(ControlType::Extended, request, &answer[..ANSWER_LEN - 1]),
        control(ControlType::Extended, request, &[9; ANSWER_LEN]),
        control(ControlType::Extend, request, &answer),
        fragment,
    ] {
        assert_eq!(fixture.body(key, 0, &body), Err(DropReason::BadControl));
    }
    assert_eq!(fixture.body(CircuitKey(7), 0, &good), Err(DropReason::UnknownCircuit));
    for (kind, reason) in [
        (BodyKind::Cover, DropReason::Cover),
        (BodyKind::Bridge, DropReason::UnknownKind),
        (BodyKind::Echo, DropReason::UnknownKind),
        (BodyKind::EchoReply, DropReason::BadControl),
    ] {
        let mut body = Box::new([0u8; BODY_LEN]);
        BodyHeader::new(kind).emit(&mut body);
        assert_eq!(fixture.body(key, 0, &body), Err(reason));
    }
    assert!(fixture.events().is_empty());
    fixture.body(key, 0, &good).unwrap();
    assert!(fixture.extend_from(key, 2));
}

impl Fixture {
    /// As [`Self::extend_all`], from a hop on.
    fn extend_from(&mut self, key: CircuitKey, next: usize) -> bool {
        let asked = self.events();
        let (request, value) = extend(only_body(&asked));
        let answer = self.answer(next, value.relay.as_slice(), Status::Open);
        self.body(key, next - 1, &control(ControlType::Extended, request, &answer)).unwrap();
        self.events().iter().any(|event| matches!(event, ClientEvent::Ready { .. }))
    }
}

#[test]
fn a_cookie_of_the_first_hop_is_proved() {
    let mut fixture = Fixture::new();
    let key = fixture.build(1);
    let create = fixture.create();
    let answer = cookie(&fixture.nodes[0], &create[CID_LEN..], 1);
    fixture.receive(&answer_cell(cid_of(&create), &answer)).unwrap();
    let proved = fixture.create();
    let prefix = CreatePrefix::parse(&proved[CID_LEN..]).unwrap();
    assert_eq!(prefix.mac2(), crate::keys::mac2(&[0x0c; 16], prefix.before_mac2()));
    let created = fixture.created(&proved);
    fixture.receive(&created).unwrap();
    assert!(matches!(
        fixture.events()[..],
        [ClientEvent::Open { .. }, ClientEvent::AddHop { .. }, ClientEvent::Ready { .. }]
    ));
    assert_eq!(fixture.circuits.get(key).unwrap().hops_built(), 1);
}

#[test]
fn a_cookie_for_another_create_is_dropped() {
    let mut fixture = Fixture::new();
    fixture.build(1);
    let create = fixture.create();
    let mut answer = cookie(&fixture.nodes[0], &create[CID_LEN..], 1);
    answer[40] ^= 1;
    let _ = fixture.receive(&answer_cell(cid_of(&create), &answer));
    let other = cookie(&fixture.nodes[1], &create[CID_LEN..], 1);
    let _ = fixture.receive(&answer_cell(cid_of(&create), &other));
    assert!(fixture.events().is_empty());
    let created = fixture.created(&create);
    assert_eq!(fixture.receive(&created), Ok(()));
}

/// The node was under load for a moment: it answered the first CREATE with a cookie and the
/// repeated one with CREATED, and both answers are on their way.
#[test]
fn a_late_cookie_does_not_spoil_an_accepted_create() {
    let mut fixture = Fixture::new();
    let key = fixture.build(2);
    let create = fixture.create();
    let late = answer_cell(cid_of(&create), &cookie(&fixture.nodes[0], &create[CID_LEN..], 1));
    let created = fixture.created(&create);
    fixture.receive(&late).unwrap();
    let proved = fixture.create();
    // The node has taken the first CREATE, so its answer comes; and whatever the client sent after
    // the cookie is answered as well, unless the node takes it for a replay.
    let _ = fixture.receive(&created);
    if CreatePrefix::parse(&proved[CID_LEN..]).unwrap().ephemeral()
        != CreatePrefix::parse(&create[CID_LEN..]).unwrap().ephemeral()
    {
        assert_ne!(cid_of(&proved), cid_of(&create), "another CREATE needs an id of its own");
        let created = fixture.created(&proved);
        fixture.receive(&created).unwrap();
    }
    assert!(closed(&fixture.circuits.events.make_contiguous()[..]).is_none());
    assert!(fixture.extend_all(key));
}

#[test]
fn a_node_that_always_asks_for_a_cookie_is_given_up() {
    let mut fixture = Fixture::new();
    fixture.build(1);
    let mut asked = 0;
    loop {
        let events = fixture.events();
        if let Some(reason) = closed(&events) {
            let reason = reason.clone();
            let refused = DestroyReason::ResourceLimit;
            assert_eq!(reason, CloseReason::Refused { hop: 0, reason: refused });
            break;
        }
        let [ClientEvent::Send { cell, .. }] = &events[..] else {
            fixture.wait(Duration::from_secs(1));
            continue;
        };
        asked += 1;
        assert!(asked < 20, "the client asks for ever");
        let answer = cookie(&fixture.nodes[0], &cell[CID_LEN..], asked);
        fixture.receive(&answer_cell(cid_of(cell), &answer)).unwrap();
    }
    assert!(fixture.circuits.iter().next().is_none());
}

#[test]
fn a_key_is_free_only_when_its_end_was_heard() {
    let mut fixture = Fixture::new();
    let one = fixture.open(1);
    fixture.circuits.close(one);
    // Built before the event loop heard that the first one is gone.
    let two = fixture.build(1);
    assert_ne!(one, two);
    let events = fixture.events();
    assert!(matches!(events[0], ClientEvent::Closed { key, .. } if key == one));
    assert_eq!(fixture.build(1), one, "from here on it is free");
}

#[test]
fn a_destroy_ends_the_circuit_without_a_word_back() {
    let mut fixture = Fixture::new();
    let key = fixture.open(2);
    let message = PairMessage::Destroy(DestroyReason::ShuttingDown);
    fixture.circuits.handle_neighbour(key, message);
    fixture.circuits.handle_neighbour(key, message);
    fixture.circuits.close(key);
    let events = fixture.events();
    assert!(matches!(
        events[..],
        [ClientEvent::Closed { reason: CloseReason::Destroyed(_), tell: false, .. }]
    ));
}

#[test]
fn echoes_are_answered_once_and_by_number() {
    let mut fixture = Fixture::new();
    let key = fixture.open(2);
    fixture.circuits.send_echo(fixture.now, key, 1);
    let asked = fixture.events();
    let mut reply = only_body(&asked).clone();
    reply[8] = BodyKind::EchoReply as u8;
    let mut wrong = reply.clone();
    wrong[BODY_HEADER_LEN + 7] ^= 1;
    assert_eq!(fixture.body(key, 1, &wrong), Err(DropReason::BadControl));
    assert_eq!(fixture.body(key, 0, &reply), Err(DropReason::BadControl), "another hop's");
    fixture.now += Duration::from_millis(40);
    assert_eq!(fixture.body(key, 1, &reply), Ok(()));
    assert!(matches!(
        fixture.events()[..],
        [ClientEvent::Echo { hop: 1, rtt, .. }] if rtt == Duration::from_millis(40)
    ));
    assert_eq!(fixture.body(key, 1, &reply), Err(DropReason::BadControl), "again");
    let health = fixture.circuits.get(key).unwrap().health(1);
    assert_eq!((health.sent, health.received), (1, 1));
    fixture.circuits.send_echo(fixture.now, key, 2);
    fixture.circuits.send_echo(fixture.now, CircuitKey(99), 0);
    assert!(fixture.events().is_empty(), "no such hop");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever cells and bodies come at whatever time, nothing panics, and a circuit is built or
    /// closed once and forgotten.
    #[test]
    fn nothing_that_comes_breaks_a_client(
        steps in prop::collection::vec((0u8..8, 0usize..BODY_LEN, any::<u8>(), 0usize..4), 1..80),
    ) {
        let mut fixture = Fixture::new();
        let mut last_cell = [0u8; CELL_LEN];
        let mut last_body = control(ControlType::Extended, 1, &[1; ANSWER_LEN]);
        let mut alive = std::collections::HashSet::new();
        for (what, at, value, hop) in steps {
            let key = CircuitKey(u32::from(value % 3));
            match what {
                0 if alive.len() < 3 => {
                    alive.insert(fixture.build(hop.clamp(1, 3)));
                }
                1 => {
                    let mut cell = last_cell;
                    cell[at.max(CID_LEN) % 140] = value;
                    let _ = fixture.receive(&cell);
                }
                2 if CreatePrefix::parse(&last_cell[CID_LEN..]).is_ok() => {
                    let created = fixture.created(&last_cell.clone());
                    let _ = fixture.receive(&created);
                }
                3 | 4 => {
                    let mut body = last_body.clone();
                    if what == 3 { body[at] = value; }
                    if let Ok(header) = BodyHeader::parse(&body) {
                        let _ = fixture.circuits.handle_body(
                            fixture.now, key, hop, header, &body, &mut fixture.rng);
                    }
                }
                5 => {
                    if let Ok(value) = ControlFragment::parse(&last_body)
                        .map_err(|_| ()).and_then(|fragment| {
                            ExtendValue::parse(fragment.value)
                                .map(|value| (fragment.request, value)).map_err(|_| ())
                        })
                    {
                        let (request, value) = value;
                        for node in 0..3 {
                            let TestNode { identity, onion, .. } = &fixture.nodes[node];
                            let prefix = CreatePrefix::parse(value.relay.as_slice()).unwrap();
                            if let Ok(done) = respond(
                                identity, onion, &prefix, Status::Open, &mut fixture.rng)
                            {
                                let body =
                                    control(ControlType::Extended, request, &done.answer);
                                let _ = fixture.body(key, hop, &body);
                            }
                        }
                    }
                }
                6 => fixture.circuits.close(key),
                _ => fixture.wait(Duration::from_millis(at as u64)),
            }
            for event in fixture.events() {
                match event {
                    ClientEvent::Send { cell, .. } => last_cell = *cell,
                    ClientEvent::SendBody { key, hop, body } => {
                        prop_assert!(alive.contains(&key));
                        // It may have ended since, with its end among the later events.
                        let row = fixture.circuits.get(key);
                        prop_assert!(row.is_none_or(|row| hop < row.hops_built()));
                        last_body = body;
                    }
                    ClientEvent::Closed { key, .. } => prop_assert!(alive.remove(&key)),
                    ClientEvent::Open { key, .. }
                    | ClientEvent::AddHop { key, .. }
                    | ClientEvent::Ready { key, .. }
                    | ClientEvent::Stalled { key }
                    | ClientEvent::Resumed { key }
                    | ClientEvent::Echo { key, .. } => prop_assert!(alive.contains(&key)),
                }
            }
            prop_assert_eq!(fixture.circuits.iter().count(), alive.len());
        }
    }
}
