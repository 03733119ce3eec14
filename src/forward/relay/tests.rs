//! Batches that are shared out: what comes of each cell is what comes of it alone.

use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    forward::{ClientTable, ClientVerdict, Opened},
    keys::{HopKeys, PairKeys},
    model::{BodyKind, Suite},
    wire::{body_mut, body_ref},
};

const KEY: CircuitKey = CircuitKey(0);
const HOPS: u8 = 3;

/// Works from the last cell to the first, whatever their number.
struct Backwards;

impl Crew for Backwards {
    fn shares(&self, _: usize) -> bool {
        true
    }

    fn each<N: Send>(
        &self,
        cells: &mut [[u8; CELL_LEN]],
        notes: &mut [N],
        work: impl Fn(&mut [u8; CELL_LEN], &mut N) + Sync,
    ) {
        cells.iter_mut().zip(notes).rev().for_each(|(cell, note)| work(cell, note));
    }
}

fn addr(host: u8) -> SocketAddr {
    ([10, 0, 0, host], 5000).into()
}

fn cid(link: u8) -> Cid {
    Cid::from_bytes([link + 1; 16])
}

/// A circuit of three hops: its client at host 0, its nodes at 1 to 3.
struct Circuit {
    client: ClientTable,
    nodes: Vec<RelayTable>,
    opened: Vec<Opened>,
    verdicts: Vec<Verdict>,
    now: Instant,
    rng: StdRng,
}

impl Circuit {
    fn new(suites: [Suite; 3], seed: u64) -> Self {
        let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(seed));
        let pair = |link: u8| PairKeys::derive(suites[usize::from(link)], &[link; 32]);
        let mut client = ClientTable::default();
        client.open(now, KEY, cid(0), addr(1), &pair(0), &mut rng);
        let mut nodes = Vec::new();
        for hop in 0..HOPS {
            let keys = HopKeys::derive(suites[usize::from(hop)], &[hop ^ 0x77; 32], &[2; 96]);
            client.add_hop(KEY, &keys, &mut rng);
            let mut node = RelayTable::default();
            let keys = RelayKeys { hop: keys, pair: pair(hop), create: [0; 32] };
            node.install(now, KEY, addr(hop), cid(hop), &keys, &mut rng);
            if hop + 1 < HOPS {
                node.extend(KEY, addr(hop + 2), cid(hop + 1), &pair(hop + 1));
            }
            nodes.push(node);
        }
        Self { client, nodes, opened: Vec::new(), verdicts: Vec::new(), now, rng }
    }

    /// Has a node look at cells of the host beside it.
    fn at_node(&mut self, hop: u8, from: u8, cells: &mut [[u8; CELL_LEN]]) -> Vec<Verdict> {
        let node = &mut self.nodes[usize::from(hop)];
        node.handle_cells(self.now, addr(from), cells, &mut self.verdicts, &Backwards);
        std::mem::take(&mut self.verdicts)
    }
}

/// Genuine cells, among them one that was changed and at their end one of them again.
struct Mixed {
    cells: Vec<[u8; CELL_LEN]>,
    changed: usize,
}

impl Mixed {
    fn new(genuine: &[[u8; CELL_LEN]], rng: &mut StdRng) -> Self {
        let again = genuine[rng.random_range(0..genuine.len())];
        let mut bad = again;
        // Its number as it is, so that it is not held for a replay by chance.
        bad[CELL_LEN - 1 - rng.random_range(0..1000)] ^= 1 << rng.random_range(0..8);
        let (mut cells, changed) = (genuine.to_vec(), genuine.len() / 2);
        cells.insert(changed, bad);
        cells.push(again);
        Self { cells, changed }
    }

    /// Why the cell of this index must be dropped, if it must.
    fn fault(&self, index: usize) -> Option<DropReason> {
        match index {
            index if index == self.changed => Some(DropReason::BadTag),
            index if index + 1 == self.cells.len() => Some(DropReason::Replay),
            _ => None,
        }
    }

    fn genuine(mut self) -> Vec<[u8; CELL_LEN]> {
        self.cells.remove(self.changed);
        self.cells.pop();
        self.cells
    }
}

fn suites() -> impl Strategy<Value = [Suite; 3]> {
    let one = || prop::sample::select(Suite::ALL.to_vec());
    (one(), one(), one()).prop_map(|(one, two, three)| [one, two, three])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn batches_go_out_and_back_in_order(
        suites in suites(), seed: u64, lens in prop::collection::vec(40usize..1400, 1..40),
    ) {
        let mut circuit = Circuit::new(suites, seed);
        let mut chance = StdRng::seed_from_u64(seed ^ 1);
        let mut outbox = Outbox::default();
        for len in &lens {
            let mut packet = vec![0x45; *len];
            packet[2..4].copy_from_slice(&(*len as u16).to_be_bytes());
            circuit.client.send_packet(KEY, &packet, &mut outbox).unwrap();
        }
        circuit.client.finish(&mut outbox, &mut circuit.rng, &Backwards);
        let sent = outbox.len();
        let mut cells = outbox.cells_mut().to_vec();
        for hop in 0..HOPS {
            let mut arrived = Mixed::new(&cells, &mut chance);
            let verdicts = circuit.at_node(hop, hop, &mut arrived.cells);
            prop_assert_eq!(verdicts.len(), sent + 2);
            for (index, verdict) in verdicts.iter().enumerate() {
                match (arrived.fault(index), verdict) {
                    (Some(reason), verdict) => prop_assert_eq!(verdict, &Verdict::Drop(reason)),
                    (None, Verdict::Relay { to, .. }) => prop_assert_eq!(*to, addr(hop + 2)),
                    (None, Verdict::Local { header, .. }) => {
                        prop_assert_eq!((hop, header.kind), (HOPS - 1, BodyKind::Data));
                    }
                    (None, other) => prop_assert!(false, "{:?}", other),
                }
            }
            cells = arrived.genuine();
        }
        // What came out goes back, packet by packet, over the same nodes.
        let mut outbox = Outbox::default();
        let exit = &mut circuit.nodes[usize::from(HOPS - 1)];
        for len in &lens {
            let mut packet = vec![0x45; *len];
            packet[2..4].copy_from_slice(&(*len as u16).to_be_bytes());
            exit.send_packet(KEY, &packet, &mut outbox).unwrap();
        }
        exit.finish(&mut outbox, &mut circuit.rng, &Backwards);
        let bodies: Vec<_> = cells.iter().map(|cell| *body_ref(cell)).collect();
        prop_assert_eq!(outbox.len(), sent, "the same packets fill the same bodies");
        let mut cells = outbox.cells_mut().to_vec();
        for hop in (0..HOPS - 1).rev() {
            let mut arrived = Mixed::new(&cells, &mut chance);
            let verdicts = circuit.at_node(hop, hop + 2, &mut arrived.cells);
            prop_assert_eq!(verdicts.len(), sent + 2);
            for (index, verdict) in verdicts.into_iter().enumerate() {
                let goes_on = Verdict::Relay { circuit: KEY, to: addr(hop) };
                prop_assert_eq!(verdict, arrived.fault(index).map_or(goes_on, Verdict::Drop));
            }
            cells = arrived.genuine();
            // Whoever watches both links sees nothing on this one of what was sent to the other.
            let numbers = cells.iter().map(first_seq);
            prop_assert!(numbers.clone().skip(1).zip(numbers).all(|(next, seq)| next == seq + 1));
        }
        let mut arrived = Mixed::new(&cells, &mut chance);
        let (now, mut opened) = (circuit.now, std::mem::take(&mut circuit.opened));
        circuit.client.handle_cells(now, addr(1), &mut arrived.cells, &mut opened, &Backwards);
        let mut bodies = bodies.iter();
        for (index, opened) in opened.iter_mut().enumerate() {
            match (arrived.fault(index), opened.take_verdict()) {
                (Some(reason), verdict) => prop_assert_eq!(verdict, ClientVerdict::Drop(reason)),
                (None, ClientVerdict::Body { hop, header, .. }) => {
                    prop_assert_eq!((hop, header.kind), (2, BodyKind::Data));
                    prop_assert_eq!(Some(&*opened.body), bodies.next());
                }
                (None, other) => prop_assert!(false, "{:?}", other),
            }
        }
        prop_assert_eq!(bodies.next(), None);
    }
}

/// What is no circuit's says so, in the middle of others.
#[test]
fn cells_of_no_circuit_keep_their_place() {
    let mut circuit = Circuit::new([Suite::Aes128Gcm; 3], 5);
    let mut outbox = Outbox::default();
    for _ in 0..3 {
        let write = |body: &mut [u8; crate::model::BODY_LEN]| body[0] = 1;
        circuit.client.send_body(KEY, 0, write, &mut outbox, &mut circuit.rng).unwrap();
    }
    let mut cells = outbox.cells_mut().to_vec();
    set_cid(&mut cells[1], cid(9));
    let verdicts = circuit.at_node(0, 0, &mut cells);
    assert_eq!(verdicts[1], Verdict::Unknown);
    assert!(verdicts.iter().step_by(2).all(|verdict| *verdict != Verdict::Unknown));
    assert_eq!(body_mut(&mut cells[0])[0], 1);
}
