//! Nodes that die and come back, and clients that go on.

use std::time::Duration;

use cepa::{
    circuit::{ClientCircuits, ClientTimers, CloseReason, NodeLimits, Pool, PoolSettings},
    model::{CircuitKey, NodeId, Suite},
};

use super::{
    FAIR, FOUL, flow_packet, number_of, packet, ready_circuit, returned, seeds, world::World,
};

#[test]
fn a_dead_hop_is_noticed_within_two_seconds() {
    for dead in 0..3 {
        let mut world = World::new(5, 3, &NodeLimits::default(), FAIR);
        ready_circuit(&mut world, &[0, 1, 2]);
        world.run(Duration::from_secs(3), |_| false);
        world.nodes[dead].alive = false;
        let noticed =
            world.run(Duration::from_millis(2_100), |world| !world.clients[0].closed.is_empty());
        assert!(noticed, "hop {dead}");
        assert_eq!(world.clients[0].closed[0].1, CloseReason::Silent { hop: dead });
    }
}

#[test]
fn a_restarted_hop_knows_nothing_and_is_noticed() {
    for restarted in 0..3 {
        let mut world = World::new(14, 3, &NodeLimits::default(), FAIR);
        let key = ready_circuit(&mut world, &[0, 1, 2]);
        world.restart(restarted);
        let packet = packet(&mut world, 1);
        world.send_packet(key, &packet).unwrap();
        let noticed =
            world.run(Duration::from_millis(2_600), |world| !world.clients[0].closed.is_empty());
        assert!(noticed, "hop {restarted}");
        assert!(world.clients[0].received.is_empty());
        // The same path again.
        ready_circuit(&mut world, &[0, 1, 2]);
    }
}

/// A world of three nodes and an open circuit that is held when its first hop is silent.
fn held() -> (World, CircuitKey) {
    let mut world = World::new(23, 3, &NodeLimits::default(), FAIR);
    let timers = ClientTimers { hold_for: Duration::from_secs(60), ..ClientTimers::default() };
    world.clients[0].circuits = ClientCircuits::new(timers, Suite::Aes128Gcm);
    let key = ready_circuit(&mut world, &[0, 1, 2]);
    world.run(Duration::from_secs(2), |_| false);
    (world, key)
}

#[test]
fn a_client_that_was_cut_off_and_has_another_address_goes_on_with_its_circuit() {
    for seconds in [1, 5, 30] {
        let (mut world, key) = held();
        world.clients[0].offline = true;
        world.run(Duration::from_secs(seconds), |_| false);
        assert_eq!(world.clients[0].stalled.len(), usize::from(seconds > 1), "{seconds} s");
        world.clients[0].addr = ([10, 77, 9, seconds as u8], 50_000).into();
        world.clients[0].offline = false;
        assert!(world.run(Duration::from_secs(1), |world| world.clients[0].stalled.is_empty()));
        let packet = packet(&mut world, 1);
        world.send_packet(key, &packet).unwrap();
        let came = world.run(Duration::from_secs(1), |world| world.clients[0].received.len() == 1);
        assert!(came, "{seconds} s: the circuit goes on under the new address");
        assert!(world.clients[0].closed.is_empty());
    }
}

#[test]
fn a_circuit_whose_first_hop_stays_silent_is_given_up() {
    let (mut world, key) = held();
    world.nodes[0].alive = false;
    assert!(world.run(Duration::from_secs(2), |world| world.clients[0].stalled == [key]));
    world.run(Duration::from_secs(58), |_| false);
    assert!(world.clients[0].closed.is_empty());
    world.run(Duration::from_secs(3), |_| false);
    assert_eq!(world.clients[0].closed, [(key, CloseReason::Silent { hop: 0 })]);
}

/// A world of six nodes and a client with an active circuit and a spare.
fn pooled(seed: u64) -> World {
    let mut world = World::new(seed, 6, &NodeLimits::default(), FAIR);
    world.clients[0].pool = Some(Pool::new(PoolSettings::default()));
    let full = world.run(Duration::from_secs(5), |world| {
        let pool = world.clients[0].pool.as_ref().unwrap();
        pool.active().is_some() && pool.spare().is_some()
    });
    assert!(full, "seed {seed}: no active circuit and spare");
    world
}

fn path_of(world: &World, key: CircuitKey) -> Vec<NodeId> {
    let row = world.clients[0].circuits.get(key).unwrap();
    row.path().iter().map(|hop| hop.id).collect()
}

/// A new flow every 50 ms, until one has its answer; how long it took.
fn until_a_new_flow_works(world: &mut World) -> Duration {
    let (start, before) = (world.now, world.clients[0].received.len());
    for flow in 2000.. {
        let packet = flow_packet(world, u32::from(flow), flow);
        let _ = world.route_packet(0, &packet);
        world.run(Duration::from_millis(50), |_| false);
        let client = &world.clients[0];
        if client.received[before..].iter().any(|(_, packet)| number_of(packet) >= 2000) {
            break;
        }
        assert!(world.now - start < Duration::from_secs(30), "new flows never worked again");
    }
    world.now - start
}

#[test]
fn a_killed_node_costs_new_flows_three_seconds_at_most() {
    let mut times = Vec::new();
    for seed in 0..seeds() {
        let mut world = pooled(seed ^ 0x1234);
        let pool = world.clients[0].pool.as_ref().unwrap();
        let (active, spare) = (pool.active().unwrap(), pool.spare().unwrap());
        let old = flow_packet(&mut world, 1, 1000);
        assert_eq!(world.route_packet(0, &old), Ok(active));
        assert!(world.run(Duration::from_secs(1), |world| world.clients[0].received.len() == 1));
        let (path, other) = (path_of(&world, active), path_of(&world, spare));
        let Some(dead) = (0..6).find(|node| {
            let id = world.node_id(*node);
            path.contains(&id) && !other.contains(&id)
        }) else {
            continue;
        };
        world.nodes[dead].alive = false;
        times.push(until_a_new_flow_works(&mut world));
        let pool = world.clients[0].pool.as_ref().unwrap();
        assert_eq!(pool.active(), Some(spare), "seed {seed}: the spare took over");
        // The flow of the dead circuit goes on over another one.
        let again = flow_packet(&mut world, 2, 1000);
        assert_eq!(world.route_packet(0, &again), Ok(spare));
        assert!(world.run(Duration::from_secs(1), |world| {
            world.clients[0].received.contains(&(spare, again.clone()))
        }));
        // And there is a spare again, around the dead node.
        assert!(world.run(Duration::from_secs(5), |world| {
            world.clients[0].pool.as_ref().unwrap().spare().is_some()
        }));
        let pool = world.clients[0].pool.as_ref().unwrap();
        let fresh = path_of(&world, pool.spare().unwrap());
        assert!(!fresh.contains(&world.node_id(dead)), "seed {seed}");
    }
    let worst = times.iter().max().copied().unwrap_or_default();
    assert!(worst <= Duration::from_secs(3), "new flows worked after {worst:?}");
}

/// The dead node is on both circuits: the client builds around it.
#[test]
fn a_node_on_both_circuits_is_built_around() {
    for seed in 0..seeds().min(100) {
        let mut world = pooled(seed ^ 0x4321);
        let pool = world.clients[0].pool.as_ref().unwrap();
        let (active, spare) = (pool.active().unwrap(), pool.spare().unwrap());
        let (path, other) = (path_of(&world, active), path_of(&world, spare));
        let Some(dead) = (0..6).find(|node| {
            let id = world.node_id(*node);
            path.contains(&id) && other.contains(&id)
        }) else {
            continue;
        };
        world.nodes[dead].alive = false;
        let took = until_a_new_flow_works(&mut world);
        assert!(took <= Duration::from_secs(6), "seed {seed}: {took:?}");
    }
}

/// Two of six nodes die at random moments, come back, and the weather is foul: in the end the client
/// has circuits, and what arrived is what was sent.
#[test]
fn a_pool_outlives_nodes_that_come_and_go_in_foul_weather() {
    for seed in 0..seeds().min(200) {
        let mut world = pooled(seed ^ 0x2468);
        world.weather = FOUL;
        let mut sent = Vec::new();
        for round in 0..6u32 {
            let dead = (seed as usize + round as usize) % 6;
            world.nodes[dead].alive = false;
            for number in 0..20 {
                let packet = flow_packet(&mut world, round * 100 + number, (number % 5) as u16);
                let _ = world.route_packet(0, &packet);
                sent.push(packet);
                world.run(Duration::from_millis(100), |_| false);
            }
            world.restart(dead);
        }
        world.weather = FAIR;
        let took = until_a_new_flow_works(&mut world);
        assert!(took <= Duration::from_secs(20), "seed {seed}: {took:?}");
        for packet in returned(&world, 0) {
            assert!(number_of(&packet) >= 2000 || sent.contains(&packet), "seed {seed}");
        }
        let held = world.clients[0].circuits.iter().count();
        assert!(held <= 8, "seed {seed}: {held} circuits");
    }
}
