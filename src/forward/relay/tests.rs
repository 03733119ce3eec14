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

/// Beside genuine cells: one changed, one of no circuit, and one of the genuine ones again.
fn with_bad_ones(
    genuine: &[[u8; CELL_LEN]],
    rng: &mut StdRng,
) -> (Vec<[u8; CELL_LEN]>, Vec<DropReason>) {
    let mut cells = genuine.to_vec();
    let again = genuine[rng.random_range(0..genuine.len())];
    let mut changed = again;
    // Its number as it is, so that it is not held for a replay by chance.
    changed[CELL_LEN - 1 - rng.random_range(0..1000)] ^= 1 << rng.random_range(0..8);
    cells.insert(0, changed);
    cells.push(again);
    (cells, vec![DropReason::BadTag, DropReason::Replay])
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
            let (mut arrived, bad) = with_bad_ones(&cells, &mut chance);
            let verdicts = circuit.at_node(hop, hop, &mut arrived);
            prop_assert_eq!(verdicts.len(), sent + 2);
            prop_assert_eq!(&verdicts[0], &Verdict::Drop(bad[0]));
            prop_assert_eq!(&verdicts[sent + 1], &Verdict::Drop(bad[1]));
            for verdict in &verdicts[1..=sent] {
                match verdict {
                    Verdict::Relay { to, .. } => prop_assert_eq!(*to, addr(hop + 2)),
                    Verdict::Local { header, .. } => {
                        prop_assert_eq!((hop, header.kind), (HOPS - 1, BodyKind::Data));
                    }
                    other => prop_assert!(false, "{:?}", other),
                }
            }
            cells = arrived[1..=sent].to_vec();
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
            let (mut arrived, bad) = with_bad_ones(&cells, &mut chance);
            let verdicts = circuit.at_node(hop, hop + 2, &mut arrived);
            prop_assert_eq!(&verdicts[0], &Verdict::Drop(bad[0]));
            prop_assert_eq!(&verdicts[sent + 1], &Verdict::Drop(bad[1]));
            for verdict in &verdicts[1..=sent] {
                prop_assert_eq!(verdict, &Verdict::Relay { circuit: KEY, to: addr(hop) });
            }
            cells = arrived[1..=sent].to_vec();
        }
        let (mut arrived, bad) = with_bad_ones(&cells, &mut chance);
        let (now, mut opened) = (circuit.now, std::mem::take(&mut circuit.opened));
        circuit.client.handle_cells(now, addr(1), &mut arrived, &mut opened, &Backwards);
        let mut last = None;
        for (number, opened) in opened.iter_mut().enumerate() {
            match opened.take_verdict() {
                ClientVerdict::Body { hop, seq, header, .. } => {
                    prop_assert!((1..=sent).contains(&number));
                    prop_assert_eq!((hop, header.kind), (2, BodyKind::Data));
                    prop_assert_eq!(&*opened.body, &bodies[number - 1]);
                    prop_assert!(last.is_none_or(|last| seq == last + 1));
                    last = Some(seq);
                }
                ClientVerdict::Drop(reason) => {
                    prop_assert_eq!(reason, bad[usize::from(number > 0)]);
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }
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
