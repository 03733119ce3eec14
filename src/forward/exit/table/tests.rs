//! A client's packets through cells to the device, and what comes back.

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::{
    forward::{
        sample::{Kind, Sample, icmp_error, ip, samples},
        stream::{BodySink, Packer},
    },
    model::{CLIENT_INNER_V4, CLIENT_INNER_V6},
};

const CLIENT: &str = "100.64.0.2";
const CLIENT6: &str = "fd63:6570:6100::2";
const KEY: CircuitKey = CircuitKey(7);

#[derive(Default)]
struct Bodies(Vec<[u8; BODY_LEN]>);

impl BodySink for Bodies {
    fn next_body(&mut self) -> &mut [u8; BODY_LEN] {
        self.0.push([0; BODY_LEN]);
        self.body()
    }

    fn body(&mut self) -> &mut [u8; BODY_LEN] {
        self.0.last_mut().unwrap()
    }
}

/// An exit, and what it gave out.
struct Exit {
    table: ExitTable,
    now: Instant,
    seq: u32,
    device: PacketBatch,
    replies: PacketBatch,
    drops: DropCounters,
}

impl Exit {
    fn new(policy: &str, limits: ExitLimits) -> Self {
        let now = Instant::now();
        let v4 = (Ipv4Addr::new(100, 65, 0, 0), 16);
        let v6 = ("fd63:6570:6101::".parse().unwrap(), 64);
        let pool = AddressPool::new(v4, v6, Duration::from_secs(60)).unwrap();
        let mut table = ExitTable::new(policy.parse().unwrap(), limits, pool, now);
        table.attach(KEY, now).unwrap();
        let (device, replies) = Default::default();
        Self { table, now, seq: 1 << 29, device, replies, drops: DropCounters::default() }
    }

    /// Sends packets as the client does.
    fn send(&mut self, key: CircuitKey, packets: &[Vec<u8>]) {
        let mut bodies = Bodies::default();
        let mut packer = Packer::new();
        for packet in packets {
            packer.push(packet, &mut bodies).unwrap();
        }
        packer.flush(&mut bodies);
        self.device.clear();
        self.replies.clear();
        for body in &bodies.0 {
            let Self { table, device, replies, drops, .. } = self;
            table.outbound(self.now, key, self.seq, Some(body), device, replies, drops);
            self.seq += 1;
        }
    }

    fn sent(&self) -> Vec<Vec<u8>> {
        self.device.iter().map(<[u8]>::to_vec).collect()
    }

    /// Sends one packet and says why it did not leave.
    fn refusal(&mut self, packet: &[u8]) -> Option<DropReason> {
        let before = self.drops.clone();
        self.send(KEY, &[packet.to_vec()]);
        let reason = self.drops.iter().find(|(reason, count)| before.get(*reason) < *count);
        assert_eq!(self.device.is_empty(), reason.is_some());
        reason.map(|(reason, _)| reason)
    }
}

fn sample(destination: &str, port: u16, kind: Kind) -> Sample {
    let source = if destination.contains(':') { CLIENT6 } else { CLIENT };
    Sample::new(source, destination, (4000, port), kind)
}

proptest! {
    #[test]
    fn packets_leave_whole_with_the_pool_address_and_answers_find_their_circuit(
        samples in prop::collection::vec(
            samples(CLIENT_INNER_V4.into(), CLIENT_INNER_V6.into()),
            1..20,
        ),
        keys in prop::collection::vec(0..5u32, 20),
    ) {
        let mut exit = Exit::new("", ExitLimits::default());
        for (sample, key) in samples.into_iter().zip(keys) {
            let key = CircuitKey(key);
            let address = exit.table.attach(key, exit.now).unwrap();
            prop_assert_eq!(exit.table.attach(key, exit.now), Ok(address));
            let pool = if sample.source.is_ipv4() { address.v4.into() } else { IpAddr::from(address.v6) };
            let of_pool = Sample { source: pool, ..sample.clone() };
            exit.send(key, &[sample.build()]);
            prop_assert_eq!(exit.sent(), vec![of_pool.build()]);
            let turn = |sample: &Sample| Sample {
                source: sample.destination,
                destination: sample.source,
                ..sample.clone()
            };
            let mut answer = turn(&of_pool).build();
            prop_assert_eq!(exit.table.inbound(&mut answer), Ok(key));
            prop_assert_eq!(answer, turn(&sample).build());
        }
        prop_assert_eq!(exit.drops.iter().count(), 0);
    }
}

#[test]
fn a_rejected_packet_is_answered_with_icmp() {
    let mut exit = Exit::new("reject:*:25", ExitLimits::default());
    for (destination, port, kind) in [
        ("8.8.8.8", 25, Kind::TcpSyn),
        ("192.168.1.1", 80, Kind::Udp),
        ("127.0.0.1", 80, Kind::UdpUnchecked),
        ("169.254.169.254", 80, Kind::EchoRequest),
        ("2001:db8::1", 25, Kind::TcpSyn),
        ("fd00::1", 80, Kind::Udp),
        ("fe80::1", 80, Kind::EchoRequest),
    ] {
        let mut rejected = sample(destination, port, kind);
        rejected.payload = vec![5; 1300];
        let packet = rejected.build();
        assert_eq!(exit.refusal(&packet), Some(DropReason::ExitPolicy), "{destination}");
        let replies: Vec<Vec<u8>> = exit.replies.iter().map(<[u8]>::to_vec).collect();
        let [reply] = &replies[..] else { panic!("{} replies for {destination}", replies.len()) };
        let headers = Headers::parse(reply).unwrap();
        assert_eq!(headers.destination(reply), rejected.source);
        let quoted = &reply[headers.quoted_at(reply).unwrap()..];
        assert_eq!(*quoted, packet[..quoted.len()]);
        // The same message as etherparse builds it.
        let parsed = etherparse::SlicedPacket::from_ip(reply).unwrap();
        match parsed.transport.unwrap() {
            etherparse::TransportSlice::Icmpv4(icmp) => {
                assert_eq!((icmp.type_u8(), icmp.code_u8(), reply.len()), (3, 13, 576));
                let mut header = icmp.header();
                header.update_checksum(icmp.payload());
                assert_eq!(header.checksum, icmp.checksum());
                let (ip, _) = etherparse::Ipv4Header::from_slice(reply).unwrap();
                assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                assert_eq!(ip.source, crate::model::EXIT_INNER_V4.octets());
            }
            etherparse::TransportSlice::Icmpv6(icmp) => {
                assert_eq!((icmp.type_u8(), icmp.code_u8(), reply.len()), (1, 1, 1280));
                let source = crate::model::EXIT_INNER_V6.octets();
                assert!(icmp.is_checksum_valid(source, CLIENT_INNER_V6.octets()));
            }
            other => panic!("{other:?}"),
        }
    }
    for (destination, port) in [("8.8.8.8", 26), ("2001:db8::1", 26)] {
        assert_eq!(exit.refusal(&sample(destination, port, Kind::Tcp).build()), None);
    }
}

#[test]
fn some_packets_are_dropped_in_silence() {
    let mut exit = Exit::new("", ExitLimits::default());
    let mut large = sample("10.0.0.1", 80, Kind::Udp);
    large.payload = vec![0; 2000];
    let about_an_answer = Sample::new("10.0.0.1", CLIENT, (1, 2), Kind::Udp).build();
    for packet in [
        sample("224.0.0.251", 5353, Kind::Udp).build(),
        sample("255.255.255.255", 67, Kind::Udp).build(),
        sample("ff02::fb", 5353, Kind::Udp).build(),
        large.fragments(1480, 1)[1].clone(),
        icmp_error(ip(CLIENT), ip("10.0.0.1"), 3, &about_an_answer),
    ] {
        assert_eq!(exit.refusal(&packet), Some(DropReason::ExitPolicy));
        assert!(exit.replies.is_empty());
    }
    let stranger = Sample::new("100.64.0.9", "8.8.8.8", (1, 2), Kind::Udp).build();
    assert_eq!(exit.refusal(&stranger), Some(DropReason::InnerSource));
    assert!(exit.replies.is_empty());
    let redirect = icmp_error(ip(CLIENT), ip("8.8.8.8"), 5, &about_an_answer);
    assert_eq!(exit.refusal(&redirect), Some(DropReason::ExitPolicy));
    let solicitation = icmp_error(ip(CLIENT6), ip("2001:db8::1"), 135, &[0; 20]);
    assert_eq!(exit.refusal(&solicitation), Some(DropReason::ExitPolicy));
}

#[test]
fn later_fragments_follow_the_policy_of_the_address() {
    let mut exit = Exit::new("accept:8.8.8.8:53,reject:*", ExitLimits::default());
    let mut large = sample("8.8.8.8", 53, Kind::Udp);
    large.payload = vec![0; 2000];
    exit.send(KEY, &large.fragments(1480, 1));
    assert_eq!(exit.device.len(), 2);
    large.destination = ip("8.8.4.4");
    exit.send(KEY, &large.fragments(1480, 1));
    assert_eq!(exit.device.len(), 0);
    assert_eq!(exit.drops.get(DropReason::ExitPolicy), 2);
}

#[test]
fn circuits_do_not_reach_each_other() {
    let mut exit = Exit::new("", ExitLimits::default());
    exit.table.rules.policy = ExitPolicy::default().lab();
    let other = exit.table.attach(CircuitKey(8), exit.now).unwrap();
    for destination in [
        other.v4.to_string(),
        other.v6.to_string(),
        "100.65.0.1".to_owned(),
        "100.65.255.255".to_owned(),
        "fd63:6570:6101::ffff:1".to_owned(),
        CLIENT.to_owned(),
        CLIENT6.to_owned(),
    ] {
        let packet = sample(&destination, 80, Kind::Tcp).build();
        assert_eq!(exit.refusal(&packet), Some(DropReason::PoolToPool), "{destination}");
    }
    assert_eq!(exit.refusal(&sample("192.168.1.1", 80, Kind::Tcp).build()), None);
    // Should the kernel turn one around all the same, it stops here.
    let mut packet = Sample::new("100.65.0.2", &other.v4.to_string(), (1, 2), Kind::Tcp).build();
    assert_eq!(exit.table.inbound(&mut packet), Err(DropReason::PoolToPool));
}

#[test]
fn errors_of_the_exits_own_kernel_reach_the_client() {
    let exit = Exit::new("", ExitLimits::default());
    let pool = exit.table.info(KEY).unwrap().address;
    let device = exit.table.pool().device_address();
    let sent = Sample::new(&pool.v4.to_string(), "8.8.8.8", (4000, 80), Kind::Tcp);
    let mut error = icmp_error(device.v4.into(), pool.v4.into(), 11, &sent.build()[..28]);
    assert_eq!(exit.table.inbound(&mut error), Ok(KEY));
    let quoted = Sample { source: ip(CLIENT), ..sent };
    assert_eq!(error, icmp_error(device.v4.into(), ip(CLIENT), 11, &quoted.build()[..28]));
}

#[test]
fn addresses_without_a_circuit_are_nobodys() {
    let mut exit = Exit::new("", ExitLimits::default());
    let to = |address: &str| {
        let source = if address.contains(':') { "2001:db8::1" } else { "8.8.8.8" };
        Sample::new(source, address, (53, 4000), Kind::Udp).build()
    };
    for address in ["100.65.0.1", "100.65.9.9", "1.1.1.1", "fd63:6570:6101::99", "fe80::1"] {
        let result = exit.table.inbound(&mut to(address));
        assert_eq!(result, Err(DropReason::NoSuchPoolAddress), "{address}");
    }
    assert_eq!(exit.table.inbound(&mut [0x45; 30]), Err(DropReason::BadInnerPacket));
    let pool = exit.table.info(KEY).unwrap().address;
    assert_eq!(exit.table.inbound(&mut to(&pool.v4.to_string())), Ok(KEY));
    assert!(exit.table.detach(KEY));
    assert!(!exit.table.detach(KEY));
    let result = exit.table.inbound(&mut to(&pool.v4.to_string()));
    assert_eq!(result, Err(DropReason::NoSuchPoolAddress));
    assert_eq!(exit.table.poll_released(exit.now), Some(pool));
    assert_eq!(
        exit.refusal(&sample("8.8.8.8", 80, Kind::Tcp).build()),
        Some(DropReason::NotAnExit)
    );
    assert!(exit.table.is_empty() && exit.table.poll_timeout().is_none());
}

#[test]
fn rate_and_connections_are_limited_and_counted() {
    let limits = ExitLimits { packets_per_second: 400, bytes_per_second: 0, connections: 5 };
    let mut exit = Exit::new("", limits);
    let packets: Vec<_> =
        (0..8).map(|port| sample("8.8.8.8", port, Kind::TcpSyn).build()).collect();
    exit.send(KEY, &packets);
    assert_eq!((exit.device.len(), exit.replies.len()), (5, 3));
    assert_eq!(exit.drops.get(DropReason::ExitConnections), 3);
    assert_eq!(exit.table.info(KEY).unwrap().connections, 5);
    let one = sample("8.8.8.8", 0, Kind::Tcp).build();
    exit.send(KEY, &vec![one; 150]);
    assert_eq!(exit.device.len(), 92);
    assert_eq!(exit.drops.get(DropReason::ExitRate), 58);
    assert!(exit.replies.is_empty());
    // Another circuit has limits of its own.
    let other = CircuitKey(9);
    exit.table.attach(other, exit.now).unwrap();
    exit.send(other, &packets[..5]);
    assert_eq!(exit.device.len(), 5);
}

#[test]
fn icmp_answers_are_limited() {
    let mut exit = Exit::new("", ExitLimits::default());
    let packet = sample("10.0.0.1", 80, Kind::Udp).build();
    exit.send(KEY, &vec![packet.clone(); 100]);
    assert_eq!(exit.replies.len(), 20);
    exit.now += Duration::from_millis(500);
    exit.send(KEY, &vec![packet; 100]);
    assert_eq!(exit.replies.len(), 10);
    assert_eq!(exit.drops.get(DropReason::ExitPolicy), 200);
}

#[test]
fn an_idle_circuit_is_small() {
    let mut exit = Exit::new("", ExitLimits::default());
    let fresh = exit.table.info(KEY).unwrap().memory_bytes;
    assert!(fresh <= 512, "{fresh}");
    for port in 0..500 {
        let mut large = sample("8.8.8.8", port, Kind::Udp);
        large.payload = vec![0; 1400];
        let packet = large.build();
        exit.send(KEY, &[packet.clone(), packet]);
    }
    // The last cell is lost, its packet's first part waits.
    let mut bodies = Bodies::default();
    let packet = sample("8.8.8.8", 1, Kind::Udp);
    let packet = Sample { payload: vec![0; 1400], ..packet }.build();
    Packer::new().push(&packet, &mut bodies).unwrap();
    let Exit { table, now, seq, device, replies, drops } = &mut exit;
    table.outbound(*now, KEY, *seq, Some(&bodies.0[0]), device, replies, drops);
    assert!(table.info(KEY).unwrap().memory_bytes > 4096);
    let wanted = table.poll_timeout().unwrap();
    table.handle_timeout(wanted - Duration::from_millis(1), drops);
    assert!(table.info(KEY).unwrap().memory_bytes > 4096);
    table.handle_timeout(wanted, drops);
    assert_eq!(drops.get(DropReason::FragmentLost), 1);
    table.handle_timeout(wanted + Duration::from_secs(150), drops);
    assert_eq!(table.info(KEY).unwrap().memory_bytes, fresh);
    assert_eq!(table.info(KEY).unwrap().connections, 0);
}
