//! The simulated network: real circuits and real cryptography in virtual time, seeded.
//!
//! `CEPA_SIM_SEEDS` sets how many seeds each scenario runs; the full count is a job of its own.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod world;

use std::time::Duration;

use cepa::{
    circuit::{CloseReason, NodeLimits},
    model::{CELL_LEN, DestroyReason, DropReason},
};
use rand::{Rng, RngExt};
use world::{Weather, World};

const FAIR: Weather = Weather { loss: 0.0, duplicate: 0.0, jitter: Duration::ZERO };
const FOUL: Weather = Weather { loss: 0.2, duplicate: 0.05, jitter: Duration::from_millis(40) };

fn seeds() -> u64 {
    std::env::var("CEPA_SIM_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(100)
}

fn packet(world: &mut World, number: u32) -> Vec<u8> {
    let length = world.rng.random_range(28..=1500usize);
    let mut packet = vec![0u8; length];
    world.rng.fill_bytes(&mut packet[20..]);
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    packet[20..24].copy_from_slice(&number.to_be_bytes());
    packet
}

#[test]
fn packets_cross_one_to_four_hops_both_ways() {
    for hops in 1..=4usize {
        let mut world = World::new(7, 4, &NodeLimits::default(), FAIR);
        let key = world.build(&(0..hops).collect::<Vec<_>>());
        assert!(world.run(Duration::from_secs(5), |world| !world.ready.is_empty()));
        let packets: Vec<_> = (0..200).map(|number| packet(&mut world, number)).collect();
        for packet in &packets {
            world.send_packet(key, packet).unwrap();
        }
        assert!(world.run(Duration::from_secs(5), |world| world.received.len() == 200));
        assert_eq!(world.nodes[hops - 1].packets, packets, "{hops} hops");
        assert_eq!(world.received, packets, "{hops} hops");
    }
}

#[test]
fn foul_weather_kills_no_circuit_and_forges_no_packet() {
    for seed in 0..seeds() {
        let mut world = World::new(seed, 3, &NodeLimits::default(), FOUL);
        // The path of a real client is chosen again when a hop does not answer; so here.
        let mut key = world.build(&[0, 1, 2]);
        for _ in 0..20 {
            let done = world.run(Duration::from_secs(60), |world| {
                world.ready.contains(&key) || world.closed.iter().any(|(closed, _)| *closed == key)
            });
            assert!(done, "seed {seed}: neither built nor given up");
            if world.ready.contains(&key) {
                break;
            }
            world.closed.clear();
            key = world.build(&[0, 1, 2]);
        }
        assert!(world.ready.contains(&key), "seed {seed}: never built");
        let packets: Vec<_> = (0..60).map(|number| packet(&mut world, number)).collect();
        for packet in &packets {
            // A circuit that was judged silent under such loss is gone with a reason; fine.
            let _ = world.send_packet(key, packet);
            world.run(Duration::from_millis(5), |_| false);
        }
        world.run(Duration::from_secs(2), |_| false);
        for received in world.nodes[2].packets.iter().chain(&world.received) {
            assert!(packets.contains(received), "seed {seed}: a packet nobody sent");
        }
        if world.closed.is_empty() {
            assert!(!world.nodes[2].packets.is_empty(), "seed {seed}: nothing arrived");
        }
    }
}

#[test]
fn circuits_stay_open_while_every_link_loses_one_cell_in_five() {
    let mut survived = 0;
    let runs = seeds().min(50);
    for seed in 0..runs {
        let mut world = World::new(seed ^ 0xabcd, 3, &NodeLimits::default(), FAIR);
        world.build(&[0, 1, 2]);
        assert!(world.run(Duration::from_secs(5), |world| !world.ready.is_empty()));
        world.weather = FOUL;
        world.run(Duration::from_secs(60), |_| false);
        survived += u64::from(world.closed.is_empty());
    }
    assert!(survived * 10 >= runs * 9, "{survived} of {runs} circuits survived a minute");
}

#[test]
fn a_dead_hop_is_noticed_within_two_seconds() {
    for dead in 0..3 {
        let mut world = World::new(5, 3, &NodeLimits::default(), FAIR);
        world.build(&[0, 1, 2]);
        assert!(world.run(Duration::from_secs(5), |world| !world.ready.is_empty()));
        world.run(Duration::from_secs(3), |_| false);
        world.nodes[dead].alive = false;
        let noticed = world.run(Duration::from_millis(2_100), |world| !world.closed.is_empty());
        assert!(noticed, "hop {dead}");
        assert_eq!(world.closed[0].1, CloseReason::Silent { hop: dead });
    }
}

#[test]
fn closing_frees_every_hop_at_once() {
    let mut world = World::new(6, 3, &NodeLimits::default(), FAIR);
    let key = world.build(&[0, 1, 2]);
    assert!(world.run(Duration::from_secs(5), |world| !world.ready.is_empty()));
    world.client.close(key);
    world.drain_client();
    world.run(Duration::from_millis(200), |_| false);
    for (index, node) in world.nodes.iter().enumerate() {
        assert!(node.circuits.is_empty() && node.table.is_empty(), "node {index}");
    }
}

#[test]
fn idle_circuits_expire() {
    let limits = NodeLimits { idle: Duration::from_secs(2), ..NodeLimits::default() };
    let mut world = World::new(8, 3, &limits, FAIR);
    world.build(&[0, 1, 2]);
    assert!(world.run(Duration::from_secs(5), |world| !world.ready.is_empty()));
    world.weather = Weather { loss: 1.0, ..FAIR };
    world.run(Duration::from_secs(5), |_| false);
    assert!(world.nodes.iter().all(|node| node.circuits.is_empty()));
}

#[test]
fn a_full_node_refuses_with_a_reason_and_keeps_what_it_has() {
    let limits = NodeLimits { max_circuits: 3, ..NodeLimits::default() };
    let mut world = World::new(9, 3, &limits, FAIR);
    let keys: Vec<_> = (0..3).map(|_| world.build(&[0, 1, 2])).collect();
    assert!(world.run(Duration::from_secs(5), |world| world.ready.len() == 3));
    let late = world.build(&[0, 1, 2]);
    assert!(world.run(Duration::from_secs(5), |world| !world.closed.is_empty()));
    let refused = CloseReason::Refused { hop: 0, reason: DestroyReason::ResourceLimit };
    assert_eq!(world.closed, [(late, refused)]);
    let packet = packet(&mut world, 1);
    for key in keys {
        world.send_packet(key, &packet).unwrap();
    }
    assert!(world.run(Duration::from_secs(2), |world| world.nodes[2].packets.len() == 1));
}

#[test]
fn a_loaded_node_asks_for_a_cookie_and_takes_it() {
    // A quarter of one is none: this node is always under load.
    let limits = NodeLimits { max_handshakes: 1, ..NodeLimits::default() };
    let mut world = World::new(10, 3, &limits, FAIR);
    world.build(&[0, 1, 2]);
    assert!(world.run(Duration::from_secs(5), |world| !world.ready.is_empty()));
    for node in &world.nodes {
        assert_eq!(node.drops.get(DropReason::CreateOverload), 1, "one CREATE without proof");
    }
}

#[test]
fn replayed_cells_and_flipped_bits_reach_nobody() {
    let mut world = World::new(11, 3, &NodeLimits::default(), FAIR);
    let key = world.build(&[0, 1, 2]);
    assert!(world.run(Duration::from_secs(5), |world| !world.ready.is_empty()));
    world.tape = Some(Vec::new());
    let packet = packet(&mut world, 1);
    world.send_packet(key, &packet).unwrap();
    assert!(world.run(Duration::from_secs(2), |world| world.received.len() == 1));
    let tape = world.tape.take().unwrap();
    let (left, back) = (world.nodes[2].packets.len(), world.received.len());
    let mut counted = 0;
    for (from, to, cell) in &tape {
        world.send(*from, *to, cell);
        for _ in 0..20 {
            let mut changed = **cell;
            let bit = world.rng.random_range(0..CELL_LEN * 8);
            changed[bit / 8] ^= 1 << (bit % 8);
            world.send(*from, *to, &changed);
            counted += 1;
        }
        counted += 1;
    }
    world.run(Duration::from_secs(1), |_| false);
    assert_eq!(world.nodes[2].packets.len(), left);
    assert_eq!(world.received.len(), back);
    let dropped: u64 = world
        .nodes
        .iter()
        .map(|node| &node.drops)
        .chain([&world.client_drops])
        .flat_map(|drops| drops.iter().map(|(_, count)| count).collect::<Vec<_>>())
        .sum();
    assert_eq!(dropped, counted, "each is dropped where it arrives, and counted");
}
