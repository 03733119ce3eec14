//! Clients and nodes in virtual time, over a network that loses, reorders and duplicates.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    net::SocketAddr,
    sync::OnceLock,
    time::{Duration, Instant},
};

use cepa::{
    circuit::{
        ClientCircuits, ClientEvent, ClientTimers, CloseReason, NodeCircuits, NodeEvent,
        NodeLimits, Pool, respond,
    },
    forward::{
        ClientTable, ClientVerdict, Outbox, RelayTable, Verdict,
        flow::FlowMap,
        stream::{BodySink, Packer, Reassembler},
    },
    keys::{Identity, OnionKey},
    model::{
        Alone, BODY_LEN, BodyKind, CELL_LEN, CircuitKey, DestroyReason, DropCounters, DropReason,
        Hop, NodeId, PacketBatch, Suite,
    },
    wire::{BodyHeader, PairMessage, body_mut, body_ref, cid_of},
};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};

pub(crate) type Cell = [u8; CELL_LEN];

/// How the simulated network treats datagrams.
#[derive(Clone, Copy)]
pub(crate) struct Weather {
    pub(crate) loss: f64,
    pub(crate) duplicate: f64,
    pub(crate) jitter: Duration,
}

pub(crate) fn identities() -> &'static [Identity; 8] {
    static IDENTITIES: OnceLock<[Identity; 8]> = OnceLock::new();
    IDENTITIES.get_or_init(|| {
        std::array::from_fn(|index| {
            let path = format!("{}/tests/keys/test-only-{index}.pk8", env!("CARGO_MANIFEST_DIR"));
            Identity::from_pkcs8(&std::fs::read(path).unwrap()).unwrap()
        })
    })
}

pub(crate) struct SimNode {
    pub(crate) addr: SocketAddr,
    identity: &'static Identity,
    onion: OnionKey,
    limits: NodeLimits,
    pub(crate) table: RelayTable,
    pub(crate) circuits: NodeCircuits,
    pub(crate) drops: DropCounters,
    pub(crate) alive: bool,
    /// Circuits that end here. What leaves is echoed back to the client.
    exits: HashMap<CircuitKey, (Reassembler, Packer)>,
    /// Inner packets that left here.
    pub(crate) packets: Vec<Vec<u8>>,
}

/// One client of the simulated network.
pub(crate) struct SimClient {
    pub(crate) addr: SocketAddr,
    pub(crate) circuits: ClientCircuits,
    pub(crate) table: ClientTable,
    pub(crate) drops: DropCounters,
    /// Inner packets that came back, and the circuit that each came on.
    pub(crate) received: Vec<(CircuitKey, Vec<u8>)>,
    pub(crate) ready: Vec<CircuitKey>,
    pub(crate) closed: Vec<(CircuitKey, CloseReason)>,
    /// Circuits whose first hop is silent.
    pub(crate) stalled: Vec<CircuitKey>,
    /// Nothing reaches it and nothing leaves it.
    pub(crate) offline: bool,
    /// With a pool the client builds circuits by itself.
    pub(crate) pool: Option<Pool>,
    avoided: Vec<(NodeId, Instant)>,
    pub(crate) flows: FlowMap<CircuitKey>,
}

impl SimClient {
    fn new(index: usize) -> Self {
        Self {
            addr: ([10, 77, 0, 200 + index as u8], 40_000).into(),
            circuits: ClientCircuits::new(ClientTimers::default(), Suite::Aes128Gcm),
            table: ClientTable::default(),
            drops: DropCounters::default(),
            received: Vec::new(),
            ready: Vec::new(),
            closed: Vec::new(),
            stalled: Vec::new(),
            offline: false,
            pool: None,
            avoided: Vec::new(),
            flows: FlowMap::new(1024),
        }
    }
}

struct Flight {
    at: Instant,
    number: u64,
    from: SocketAddr,
    to: SocketAddr,
    cell: Box<Cell>,
}

impl PartialEq for Flight {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Flight {}
impl PartialOrd for Flight {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Flight {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) rng: StdRng,
    pub(crate) weather: Weather,
    flights: BinaryHeap<Reverse<Flight>>,
    number: u64,
    pub(crate) nodes: Vec<SimNode>,
    pub(crate) clients: Vec<SimClient>,
    /// Every cell that crossed a link, when kept: from, to, cell.
    pub(crate) tape: Option<Vec<(SocketAddr, SocketAddr, Box<Cell>)>>,
}

struct OneBody<'a>(&'a mut Vec<Cell>);
impl BodySink for OneBody<'_> {
    fn next_body(&mut self) -> &mut [u8; BODY_LEN] {
        self.0.push([0; CELL_LEN]);
        self.body()
    }
    fn body(&mut self) -> &mut [u8; BODY_LEN] {
        body_mut(self.0.last_mut().unwrap())
    }
}

impl World {
    pub(crate) fn new(seed: u64, nodes: usize, limits: &NodeLimits, weather: Weather) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let now = Instant::now();
        let nodes = (0..nodes)
            .map(|index| {
                let identity = &identities()[index];
                let onion = OnionKey::generate(&mut rng).unwrap();
                SimNode {
                    addr: ([10, 77, 0, 10 + index as u8], 5000).into(),
                    identity,
                    limits: limits.clone(),
                    circuits: NodeCircuits::new(
                        identity.id(),
                        vec![onion.id()],
                        limits.clone(),
                        now,
                        &mut rng,
                    ),
                    onion,
                    table: RelayTable::default(),
                    drops: DropCounters::default(),
                    alive: true,
                    exits: HashMap::new(),
                    packets: Vec::new(),
                }
            })
            .collect();
        Self {
            now,
            rng,
            weather,
            flights: BinaryHeap::new(),
            number: 0,
            nodes,
            clients: vec![SimClient::new(0)],
            tape: None,
        }
    }

    /// Adds a client; its index.
    pub(crate) fn add_client(&mut self) -> usize {
        self.clients.push(SimClient::new(self.clients.len()));
        self.clients.len() - 1
    }

    /// The node loses everything but its keys, as after a restart.
    pub(crate) fn restart(&mut self, index: usize) {
        let (now, rng) = (self.now, &mut self.rng);
        let node = &mut self.nodes[index];
        let (id, keys) = (node.identity.id(), vec![node.onion.id()]);
        node.circuits = NodeCircuits::new(id, keys, node.limits.clone(), now, rng);
        node.table = RelayTable::default();
        node.exits.clear();
        node.alive = true;
    }

    /// Everything that was dropped anywhere, of every reason.
    pub(crate) fn dropped(&self) -> u64 {
        let clients = self.clients.iter().map(|client| &client.drops);
        let counters = self.nodes.iter().map(|node| &node.drops).chain(clients);
        counters.map(|drops| drops.iter().map(|(_, count)| count).sum::<u64>()).sum()
    }

    pub(crate) fn node_id(&self, index: usize) -> NodeId {
        self.nodes[index].identity.id()
    }

    pub(crate) fn path(&mut self, nodes: &[usize]) -> Vec<Hop> {
        nodes
            .iter()
            .map(|index| {
                let node = &self.nodes[*index];
                Hop {
                    id: node.identity.id(),
                    name: format!("n{index}"),
                    addr: node.addr,
                    identity_spki: node.identity.spki_der().to_vec(),
                    onion_key: *node.onion.public(),
                    onion_key_id: node.onion.id(),
                    suite: Suite::ALL[self.rng.random_range(0..2)],
                    is_exit: true,
                }
            })
            .collect()
    }

    pub(crate) fn build(&mut self, nodes: &[usize]) -> CircuitKey {
        self.build_for(0, nodes)
    }

    pub(crate) fn build_for(&mut self, client: usize, nodes: &[usize]) -> CircuitKey {
        let path = self.path(nodes);
        let circuits = &mut self.clients[client].circuits;
        let key = circuits.build(self.now, path, &mut self.rng).unwrap();
        self.drain_client(client);
        key
    }

    pub(crate) fn send(&mut self, from: SocketAddr, to: SocketAddr, cell: &Cell) {
        if let Some(tape) = &mut self.tape {
            tape.push((from, to, Box::new(*cell)));
        }
        let copies = if self.rng.random_bool(self.weather.duplicate) { 2 } else { 1 };
        for _ in 0..copies {
            if self.rng.random_bool(self.weather.loss) {
                continue;
            }
            let jitter = self.rng.random_range(0.0..=1.0);
            let delay = Duration::from_millis(10) + self.weather.jitter.mul_f64(jitter);
            self.number += 1;
            self.flights.push(Reverse(Flight {
                at: self.now + delay,
                number: self.number,
                from,
                to,
                cell: Box::new(*cell),
            }));
        }
    }

    /// Runs until `done` holds, or for `limit` of virtual time; says whether it holds.
    pub(crate) fn run(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now + limit;
        let mut tick = self.now;
        while self.now < end {
            if done(self) {
                return true;
            }
            let flight = self.flights.peek().map(|flight| flight.0.at);
            if flight.is_some_and(|at| at <= tick) {
                let Reverse(flight) = self.flights.pop().unwrap();
                self.now = self.now.max(flight.at);
                self.deliver(flight);
            } else {
                self.now = self.now.max(tick);
                self.tick();
                tick += Duration::from_millis(25);
            }
        }
        done(self)
    }

    fn tick(&mut self) {
        for index in 0..self.clients.len() {
            let (now, rng) = (self.now, &mut self.rng);
            let SimClient { circuits, table, pool, flows, .. } = &mut self.clients[index];
            circuits.handle_timeout(now, |key| table.last_heard(key), rng);
            if let Some(pool) = pool {
                for key in pool.handle_timeout(now, |key| flows.flows_of(now, key), rng) {
                    circuits.close(key);
                }
            }
            self.build_wanted(index);
            self.drain_client(index);
        }
        for index in 0..self.nodes.len() {
            let node = &mut self.nodes[index];
            node.circuits.handle_timeout(self.now, |key| node.table.last_active(key));
            self.drain_node(index);
        }
    }

    fn deliver(&mut self, mut flight: Flight) {
        let ends = [flight.from, flight.to];
        if self.clients.iter().any(|client| client.offline && ends.contains(&client.addr)) {
            return;
        }
        if let Some(index) = self.clients.iter().position(|client| client.addr == flight.to) {
            return self.client_cell(index, flight.from, &mut flight.cell);
        }
        if let Some(index) = self.nodes.iter().position(|node| node.addr == flight.to)
            && self.nodes[index].alive
        {
            self.node_cell(index, flight.from, &mut flight.cell);
        }
    }

    /// Builds what the pool of a client wants, around nodes that failed of late.
    fn build_wanted(&mut self, index: usize) {
        let now = self.now;
        while self.clients[index].pool.as_ref().is_some_and(|pool| pool.wants_circuit(now)) {
            let client = &mut self.clients[index];
            client.avoided.retain(|(_, until)| *until > now);
            let avoided: Vec<_> = client.avoided.iter().map(|(id, _)| *id).collect();
            let mut nodes: Vec<usize> = (0..self.nodes.len())
                .filter(|node| !avoided.contains(&self.node_id(*node)))
                .collect();
            if nodes.len() < 3 {
                nodes = (0..self.nodes.len()).collect();
            }
            nodes.shuffle(&mut self.rng);
            let path = self.path(&nodes[..3]);
            let client = &mut self.clients[index];
            let key = client.circuits.build(now, path, &mut self.rng).unwrap();
            client.pool.as_mut().unwrap().on_building(now, key);
        }
    }

    pub(crate) fn client_cell(&mut self, index: usize, from: SocketAddr, cell: &mut Cell) {
        let (now, rng) = (self.now, &mut self.rng);
        let client = &mut self.clients[index];
        let mut body = [0; BODY_LEN];
        let result = match client.table.handle_cell(now, from, cell, &mut body) {
            ClientVerdict::Body { circuit, hop, seq, header } => {
                let path = client.circuits.get(circuit).unwrap().path();
                let data = header.kind == BodyKind::Data;
                if hop + 1 == path.len() {
                    let mut batch = PacketBatch::default();
                    let body = data.then_some(&body);
                    client.table.reassemble(circuit, seq, body, &mut batch, &mut client.drops);
                    client.received.extend(batch.iter().map(|packet| (circuit, packet.to_vec())));
                }
                if data {
                    Ok(())
                } else {
                    client.circuits.handle_body(now, circuit, hop, header, &body, rng)
                }
            }
            ClientVerdict::Neighbour { circuit, message } => {
                client.circuits.handle_neighbour(circuit, message);
                Ok(())
            }
            ClientVerdict::Unknown => client.circuits.handle_unknown(now, cell, rng),
            ClientVerdict::Drop(reason) => Err(reason),
        };
        if let Err(reason) = result {
            client.drops.count(reason);
        }
        self.drain_client(index);
    }

    pub(crate) fn send_packet(&mut self, key: CircuitKey, packet: &[u8]) -> Result<(), DropReason> {
        self.send_packets_for(0, key, &[packet])
    }

    /// Packets of one read, which share cells.
    pub(crate) fn send_packets_for(
        &mut self,
        index: usize,
        key: CircuitKey,
        packets: &[&[u8]],
    ) -> Result<(), DropReason> {
        let mut outbox = Outbox::default();
        let table = &mut self.clients[index].table;
        let sent =
            packets.iter().try_for_each(|packet| table.send_packet(key, packet, &mut outbox));
        table.finish(&mut outbox, &mut self.rng, &Alone);
        self.flush(index, &outbox);
        sent
    }

    /// A packet by the flow that it belongs to, on the circuit that the pool gives to new flows.
    pub(crate) fn route_packet(
        &mut self,
        index: usize,
        packet: &[u8],
    ) -> Result<CircuitKey, DropReason> {
        let client = &mut self.clients[index];
        let active = client.pool.as_ref().and_then(Pool::active);
        let key = client.flows.route(self.now, packet, || active)?;
        self.send_packets_for(index, key, &[packet])?;
        Ok(key)
    }

    /// A body of its own to a hop of a circuit.
    pub(crate) fn send_body(&mut self, key: CircuitKey, hop: usize, body: &[u8; BODY_LEN]) {
        let mut outbox = Outbox::default();
        let table = &mut self.clients[0].table;
        table.send_body(key, hop, |to| *to = *body, &mut outbox, &mut self.rng).unwrap();
        self.flush(0, &outbox);
    }

    fn flush(&mut self, index: usize, outbox: &Outbox) {
        let from = self.clients[index].addr;
        for (to, cells) in outbox.runs() {
            for cell in cells.chunks_exact(CELL_LEN) {
                self.send(from, to, cell.try_into().unwrap());
            }
        }
    }

    pub(crate) fn drain_client(&mut self, index: usize) {
        let addr = self.clients[index].addr;
        while let Some(event) = self.clients[index].circuits.poll_event() {
            let (now, rng) = (self.now, &mut self.rng);
            let client = &mut self.clients[index];
            match event {
                ClientEvent::Send { to, cell } => self.send(addr, to, &cell),
                ClientEvent::Open { key, cid, guard, pair } => {
                    client.table.open(now, key, cid, guard, &pair, rng);
                }
                ClientEvent::AddHop { key, keys } => client.table.add_hop(key, &keys, rng),
                ClientEvent::SendBody { key, hop, body } => {
                    let mut outbox = Outbox::default();
                    client.table.send_body(key, hop, |to| *to = *body, &mut outbox, rng).unwrap();
                    self.flush(index, &outbox);
                }
                ClientEvent::Ready { key, .. } => {
                    client.ready.push(key);
                    if let Some(pool) = &mut client.pool {
                        pool.on_ready(now, key, rng);
                    }
                }
                ClientEvent::Echo { .. } => {}
                ClientEvent::Stalled { key } => {
                    if let Some(pool) = &mut client.pool {
                        pool.on_stalled(now, key, rng);
                    }
                    client.stalled.push(key);
                }
                ClientEvent::Resumed { key } => {
                    if let Some(pool) = &mut client.pool {
                        pool.on_resumed(now, key, rng);
                    }
                    client.stalled.retain(|stalled| *stalled != key);
                }
                ClientEvent::Closed { key, path, reason, tell } => {
                    let mut cell = [0; CELL_LEN];
                    let message = PairMessage::Destroy(DestroyReason::Finished);
                    let told = client.table.neighbour_cell(key, message, &mut cell);
                    client.table.remove(key);
                    client.flows.forget_circuit(key);
                    client.ready.retain(|ready| *ready != key);
                    if let Some(pool) = &mut client.pool {
                        pool.on_closed(now, key, rng);
                    }
                    if let CloseReason::NoAnswer { hop }
                    | CloseReason::Refused { hop, .. }
                    | CloseReason::Handshake { hop, .. }
                    | CloseReason::Silent { hop } = reason
                    {
                        client.avoided.push((path[hop].id, now + Duration::from_secs(60)));
                    }
                    client.closed.push((key, reason));
                    if let (true, Some(to)) = (tell, told) {
                        self.send(addr, to, &cell);
                    }
                }
            }
        }
    }

    pub(crate) fn node_cell(&mut self, index: usize, from: SocketAddr, cell: &mut Cell) {
        let (now, rng) = (self.now, &mut self.rng);
        let node = &mut self.nodes[index];
        let cid = cid_of(cell);
        let result = match node.table.handle_cell(now, from, cell) {
            Verdict::Relay { to, .. } => {
                let addr = node.addr;
                self.send(addr, to, cell);
                Ok(())
            }
            Verdict::Local { circuit, seq, header } => {
                self.node_local(index, circuit, seq, header, cell)
            }
            Verdict::Neighbour { circuit, direction, message } => {
                node.circuits.handle_neighbour(circuit, direction, message);
                Ok(())
            }
            Verdict::RepeatedCreate { circuit } => {
                node.circuits.handle_repeated_create(circuit, from, cid, rng);
                Ok(())
            }
            Verdict::Unknown => node.circuits.handle_unknown(now, from, cell, rng),
            Verdict::Drop(reason) => Err(reason),
        };
        if let Err(reason) = result {
            self.nodes[index].drops.count(reason);
        }
        self.drain_node(index);
    }

    fn node_local(
        &mut self,
        index: usize,
        circuit: CircuitKey,
        seq: u32,
        header: BodyHeader,
        cell: &mut Cell,
    ) -> Result<(), DropReason> {
        let members: Vec<_> =
            self.nodes.iter().map(|node| (node.identity.id().to_string(), node.addr)).collect();
        let node = &mut self.nodes[index];
        if header.kind != BodyKind::Data
            && let Some((reassembler, _)) = node.exits.get_mut(&circuit)
        {
            reassembler.push(seq, None, &mut PacketBatch::default(), &mut node.drops);
        }
        match header.kind {
            BodyKind::Control => node.circuits.handle_control(
                self.now,
                circuit,
                body_ref(cell),
                |to| members.iter().find(|(id, _)| id == to).map(|(_, addr)| *addr),
                &mut self.rng,
            ),
            BodyKind::Echo => {
                BodyHeader::new(BodyKind::EchoReply).emit(body_mut(cell));
                let to = node.table.originate(circuit, cell, &mut self.rng)?;
                let addr = node.addr;
                self.send(addr, to, cell);
                Ok(())
            }
            BodyKind::Data => {
                let mut batch = PacketBatch::default();
                let (reassembler, packer) = node.exits.entry(circuit).or_default();
                reassembler.push(seq, Some(body_ref(cell)), &mut batch, &mut node.drops);
                let mut cells = Vec::new();
                for packet in batch.iter() {
                    node.packets.push(packet.to_vec());
                    packer.push(packet, &mut OneBody(&mut cells)).unwrap();
                }
                packer.flush(&mut OneBody(&mut cells));
                for mut cell in cells {
                    let node = &mut self.nodes[index];
                    let to = node.table.originate(circuit, &mut cell, &mut self.rng)?;
                    let addr = node.addr;
                    self.send(addr, to, &cell);
                }
                Ok(())
            }
            BodyKind::Cover => Err(DropReason::Cover),
            BodyKind::EchoReply | BodyKind::Bridge => Err(DropReason::UnknownKind),
        }
    }

    fn drain_node(&mut self, index: usize) {
        while let Some(event) = self.nodes[index].circuits.poll_event() {
            let node = &mut self.nodes[index];
            let addr = node.addr;
            match event {
                NodeEvent::Handshake(job) => {
                    let done =
                        respond(node.identity, &node.onion, &job.prefix, job.status, &mut self.rng);
                    let result =
                        node.circuits.handle_handshake(self.now, &job, done.ok(), &mut self.rng);
                    if let Err(reason) = result {
                        node.drops.count(reason);
                    }
                }
                NodeEvent::Install { key, from, cid, keys } => {
                    node.table.install(self.now, key, from, cid, &keys, &mut self.rng);
                }
                NodeEvent::Extend { key, addr, cid, pair } => {
                    node.table.extend(key, addr, cid, &pair);
                }
                NodeEvent::Send { to, cell } => self.send(addr, to, &cell),
                NodeEvent::Answer { key, body } => {
                    let mut cell = [0; CELL_LEN];
                    *body_mut(&mut cell) = *body;
                    if let Ok(to) = node.table.originate(key, &mut cell, &mut self.rng) {
                        self.send(addr, to, &cell);
                    }
                }
                NodeEvent::Neighbour { key, direction, message } => {
                    let mut cell = [0; CELL_LEN];
                    self.rng.fill_bytes(&mut cell);
                    if let Some(to) = node.table.neighbour_cell(key, direction, message, &mut cell)
                    {
                        self.send(addr, to, &cell);
                    }
                }
                NodeEvent::Remove { key, .. } => {
                    node.exits.remove(&key);
                    node.table.remove(key);
                }
            }
        }
    }
}
