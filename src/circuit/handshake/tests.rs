//! Unit and property tests of both ends of a handshake.

use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    circuit::test_nodes::{LOW_ORDER, node},
    keys::{BackwardLayer, ForwardLayer, ForwardWrap, KeyError, wrap},
    model::{BODY_LEN, CELL_LEN, DestroyReason},
    wire::{CREATE_LEN, body_mut, body_ref},
};

fn rng() -> StdRng {
    StdRng::seed_from_u64(1)
}

/// The three parts of a CREATED that its client checks.
fn parts(answer: &[u8; ANSWER_LEN]) -> ([u8; 32], [u8; 32], [u8; 32]) {
    match Answer::parse(answer) {
        Ok(Answer::Created { ephemeral, confirmation, sealed_status, .. }) => {
            (ephemeral, confirmation, sealed_status)
        }
        other => panic!("expected CREATED, got {other:?}"),
    }
}

fn finish(client: &ClientHandshake, answer: &[u8; ANSWER_LEN]) -> Result<HopKeys, HandshakeError> {
    let (ephemeral, confirmation, sealed_status) = parts(answer);
    client.handle_created(&ephemeral, &confirmation, &sealed_status)
}

fn assert_same_keys(client: &HopKeys, node: &HopKeys) {
    let mut cell = [0u8; CELL_LEN];
    body_mut(&mut cell).fill(0x55);
    wrap(&mut [ForwardWrap::new(client)], &[3], &mut cell, &mut rng());
    ForwardLayer::new(node).peel(&mut cell).unwrap();
    assert_eq!(body_ref(&cell), &[0x55; BODY_LEN]);
    BackwardLayer::new(node).originate(4, &mut cell, &mut rng());
    let mut body = [0u8; BODY_LEN];
    assert_eq!(BackwardLayer::new(client).open(&cell, &mut body), Ok(4));
}

#[test]
fn both_ends_derive_the_same_keys_in_every_suite() {
    let mut rng = rng();
    for index in 0..2 {
        let node = node(index);
        for link_suite in Suite::ALL {
            let client = ClientHandshake::start(node.hop.clone(), link_suite, &mut rng).unwrap();
            let done = respond(node.identity, &node.onion, client.prefix(), Status::Open, &mut rng)
                .unwrap();
            let keys = finish(&client, &done.answer).unwrap();
            assert_same_keys(&keys, &done.hop);
            assert_eq!((keys.suite, done.hop.suite), (node.hop.suite, node.hop.suite));
            assert_eq!(done.pair.link_suite, link_suite);
            let (bytes, mac) = (Answer::before_mac(&done.answer), done.answer.last_chunk());
            let pair = PairKeys::derive(client.link_suite(), client.pair());
            assert!(pair.proves_created(bytes, mac.unwrap()));
        }
    }
}

#[test]
fn two_handshakes_share_nothing() {
    let (node, mut rng) = (node(0), rng());
    let one = node.handshake(&mut rng);
    let other = node.handshake(&mut rng);
    assert_ne!(one.pair(), other.pair());
    assert_ne!(one.prefix().ephemeral(), other.prefix().ephemeral());
    assert_ne!(one.prefix().oaep(), other.prefix().oaep());
    let answer = |rng: &mut StdRng| {
        respond(node.identity, &node.onion, one.prefix(), Status::Open, rng).unwrap().answer
    };
    assert_ne!(answer(&mut rng), answer(&mut rng), "the node's share is fresh");
}

#[test]
fn a_refusal_reaches_the_client_with_its_reason() {
    let (node, mut rng) = (node(0), rng());
    let client = node.handshake(&mut rng);
    for reason in DestroyReason::ALL {
        let status = Status::Refused(reason);
        let done = respond(node.identity, &node.onion, client.prefix(), status, &mut rng).unwrap();
        match finish(&client, &done.answer) {
            Err(HandshakeError::Refused(got)) => assert_eq!(got, reason),
            other => panic!("expected a refusal, got {:?}", other.map(|_| ())),
        }
    }
}

#[test]
fn a_node_without_the_onion_key_cannot_confirm() {
    let (node, mut rng) = (node(0), rng());
    let client = node.handshake(&mut rng);
    let other = OnionKey::generate(&mut rng).unwrap();
    let done = respond(node.identity, &other, client.prefix(), Status::Open, &mut rng).unwrap();
    assert!(matches!(finish(&client, &done.answer), Err(HandshakeError::Confirmation)));
}

#[test]
fn a_node_without_the_identity_cannot_answer() {
    let (node, other, mut rng) = (node(0), node(1), rng());
    let client = node.handshake(&mut rng);
    let answered = respond(other.identity, &node.onion, client.prefix(), Status::Open, &mut rng);
    assert!(matches!(answered, Err(HandshakeError::Key(KeyError::Decrypt))));
    // A client that was told another identity for the same key: the transcripts differ.
    let mut hop = node.hop.clone();
    hop.id = other.hop.id;
    let client = ClientHandshake::start(hop, Suite::Aes128Gcm, &mut rng).unwrap();
    let done =
        respond(node.identity, &node.onion, client.prefix(), Status::Open, &mut rng).unwrap();
    assert!(matches!(finish(&client, &done.answer), Err(HandshakeError::Confirmation)));
}

#[test]
fn agreements_of_low_order_are_refused_by_both_ends() {
    let (node, mut rng) = (node(0), rng());
    let client = node.handshake(&mut rng);
    let oaep = client.prefix().oaep().try_into().unwrap();
    let done =
        respond(node.identity, &node.onion, client.prefix(), Status::Open, &mut rng).unwrap();
    let (_, confirmation, sealed_status) = parts(&done.answer);
    for point in LOW_ORDER {
        let prefix = CreatePrefix::new(node.hop.onion_key_id, point, oaep);
        let answered = respond(node.identity, &node.onion, &prefix, Status::Open, &mut rng);
        assert!(matches!(answered, Err(HandshakeError::Key(KeyError::Agreement))), "{point:?}");
        let taken = client.handle_created(&point, &confirmation, &sealed_status);
        assert!(matches!(taken, Err(HandshakeError::Key(KeyError::Agreement))), "{point:?}");
        let mut hop = node.hop.clone();
        hop.onion_key = point;
        let client = ClientHandshake::start(hop, Suite::Aes128Gcm, &mut rng).unwrap();
        assert!(matches!(
            finish(&client, &done.answer),
            Err(HandshakeError::Key(KeyError::Agreement))
        ));
    }
}

#[test]
fn an_oaep_block_of_another_shape_is_refused() {
    let (node, mut rng) = (node(0), rng());
    let client = node.handshake(&mut rng);
    let public = node.identity.public();
    let good = [&[1u8; 64][..], &[1, 1]].concat();
    let blocks = [
        &good[..65],
        &[&good[..], &[1]].concat()[..],
        &[&good[..64], &[0, 1]].concat(),
        &[&good[..64], &[1, 3]].concat(),
        &[],
    ];
    for plain in blocks {
        let block = public.encrypt_oaep(plain, OAEP_LABEL).unwrap();
        let block = block.as_slice().try_into().unwrap();
        let prefix = CreatePrefix::new(node.hop.onion_key_id, client.prefix().ephemeral(), block);
        let answered = respond(node.identity, &node.onion, &prefix, Status::Open, &mut rng);
        assert!(matches!(answered, Err(HandshakeError::Block)), "{} bytes", plain.len());
    }
    let block = public.encrypt_oaep(&good, b"cepa-create-v2").unwrap();
    let block = block.as_slice().try_into().unwrap();
    let prefix = CreatePrefix::new(node.hop.onion_key_id, client.prefix().ephemeral(), block);
    let answered = respond(node.identity, &node.onion, &prefix, Status::Open, &mut rng);
    assert!(matches!(answered, Err(HandshakeError::Key(KeyError::Decrypt))), "another label");
}

#[test]
fn every_changed_bit_of_a_created_is_refused() {
    let (node, mut rng) = (node(1), rng());
    let client = node.handshake(&mut rng);
    let done =
        respond(node.identity, &node.onion, client.prefix(), Status::Open, &mut rng).unwrap();
    let pair = PairKeys::derive(client.link_suite(), client.pair());
    for bit in 0..ANSWER_LEN * 8 {
        let mut changed = done.answer;
        changed[bit / 8] ^= 1 << (bit % 8);
        let mac = changed.last_chunk().unwrap();
        assert!(!pair.proves_created(Answer::before_mac(&changed), mac), "bit {bit}");
        // The client has no use for the neighbour's MAC; a type byte of 2 is no CREATED. The top
        // bit of an X25519 share is not part of the point, but it is part of the transcript.
        if (8..97 * 8).contains(&bit) {
            assert!(finish(&client, &changed).is_err(), "bit {bit}");
        }
    }
}

#[test]
fn a_confirmation_of_another_handshake_is_refused() {
    let (node, mut rng) = (node(1), rng());
    let (one, other) = (node.handshake(&mut rng), node.handshake(&mut rng));
    let done = respond(node.identity, &node.onion, other.prefix(), Status::Open, &mut rng).unwrap();
    assert!(matches!(finish(&one, &done.answer), Err(HandshakeError::Confirmation)));
    assert!(finish(&other, &done.answer).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever is changed in a CREATE, either the node refuses it or the client the answer.
    #[test]
    fn a_changed_create_opens_no_circuit(bit in 16usize..CREATE_LEN * 8) {
        let (node, mut rng) = (node(0), rng());
        let client = node.handshake(&mut rng);
        let mut bytes = *client.prefix().as_bytes();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let prefix = CreatePrefix::parse(&bytes).unwrap();
        if let Ok(done) = respond(node.identity, &node.onion, &prefix, Status::Open, &mut rng) {
            prop_assert!(finish(&client, &done.answer).is_err());
        }
    }
}
