//! Vectors of everything that travels on an open circuit: layers in both directions, link tags,
//! neighbours' messages, and the keys that make them.

use cepa::{
    keys::{
        BackwardLayer, ForwardLayer, ForwardWrap, HopKeys, LinkTag, PairControl, PairKeys, wrap,
    },
    model::{Cid, DestroyReason, Direction, Suite},
    wire::{PairMessage, body_mut, set_cid},
};

use super::{
    Fill,
    record::{Record, check},
    spec::{self, AES, CHACHA, Cell},
};

/// What stands where a sender draws at random.
const RANDOM: u8 = 0xa5;

const PATHS: [(&str, &[u8]); 7] = [
    ("1-aes", &[AES]),
    ("1-chacha", &[CHACHA]),
    ("2-mixed", &[CHACHA, AES]),
    ("3-aes", &[AES, AES, AES]),
    ("3-chacha", &[CHACHA, CHACHA, CHACHA]),
    ("4-mixed", &[AES, CHACHA, CHACHA, AES]),
    ("4-aes", &[AES, AES, AES, AES]),
];

fn suite(number: u8) -> Suite {
    Suite::from_wire(number).unwrap()
}

fn pattern<const N: usize>(seed: u8) -> [u8; N] {
    std::array::from_fn(|index| seed.wrapping_mul(29).wrapping_add((index as u8).wrapping_mul(7)))
}

/// A body with bytes that nobody mistakes for another.
fn body() -> [u8; 1312] {
    let mut body = [0u8; 1312];
    body[10..12].copy_from_slice(&[0xff, 0xff]);
    for (index, byte) in body[12..].iter_mut().enumerate() {
        *byte = (index / 5) as u8;
    }
    body
}

fn transcript(hop: usize) -> [u8; 32] {
    pattern(1 + hop as u8)
}

fn ikm(hop: usize) -> [u8; 96] {
    pattern(101 + hop as u8)
}

fn pair(link: usize) -> [u8; 32] {
    pattern(201 + link as u8)
}

fn cid(link: usize) -> [u8; 16] {
    pattern(61 + link as u8)
}

/// Counters of hop or link `index`; the last is the highest there is.
fn seq(index: usize) -> u32 {
    [0x0000_0001, 0x3fff_ffff, 0x1234_5678, 0x7fff_ffff][index]
}

fn spec_hop(suites: &[u8], hop: usize) -> spec::HopKeys {
    spec::HopKeys::derive(suites[hop], &transcript(hop), &ikm(hop))
}

fn program_hop(suites: &[u8], hop: usize) -> HopKeys {
    HopKeys::derive(suite(suites[hop]), &transcript(hop), &ikm(hop))
}

/// The suite of the link in front of a hop: alternating, so that both are covered.
fn link_suite(suites: &[u8], link: usize) -> u8 {
    suites[suites.len() - 1 - link]
}

fn inputs(record: &mut Record, suites: &[u8]) {
    for (hop, number) in suites.iter().enumerate() {
        let name = format!("hop{}", hop + 1);
        record.text(format!("{name}.suite"), suite(*number).name());
        record.bytes(format!("{name}.transcript"), transcript(hop));
        record.bytes(format!("{name}.ikm"), ikm(hop));
        record.bytes(format!("{name}.seq"), seq(hop).to_be_bytes());
        record.bytes(format!("link{}.cid", hop + 1), cid(hop));
    }
    record.bytes("random", [RANDOM]);
}

#[test]
fn forward_cells() {
    for (name, suites) in PATHS {
        let file = format!("forward-{name}");
        let mut specified = Record::new(
            "A forward cell from the client to the last hop, as it stands on each link.\n\
             Keys of a hop: HKDF-SHA256 with its transcript as salt and its ikm.\n\
             Whatever the client draws at random has the value of `random`.",
        );
        inputs(&mut specified, suites);
        specified.bytes("body", body());
        let mut program = specified.clone();

        let hops: Vec<_> = (0..suites.len()).map(|hop| spec_hop(suites, hop)).collect();
        let seqs: Vec<_> = (0..suites.len()).map(seq).collect();
        let mut cell = spec::wrap(&hops, &seqs, &body(), RANDOM);
        for (hop, keys) in hops.iter().enumerate() {
            cell[..16].copy_from_slice(&cid(hop));
            specified.bytes(format!("link{}.cell", hop + 1), cell);
            assert!(keys.peel_forward(&mut cell), "{file}: hop {hop}");
        }
        specified.bytes("opened", &cell[16..]);
        assert_eq!(cell[96..], body()[..], "{file}");

        let hops: Vec<_> = (0..suites.len()).map(|hop| program_hop(suites, hop)).collect();
        let mut wraps: Vec<_> = hops.iter().map(ForwardWrap::new).collect();
        let mut cell = [0u8; 1408];
        *body_mut(&mut cell) = body();
        wrap(&mut wraps, &seqs, &mut cell, &mut Fill(RANDOM));
        for (hop, keys) in hops.iter().enumerate() {
            set_cid(&mut cell, Cid::from_bytes(cid(hop)));
            program.bytes(format!("link{}.cell", hop + 1), cell);
            ForwardLayer::new(keys).peel(&mut cell).unwrap();
        }
        program.bytes("opened", &cell[16..]);
        check(&file, &specified, &program);
    }
}

#[test]
fn backward_cells() {
    for (name, suites) in PATHS {
        let file = format!("backward-{name}");
        let mut specified = Record::new(
            "A backward cell from the last hop to the client, as it stands on each link.\n\
             Keys of a hop: HKDF-SHA256 with its transcript as salt and its ikm; of a link: with an\n\
             empty salt and its pair key. Link 1 is the client's.\n\
             Whatever the last hop draws at random has the value of `random`.",
        );
        inputs(&mut specified, suites);
        for link in 0..suites.len() {
            let number = link_suite(suites, link);
            specified.text(format!("link{}.suite", link + 1), suite(number).name());
            specified.bytes(format!("link{}.pair", link + 1), pair(link));
        }
        specified.bytes("body", body());
        let mut program = specified.clone();
        let last = suites.len() - 1;

        let hops: Vec<_> = (0..suites.len()).map(|hop| spec_hop(suites, hop)).collect();
        let links: Vec<_> = (0..suites.len())
            .map(|link| spec::PairKeys::derive(link_suite(suites, link), &pair(link)))
            .collect();
        let mut cell: Cell = hops[last].originate(seq(last), &body(), RANDOM);
        for hop in (0..=last).rev() {
            if hop < last {
                hops[hop].add_backward(seq(hop), &mut cell);
            }
            cell[..16].copy_from_slice(&cid(hop));
            links[hop].tag(&mut cell);
            assert!(links[hop].verify(&cell));
            specified.bytes(format!("link{}.cell", hop + 1), cell);
            // What a verifying neighbour goes on with.
            cell[32..48].fill(0);
        }
        for hop in &hops[..last] {
            hop.peel_backward(&mut cell);
        }
        assert_eq!(hops[last].open_backward(&cell), Some(body()), "{file}");

        let layers: Vec<_> =
            (0..suites.len()).map(|hop| BackwardLayer::new(&program_hop(suites, hop))).collect();
        let tags: Vec<_> = (0..suites.len())
            .map(|link| {
                LinkTag::new(&PairKeys::derive(suite(link_suite(suites, link)), &pair(link)))
            })
            .collect();
        let mut cell = [0u8; 1408];
        *body_mut(&mut cell) = body();
        layers[last].originate(seq(last), &mut cell, &mut Fill(RANDOM));
        for hop in (0..=last).rev() {
            if hop < last {
                layers[hop].add(seq(hop), &mut cell);
            }
            set_cid(&mut cell, Cid::from_bytes(cid(hop)));
            tags[hop].tag(&mut cell);
            program.bytes(format!("link{}.cell", hop + 1), cell);
            tags[hop].verify(&mut cell).unwrap();
        }
        for layer in &layers[..last] {
            layer.peel(&mut cell);
        }
        let mut opened = [0u8; 1312];
        assert_eq!(layers[last].open(&cell, &mut opened), Ok(seq(last)), "{file}");
        assert_eq!(opened, body(), "{file}");
        check(&file, &specified, &program);
    }
}

#[test]
fn neighbour_cells() {
    let mut specified = Record::new(
        "DESTROY between neighbours, towards the exit and towards the client.\n\
         Keys: HKDF-SHA256 with an empty salt and the pair key. The counter on the wire has its top\n\
         bit set.",
    );
    specified.bytes("pair", pair(0));
    specified.bytes("cid", cid(0));
    specified.bytes("seq", seq(2).to_be_bytes());
    let mut program = specified.clone();
    let keys = spec::PairKeys::derive(AES, &pair(0));
    let program_keys = PairKeys::derive(Suite::Aes128Gcm, &pair(0));
    for (name, label, direction, reason) in [
        ("forward", "pair-ctl-fwd", Direction::Forward, DestroyReason::Finished),
        ("backward", "pair-ctl-bwd", Direction::Backward, DestroyReason::NextHopGone),
    ] {
        let plain = [1, reason as u8];
        specified.bytes(format!("{name}.plain"), plain);
        let cell = keys.neighbour_cell(label, cid(0), seq(2), &plain);
        specified.bytes(format!("{name}.cell"), cell);

        let mut cell = [0x77u8; 1408];
        set_cid(&mut cell, Cid::from_bytes(cid(0)));
        PairMessage::Destroy(reason).emit(&mut cell[36..]);
        program.bytes(format!("{name}.plain"), &cell[36..38]);
        program_keys.control(direction).seal(seq(2), &mut cell);
        program.bytes(format!("{name}.cell"), cell);
        assert!(PairControl::is_neighbour_seq(cepa::wire::first_seq(&cell)));
        let opened = program_keys.control(direction).open(&mut cell).unwrap();
        assert_eq!(PairMessage::parse(opened), Some(PairMessage::Destroy(reason)));
    }
    check("neighbour", &specified, &program);
}

/// The program keeps derived keys to itself: they are proved by the cells that they seal.
#[test]
fn key_schedule() {
    let mut specified = Record::new(
        "Every key of one hop and of one link, from what the handshake gives.\n\
         hop: PRK = HMAC-SHA256(transcript, ikm), key = first bytes of\n\
         HMAC-SHA256(PRK, \"cepa-hop-v1 \" label 01).\n\
         link: PRK = HMAC-SHA256(empty, pair), key = HMAC-SHA256(PRK, \"cepa-pair-v1 \" label 01).\n\
         AES-128 takes the first 16 bytes of a key of 32.",
    );
    specified.bytes("transcript", transcript(0));
    specified.bytes("ikm", ikm(0));
    specified.bytes("pair", pair(0));
    let program = specified.clone();
    let hop = spec::HopKeys::derive(AES, &transcript(0), &ikm(0));
    for (label, _) in spec::HopKeys::LABELS {
        specified.bytes(format!("hop.{label}"), hop.key(label));
    }
    let link = spec::PairKeys::derive(AES, &pair(0));
    for label in spec::PairKeys::LABELS {
        specified.bytes(format!("link.{label}"), link.key(label));
    }
    check("keys", &specified, &program);
}
