//! Vectors of tracking codes: a set-up and a message, on each link of a route of three.

use cepa::{
    keys::{CodeKeys, OnionKey, agree_along, build_code, recognise},
    model::{Cid, NodeId},
    wire::{
        set_cid,
        share::{
            CODE_LEN, CodeBody, CodeGreeting, CodeHead, CodePart, CodeSlot, CodeWord, NextHop,
            NextRelayId, Piece,
        },
    },
};

use super::{
    record::{Record, check},
    spec::{self, Cell},
};

const RELAYS: usize = 3;
const EXPIRY: u32 = 1_700_000_030;

fn pattern<const N: usize>(seed: u8) -> [u8; N] {
    std::array::from_fn(|index| seed.wrapping_mul(41).wrapping_add((index as u8).wrapping_mul(3)))
}

fn node(at: usize) -> [u8; 32] {
    pattern(1 + at as u8)
}

fn onion_secret(at: usize) -> [u8; 32] {
    pattern(11 + at as u8)
}

fn link(at: usize) -> [u8; 16] {
    pattern(21 + at as u8)
}

const FRESH: u8 = 31;
const PADDING: u8 = 32;

/// What one relay and the sender share, as the specification has it.
struct Shared {
    ephemeral: [u8; 32],
    code: [u8; 32],
    payload: [u8; 32],
    mac: [u8; 32],
    start: u32,
}

fn derive(at: usize, ephemeral: [u8; 32], shared: [u8; 32]) -> (Shared, [u8; 32]) {
    let mut hasher = blake3::Hasher::new_derive_key("cepa tracking code v1");
    hasher.update(&[node(at), ephemeral, shared].concat());
    let mut out = [0u8; 132];
    hasher.finalize_xof().fill(&mut out);
    let key = |index: usize| -> [u8; 32] { out[index * 32..][..32].try_into().unwrap() };
    let start = u32::from_be_bytes(out[128..].try_into().unwrap());
    let start = (start & 0x7fff_fffe) + 1;
    (Shared { ephemeral, code: key(0), payload: key(1), mac: key(2), start }, key(3))
}

/// Each relay's own view, one after the other: nobody needs the sender's order of operations.
fn shared() -> Vec<Shared> {
    let mut ephemeral = spec::x25519_public(&pattern(FRESH));
    let each = (0..RELAYS).map(|at| {
        let secret = spec::x25519(&onion_secret(at), &ephemeral);
        let (shared, blinding) = derive(at, ephemeral, secret);
        ephemeral = spec::x25519(&blinding, &ephemeral);
        shared
    });
    each.collect()
}

fn stream(key: &[u8; 32], number: u32, length: usize) -> Vec<u8> {
    let mut out = vec![0; length];
    blake3::Hasher::new_keyed(key).update(&number.to_be_bytes()).finalize_xof().fill(&mut out);
    out
}

fn xor(bytes: &mut [u8], with: &[u8]) {
    bytes.iter_mut().zip(with).for_each(|(byte, with)| *byte ^= with);
}

/// The cells on every link, from the last to the first; `numbers` are zero for a set-up.
fn specified(
    shared: &[Shared],
    numbers: [u32; RELAYS],
    payload: &[u8],
    exp: Option<u32>,
) -> Vec<Cell> {
    let last = RELAYS - 1;
    // The code that the last relay gets: its slot and padding under its keystream, then what the
    // relays before it appended, each under the keystreams of those that came after.
    let mut code = stream(&pattern(PADDING), numbers[0], 384);
    let mut slot = [0u8; 48];
    slot[0] = 2;
    slot[28..32].copy_from_slice(&exp.unwrap_or(0).to_be_bytes());
    code[..48].copy_from_slice(&slot);
    xor(&mut code, &stream(&shared[last].code, numbers[last], 384));
    for appended in 0..last {
        let mut filler = [0u8; 48];
        for (passed, at) in (appended..last).enumerate() {
            xor(
                &mut filler,
                &stream(&shared[at].code, numbers[at], 432)[(8 - passed) * 48..][..48],
            );
        }
        code[(8 - (last - appended)) * 48..][..48].copy_from_slice(&filler);
    }
    let mut payload = payload.to_vec();
    let mut cells = Vec::new();
    let mut behind: Option<[u8; 16]> = None;
    for at in (0..RELAYS).rev() {
        if let Some(mac) = behind {
            let mut slot = vec![1, 0, 0, 0];
            slot.extend(&node(at + 1)[..8]);
            slot.extend(link(at + 1));
            slot.extend(exp.unwrap_or(numbers[at + 1]).to_be_bytes());
            slot.extend(mac);
            code = [slot.as_slice(), &code[..336]].concat();
            xor(&mut code, &stream(&shared[at].code, numbers[at], 384));
        }
        let keystream = stream(&shared[at].payload, numbers[at], payload.len());
        xor(&mut payload, &keystream);
        let covered = [&numbers[at].to_be_bytes()[..], &code, &payload].concat();
        let mac = spec::keyed_mac(&shared[at].mac, &covered);
        let head = match exp {
            Some(_) => [&[3, 1][..], &shared[at].ephemeral, &mac].concat(),
            None => [&numbers[at].to_be_bytes()[..], &mac].concat(),
        };
        let cell = [&link(at)[..], &head, &code, &payload].concat();
        cells.push(cell.try_into().unwrap());
        behind = Some(mac);
    }
    cells.reverse();
    cells
}

/// The same from the program: built once, then opened by one relay after the other.
fn program(
    keys: &[(&CodeKeys, u32)],
    ephemeral: [u8; 32],
    payload: &[u8],
    exp: Option<u32>,
) -> Vec<Cell> {
    let head = |number: u32, ephemeral, mac| match exp {
        Some(_) => CodeHead::SetUp { ephemeral, mac },
        None => CodeHead::Message { number, mac },
    };
    let slot = |at: usize, behind: Option<[u8; 16]>| {
        let next = behind.map(|mac| NextHop {
            relay: NextRelayId::of(&NodeId::from_bytes(node(at + 1))),
            cid: Cid::from_bytes(link(at + 1)),
            mac,
        });
        let number = next.map_or(0, |_| keys[at + 1].1);
        CodeSlot { next, number: exp.unwrap_or(number) }.emit()
    };
    let mut cell: Cell = [0; 1408];
    let (code, body): (&mut [u8; CODE_LEN], _) = head(0, [0; 32], [0; 16]).parts(&mut cell);
    body.copy_from_slice(payload);
    let mac = build_code(keys, slot, code, body, &pattern(PADDING));
    head(keys[0].1, ephemeral, mac).emit(&mut cell);
    set_cid(&mut cell, Cid::from_bytes(link(0)));
    let mut cells = vec![cell];
    let (mut ephemeral, mut mac) = (ephemeral, mac);
    for (at, (_, number)) in keys.iter().enumerate() {
        let own = OnionKey::from_secret(onion_secret(at)).unwrap();
        let found = recognise(&own, &NodeId::from_bytes(node(at)), &ephemeral).unwrap();
        let (code, body) = head(0, [0; 32], [0; 16]).parts(&mut cell);
        let slot = found.keys.open(*number, &mac, code, body).unwrap();
        let Some(next) = CodeSlot::parse(&slot).unwrap().next else {
            assert_eq!((at, &body[..]), (RELAYS - 1, payload), "the payload arrives");
            break;
        };
        (ephemeral, mac) = (found.next_ephemeral, next.mac);
        head(CodeSlot::parse(&slot).unwrap().number, ephemeral, mac).emit(&mut cell);
        set_cid(&mut cell, next.cid);
        cells.push(cell);
    }
    cells
}

#[test]
fn tracking_codes() {
    let mut record = Record::new(
        "Tracking codes over three relays: the last is the exit where the message arrives.\n\
         padding is the sender's secret that fills the code; link-N is the cell on the way to relay N.",
    );
    for at in 0..RELAYS {
        record.bytes(format!("node-{at}"), node(at));
        record.bytes(format!("onion-secret-{at}"), onion_secret(at));
    }
    record.bytes("fresh-secret", pattern::<32>(FRESH));
    record.bytes("padding", pattern::<32>(PADDING));
    let (mut from_spec, mut from_program) = (record.clone(), record);

    let shared = shared();
    let fresh = OnionKey::from_secret(pattern(FRESH)).unwrap();
    let ids: Vec<NodeId> = (0..RELAYS).map(|at| NodeId::from_bytes(node(at))).collect();
    let onion: Vec<[u8; 32]> =
        (0..RELAYS).map(|at| spec::x25519_public(&onion_secret(at))).collect();
    let route = agree_along(&fresh, ids.iter().zip(&onion)).unwrap();

    let greeting = CodeGreeting {
        bridge: Cid::from_bytes(pattern(33)),
        attempt: 2,
        heard: 1,
        word: CodeWord::Accept(pattern(34)),
    };
    let mut setup = vec![0; 958];
    let said = [&pattern::<16>(33)[..], &[2, 2, 1], &pattern::<16>(34)].concat();
    setup[..said.len()].copy_from_slice(&said);
    let mut emitted = vec![0xee; 958];
    greeting.emit(&mut emitted);
    assert_eq!(emitted, setup);

    let bytes: [u8; 700] = pattern(35);
    let mut message = vec![0; 988];
    message[..7].copy_from_slice(&[3, 1, 4, 0x12, 0x34, 2, 188]);
    message[7..707].copy_from_slice(&bytes);
    let body = CodeBody::Datagram { piece: Piece::First, number: 0x1234, bytes: &bytes };
    let mut emitted = vec![0xee; 988];
    CodePart { heard: 4, body }.emit(&mut emitted);
    assert_eq!(emitted, message);

    for (name, payload, exp) in [("setup", &setup, Some(EXPIRY)), ("message", &message, None)] {
        let number = |start: u32| if exp.is_some() { 0 } else { start + 1 };
        let numbers: Vec<u32> = shared.iter().map(|shared| number(shared.start)).collect();
        let keys: Vec<(&CodeKeys, u32)> = route
            .iter()
            .map(|relay| (&relay.keys, exp.map_or_else(|| relay.keys.number(1).unwrap(), |_| 0)))
            .collect();
        let spec = specified(&shared, numbers.try_into().unwrap(), payload, exp);
        let program = program(&keys, *fresh.public(), payload, exp);
        for (record, cells) in [(&mut from_spec, spec), (&mut from_program, program)] {
            record.bytes(format!("{name}-payload"), payload);
            for (at, cell) in cells.iter().enumerate() {
                record.bytes(format!("{name}-link-{at}"), cell);
            }
        }
    }
    check("codes", &from_spec, &from_program);
}
