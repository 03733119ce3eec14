//! The handshake against the independent implementation: vectors of every message, then the
//! program's client with the other's node and the program's node with the other's client, live.

use std::time::{Duration, Instant};

use cepa::{
    circuit::{
        ClientCircuits, ClientEvent, ClientHandshake, ClientTimers, HandshakeJob, NodeCircuits,
        NodeEvent, NodeLimits, respond,
    },
    forward::{ClientTable, ClientVerdict, Outbox, RelayTable, Verdict},
    keys::{
        BackwardLayer, ForwardLayer, ForwardWrap, HopKeys, Identity, OnionKey, PairKeys, mac1,
        mac2, open_cookie, seal_cookie, transcript, wrap,
    },
    model::{BodyKind, Cid, CircuitKey, DropReason, Hop, NodeId, Suite},
    wire::{ANSWER_LEN, Answer, BodyHeader, CreatePrefix, OaepPlain, Status, body_mut, body_ref},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use rsa::{RsaPrivateKey, RsaPublicKey, pkcs8::DecodePrivateKey};

use super::{
    Fill, identity_file,
    record::{Record, check, committed},
    spec::{self, AES, CHACHA},
};

fn rsa_key(index: usize) -> RsaPrivateKey {
    RsaPrivateKey::from_pkcs8_der(&identity_file(index)).unwrap()
}

fn identity(index: usize) -> Identity {
    Identity::from_pkcs8(&identity_file(index)).unwrap()
}

/// An independent node with the identity of a test key, and the program's view of it.
fn independent_node(index: usize, onion_secret: [u8; 32], suite: Suite) -> (spec::Node, Hop) {
    let spki = identity(index).spki_der().to_vec();
    let node = spec::Node { rsa: rsa_key(index), id: spec::node_id(&spki), onion_secret };
    let onion_key = spec::x25519_public(&onion_secret);
    let hop = Hop {
        id: NodeId::from_bytes(node.id),
        name: "independent".into(),
        addr: ([192, 0, 2, 1 + index as u8], 5000).into(),
        identity_spki: spki,
        onion_key,
        onion_key_id: spec::onion_key_id(&onion_key),
        suite,
        is_exit: true,
    };
    (node, hop)
}

/// Both directions of a hop work between the program's keys and the independent ones.
fn assert_same_keys(program: &HopKeys, independent: &spec::HopKeys) {
    let body = [0x3c; 1312];
    let mut cell = [0u8; 1408];
    *body_mut(&mut cell) = body;
    wrap(&mut [ForwardWrap::new(program)], &[77], &mut cell, &mut Fill(1));
    assert_eq!(cell, spec::wrap(std::slice::from_ref(independent), &[77], &body, 1));
    assert!(independent.peel_forward(&mut cell));
    let mut back = independent.originate(78, &body, 2);
    let mut opened = [0u8; 1312];
    assert_eq!(BackwardLayer::new(program).open(&back, &mut opened), Ok(78));
    independent.add_backward(79, &mut back);
    let mut expected = independent.originate(78, &body, 2);
    BackwardLayer::new(program).add(79, &mut expected);
    assert_eq!(back, expected);
}

#[test]
fn handshake_messages() {
    let file = "handshake";
    let (onion_secret, ephemeral_secret) = ([0x31u8; 32], [0x32u8; 32]);
    let onion = OnionKey::from_secret(onion_secret).unwrap();
    let identity = identity(0);
    let independent =
        spec::Node { rsa: rsa_key(0), id: spec::node_id(identity.spki_der()), onion_secret };
    assert_eq!(independent.id, *identity.id().as_bytes());
    assert_eq!(spec::onion_key_id(onion.public()), onion.id());
    let client = spec::Client {
        node_id: independent.id,
        onion_key: *onion.public(),
        ephemeral_secret,
        secret: [0x33; 32],
        pair: [0x34; 32],
        suite: CHACHA,
        link_suite: AES,
    };
    // OAEP draws at random, so the block is given, as it were, by the file.
    let block = committed(file)
        .and_then(|record| record.get("oaep.block").map(<[u8]>::to_vec))
        .unwrap_or_else(|| {
            spec::oaep_encrypt(&RsaPublicKey::from(&independent.rsa), &client.plain()).to_vec()
        });

    let mut specified = Record::new(
        "One handshake, message by message: CREATE, COOKIE, CREATE with its proof, CREATED, and\n\
         CREATED with a refusal. The node's identity is tests/keys/test-only-0; its answers draw\n\
         the X25519 secret `node.ephemeral-secret`. What is drawn at random has the value of `random`.",
    );
    specified.bytes("node.id", independent.id);
    specified.bytes("node.onion-secret", onion_secret);
    specified.bytes("node.onion-key", onion.public());
    specified.bytes("node.onion-key-id", onion.id());
    specified.bytes("node.ephemeral-secret", [0x35; 32]);
    specified.bytes("client.ephemeral-secret", ephemeral_secret);
    specified.bytes("oaep.block", &block);
    specified.bytes("random", [0xa5]);
    let mut program = specified.clone();

    // The OAEP block, opened by both libraries.
    let plain = identity.decrypt_oaep(&block, cepa::keys::OAEP_LABEL).unwrap();
    specified.bytes("oaep.plain", client.plain());
    program.bytes("oaep.plain", &*plain);
    assert_eq!(spec::oaep_decrypt(&independent.rsa, &block), Some(client.plain()));
    let read = OaepPlain::parse(&plain).unwrap();
    assert_eq!((read.suite, read.link_suite), (Suite::ChaCha20Poly1305, Suite::Aes128Gcm));
    assert_eq!(*read.emit(), *plain.as_slice());

    // CREATE.
    let mut prefix = client.prefix(&block, 0xa5);
    specified.bytes("create", prefix);
    let client_public = *OnionKey::from_secret(ephemeral_secret).unwrap().public();
    let mut parsed =
        CreatePrefix::new(onion.id(), client_public, block.as_slice().try_into().unwrap());
    parsed.set_mac1(mac1(&identity.id(), parsed.before_mac1()));
    parsed.set_mac2([0xa5; 16]);
    program.bytes("create", parsed.as_bytes());
    assert_eq!(CreatePrefix::parse(&prefix), Ok(parsed.clone()));

    // COOKIE, and the CREATE that proves it.
    let (salt, cookie) = ([0x36u8; 32], [0x37u8; 16]);
    for record in [&mut specified, &mut program] {
        record.bytes("cookie.salt", salt);
        record.bytes("cookie.clear", cookie);
    }
    let answer = spec::cookie_answer(&independent.id, &salt, &prefix[426..442], &cookie, 0xa5);
    specified.bytes("cookie.answer", answer);
    assert_eq!(spec::open_cookie(&independent.id, &answer, &prefix[426..442]), Some(cookie));
    let sealed_cookie = seal_cookie(&identity.id(), &salt, &parsed.mac1(), &cookie);
    let mut bytes = [0xa5; ANSWER_LEN];
    Answer::Cookie { salt, sealed_cookie }.emit(&mut bytes);
    program.bytes("cookie.answer", bytes);
    assert_eq!(Answer::parse(&answer), Ok(Answer::Cookie { salt, sealed_cookie }));
    assert_eq!(open_cookie(&identity.id(), &salt, &parsed.mac1(), &sealed_cookie), Ok(cookie));
    spec::prove_cookie(&mut prefix, &cookie);
    specified.bytes("create.with-cookie", prefix);
    parsed.set_mac2(mac2(&cookie, parsed.before_mac2()));
    program.bytes("create.with-cookie", parsed.as_bytes());

    // CREATED: the circuit stands, or is refused for want of resources.
    let statuses = [
        ("created", Status::Open, [0u8; 16]),
        ("refused", Status::Refused(cepa::model::DestroyReason::ResourceLimit), {
            let mut status = [0; 16];
            status[..2].copy_from_slice(&[1, 2]);
            status
        }),
    ];
    for (name, status, bytes) in statuses {
        assert_eq!(status.emit(), bytes);
        assert_eq!(Status::parse(&bytes), status);
        let (answer, shared) = independent.answer(&prefix, &[0x35; 32], bytes).unwrap();
        specified.bytes(format!("{name}.status"), bytes);
        specified.bytes(format!("{name}.answer"), answer);
        program.bytes(format!("{name}.status"), status.emit());
        let done = respond(&identity, &onion, &parsed, status, &mut Fill(0x35)).unwrap();
        program.bytes(format!("{name}.answer"), done.answer);
        if name == "created" {
            specified.bytes("transcript", shared.transcript);
            let ephemeral = answer[1..33].try_into().unwrap();
            program.bytes(
                "transcript",
                transcript(&identity.id(), &onion.id(), parsed.as_bytes(), ephemeral),
            );
        }
        assert_same_keys(&done.hop, &shared.hop);
        let (client_side, opened) = client.finish(&prefix, &answer).unwrap();
        assert_eq!((client_side.transcript, opened), (shared.transcript, bytes));
        assert_same_keys(&done.hop, &client_side.hop);
        let mut tagged = [9u8; 1408];
        shared.pair.tag(&mut tagged);
        cepa::keys::LinkTag::new(&done.pair).verify(&mut tagged).unwrap();
    }
    check(file, &specified, &program);
}

#[test]
fn the_programs_client_takes_an_independent_nodes_answer() {
    let mut rng = StdRng::seed_from_u64(1);
    for (index, suite) in [Suite::Aes128Gcm, Suite::ChaCha20Poly1305].into_iter().enumerate() {
        for link_suite in Suite::ALL {
            let (node, hop) = independent_node(index, [7 + index as u8; 32], suite);
            let client = ClientHandshake::start(hop, link_suite, &mut rng).unwrap();
            let (answer, shared) =
                node.answer(client.prefix().as_bytes(), &[0x51; 32], [0; 16]).unwrap();
            let Ok(Answer::Created { ephemeral, confirmation, sealed_status, mac }) =
                Answer::parse(&answer)
            else {
                panic!("not CREATED")
            };
            let keys = client.handle_created(&ephemeral, &confirmation, &sealed_status).unwrap();
            assert_same_keys(&keys, &shared.hop);
            assert_eq!(keys.suite, suite);
            let pair = PairKeys::derive(client.link_suite(), client.pair());
            assert!(pair.proves_created(&answer[..97], &mac));
        }
    }
}

#[test]
fn the_programs_node_answers_an_independent_client() {
    let mut rng = StdRng::seed_from_u64(2);
    let (identity, rsa) = (identity(1), rsa_key(1));
    let onion = OnionKey::generate(&mut rng).unwrap();
    for (suite, link_suite) in [(AES, CHACHA), (CHACHA, AES), (AES, AES), (CHACHA, CHACHA)] {
        let mut client = spec::Client {
            node_id: spec::node_id(identity.spki_der()),
            onion_key: *onion.public(),
            ephemeral_secret: [0; 32],
            secret: [0; 32],
            pair: [0; 32],
            suite,
            link_suite,
        };
        rng.fill_bytes(&mut client.ephemeral_secret);
        rng.fill_bytes(&mut client.secret);
        rng.fill_bytes(&mut client.pair);
        let block = spec::oaep_encrypt(&RsaPublicKey::from(&rsa), &client.plain());
        let prefix = client.prefix(&block, 0xa5);
        let parsed = CreatePrefix::parse(&prefix).unwrap();
        let done = respond(&identity, &onion, &parsed, Status::Open, &mut rng).unwrap();
        let (shared, status) = client.finish(&prefix, &done.answer).unwrap();
        assert_eq!(status, [0; 16]);
        assert_same_keys(&done.hop, &shared.hop);
    }
}

/// The program's client builds a circuit of two hops through independent nodes, and talks to both.
#[test]
fn the_programs_circuit_runs_through_independent_nodes() {
    let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(3));
    let nodes = [
        independent_node(0, [0x61; 32], Suite::Aes128Gcm),
        independent_node(1, [0x62; 32], Suite::ChaCha20Poly1305),
    ];
    let path: Vec<_> = nodes.iter().map(|(_, hop)| hop.clone()).collect();
    let mut circuits = ClientCircuits::new(ClientTimers::default(), Suite::Aes128Gcm);
    let mut table = ClientTable::default();
    let key = circuits.build(now, path.clone(), &mut rng).unwrap();

    // CREATE to the first hop.
    let Some(ClientEvent::Send { to, cell }) = circuits.poll_event() else { panic!("no CREATE") };
    assert_eq!(to, path[0].addr);
    let cid: [u8; 16] = cell[..16].try_into().unwrap();
    let (answer, first) = nodes[0].0.answer(&cell[16..], &[0x71; 32], [0; 16]).unwrap();
    let mut created = [0x99; 1408];
    created[..16].copy_from_slice(&cid);
    created[16..129].copy_from_slice(&answer);
    let mut body = [0; 1312];
    assert_eq!(table.handle_cell(now, to, &mut created, &mut body), ClientVerdict::Unknown);
    circuits.handle_unknown(now, &created, &mut rng).unwrap();
    let Some(ClientEvent::Open { pair, guard, .. }) = circuits.poll_event() else { panic!() };
    table.open(now, key, Cid::from_bytes(cid), guard, &pair, &mut rng);
    let Some(ClientEvent::AddHop { keys, .. }) = circuits.poll_event() else { panic!() };
    assert_same_keys(&keys, &first.hop);
    table.add_hop(key, &keys, &mut rng);

    // EXTEND, opened by the first hop, whose JSON holds a CREATE for the second.
    let Some(ClientEvent::SendBody { hop: 0, body: extend, .. }) = circuits.poll_event() else {
        panic!("no EXTEND")
    };
    let mut outbox = Outbox::default();
    table.send_body(key, 0, |to| *to = *extend, &mut outbox, &mut rng).unwrap();
    let mut cell: [u8; 1408] = outbox.runs().next().unwrap().1.try_into().unwrap();
    assert_eq!(cell[..16], cid);
    assert!(first.hop.peel_forward(&mut cell));
    let control = &cell[96..];
    assert_eq!((&control[..8], control[8], control[9], control[12]), (&[0; 8][..], 1, 0, 1));
    let length = usize::from(u16::from_be_bytes([control[17], control[18]]));
    let json: serde_json::Value = serde_json::from_slice(&control[19..19 + length]).unwrap();
    assert_eq!(json["to"].as_str().unwrap(), hex::encode(nodes[1].0.id));
    assert_eq!(json["link"], "chacha20poly1305");
    let relay = base64(json["relay"].as_str().unwrap());
    let (answer, second) = nodes[1].0.answer(&relay, &[0x72; 32], [0; 16]).unwrap();
    assert_eq!(base64(json["pair"].as_str().unwrap()).len(), 32);

    // EXTENDED, from the first hop.
    let mut extended = [0u8; 1312];
    extended[8] = 1;
    extended[12] = 2;
    extended[13..17].copy_from_slice(&control[13..17]);
    extended[17..19].copy_from_slice(&113u16.to_be_bytes());
    extended[19..132].copy_from_slice(&answer);
    let mut cell = first.hop.originate(500, &extended, 3);
    cell[..16].copy_from_slice(&cid);
    first.pair.tag(&mut cell);
    let verdict = table.handle_cell(now, to, &mut cell, &mut body);
    let ClientVerdict::Body { hop: 0, seq: 500, header, .. } = verdict else {
        panic!("{verdict:?}")
    };
    circuits.handle_body(now, key, 0, header, &body, &mut rng).unwrap();
    let Some(ClientEvent::AddHop { keys, .. }) = circuits.poll_event() else { panic!() };
    assert_same_keys(&keys, &second.hop);
    table.add_hop(key, &keys, &mut rng);
    assert!(matches!(circuits.poll_event(), Some(ClientEvent::Ready { .. })));

    // An echo to the second hop, through the first, and its reply.
    circuits.send_echo(now, key, 1);
    let Some(ClientEvent::SendBody { hop: 1, body: echo, .. }) = circuits.poll_event() else {
        panic!("no echo")
    };
    outbox.clear();
    table.send_body(key, 1, |to| *to = *echo, &mut outbox, &mut rng).unwrap();
    let mut cell: [u8; 1408] = outbox.runs().next().unwrap().1.try_into().unwrap();
    assert!(first.hop.peel_forward(&mut cell));
    assert_ne!(cell[96..104], [0; 8], "the first hop does not recognise it");
    assert!(second.hop.peel_forward(&mut cell));
    assert_eq!(cell[96..105], [0, 0, 0, 0, 0, 0, 0, 0, 3]);
    let mut reply: [u8; 1312] = cell[96..].try_into().unwrap();
    reply[8] = 4;
    let mut cell = second.hop.originate(900, &reply, 4);
    first.hop.add_backward(501, &mut cell);
    cell[..16].copy_from_slice(&cid);
    first.pair.tag(&mut cell);
    let later = now + Duration::from_millis(30);
    let verdict = table.handle_cell(later, to, &mut cell, &mut body);
    let ClientVerdict::Body { hop: 1, header, .. } = verdict else { panic!("{verdict:?}") };
    circuits.handle_body(later, key, 1, header, &body, &mut rng).unwrap();
    let echo = circuits.poll_event();
    assert!(matches!(echo, Some(ClientEvent::Echo { hop: 1, rtt, .. }) if rtt == later - now));
}

/// An independent client opens a circuit at the program's node, under load, and talks to it.
#[test]
fn an_independent_client_opens_a_circuit_at_the_programs_node() {
    let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(4));
    let (identity, rsa) = (identity(2), rsa_key(2));
    let onion = OnionKey::generate(&mut rng).unwrap();
    let limits = NodeLimits { max_handshakes: 1, ..NodeLimits::default() };
    let mut circuits = NodeCircuits::new(identity.id(), vec![onion.id()], limits, now, &mut rng);
    let mut table = RelayTable::default();
    let from = ([192, 0, 2, 99], 40_000).into();
    let client = spec::Client {
        node_id: spec::node_id(identity.spki_der()),
        onion_key: *onion.public(),
        ephemeral_secret: [0x21; 32],
        secret: [0x22; 32],
        pair: [0x23; 32],
        suite: AES,
        link_suite: CHACHA,
    };
    let block = spec::oaep_encrypt(&RsaPublicKey::from(&rsa), &client.plain());
    let mut prefix = client.prefix(&block, 0xa5);
    let cid = [0x44; 16];
    let mut cell = [0xdd; 1408];
    cell[..16].copy_from_slice(&cid);

    // The node is under load: a cookie.
    cell[16..474].copy_from_slice(&prefix);
    assert_eq!(table.handle_cell(now, from, &mut cell), Verdict::Unknown);
    let loaded = circuits.handle_unknown(now, from, &cell, &mut rng);
    assert_eq!(loaded, Err(DropReason::CreateOverload));
    let Some(NodeEvent::Send { to, cell: answer }) = circuits.poll_event() else { panic!() };
    assert_eq!((to, &answer[..16]), (from, &cid[..]));
    let cookie = spec::open_cookie(&client.node_id, &answer[16..], &prefix[426..442]).unwrap();
    spec::prove_cookie(&mut prefix, &cookie);

    // With its proof the circuit opens.
    cell[16..474].copy_from_slice(&prefix);
    circuits.handle_unknown(now, from, &cell, &mut rng).unwrap();
    let Some(NodeEvent::Handshake(job)) = circuits.poll_event() else { panic!("no handshake") };
    let job: HandshakeJob = job;
    let done = respond(&identity, &onion, &job.prefix, job.status, &mut rng).ok();
    circuits.handle_handshake(now, &job, done, &mut rng).unwrap();
    let Some(NodeEvent::Install { key, keys, .. }) = circuits.poll_event() else { panic!() };
    assert_eq!(key, CircuitKey(0));
    assert_eq!(keys.create, *blake3::hash(&prefix).as_bytes());
    table.install(now, key, from, Cid::from_bytes(cid), &keys, &mut rng);
    let Some(NodeEvent::Send { cell: created, .. }) = circuits.poll_event() else { panic!() };
    let (shared, status) = client.finish(&prefix, &created[16..]).unwrap();
    assert_eq!(status, [0; 16]);
    assert_same_keys(&keys.hop, &shared.hop);

    // An echo, and its reply.
    let mut body = [0u8; 1312];
    body[8] = 3;
    body[12..20].copy_from_slice(b"anything");
    let mut cell = spec::wrap(std::slice::from_ref(&shared.hop), &[1000], &body, 5);
    cell[..16].copy_from_slice(&cid);
    let verdict = table.handle_cell(now, from, &mut cell);
    let Verdict::Local { circuit, seq: 1000, header } = verdict else { panic!("{verdict:?}") };
    assert_eq!((circuit, header.kind), (key, BodyKind::Echo));
    assert_eq!(*body_ref(&cell), body);
    BodyHeader::new(BodyKind::EchoReply).emit(body_mut(&mut cell));
    assert_eq!(table.originate(key, &mut cell, &mut rng), Ok(from));
    assert!(shared.pair.verify(&cell));
    body[8] = 4;
    assert_eq!(shared.hop.open_backward(&cell), Some(body));
    // The node peels with the layer that the client's keys make.
    let mut again = spec::wrap(&[shared.hop], &[1001], &body, 6);
    ForwardLayer::new(&keys.hop).peel(&mut again).unwrap();
}

fn base64(text: &str) -> Vec<u8> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    STANDARD.decode(text).unwrap()
}
