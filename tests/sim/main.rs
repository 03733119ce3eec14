//! The simulated network: real circuits and real cryptography in virtual time, seeded.
//!
//! `CEPA_SIM_SEEDS` sets how many seeds each scenario runs; the full count is a job of its own.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod attacks;
mod failures;
mod model;
mod weather;
mod world;

use std::time::Duration;

use cepa::{
    circuit::{CloseReason, NodeLimits},
    model::{CircuitKey, DestroyReason, DropReason},
};
use rand::{Rng, RngExt};
use world::{Weather, World};

const FAIR: Weather = Weather { loss: 0.0, duplicate: 0.0, jitter: Duration::ZERO };
const FOUL: Weather = Weather { loss: 0.2, duplicate: 0.05, jitter: Duration::from_millis(40) };

fn seeds() -> u64 {
    std::env::var("CEPA_SIM_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(100)
}

/// A packet of any length with a number in it, as of a UDP flow of its own if `flow` is.
fn flow_packet(world: &mut World, number: u32, flow: u16) -> Vec<u8> {
    let length = world.rng.random_range(32..=1500usize);
    let mut packet = vec![0u8; length];
    world.rng.fill_bytes(&mut packet[28..]);
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    packet[9] = 17;
    packet[12..20].copy_from_slice(&[100, 64, 0, 2, 203, 0, 113, 2]);
    packet[20..22].copy_from_slice(&flow.to_be_bytes());
    packet[22..24].copy_from_slice(&[0, 53]);
    packet[24..26].copy_from_slice(&(length as u16 - 20).to_be_bytes());
    packet[28..32].copy_from_slice(&number.to_be_bytes());
    packet
}

fn packet(world: &mut World, number: u32) -> Vec<u8> {
    flow_packet(world, number, 1000)
}

fn number_of(packet: &[u8]) -> u32 {
    u32::from_be_bytes(packet[28..32].try_into().unwrap())
}

/// A circuit of the first client that is ready.
fn ready_circuit(world: &mut World, path: &[usize]) -> CircuitKey {
    let key = world.build(path);
    let ready = world.run(Duration::from_secs(5), |world| world.clients[0].ready.contains(&key));
    assert!(ready, "a circuit over {path:?} was not built");
    key
}

fn returned(world: &World, client: usize) -> Vec<Vec<u8>> {
    world.clients[client].received.iter().map(|(_, packet)| packet.clone()).collect()
}

#[test]
fn packets_cross_one_to_four_hops_both_ways() {
    for hops in 1..=4usize {
        let mut world = World::new(7, 4, &NodeLimits::default(), FAIR);
        let key = ready_circuit(&mut world, &(0..hops).collect::<Vec<_>>());
        let packets: Vec<_> = (0..200).map(|number| packet(&mut world, number)).collect();
        for (index, packet) in packets.iter().enumerate() {
            // Some alone, some sharing cells.
            if index % 3 == 0 {
                let group: Vec<&[u8]> =
                    packets[index..].iter().take(3).map(Vec::as_slice).collect();
                world.send_packets_for(0, key, &group).unwrap();
            }
            assert!(packet.len() <= 1500);
        }
        let all = world
            .run(Duration::from_secs(5), |world| world.clients[0].received.len() == packets.len());
        assert!(all, "{hops} hops");
        assert_eq!(world.nodes[hops - 1].packets, packets, "{hops} hops");
        assert_eq!(returned(&world, 0), packets, "{hops} hops");
        assert_eq!(world.dropped(), 0);
    }
}

#[test]
fn two_clients_through_the_same_nodes_get_their_own_packets() {
    let mut world = World::new(12, 3, &NodeLimits::default(), FAIR);
    let other = world.add_client();
    let paths = [[0usize, 1, 2], [0, 1, 2], [2, 0, 1]];
    let keys: Vec<_> = paths.iter().map(|path| world.build(path)).collect();
    let others: Vec<_> = paths.iter().map(|path| world.build_for(other, path)).collect();
    let built = world.run(Duration::from_secs(5), |world| {
        world.clients.iter().all(|client| client.ready.len() == 3)
    });
    assert!(built);
    let mut sent = [Vec::new(), Vec::new()];
    for number in 0..300u32 {
        let (client, circuit) = ((number % 2) as usize, (number / 2 % 3) as usize);
        let key = if client == 0 { keys[circuit] } else { others[circuit] };
        let packet = packet(&mut world, number);
        world.send_packets_for(client, key, &[&packet]).unwrap();
        sent[client].push((key, packet));
    }
    world.run(Duration::from_secs(2), |_| false);
    for (client, sent) in world.clients.iter().zip(&sent) {
        assert_eq!(client.received.len(), sent.len());
        for (key, packet) in sent {
            assert!(client.received.contains(&(*key, packet.clone())), "on its own circuit");
        }
    }
    assert_eq!(world.dropped(), 0);
    // One of them closes its circuits: the other's go on.
    for key in keys {
        world.clients[0].circuits.close(key);
    }
    world.drain_client(0);
    world.run(Duration::from_millis(200), |_| false);
    assert!(world.nodes.iter().all(|node| node.circuits.len() == 3 && node.table.len() == 3));
    let before = world.clients[other].received.len();
    let packet = packet(&mut world, 1000);
    for key in others {
        world.send_packets_for(other, key, &[&packet]).unwrap();
    }
    world.run(Duration::from_secs(1), |_| false);
    assert_eq!(world.clients[other].received.len(), before + 3);
}

#[test]
fn a_client_that_moves_keeps_its_circuits() {
    let mut world = World::new(13, 3, &NodeLimits::default(), FAIR);
    let key = ready_circuit(&mut world, &[0, 1, 2]);
    for place in 0..5u8 {
        // Another address, as after a new lease or behind another NAT.
        world.clients[0].addr = ([10, 88, 0, place], 1000 + u16::from(place)).into();
        let packet = packet(&mut world, u32::from(place));
        world.send_packet(key, &packet).unwrap();
        let count = usize::from(place) + 1;
        let came =
            world.run(Duration::from_secs(1), |world| world.clients[0].received.len() == count);
        assert!(came, "place {place}");
    }
    world.run(Duration::from_secs(10), |_| false);
    assert!(world.clients[0].closed.is_empty());
}

#[test]
fn closing_frees_every_hop_at_once() {
    let mut world = World::new(6, 3, &NodeLimits::default(), FAIR);
    let key = ready_circuit(&mut world, &[0, 1, 2]);
    world.clients[0].circuits.close(key);
    world.drain_client(0);
    world.run(Duration::from_millis(200), |_| false);
    for (index, node) in world.nodes.iter().enumerate() {
        assert!(node.circuits.is_empty() && node.table.is_empty(), "node {index}");
    }
}

#[test]
fn idle_circuits_expire() {
    let limits = NodeLimits { idle: Duration::from_secs(2), ..NodeLimits::default() };
    let mut world = World::new(8, 3, &limits, FAIR);
    ready_circuit(&mut world, &[0, 1, 2]);
    world.weather = Weather { loss: 1.0, ..FAIR };
    world.run(Duration::from_secs(5), |_| false);
    assert!(world.nodes.iter().all(|node| node.circuits.is_empty() && node.table.is_empty()));
}

#[test]
fn a_full_node_refuses_with_a_reason_and_keeps_what_it_has() {
    let limits = NodeLimits { max_circuits: 3, ..NodeLimits::default() };
    let mut world = World::new(9, 3, &limits, FAIR);
    let keys: Vec<_> = (0..3).map(|_| world.build(&[0, 1, 2])).collect();
    assert!(world.run(Duration::from_secs(5), |world| world.clients[0].ready.len() == 3));
    let late = world.build(&[0, 1, 2]);
    assert!(world.run(Duration::from_secs(5), |world| !world.clients[0].closed.is_empty()));
    let refused = CloseReason::Refused { hop: 0, reason: DestroyReason::ResourceLimit };
    assert_eq!(world.clients[0].closed, [(late, refused)]);
    let packet = packet(&mut world, 1);
    for key in keys {
        world.send_packet(key, &packet).unwrap();
    }
    assert!(world.run(Duration::from_secs(2), |world| world.nodes[2].packets.len() == 3));
}

#[test]
fn a_loaded_node_asks_for_a_cookie_and_takes_it() {
    // A quarter of one is none: this node is always under load.
    let limits = NodeLimits { max_handshakes: 1, ..NodeLimits::default() };
    let mut world = World::new(10, 3, &limits, FAIR);
    ready_circuit(&mut world, &[0, 1, 2]);
    for node in &world.nodes {
        assert_eq!(node.drops.get(DropReason::CreateOverload), 1, "one CREATE without proof");
    }
}
