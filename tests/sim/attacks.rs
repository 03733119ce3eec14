//! Someone on the network replays, changes and invents cells: nothing reaches anybody, everything
//! is counted.

use std::{collections::HashSet, net::SocketAddr, time::Duration};

use cepa::{
    circuit::NodeLimits,
    model::{BodyKind, CELL_LEN, CID_LEN, DropReason},
    wire::{BodyHeader, NO_PACKET_START},
};
use rand::{Rng, RngExt, seq::IndexedRandom};

use super::{
    FAIR, packet, ready_circuit, returned,
    world::{Cell, Weather, World},
};

type Taped = (SocketAddr, SocketAddr, Box<Cell>);

/// A world with a circuit, one packet there and back, and every cell of it on tape.
fn taped(seed: u64, path: &[usize]) -> (World, Vec<Taped>) {
    let mut world = World::new(seed, 4, &NodeLimits::default(), FAIR);
    world.tape = Some(Vec::new());
    let key = ready_circuit(&mut world, path);
    let packet = packet(&mut world, 1);
    world.send_packet(key, &packet).unwrap();
    assert!(world.run(Duration::from_secs(2), |world| world.clients[0].received.len() == 1));
    let tape = world.tape.take().unwrap();
    (world, tape)
}

#[test]
fn replayed_cells_and_flipped_bits_reach_nobody() {
    let (mut world, tape) = taped(11, &[0, 1, 2]);
    let (left, back) = (world.nodes[2].packets.len(), world.clients[0].received.len());
    let (before, mut counted) = (world.dropped(), 0);
    for (from, to, cell) in &tape {
        world.send(*from, *to, cell);
        for _ in 0..20 {
            let mut changed = **cell;
            let bit = world.rng.random_range(0..CELL_LEN * 8);
            changed[bit / 8] ^= 1 << (bit % 8);
            world.send(*from, *to, &changed);
        }
        counted += 21;
    }
    world.run(Duration::from_secs(1), |_| false);
    assert_eq!(world.nodes[2].packets.len(), left);
    assert_eq!(world.clients[0].received.len(), back);
    assert_eq!(world.dropped() - before, counted, "dropped where it arrives, and counted");
    assert!(world.clients[0].closed.is_empty());
}

/// Every bit of a cell that nobody has seen yet, on every link and in both directions.
#[test]
fn every_flipped_bit_is_dropped_by_whoever_comes_next() {
    let mut world = World::new(15, 4, &NodeLimits::default(), FAIR);
    let key = ready_circuit(&mut world, &[0, 1, 2, 3]);
    world.run(Duration::from_secs(1), |_| false);
    // From here on nothing arrives by itself: cells are carried by hand, from link to link.
    world.weather = Weather { loss: 1.0, ..FAIR };
    world.tape = Some(Vec::new());
    let mut packet = packet(&mut world, 1);
    packet.resize(40, 7);
    packet[2..4].copy_from_slice(&[0, 40]);
    world.send_packet(key, &packet).unwrap();
    for link in 0..8 {
        let (from, to, cell) = world.tape.as_mut().unwrap().pop().unwrap();
        world.tape.as_mut().unwrap().clear();
        let before = world.dropped();
        let node = world.nodes.iter().position(|node| node.addr == to);
        assert_eq!(node.is_some(), link < 7, "link {link}");
        for bit in 0..CELL_LEN * 8 {
            let mut changed = *cell;
            changed[bit / 8] ^= 1 << (bit % 8);
            match node {
                Some(node) => world.node_cell(node, from, &mut changed),
                None => world.client_cell(0, from, &mut changed),
            }
            assert!(world.tape.as_ref().unwrap().is_empty(), "link {link}: bit {bit} went on");
        }
        assert_eq!(world.dropped() - before, CELL_LEN as u64 * 8, "link {link}");
        let mut cell = *cell;
        match node {
            Some(node) => world.node_cell(node, from, &mut cell),
            None => world.client_cell(0, from, &mut cell),
        }
    }
    assert_eq!(returned(&world, 0), [packet], "the unchanged cell arrived");
}

#[test]
fn a_stranger_who_replays_or_invents_moves_nothing() {
    let (mut world, tape) = taped(16, &[0, 1, 2]);
    let stranger: SocketAddr = ([198, 51, 100, 66], 666).into();
    let before = world.dropped();
    let mut count = 0;
    for (_, to, cell) in &tape {
        // The same cell from elsewhere, and one with a later counter under a known id.
        world.send(stranger, *to, cell);
        let mut invented = **cell;
        world.rng.fill_bytes(&mut invented[20..]);
        invented[16..20].copy_from_slice(&0x7fff_0000u32.to_be_bytes());
        world.send(stranger, *to, &invented);
        count += 2;
    }
    world.tape = Some(Vec::new());
    world.run(Duration::from_millis(500), |_| false);
    assert_eq!(world.dropped() - before, count);
    let to_stranger =
        world.tape.take().unwrap().iter().filter(|(_, to, _)| *to == stranger).count();
    assert_eq!(to_stranger, 0, "nothing is sent to the stranger");
    let key = world.clients[0].ready[0];
    let packet = packet(&mut world, 2);
    world.send_packet(key, &packet).unwrap();
    assert!(world.run(Duration::from_secs(1), |world| world.clients[0].received.len() == 2));
}

/// Random datagrams, and cells of the circuit changed in every way: each is dropped and counted,
/// and the circuit carries on. `CEPA_NOISE_CELLS` sets how many.
#[test]
fn noise_is_counted_and_harms_nobody() {
    let cells: u64 =
        std::env::var("CEPA_NOISE_CELLS").ok().and_then(|n| n.parse().ok()).unwrap_or(40_000);
    let (mut world, tape) = taped(17, &[0, 1, 2]);
    let before = world.dropped();
    let parties: Vec<SocketAddr> =
        world.nodes.iter().map(|node| node.addr).chain([world.clients[0].addr]).collect();
    for number in 0..cells {
        let (from, to, cell) = tape.choose(&mut world.rng).unwrap();
        let mut changed = **cell;
        let to = match number % 4 {
            0 => {
                world.rng.fill_bytes(&mut changed);
                *parties.choose(&mut world.rng).unwrap()
            }
            // A known id, and noise behind it.
            1 => {
                let at = world.rng.random_range(CID_LEN..CELL_LEN);
                world.rng.fill_bytes(&mut changed[at..]);
                *to
            }
            // A piece of another cell.
            2 => {
                let (_, _, other) = tape.choose(&mut world.rng).unwrap();
                let at = world.rng.random_range(0..CELL_LEN);
                changed[at..].copy_from_slice(&other[at..]);
                *to
            }
            // A real cell for somebody else.
            _ => *parties.choose(&mut world.rng).unwrap(),
        };
        world.send(*from, to, &changed);
        if number % 1000 == 0 {
            world.run(Duration::from_millis(25), |_| false);
        }
    }
    world.run(Duration::from_secs(1), |_| false);
    // What the changes left as it was is a replay, and counted as one.
    assert_eq!(world.dropped() - before, cells);
    assert!(world.clients[0].closed.is_empty());
    assert!(world.nodes[..3].iter().all(|node| node.circuits.len() == 1));
    assert_eq!(world.nodes[3].circuits.len(), 0);
    let key = world.clients[0].ready[0];
    let packet = packet(&mut world, 2);
    world.send_packet(key, &packet).unwrap();
    assert!(world.run(Duration::from_secs(1), |world| world.clients[0].received.len() == 2));
}

/// No two links show the same 16 bytes, and no two cells of one link apart from the circuit id:
/// not in data, set-up under load, echoes, cookies, refusals or the end of a circuit.
#[test]
fn no_sixteen_bytes_come_twice() {
    for (seed, limits) in [
        (18, NodeLimits::default()),
        (20, NodeLimits { max_handshakes: 1, ..NodeLimits::default() }),
        (21, NodeLimits { max_circuits: 1, ..NodeLimits::default() }),
    ] {
        let mut world = World::new(seed, 4, &limits, FAIR);
        world.tape = Some(Vec::new());
        let key = ready_circuit(&mut world, &[0, 1, 2, 3]);
        world.build(&[2, 1]);
        for number in 0..5 {
            let packet = packet(&mut world, number);
            world.send_packet(key, &packet).unwrap();
        }
        world.run(Duration::from_secs(2), |_| false);
        world.clients[0].circuits.close(key);
        world.drain_client(0);
        world.run(Duration::from_secs(1), |_| false);
        let tape = world.tape.take().unwrap();
        assert!(tape.len() > 80, "seed {seed}: {} cells", tape.len());
        let mut seen: HashSet<&[u8]> = HashSet::new();
        for (from, to, cell) in &tape {
            for (at, window) in cell[CID_LEN..].windows(16).enumerate() {
                let at = at + CID_LEN;
                assert!(seen.insert(window), "seed {seed}: byte {at} of a cell {from} -> {to}");
            }
        }
    }
}

/// Cover between the two cells of one packet is no gap in the stream.
#[test]
fn cover_between_the_parts_of_a_packet_loses_nothing() {
    let mut world = World::new(19, 3, &NodeLimits::default(), FAIR);
    let key = ready_circuit(&mut world, &[0, 1, 2]);
    let mut packet = packet(&mut world, 1);
    packet.resize(1500, 7);
    packet[2..4].copy_from_slice(&1500u16.to_be_bytes());
    let body = |offset: u16, part: &[u8]| {
        let mut body = [0u8; 1312];
        BodyHeader { kind: BodyKind::Data, flags: 0, offset }.emit(&mut body);
        body[12..12 + part.len()].copy_from_slice(part);
        body
    };
    let mut cover = [0u8; 1312];
    BodyHeader::new(BodyKind::Cover).emit(&mut cover);
    world.send_body(key, 2, &body(12, &packet[..1300]));
    world.send_body(key, 2, &cover);
    world.send_body(key, 2, &body(NO_PACKET_START, &packet[1300..]));
    world.run(Duration::from_secs(1), |_| false);
    assert_eq!(returned(&world, 0), [packet]);
    assert_eq!(world.nodes[2].drops.get(DropReason::Cover), 1, "dropped as meant, and counted");
    assert_eq!(world.dropped(), 1);
}
