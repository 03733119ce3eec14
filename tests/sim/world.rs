//! A client and nodes in virtual time, over a network that loses, reorders and duplicates.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    net::SocketAddr,
    sync::OnceLock,
    time::{Duration, Instant},
};

use cepa::{
    circuit::{
        ClientCircuits, ClientEvent, ClientTimers, CloseReason, NodeCircuits, NodeEvent,
        NodeLimits, respond,
    },
    forward::{
        ClientTable, ClientVerdict, Outbox, RelayTable, Verdict,
        stream::{BodySink, Packer, Reassembler},
    },
    keys::{Identity, OnionKey},
    model::{
        BODY_LEN, BodyKind, CELL_LEN, CircuitKey, DestroyReason, DropCounters, DropReason, Hop,
        PacketBatch, Suite,
    },
    wire::{BodyHeader, PairMessage, body_mut, body_ref, cid_of},
};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

pub(crate) type Cell = [u8; CELL_LEN];

/// How the simulated network treats datagrams.
#[derive(Clone, Copy)]
pub(crate) struct Weather {
    pub(crate) loss: f64,
    pub(crate) duplicate: f64,
    pub(crate) jitter: Duration,
}

pub(crate) fn identities() -> &'static [Identity; 4] {
    static IDENTITIES: OnceLock<[Identity; 4]> = OnceLock::new();
    IDENTITIES.get_or_init(|| {
        std::array::from_fn(|index| {
            let path = format!("{}/tests/keys/test-only-{index}.pk8", env!("CARGO_MANIFEST_DIR"));
            Identity::from_pkcs8(&std::fs::read(path).unwrap()).unwrap()
        })
    })
}

pub(crate) struct SimNode {
    addr: SocketAddr,
    identity: &'static Identity,
    onion: OnionKey,
    pub(crate) table: RelayTable,
    pub(crate) circuits: NodeCircuits,
    pub(crate) drops: DropCounters,
    pub(crate) alive: bool,
    exit: Option<(Reassembler, Packer)>,
    /// Inner packets that left here.
    pub(crate) packets: Vec<Vec<u8>>,
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
    pub(crate) client: ClientCircuits,
    pub(crate) table: ClientTable,
    pub(crate) client_drops: DropCounters,
    client_addr: SocketAddr,
    reassembler: Reassembler,
    /// Inner packets that came back to the client.
    pub(crate) received: Vec<Vec<u8>>,
    pub(crate) ready: Vec<CircuitKey>,
    pub(crate) closed: Vec<(CircuitKey, CloseReason)>,
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
                    exit: None,
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
            client: ClientCircuits::new(ClientTimers::default(), Suite::Aes128Gcm),
            table: ClientTable::default(),
            client_drops: DropCounters::default(),
            client_addr: ([10, 77, 0, 2], 40_000).into(),
            reassembler: Reassembler::new(),
            received: Vec::new(),
            ready: Vec::new(),
            closed: Vec::new(),
            tape: None,
        }
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
        let path = self.path(nodes);
        let key = self.client.build(self.now, path, &mut self.rng).unwrap();
        self.drain_client();
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
        let Self { client, table, rng, now, .. } = self;
        client.handle_timeout(*now, |key| table.last_heard(key), rng);
        self.drain_client();
        for index in 0..self.nodes.len() {
            let node = &mut self.nodes[index];
            node.circuits.handle_timeout(self.now, |key| node.table.last_active(key));
            self.drain_node(index);
        }
    }

    fn deliver(&mut self, mut flight: Flight) {
        if flight.to == self.client_addr {
            return self.client_cell(flight.from, &mut flight.cell);
        }
        if let Some(index) = self.nodes.iter().position(|node| node.addr == flight.to)
            && self.nodes[index].alive
        {
            self.node_cell(index, flight.from, &mut flight.cell);
        }
    }

    fn client_cell(&mut self, from: SocketAddr, cell: &mut Cell) {
        let mut body = [0; BODY_LEN];
        let result = match self.table.handle_cell(self.now, from, cell, &mut body) {
            ClientVerdict::Body { circuit, hop, seq, header } => {
                let last = self.client.get(circuit).map_or(0, |row| row.path().len() - 1);
                let mut batch = PacketBatch::default();
                let data = header.kind == BodyKind::Data;
                if hop == last {
                    let body = data.then_some(&body);
                    self.reassembler.push(seq, body, &mut batch, &mut self.client_drops);
                }
                self.received.extend(batch.iter().map(<[u8]>::to_vec));
                if data {
                    Ok(())
                } else {
                    self.client.handle_body(self.now, circuit, hop, header, &body, &mut self.rng)
                }
            }
            ClientVerdict::Neighbour { circuit, message } => {
                self.client.handle_neighbour(circuit, message);
                Ok(())
            }
            ClientVerdict::Unknown => self.client.handle_unknown(self.now, cell, &mut self.rng),
            ClientVerdict::Drop(reason) => Err(reason),
        };
        if let Err(reason) = result {
            self.client_drops.count(reason);
        }
        self.drain_client();
    }

    pub(crate) fn send_packet(&mut self, key: CircuitKey, packet: &[u8]) -> Result<(), DropReason> {
        let mut outbox = Outbox::default();
        self.table.send_packet(key, packet, &mut outbox)?;
        self.table.finish(&mut outbox, &mut self.rng);
        self.flush(&outbox);
        Ok(())
    }

    fn flush(&mut self, outbox: &Outbox) {
        let from = self.client_addr;
        for (to, cells) in outbox.runs() {
            for cell in cells.chunks_exact(CELL_LEN) {
                self.send(from, to, cell.try_into().unwrap());
            }
        }
    }

    pub(crate) fn drain_client(&mut self) {
        while let Some(event) = self.client.poll_event() {
            match event {
                ClientEvent::Send { to, cell } => self.send(self.client_addr, to, &cell),
                ClientEvent::Open { key, cid, guard, pair } => {
                    self.table.open(self.now, key, cid, guard, &pair, &mut self.rng);
                }
                ClientEvent::AddHop { key, keys } => {
                    self.table.add_hop(key, &keys, &mut self.rng);
                }
                ClientEvent::SendBody { key, hop, body } => {
                    let mut outbox = Outbox::default();
                    self.table
                        .send_body(key, hop, |to| *to = *body, &mut outbox, &mut self.rng)
                        .unwrap();
                    self.flush(&outbox);
                }
                ClientEvent::Ready { key, .. } => self.ready.push(key),
                ClientEvent::Echo { .. } => {}
                ClientEvent::Closed { key, reason, tell, .. } => {
                    let mut cell = [0; CELL_LEN];
                    let message = PairMessage::Destroy(DestroyReason::Finished);
                    if tell && let Some(to) = self.table.neighbour_cell(key, message, &mut cell) {
                        self.send(self.client_addr, to, &cell);
                    }
                    self.table.remove(key);
                    self.closed.push((key, reason));
                }
            }
        }
    }

    pub(crate) fn node_cell(&mut self, index: usize, from: SocketAddr, cell: &mut Cell) {
        let (now, rng) = (self.now, &mut self.rng);
        let node = &mut self.nodes[index];
        let cid = cid_of(cell);
        let result = match node.table.handle_cell(now, from, cell) {
            Verdict::Relay { to } => {
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
                let (reassembler, _) = node.exit.get_or_insert_default();
                reassembler.push(seq, None, &mut PacketBatch::default(), &mut node.drops);
                let to = node.table.originate(circuit, cell, &mut self.rng)?;
                let addr = node.addr;
                self.send(addr, to, cell);
                Ok(())
            }
            BodyKind::Data => {
                let mut batch = PacketBatch::default();
                let (reassembler, packer) = node.exit.get_or_insert_default();
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
            _ => Err(DropReason::UnknownKind),
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
                NodeEvent::Remove { key, .. } => node.table.remove(key),
            }
        }
    }
}
