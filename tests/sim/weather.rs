//! Loss, reordering and duplication: circuits survive, packets are whole and come once.

use std::{collections::HashSet, time::Duration};

use cepa::{circuit::NodeLimits, model::CircuitKey};

use super::{
    FAIR, FOUL, number_of, packet, ready_circuit, returned, seeds,
    world::{Weather, World},
};

/// Builds until a circuit stands: the path of a real client is chosen again when a hop does not
/// answer. How often it took.
fn build_at_last(world: &mut World, path: &[usize], seed: u64) -> (CircuitKey, usize) {
    for attempt in 1..=20 {
        let key = world.build(path);
        let done = world.run(Duration::from_secs(60), |world| {
            let client = &world.clients[0];
            client.ready.contains(&key) || client.closed.iter().any(|(closed, _)| *closed == key)
        });
        assert!(done, "seed {seed}: neither built nor given up");
        if world.clients[0].ready.contains(&key) {
            return (key, attempt);
        }
        world.clients[0].closed.clear();
    }
    panic!("seed {seed}: never built");
}

/// Every packet that arrived is one that was sent, unchanged, and arrived once.
fn assert_whole_and_once(arrived: &[Vec<u8>], sent: &[Vec<u8>], what: &str) {
    let mut seen = HashSet::new();
    for packet in arrived {
        assert!(sent.contains(packet), "{what}: a packet nobody sent");
        assert!(seen.insert(number_of(packet)), "{what}: a packet arrived twice");
    }
}

#[test]
fn foul_weather_kills_no_circuit_and_forges_no_packet() {
    for seed in 0..seeds() {
        let mut world = World::new(seed, 3, &NodeLimits::default(), FOUL);
        let (key, _) = build_at_last(&mut world, &[0, 1, 2], seed);
        let packets: Vec<_> = (0..60).map(|number| packet(&mut world, number)).collect();
        for packet in &packets {
            // A circuit that was judged silent under such loss is gone with a reason; fine.
            let _ = world.send_packet(key, packet);
            world.run(Duration::from_millis(5), |_| false);
        }
        world.run(Duration::from_secs(2), |_| false);
        let what = format!("seed {seed}");
        assert_whole_and_once(&world.nodes[2].packets, &packets, &what);
        assert_whole_and_once(&returned(&world, 0), &packets, &what);
        if world.clients[0].closed.is_empty() {
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
        ready_circuit(&mut world, &[0, 1, 2]);
        world.weather = FOUL;
        world.run(Duration::from_secs(60), |_| false);
        survived += u64::from(world.clients[0].closed.is_empty());
    }
    assert!(survived * 10 >= runs * 9, "{survived} of {runs} circuits survived a minute");
}

/// Nothing is lost, but half of it comes twice and everything out of order: every packet arrives,
/// and none of them twice.
#[test]
fn reordering_and_duplication_alone_lose_and_repeat_nothing() {
    for seed in 0..seeds().min(200) {
        let storm = Weather { loss: 0.0, duplicate: 0.5, jitter: Duration::from_millis(4) };
        let mut world = World::new(seed ^ 0x5151, 4, &NodeLimits::default(), storm);
        let (key, _) = build_at_last(&mut world, &[3, 1, 2, 0], seed);
        let packets: Vec<_> = (0..80).map(|number| packet(&mut world, number)).collect();
        for group in packets.chunks(4) {
            let group: Vec<&[u8]> = group.iter().map(Vec::as_slice).collect();
            world.send_packets_for(0, key, &group).unwrap();
            world.run(Duration::from_millis(5), |_| false);
        }
        world.run(Duration::from_secs(2), |_| false);
        let what = format!("seed {seed}");
        for arrived in [&world.nodes[0].packets, &returned(&world, 0)] {
            assert_whole_and_once(arrived, &packets, &what);
            assert_eq!(arrived.len(), packets.len(), "{what}: some were lost");
        }
        assert!(world.clients[0].closed.is_empty(), "{what}");
    }
}

/// Nodes under load answer every CREATE with a cookie first, and answers are lost, doubled and
/// late: circuits are built all the same.
#[test]
fn circuits_are_built_at_loaded_nodes_in_foul_weather() {
    let limits = NodeLimits { max_handshakes: 3, ..NodeLimits::default() };
    let (mut first, runs) = (0, seeds().min(500));
    for seed in 0..runs {
        let weather = Weather { duplicate: 0.3, ..FOUL };
        let mut world = World::new(seed ^ 0x7777, 3, &limits, weather);
        let (_, attempts) = build_at_last(&mut world, &[0, 1, 2], seed);
        first += u64::from(attempts == 1);
    }
    assert!(first * 10 >= runs * 9, "{first} of {runs} circuits were built at once");
}
