//! Vectors of what stands in bodies, and of the reachability probe.

use base64::{Engine, engine::general_purpose::STANDARD};
use cepa::{
    forward::stream::{BodySink, Packer, Reassembler},
    keys::{Identity, PublicIdentity},
    model::{BodyKind, DestroyReason, DropCounters, NodeId, PacketBatch, Suite},
    wire::{
        BodyHeader, ControlFragment, ControlType, ExtendValue, NO_PACKET_START, Probe, ProbeAnswer,
        fragments,
    },
};
use rsa::{Pss, RsaPublicKey, pkcs8::DecodePublicKey};
use sha2::{Digest, Sha256};

use super::{
    Fill, identity_file,
    record::{Record, check, committed},
};

type Body = [u8; 1312];

fn body_of(parts: &[&[u8]]) -> Body {
    let mut body = [0u8; 1312];
    let joined = parts.concat();
    body[..joined.len()].copy_from_slice(&joined);
    body
}

#[test]
fn body_headers() {
    let mut specified = Record::new(
        "The first 12 bytes of a body: recognised 8 (zero), kind 1, flags 1, offset 2.",
    );
    let mut program = specified.clone();
    let kinds = [
        ("data", BodyKind::Data, 0u8, 0, 0x0123u16),
        ("data-without-a-start", BodyKind::Data, 0, 0, NO_PACKET_START),
        ("control", BodyKind::Control, 1, 0x12, 0),
        ("cover", BodyKind::Cover, 2, 0, 0),
        ("echo", BodyKind::Echo, 3, 0, 0),
        ("echo-reply", BodyKind::EchoReply, 4, 0, 0),
        ("bridge", BodyKind::Bridge, 5, 0, 0),
    ];
    for (name, kind, number, flags, offset) in kinds {
        let expected = [&[0; 8][..], &[number, flags], &offset.to_be_bytes()].concat();
        specified.bytes(name, &expected);
        let header = BodyHeader { kind, flags, offset };
        let mut body = [0xee; 1312];
        header.emit(&mut body);
        program.bytes(name, &body[..12]);
        assert!(BodyHeader::is_recognised(&body));
        assert_eq!(BodyHeader::parse(&body), Ok(header));
    }
    check("body-headers", &specified, &program);
}

#[test]
fn echoes() {
    let mut specified =
        Record::new("An echo and its reply: the number that the client drew comes back.");
    let number = 0x0102_0304_0506_0708u64;
    specified.bytes("number", number.to_be_bytes());
    let mut program = specified.clone();
    for (name, kind, wire) in [("echo", BodyKind::Echo, 3), ("reply", BodyKind::EchoReply, 4)] {
        specified.bytes(name, body_of(&[&[0; 8], &[wire, 0, 0, 0], &number.to_be_bytes()]));
        let mut body = [0u8; 1312];
        BodyHeader::new(kind).emit(&mut body);
        body[12..20].copy_from_slice(&number.to_be_bytes());
        program.bytes(name, body);
    }
    check("echo", &specified, &program);
}

/// The body of one fragment, as the specification has it.
fn control_body(kind: u8, request: u32, flags: u8, value: &[u8]) -> Body {
    let length = (value.len() as u16).to_be_bytes();
    body_of(&[&[0; 8], &[1, flags, 0, 0, kind], &request.to_be_bytes(), &length, value])
}

#[test]
fn control_messages() {
    let mut specified = Record::new(
        "Control bodies: 12 type 1 | request 4 | length 2 | value; the flags number the fragments.",
    );
    let prefix: [u8; 458] = std::array::from_fn(|index| (index * 3) as u8);
    let prefix = {
        let mut prefix = prefix;
        prefix[..2].copy_from_slice(&[0, 1]);
        prefix
    };
    let pair = [0x5au8; 32];
    let answer: [u8; 113] = std::array::from_fn(|index| 200u8.wrapping_sub(index as u8));
    let long: Vec<u8> = (0..2000u32).map(|index| (index / 3) as u8).collect();
    let to = "00112233445566778899aabbccddeeff".repeat(2);
    specified.text("extend.to", &to);
    specified.bytes("extend.relay", prefix);
    specified.bytes("extend.pair", pair);
    specified.text("extend.link", "chacha20poly1305");
    specified.bytes("extended.answer", answer);
    specified.bytes("failed.reason", [DestroyReason::NotAMember as u8]);
    specified.bytes("long.value", &long);
    let mut program = specified.clone();

    let json = format!(
        r#"{{"to":"{to}","relay":"{}","pair":"{}","link":"chacha20poly1305"}}"#,
        STANDARD.encode(prefix),
        STANDARD.encode(pair)
    );
    let (first, second) = long.split_at(1293);
    for (name, body) in [
        ("extend.body", control_body(1, 7, 0, json.as_bytes())),
        ("extended.body", control_body(2, 7, 0, &answer)),
        ("failed.body", control_body(3, 8, 0, &[7])),
        ("long.body1", control_body(2, 0xffff_fffe, 0x01, first)),
        ("long.body2", control_body(2, 0xffff_fffe, 0x11, second)),
    ] {
        specified.bytes(name, body);
    }

    let extend = ExtendValue {
        to,
        relay: Box::new(prefix),
        pair: zeroize::Zeroizing::new(pair),
        link_suite: Suite::ChaCha20Poly1305,
    };
    let value = extend.emit();
    assert_eq!(ExtendValue::parse(json.as_bytes()), Ok(extend));
    let messages: [(&[&str], ControlType, u32, &[u8]); 4] = [
        (&["extend.body"], ControlType::Extend, 7, &value),
        (&["extended.body"], ControlType::Extended, 7, &answer),
        (&["failed.body"], ControlType::ExtendFailed, 8, &[DestroyReason::NotAMember as u8]),
        (&["long.body1", "long.body2"], ControlType::Extended, 0xffff_fffe, &long),
    ];
    for (names, kind, request, value) in messages {
        let parts = fragments(kind, request, value).unwrap();
        assert_eq!(parts.len(), names.len());
        for (name, part) in names.iter().zip(parts) {
            let mut body = [0xee; 1312];
            part.emit(&mut body).unwrap();
            assert_eq!(ControlFragment::parse(&body), Ok(part), "{name}");
            program.bytes(*name, body);
        }
    }
    check("control", &specified, &program);
}

/// An IPv4 packet of a length, with a payload that tells where it is.
fn v4(length: u16, mark: u8) -> Vec<u8> {
    let mut packet = vec![mark; usize::from(length)];
    packet[..20].fill(0);
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet
}

fn v6(length: u16, mark: u8) -> Vec<u8> {
    let mut packet = vec![mark; usize::from(length)];
    packet[..40].fill(0);
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&(length - 40).to_be_bytes());
    packet
}

struct Bodies(Vec<Body>);

impl BodySink for Bodies {
    fn next_body(&mut self) -> &mut Body {
        self.0.push([0xee; 1312]);
        self.body()
    }

    fn body(&mut self) -> &mut Body {
        self.0.last_mut().unwrap()
    }
}

fn data_body(offset: u16, stream: &[&[u8]]) -> Body {
    body_of(&[&[0; 10], &offset.to_be_bytes(), &stream.concat()])
}

#[test]
fn stream_of_packets() {
    let mut specified = Record::new(
        "Inner packets in the order they were read, and the data bodies that carry them.\n\
         Each group was one read: its last body is padded with zeros.",
    );
    let groups: [Vec<Vec<u8>>; 4] = [
        // Two share a body, the third spans two, the fourth starts where it ends.
        vec![v4(28, 1), v6(60, 2), v4(1500, 3), v4(40, 4)],
        // A packet that spans three bodies.
        vec![v4(1290, 5), v4(1500, 6)],
        // One that ends with its body, and one that fills a body.
        vec![v4(1200, 7), v4(1400, 8), v6(1300, 9)],
        // The last one ends within a body in which none starts.
        vec![v6(1301, 10)],
    ];
    for (group, packets) in groups.iter().enumerate() {
        for (index, packet) in packets.iter().enumerate() {
            specified.bytes(format!("group{}.packet{}", group + 1, index + 1), packet);
        }
    }
    let mut program = specified.clone();

    let [one, two, three, four] = &groups;
    let bodies: [Vec<Body>; 4] = [
        vec![
            data_body(12, &[&one[0], &one[1], &one[2][..1212]]),
            data_body(300, &[&one[2][1212..], &one[3]]),
        ],
        vec![
            data_body(12, &[&two[0], &two[1][..10]]),
            data_body(0xffff, &[&two[1][10..1310]]),
            data_body(0xffff, &[&two[1][1310..]]),
        ],
        vec![
            data_body(12, &[&three[0], &three[1][..100]]),
            data_body(0xffff, &[&three[1][100..]]),
            data_body(12, &[&three[2]]),
        ],
        vec![data_body(12, &[&four[0][..1300]]), data_body(0xffff, &[&four[0][1300..]])],
    ];
    for (group, bodies) in bodies.iter().enumerate() {
        for (index, body) in bodies.iter().enumerate() {
            specified.bytes(format!("group{}.body{}", group + 1, index + 1), body);
        }
    }

    let (mut seq, mut reassembler) = (0x3fff_fff0, Reassembler::new());
    for (group, packets) in groups.iter().enumerate() {
        let (mut packer, mut sink) = (Packer::new(), Bodies(Vec::new()));
        for packet in packets {
            packer.push(packet, &mut sink).unwrap();
        }
        packer.flush(&mut sink);
        let (mut batch, mut drops) = (PacketBatch::default(), DropCounters::default());
        for (index, body) in sink.0.iter().enumerate() {
            program.bytes(format!("group{}.body{}", group + 1, index + 1), body);
            reassembler.push(seq, Some(body), &mut batch, &mut drops);
            seq += 1;
        }
        assert_eq!(batch.iter().collect::<Vec<_>>(), *packets, "group {}", group + 1);
        assert_eq!(drops.iter().count(), 0);
    }
    check("stream", &specified, &program);
}

#[test]
fn probes() {
    let file = "probe";
    let controller = Identity::from_pkcs8(&identity_file(7)).unwrap();
    let (nonce, node, issued) = ([0x42u8; 32], [0x24u8; 32], 1_790_000_000u64);
    let covered = [&b"cepa-probe-v1\n"[..], &nonce, &node, &issued.to_be_bytes()].concat();
    assert_eq!(Probe::signed_bytes(&nonce, &NodeId::from_bytes(node), issued), covered);
    // PSS draws its salt at random, so the signature is given, as it were, by the file.
    let signature = committed(file)
        .and_then(|record| record.get("signature").map(<[u8]>::to_vec))
        .unwrap_or_else(|| controller.sign(&covered).unwrap());
    let spki = controller.spki_der();
    PublicIdentity::from_spki_der(spki).unwrap().verify(&covered, &signature).unwrap();
    RsaPublicKey::from_public_key_der(spki)
        .unwrap()
        .verify(Pss::new_with_salt::<Sha256>(32), &Sha256::digest(&covered), &signature)
        .unwrap();

    let mut specified = Record::new(
        "The controller's reachability probe and the node's answer.\n\
         The signature is RSASSA-PSS with SHA-256 and a salt of 32 bytes, by tests/keys/test-only-7.",
    );
    specified.bytes("controller", spki);
    specified.bytes("nonce", nonce);
    specified.bytes("node", node);
    specified.bytes("issued", issued.to_be_bytes());
    specified.bytes("signature", &signature);
    specified.bytes("random", [0xa5]);
    let mut program = specified.clone();
    let padded = |parts: &[&[u8]]| {
        let mut cell = parts.concat();
        cell.resize(1408, 0xa5);
        cell
    };
    let probe: &[&[u8]] = &[&[0; 16], &[1], &nonce, &node, &issued.to_be_bytes(), &signature];
    specified.bytes("probe", padded(probe));
    specified.bytes("answer", padded(&[&[0; 16], &[2], &nonce, &node]));

    let probe = Probe {
        nonce,
        node: NodeId::from_bytes(node),
        issued,
        signature: signature.try_into().unwrap(),
    };
    let mut cell = [0u8; 1408];
    probe.emit(&mut cell, &mut Fill(0xa5));
    assert_eq!(Probe::parse(&cell), Ok(probe.clone()));
    program.bytes("probe", cell);
    probe.answer().emit(&mut cell, &mut Fill(0xa5));
    assert_eq!(ProbeAnswer::parse(&cell), Ok(probe.answer()));
    program.bytes("answer", cell);
    check(file, &specified, &program);
}
