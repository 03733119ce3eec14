//! What one packet costs on its way through cells: packing, reassembly, the exit, the flow map.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use cepa::{
    forward::{
        exit::{AddressPool, ExitLimits, ExitTable, PoolAddress},
        flow::FlowMap,
        stream::{BodySink, Packer, Reassembler},
    },
    model::{
        BODY_LEN, CLIENT_INNER_V4, CircuitKey, DropCounters, ExitPolicy, PacketBatch, STREAM_LEN,
    },
};
use divan::{Bencher, black_box, counter::BytesCount, counter::ItemsCount};
use etherparse::PacketBuilder;

/// The packets of one turn of the event loop.
const BATCH: usize = 64;
const LENGTHS: [usize; 3] = [64, 576, 1500];
const KEY: CircuitKey = CircuitKey(0);

fn main() {
    divan::main();
}

/// Cells under construction, reused from turn to turn.
struct Bodies {
    bodies: Vec<[u8; BODY_LEN]>,
    used: usize,
}

impl Bodies {
    fn for_packets_of(len: usize) -> Self {
        let most = BATCH * len / STREAM_LEN + 2;
        Self { bodies: vec![[0; BODY_LEN]; most], used: 0 }
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

fn tcp(source: Ipv4Addr, destination: Ipv4Addr, port: u16, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len);
    PacketBuilder::ipv4(source.octets(), destination.octets(), 64)
        .tcp(port, 443, 1, 1024)
        .ack(1)
        .write(&mut bytes, &vec![7; len - 40])
        .expect("a packet of this length is legal");
    bytes
}

fn outgoing(len: usize) -> Vec<Vec<u8>> {
    let to = Ipv4Addr::new(198, 51, 100, 1);
    (0..BATCH as u16).map(|index| tcp(CLIENT_INNER_V4, to, 4000 + index % 8, len)).collect()
}

fn pack(packets: &[Vec<u8>], bodies: &mut Bodies) {
    let mut packer = Packer::new();
    bodies.used = 0;
    for packet in packets {
        packer.push(packet, bodies).expect("the packet is whole");
    }
    packer.flush(bodies);
}

fn packed(len: usize) -> Vec<[u8; BODY_LEN]> {
    let mut bodies = Bodies::for_packets_of(len);
    pack(&outgoing(len), &mut bodies);
    bodies.bodies.truncate(bodies.used);
    bodies.bodies
}

#[divan::bench(args = LENGTHS)]
fn packing(bencher: Bencher, len: usize) {
    let packets = outgoing(len);
    let mut bodies = Bodies::for_packets_of(len);
    bencher
        .counter(ItemsCount::new(BATCH))
        .counter(BytesCount::new(BATCH * len))
        .bench_local(|| pack(black_box(&packets), &mut bodies));
}

#[divan::bench(args = LENGTHS)]
fn reassembly(bencher: Bencher, len: usize) {
    let bodies = packed(len);
    let mut reassembler = Reassembler::new();
    let (mut out, mut drops, mut seq) = (PacketBatch::default(), DropCounters::default(), 0);
    bencher.counter(ItemsCount::new(BATCH)).counter(BytesCount::new(BATCH * len)).bench_local(
        || {
            out.clear();
            for body in black_box(&bodies) {
                reassembler.push(seq, Some(body), &mut out, &mut drops);
                seq += 1;
            }
            assert_eq!(out.len(), BATCH);
        },
    );
}

fn exit(now: Instant) -> (ExitTable, PoolAddress) {
    let v4 = (Ipv4Addr::new(100, 65, 0, 0), 16);
    let v6 = ("fd63:6570:6101::".parse().expect("an address"), 64);
    let pool = AddressPool::new(v4, v6, Duration::from_secs(60)).expect("two networks");
    let own =
        ["203.0.113.9", "2001:db8::9", "10.0.0.9"].map(|own| own.parse().expect("an address"));
    let policy = ExitPolicy::default().with_own_addresses(&own);
    let mut table = ExitTable::new(policy, ExitLimits::default(), pool, now);
    let address = table.attach(KEY, now).expect("a fresh pool");
    (table, address)
}

/// Reassembly, policy, connection count and rewriting together.
#[divan::bench(args = LENGTHS)]
fn exit_outbound(bencher: Bencher, len: usize) {
    let now = Instant::now();
    let (mut table, _) = exit(now);
    let bodies = packed(len);
    let (mut device, mut replies) = (PacketBatch::default(), PacketBatch::default());
    let (mut drops, mut seq) = (DropCounters::default(), 0);
    bencher.counter(ItemsCount::new(BATCH)).counter(BytesCount::new(BATCH * len)).bench_local(
        || {
            device.clear();
            for body in black_box(&bodies) {
                table.outbound(now, KEY, seq, Some(body), &mut device, &mut replies, &mut drops);
                seq += 1;
            }
            assert_eq!(device.len(), BATCH);
        },
    );
}

/// Rewriting of what the device read, in place; the copy that restores the header is counted in.
#[divan::bench(args = LENGTHS)]
fn exit_inbound(bencher: Bencher, len: usize) {
    let (table, address) = exit(Instant::now());
    let answer = tcp(Ipv4Addr::new(198, 51, 100, 1), address.v4, 443, len);
    let mut packets = vec![answer.clone(); BATCH];
    bencher.counter(ItemsCount::new(BATCH)).counter(BytesCount::new(BATCH * len)).bench_local(
        || {
            for packet in black_box(&mut packets) {
                packet[..40].copy_from_slice(&answer[..40]);
                assert_eq!(table.inbound(packet), Ok(KEY));
            }
        },
    );
}

/// Lookups among as many flows as there are.
#[divan::bench(args = [64, 4096, 65536])]
fn flow_map(bencher: Bencher, flows: usize) {
    let now = Instant::now();
    let mut map = FlowMap::new(flows);
    let packets: Vec<_> = (0..flows as u32)
        .map(|flow| {
            let to = Ipv4Addr::from_bits(0x0800_0000 + flow);
            tcp(CLIENT_INNER_V4, to, 4000, 64)
        })
        .collect();
    let mut at = 0;
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| {
        for _ in 0..BATCH {
            at = (at + 7919) % packets.len();
            let circuit = map.route(now, black_box(&packets[at]), || Some(KEY));
            assert_eq!(circuit, Ok(KEY));
        }
    });
}
