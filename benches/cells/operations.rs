//! The operations that are measured: each prepares its cells, then handles them.
//!
//! In: nothing. Out: operations by name. Called by: the bench's main.

use std::{cell::OnceCell, hint::black_box, net::SocketAddr, time::Instant};

use cepa::{
    circuit::{ClientHandshake, NodeCircuits, NodeLimits, respond},
    forward::{
        ClientTable, ClientVerdict, Opened, Outbox, RelayTable, Verdict,
        stream::{BodySink, Packer, Reassembler},
    },
    keys::{
        BackwardLayer, ForwardLayer, ForwardWrap, HopKeys, Identity, LinkTag, OAEP_LABEL, OnionKey,
        PairKeys, RelayKeys, wrap,
    },
    model::{
        Alone, BODY_LEN, CELL_LEN, Cid, CircuitKey, DropCounters, Hop, NodeId, PacketBatch, Suite,
    },
    node::Workers,
    wire::{OaepPlain, Status, set_cid},
};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

/// Cells of one message of a busy read.
const MESSAGE: usize = 46;
/// Cells of one sample: what a busy read brings, and little enough for the second-level cache.
const BATCH: usize = 256;

type Cell = [u8; CELL_LEN];

/// Something that is measured: `prepare` is not, `run` is.
pub(crate) trait Operation {
    /// How many times one `run` does it.
    fn count(&self) -> usize {
        BATCH
    }

    fn prepare(&mut self) {}

    fn run(&mut self);
}

pub(crate) type Make = fn() -> Box<dyn Operation>;

pub(crate) const OPERATIONS: [(&str, Make); 29] = [
    ("client wrap, 3 hops, aes", || Wrap::made(Suite::Aes128Gcm)),
    ("client wrap, 3 hops, chacha", || Wrap::made(Suite::ChaCha20Poly1305)),
    ("node peel, aes", || Peel::made(Suite::Aes128Gcm)),
    ("node peel, chacha", || Peel::made(Suite::ChaCha20Poly1305)),
    ("node forward, 1 circuit, aes", || Forward::made(Suite::Aes128Gcm, 1, 1)),
    ("node forward, 1 circuit, chacha", || Forward::made(Suite::ChaCha20Poly1305, 1, 1)),
    ("node forward, 10 circuits of 10", || Forward::made(Suite::Aes128Gcm, 10, 10)),
    ("node forward, 10 circuits of 100000", || Forward::made(Suite::Aes128Gcm, 100_000, 10)),
    ("node forward, 1000 circuits of 1000", || Forward::made(Suite::Aes128Gcm, 1000, 1000)),
    ("node forward, 100000 circuits of 100000", || {
        Forward::made(Suite::Aes128Gcm, 100_000, 100_000)
    }),
    ("node add, aes", || Add::made(Suite::Aes128Gcm)),
    ("node add, chacha", || Add::made(Suite::ChaCha20Poly1305)),
    ("node backward, aes", || Backward::made(Suite::Aes128Gcm, 1)),
    ("node backward, aes, 2 threads", || Backward::made(Suite::Aes128Gcm, 2)),
    ("node backward, chacha", || Backward::made(Suite::ChaCha20Poly1305, 1)),
    ("node backward, chacha, 2 threads", || Backward::made(Suite::ChaCha20Poly1305, 2)),
    ("exit open, aes", || Open::made(Suite::Aes128Gcm)),
    ("exit open, chacha", || Open::made(Suite::ChaCha20Poly1305)),
    ("exit seal, aes", || Seal::made(Suite::Aes128Gcm)),
    ("client peel, 3 hops, aes", || ClientPeel::made(Suite::Aes128Gcm, 1)),
    ("client peel, 3 hops, chacha", || ClientPeel::made(Suite::ChaCha20Poly1305, 1)),
    ("client peel, 3 hops, chacha, 2 threads", || ClientPeel::made(Suite::ChaCha20Poly1305, 2)),
    ("client finish, 3 hops, chacha", || ClientFinish::made(Suite::ChaCha20Poly1305, 1)),
    ("client finish, 3 hops, chacha, 2 threads", || ClientFinish::made(Suite::ChaCha20Poly1305, 2)),
    ("stream pack, 1500 bytes", || Box::new(Pack::default())),
    ("stream unpack, 1500 bytes", || Unpack::made()),
    ("noise: a CREATE without mac1", || Noise::made()),
    ("handshake: bare RSA-3072 private operation", || Handshake::made(true)),
    ("handshake: CREATE answered", || Handshake::made(false)),
];

fn rng() -> SmallRng {
    SmallRng::seed_from_u64(7)
}

fn keys(suite: Suite, number: u8) -> HopKeys {
    HopKeys::derive(suite, &[number; 32], &[2; 96])
}

fn pair(suite: Suite, number: u8) -> PairKeys {
    PairKeys::derive(suite, &[number; 32])
}

fn addr(last: u8) -> SocketAddr {
    ([10, 0, 0, last], 5000).into()
}

fn cid(number: usize, side: u8) -> Cid {
    let mut bytes = [side; 16];
    // Mixed, as random ids are: a table must not profit from order.
    let mixed = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bytes[..8].copy_from_slice(&mixed.to_be_bytes());
    Cid::from_bytes(bytes)
}

fn cells() -> Vec<Cell> {
    vec![[0x45; CELL_LEN]; BATCH]
}

fn path(suite: Suite) -> Vec<ForwardWrap> {
    (1..=3).map(|number| ForwardWrap::new(&keys(suite, number))).collect()
}

struct Wrap {
    hops: Vec<ForwardWrap>,
    cells: Vec<Cell>,
    seq: u32,
    rng: SmallRng,
}

impl Wrap {
    fn made(suite: Suite) -> Box<dyn Operation> {
        Box::new(Self { hops: path(suite), cells: cells(), seq: 1, rng: rng() })
    }
}

impl Operation for Wrap {
    fn run(&mut self) {
        for cell in &mut self.cells {
            self.seq += 1;
            wrap(&mut self.hops, &[self.seq; 3], black_box(cell), &mut self.rng);
        }
    }
}

struct Peel {
    hops: Vec<ForwardWrap>,
    layer: ForwardLayer,
    cells: Vec<Cell>,
    seq: u32,
    rng: SmallRng,
}

impl Peel {
    fn made(suite: Suite) -> Box<dyn Operation> {
        let layer = ForwardLayer::new(&keys(suite, 1));
        Box::new(Self { hops: path(suite), layer, cells: cells(), seq: 1, rng: rng() })
    }
}

impl Operation for Peel {
    fn prepare(&mut self) {
        for cell in &mut self.cells {
            self.seq += 1;
            wrap(&mut self.hops[..1], &[self.seq], cell, &mut self.rng);
        }
    }

    fn run(&mut self) {
        for cell in &mut self.cells {
            self.layer.peel(black_box(cell)).expect("the tag is right");
        }
    }
}

/// A client's circuit of three hops.
fn client_table(suite: Suite, rng: &mut SmallRng) -> ClientTable {
    let (mut table, key) = (ClientTable::default(), CircuitKey(0));
    table.open(Instant::now(), key, cid(0, 1), addr(1), &pair(suite, 1), rng);
    for number in 1..=3 {
        table.add_hop(key, &keys(suite, number), rng);
    }
    table
}

/// A client's bodies, three calls' worth, closed and wrapped.
struct ClientFinish {
    table: ClientTable,
    outbox: Outbox,
    threads: usize,
    rng: SmallRng,
}

impl ClientFinish {
    fn made(suite: Suite, threads: usize) -> Box<dyn Operation> {
        let mut rng = rng();
        let table = client_table(suite, &mut rng);
        Box::new(Self { table, outbox: Outbox::default(), threads, rng })
    }
}

impl Operation for ClientFinish {
    fn count(&self) -> usize {
        3 * MESSAGE
    }

    fn prepare(&mut self) {
        self.outbox.clear();
        let mut packet = [0x45; 1200];
        packet[2..4].copy_from_slice(&1200u16.to_be_bytes());
        while self.outbox.len() < self.count() {
            let sent = self.table.send_packet(CircuitKey(0), &packet, &mut self.outbox);
            assert_eq!(sent, Ok(()));
        }
    }

    fn run(&mut self) {
        with_crew(self.threads, |crew| self.table.finish(&mut self.outbox, &mut self.rng, crew));
    }
}

/// Calls `run` with a crew of so many threads. This thread can be of one crew only, so that crew is
/// kept.
fn with_crew(threads: usize, run: impl FnOnce(&Workers)) {
    thread_local! {
        static CREW: OnceCell<Workers> = const { OnceCell::new() };
    }
    match threads {
        1 => run(&Workers::default()),
        threads => CREW.with(|crew| run(crew.get_or_init(|| Workers::start(threads)))),
    }
}

/// A table of circuits that all have the same keys, each under ids of its own.
fn table(suite: Suite, circuits: usize) -> RelayTable {
    let (mut table, now, mut rng) = (RelayTable::default(), Instant::now(), rng());
    let keys = RelayKeys { hop: keys(suite, 1), pair: pair(suite, 1), create: [0; 32] };
    let next = pair(suite, 2);
    for number in 0..circuits {
        let key = CircuitKey(number as u32);
        table.install(now, key, addr(1), cid(number, 1), &keys, &mut rng);
        table.extend(key, addr(2), cid(number, 2), &next);
    }
    table
}

/// The whole of a node's work on a cell towards the exit, `active` circuits taking part at random.
struct Forward {
    table: RelayTable,
    hops: Vec<ForwardWrap>,
    active: usize,
    /// Between two active circuits: they are spread over the table.
    step: usize,
    seqs: Vec<u32>,
    cells: Vec<Cell>,
    verdicts: Vec<Verdict>,
    rng: SmallRng,
}

impl Forward {
    fn made(suite: Suite, circuits: usize, active: usize) -> Box<dyn Operation> {
        Box::new(Self {
            table: table(suite, circuits),
            hops: path(suite),
            active,
            step: circuits / active,
            seqs: vec![1; active],
            cells: cells(),
            verdicts: Vec::new(),
            rng: rng(),
        })
    }
}

impl Operation for Forward {
    fn prepare(&mut self) {
        for cell in &mut self.cells {
            let number = self.rng.random_range(0..self.active);
            self.seqs[number] += 1;
            wrap(&mut self.hops[..2], &[self.seqs[number]; 2], cell, &mut self.rng);
            set_cid(cell, cid(number * self.step, 1));
        }
    }

    fn run(&mut self) {
        let (now, verdicts) = (Instant::now(), &mut self.verdicts);
        for cells in self.cells.chunks_mut(MESSAGE) {
            self.table.handle_cells(now, addr(1), black_box(cells), verdicts, &Alone);
            assert!(verdicts.iter().all(|verdict| matches!(verdict, Verdict::Relay { .. })));
        }
    }
}

struct Add {
    layer: BackwardLayer,
    cells: Vec<Cell>,
    seq: u32,
}

impl Add {
    fn made(suite: Suite) -> Box<dyn Operation> {
        let layer = BackwardLayer::new(&keys(suite, 1));
        Box::new(Self { layer, cells: cells(), seq: 1 })
    }
}

impl Operation for Add {
    fn run(&mut self) {
        for cell in &mut self.cells {
            self.seq += 1;
            self.layer.add(self.seq, black_box(cell));
        }
    }
}

/// The whole of a node's work on a cell towards the client.
struct Backward {
    table: RelayTable,
    exit: BackwardLayer,
    tag: LinkTag,
    cells: Vec<Cell>,
    verdicts: Vec<Verdict>,
    threads: usize,
    seq: u32,
    rng: SmallRng,
}

impl Backward {
    fn made(suite: Suite, threads: usize) -> Box<dyn Operation> {
        Box::new(Self {
            verdicts: Vec::new(),
            threads,
            table: table(suite, 1),
            exit: BackwardLayer::new(&keys(suite, 2)),
            tag: LinkTag::new(&pair(suite, 2)),
            cells: cells(),
            seq: 1,
            rng: rng(),
        })
    }
}

impl Operation for Backward {
    fn prepare(&mut self) {
        for cell in &mut self.cells {
            self.seq += 1;
            self.exit.originate(self.seq, cell, &mut self.rng);
            set_cid(cell, cid(0, 2));
            self.tag.tag(cell);
        }
    }

    fn run(&mut self) {
        let (now, verdicts) = (Instant::now(), &mut self.verdicts);
        with_crew(self.threads, |crew| {
            for cells in self.cells.chunks_mut(MESSAGE) {
                self.table.handle_cells(now, addr(2), black_box(cells), verdicts, crew);
                assert!(verdicts.iter().all(|verdict| matches!(verdict, Verdict::Relay { .. })));
            }
        });
    }
}

/// A data cell whose body is for the node.
struct Open {
    table: RelayTable,
    hops: Vec<ForwardWrap>,
    cells: Vec<Cell>,
    seq: u32,
    rng: SmallRng,
}

impl Open {
    fn made(suite: Suite) -> Box<dyn Operation> {
        let hops = path(suite);
        Box::new(Self { table: table(suite, 1), hops, cells: cells(), seq: 1, rng: rng() })
    }
}

impl Operation for Open {
    fn prepare(&mut self) {
        for cell in &mut self.cells {
            self.seq += 1;
            *cell = [0; CELL_LEN];
            wrap(&mut self.hops[..1], &[self.seq], cell, &mut self.rng);
            set_cid(cell, cid(0, 1));
        }
    }

    fn run(&mut self) {
        let now = Instant::now();
        for cell in &mut self.cells {
            let verdict = self.table.handle_cell(now, addr(1), black_box(cell));
            assert!(matches!(verdict, Verdict::Local { .. }));
        }
    }
}

struct Seal {
    table: RelayTable,
    cells: Vec<Cell>,
    rng: SmallRng,
}

impl Seal {
    fn made(suite: Suite) -> Box<dyn Operation> {
        Box::new(Self { table: table(suite, 1), cells: cells(), rng: rng() })
    }
}

impl Operation for Seal {
    fn run(&mut self) {
        for cell in &mut self.cells {
            let sealed = self.table.originate(CircuitKey(0), black_box(cell), &mut self.rng);
            assert!(sealed.is_ok());
        }
    }
}

struct ClientPeel {
    table: ClientTable,
    layers: Vec<BackwardLayer>,
    tag: LinkTag,
    cells: Vec<Cell>,
    opened: Vec<Opened>,
    threads: usize,
    seq: u32,
    rng: SmallRng,
}

impl ClientPeel {
    fn made(suite: Suite, threads: usize) -> Box<dyn Operation> {
        let mut rng = rng();
        let table = client_table(suite, &mut rng);
        Box::new(Self {
            table,
            layers: (1..=3).map(|number| BackwardLayer::new(&keys(suite, number))).collect(),
            tag: LinkTag::new(&pair(suite, 1)),
            cells: cells(),
            opened: Vec::new(),
            threads,
            seq: 1,
            rng,
        })
    }
}

impl Operation for ClientPeel {
    fn prepare(&mut self) {
        for cell in &mut self.cells {
            self.seq += 1;
            *cell = [0; CELL_LEN];
            self.layers[2].originate(self.seq, cell, &mut self.rng);
            self.layers[1].add(self.seq, cell);
            self.layers[0].add(self.seq, cell);
            set_cid(cell, cid(0, 1));
            self.tag.tag(cell);
        }
    }

    fn run(&mut self) {
        let (now, opened) = (Instant::now(), &mut self.opened);
        with_crew(self.threads, |crew| {
            for cells in self.cells.chunks_mut(MESSAGE) {
                self.table.handle_cells(now, addr(1), black_box(cells), opened, crew);
                for opened in &mut opened[..cells.len()] {
                    let verdict = opened.take_verdict();
                    assert!(matches!(verdict, ClientVerdict::Body { hop: 2, .. }));
                }
            }
        });
    }
}

/// Bodies under construction.
struct Bodies {
    bodies: Vec<[u8; BODY_LEN]>,
    used: usize,
}

impl Default for Bodies {
    fn default() -> Self {
        Self { bodies: vec![[0; BODY_LEN]; 2 * BATCH], used: 0 }
    }
}

impl BodySink for Bodies {
    fn next_body(&mut self) -> &mut [u8; BODY_LEN] {
        self.used += 1;
        self.body()
    }

    fn body(&mut self) -> &mut [u8; BODY_LEN] {
        &mut self.bodies[self.used - 1]
    }
}

fn packet() -> Vec<u8> {
    let mut packet = vec![7; 1500];
    packet[..4].copy_from_slice(&[0x45, 0, 0x05, 0xdc]);
    packet
}

/// Per packet, not per cell.
#[derive(Default)]
struct Pack {
    bodies: Bodies,
}

impl Operation for Pack {
    fn run(&mut self) {
        let (mut packer, packet) = (Packer::new(), packet());
        self.bodies.used = 0;
        for _ in 0..BATCH {
            packer.push(black_box(&packet), &mut self.bodies).expect("the packet is whole");
        }
        packer.flush(&mut self.bodies);
    }
}

struct Unpack {
    bodies: Vec<[u8; BODY_LEN]>,
    reassembler: Reassembler,
    out: PacketBatch,
    seq: u32,
}

impl Unpack {
    fn made() -> Box<dyn Operation> {
        let mut pack = Pack::default();
        pack.run();
        let mut bodies = pack.bodies.bodies;
        bodies.truncate(pack.bodies.used);
        Box::new(Self {
            bodies,
            reassembler: Reassembler::new(),
            out: PacketBatch::default(),
            seq: 0,
        })
    }
}

impl Operation for Unpack {
    fn run(&mut self) {
        let mut drops = DropCounters::default();
        self.out.clear();
        for body in &self.bodies {
            self.reassembler.push(self.seq, Some(black_box(body)), &mut self.out, &mut drops);
            self.seq += 1;
        }
        assert_eq!(self.out.len(), BATCH);
    }
}

/// What a datagram of the right size that begins like a CREATE costs a node.
struct Noise {
    table: RelayTable,
    circuits: NodeCircuits,
    cells: Vec<Cell>,
    rng: SmallRng,
}

impl Noise {
    fn made() -> Box<dyn Operation> {
        let (now, mut rng) = (Instant::now(), rng());
        let id = NodeId::from_bytes([1; 32]);
        let circuits = NodeCircuits::new(id, vec![[2; 8]], NodeLimits::default(), now, &mut rng);
        let mut cells = cells();
        for (number, cell) in cells.iter_mut().enumerate() {
            set_cid(cell, cid(number, 9));
            cell[16..18].copy_from_slice(&[0, 1]);
        }
        Box::new(Self { table: table(Suite::Aes128Gcm, 10), circuits, cells, rng })
    }
}

impl Operation for Noise {
    fn run(&mut self) {
        let now = Instant::now();
        for cell in &mut self.cells {
            assert_eq!(self.table.handle_cell(now, addr(3), cell), Verdict::Unknown);
            let result = self.circuits.handle_unknown(now, addr(3), black_box(cell), &mut self.rng);
            assert!(result.is_err());
        }
    }
}

/// A CREATE with a fresh block, answered; or only its block opened.
struct Handshake {
    bare: bool,
    identity: Identity,
    onion_key: OnionKey,
    client: ClientHandshake,
    rng: SmallRng,
}

impl Handshake {
    fn made(bare: bool) -> Box<dyn Operation> {
        let mut rng = rng();
        let identity = Identity::from_pkcs8(include_bytes!("../../tests/keys/test-only-0.pk8"))
            .expect("a key of the tests");
        let onion_key = OnionKey::generate(&mut rng).expect("a key");
        let hop = Hop {
            id: identity.id(),
            name: "n1".to_owned(),
            addr: addr(1),
            identity_spki: identity.spki_der().into(),
            onion_key_id: onion_key.id(),
            onion_key: *onion_key.public(),
            suite: Suite::Aes128Gcm,
            is_exit: false,
        };
        let client =
            ClientHandshake::start(hop, Suite::Aes128Gcm, &mut rng).expect("the keys are right");
        Box::new(Self { bare, identity, onion_key, client, rng })
    }
}

impl Operation for Handshake {
    fn count(&self) -> usize {
        8
    }

    fn run(&mut self) {
        for _ in 0..self.count() {
            let prefix = black_box(self.client.prefix());
            if self.bare {
                let block =
                    self.identity.decrypt_oaep(prefix.oaep(), OAEP_LABEL).expect("our block");
                assert!(OaepPlain::parse(&block).is_some());
            } else {
                let done =
                    respond(&self.identity, &self.onion_key, prefix, Status::Open, &mut self.rng);
                assert!(done.is_ok());
            }
        }
    }
}
