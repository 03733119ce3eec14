//! The network against a model of it: random things happen to both, and they must agree.
//!
//! The model knows circuits, nodes and packets, and nothing of cells, keys or timers. It says what
//! may leave where and come back to whom, and what must be left when all is over.

use std::{collections::HashMap, time::Duration};

use cepa::{circuit::NodeLimits, model::CircuitKey};
use rand::{RngExt, seq::IteratorRandom};

use super::{FAIR, FOUL, number_of, packet, seeds, world::World};

const NODES: usize = 5;
const CLIENTS: usize = 2;

struct Circuit {
    path: Vec<usize>,
    /// Whether it was ready when a node of it died.
    broken: bool,
}

struct Sent {
    client: usize,
    key: CircuitKey,
    exit: usize,
    bytes: Vec<u8>,
    left: bool,
    returned: bool,
}

#[derive(Default)]
struct Model {
    circuits: HashMap<(usize, CircuitKey), Circuit>,
    sent: HashMap<u32, Sent>,
    /// How much of what the world reports was looked at.
    left_seen: [usize; NODES],
    returned_seen: [usize; CLIENTS],
    closed_seen: [usize; CLIENTS],
}

impl Model {
    fn node_died(&mut self, world: &World, node: usize) {
        for ((client, key), circuit) in &mut self.circuits {
            if circuit.path.contains(&node) && world.clients[*client].ready.contains(key) {
                circuit.broken = true;
            }
        }
    }

    fn send(&mut self, world: &mut World, client: usize, key: CircuitKey, count: u32) {
        let exit = *self.circuits[&(client, key)].path.last().unwrap();
        let mut packets = Vec::new();
        for _ in 0..count {
            let number = self.sent.len() as u32;
            let bytes = packet(world, number);
            packets.push(bytes.clone());
            let sent = Sent { client, key, exit, bytes, left: false, returned: false };
            self.sent.insert(number, sent);
        }
        let packets: Vec<&[u8]> = packets.iter().map(Vec::as_slice).collect();
        world.send_packets_for(client, key, &packets).unwrap();
    }

    /// Takes in what the world did since the last look.
    fn compare(&mut self, world: &World, seed: u64) {
        for (node, seen) in self.left_seen.iter_mut().enumerate() {
            for bytes in &world.nodes[node].packets[*seen..] {
                let sent = self.sent.get_mut(&number_of(bytes));
                let sent = sent.unwrap_or_else(|| panic!("seed {seed}: a packet nobody sent"));
                assert_eq!(sent.bytes, *bytes, "seed {seed}: changed on its way out");
                assert_eq!(sent.exit, node, "seed {seed}: it left at another node");
                assert!(!sent.left, "seed {seed}: it left twice");
                sent.left = true;
            }
            *seen = world.nodes[node].packets.len();
            let node = &world.nodes[node];
            assert_eq!(node.circuits.len(), node.table.len(), "seed {seed}: two truths");
        }
        for (index, client) in world.clients.iter().enumerate() {
            for (key, bytes) in &client.received[self.returned_seen[index]..] {
                let sent = self.sent.get_mut(&number_of(bytes));
                let sent = sent.unwrap_or_else(|| panic!("seed {seed}: a packet nobody sent"));
                assert_eq!(sent.bytes, *bytes, "seed {seed}: changed on its way back");
                assert_eq!((sent.client, sent.key), (index, *key), "seed {seed}: someone else's");
                assert!(sent.left && !sent.returned, "seed {seed}: it came back out of nothing");
                sent.returned = true;
            }
            self.returned_seen[index] = client.received.len();
            for (key, _) in &client.closed[self.closed_seen[index]..] {
                let known = self.circuits.remove(&(index, *key));
                assert!(known.is_some(), "seed {seed}: a circuit ended twice");
            }
            self.closed_seen[index] = client.closed.len();
            let held: Vec<_> = client.circuits.iter().map(|(key, _)| key).collect();
            let known = self.circuits.keys().filter(|(owner, _)| *owner == index).count();
            assert_eq!(held.len(), known, "seed {seed}: another number of circuits");
        }
    }

    fn any_ready(&self, world: &mut World) -> Option<(usize, CircuitKey)> {
        let ready: Vec<_> = world
            .clients
            .iter()
            .enumerate()
            .flat_map(|(index, client)| client.ready.iter().map(move |key| (index, *key)))
            .collect();
        ready.into_iter().choose(&mut world.rng)
    }
}

fn step(world: &mut World, model: &mut Model) {
    match world.rng.random_range(0..20) {
        0..4 if model.circuits.len() < 8 => {
            let client = world.rng.random_range(0..CLIENTS);
            let hops = world.rng.random_range(1..=4);
            let path = (0..NODES).sample(&mut world.rng, hops);
            let key = world.build_for(client, &path);
            let before = model.circuits.insert((client, key), Circuit { path, broken: false });
            assert!(before.is_none(), "a key was used again too early");
        }
        4..12 => {
            if let Some((client, key)) = model.any_ready(world) {
                let count = world.rng.random_range(1..8);
                model.send(world, client, key, count);
            }
        }
        12 => {
            let all: Vec<_> = model.circuits.keys().copied().collect();
            if let Some((client, key)) = all.into_iter().choose(&mut world.rng) {
                world.clients[client].circuits.close(key);
                world.drain_client(client);
            }
        }
        13 => {
            let node = world.rng.random_range(0..NODES);
            world.nodes[node].alive = false;
            model.node_died(world, node);
        }
        14 => {
            let node = world.rng.random_range(0..NODES);
            world.restart(node);
            model.node_died(world, node);
        }
        15 => world.weather = if world.rng.random() { FAIR } else { FOUL },
        _ => {}
    }
    let wait = Duration::from_millis(world.rng.random_range(1..400));
    world.run(wait, |_| false);
}

#[test]
fn the_network_agrees_with_a_model_of_it() {
    let (mut sent, mut left, mut returned) = (0, 0, 0);
    for seed in 0..seeds() {
        let limits = NodeLimits { idle: Duration::from_secs(20), ..NodeLimits::default() };
        let mut world = World::new(seed ^ 0x00de_1000, NODES, &limits, FAIR);
        world.add_client();
        let mut model = Model::default();
        for _ in 0..40 {
            step(&mut world, &mut model);
            model.compare(&world, seed);
        }

        // Calm: the dead come back without a memory, and every client notices what is gone.
        world.weather = FAIR;
        for node in 0..NODES {
            if !world.nodes[node].alive {
                world.restart(node);
                model.node_died(&world, node);
            }
        }
        world.run(Duration::from_secs(30), |_| false);
        model.compare(&world, seed);
        for ((client, key), circuit) in &model.circuits {
            assert!(!circuit.broken, "seed {seed}: {key:?} of {client} lives over a dead node");
            assert!(world.clients[*client].ready.contains(key), "seed {seed}: never ready");
        }
        // What is left works in full.
        let open: Vec<_> = model.circuits.keys().copied().collect();
        let first = model.sent.len() as u32;
        for (client, key) in &open {
            model.send(&mut world, *client, *key, 10);
        }
        world.run(Duration::from_secs(1), |_| false);
        model.compare(&world, seed);
        assert!(
            model.sent.iter().all(|(number, sent)| *number < first || sent.returned),
            "seed {seed}: lost in fair weather"
        );
        // And nothing is left of it when it ends, at the latest when it idled.
        for (client, key) in open {
            world.clients[client].circuits.close(key);
            world.drain_client(client);
        }
        world.run(Duration::from_secs(25), |_| false);
        model.compare(&world, seed);
        for node in &world.nodes {
            assert!(node.circuits.is_empty() && node.table.is_empty(), "seed {seed}");
        }
        assert!(world.clients.iter().all(|client| client.circuits.iter().next().is_none()));
        sent += model.sent.len();
        left += model.sent.values().filter(|sent| sent.left).count();
        returned += model.sent.values().filter(|sent| sent.returned).count();
    }
    // The scenario itself must not degenerate into one in which nothing happens.
    assert!(
        left * 2 > sent && returned * 3 > sent,
        "{sent} sent, {left} left, {returned} returned"
    );
}
