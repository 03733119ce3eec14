//! Keys of real packets, and the map against a slow model of it.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::{
    forward::sample::{Kind, Sample, icmp_error, ip, samples},
    model::DropReason,
};

const CLIENT: &str = "100.64.0.2";
const CLIENT6: &str = "fd63:6570:6100::2";

fn flow(packet: &[u8]) -> FlowKey {
    PacketFlow::parse(packet).unwrap().flow.unwrap()
}

fn turned(sample: &Sample) -> Sample {
    let kind = match sample.kind {
        Kind::EchoRequest => Kind::EchoReply,
        Kind::EchoReply => Kind::EchoRequest,
        other => other,
    };
    let (source, destination) = (sample.destination, sample.source);
    let ports = match kind {
        Kind::EchoReply | Kind::EchoRequest => sample.ports,
        _ => (sample.ports.1, sample.ports.0),
    };
    Sample { source, destination, ports, kind, payload: sample.payload.clone() }
}

proptest! {
    #[test]
    fn an_answer_and_an_error_have_the_key_of_the_flow(sample in samples(ip(CLIENT), ip(CLIENT6))) {
        let packet = sample.build();
        let key = flow(&packet);
        let answer = turned(&sample).build();
        prop_assert_eq!(flow(&answer), key.reversed());
        prop_assert_eq!(key.reversed().reversed(), key);
        // The client's error about the answer goes where the flow's packets go.
        let quote = &answer[..answer.len().min(60)];
        let error = icmp_error(sample.source, sample.destination, 3, quote);
        prop_assert_eq!(flow(&error), key);
    }

    #[test]
    fn other_addresses_ports_or_protocols_have_another_key(
        a in samples(ip(CLIENT), ip(CLIENT6)),
        b in samples(ip(CLIENT), ip(CLIENT6)),
    ) {
        let tuple = |sample: &Sample| {
            let packet = sample.build();
            let protocol = packet[if sample.source.is_ipv4() { 9 } else { 6 }];
            let ports = match sample.kind {
                Kind::EchoReply | Kind::EchoRequest => (sample.ports.0, sample.ports.0),
                Kind::Other => (0, 0),
                _ => sample.ports,
            };
            (sample.source, sample.destination, protocol, ports)
        };
        let mut one_port_less = a.clone();
        one_port_less.ports.1 ^= 1;
        for other in [&a, &b, &one_port_less] {
            prop_assert_eq!(tuple(&a) == tuple(other), flow(&a.build()) == flow(&other.build()));
        }
    }

    #[test]
    fn fragments_keep_together(sample in samples(ip(CLIENT), ip(CLIENT6)), room in 24..500usize) {
        let fragments = sample.fragments(room, 77);
        let keys: Vec<_> = fragments.iter().map(|fragment| PacketFlow::parse(fragment).unwrap()).collect();
        prop_assert_eq!(keys[0].flow, Some(flow(&sample.build())));
        for later in &keys[1..] {
            prop_assert_eq!(later.flow, None);
            prop_assert!(later.datagram.is_some());
            prop_assert_eq!(later.datagram, keys[0].datagram);
        }
    }

    #[test]
    fn any_bytes_have_keys_or_a_reason(mut bytes in prop::collection::vec(any::<u8>(), 0..200), v6: bool) {
        if let Some(first) = bytes.first_mut() {
            *first = if v6 { 0x60 } else { 0x45 };
        }
        let len = bytes.len();
        if len >= 40 {
            let (at, declared) = if v6 { (4, len - 40) } else { (2, len) };
            bytes[at..at + 2].copy_from_slice(&(declared as u16).to_be_bytes());
        }
        let _ = PacketFlow::parse(&bytes);
    }

    #[test]
    fn the_map_is_its_model(
        most in 1..12usize,
        steps in prop::collection::vec((0..20u16, 0..4u8, 0..200u64), 1..200),
    ) {
        let start = Instant::now();
        let mut now = start;
        let mut map = FlowMap::new(most);
        // The least recently used first: port, circuit, expiry.
        let mut model: Vec<(u16, u8, Instant)> = Vec::new();
        for (port, circuit, pause) in steps {
            now += Duration::from_secs(pause);
            match port {
                18 => {
                    prop_assert_eq!(map.handle_timeout(now), {
                        let before = model.len();
                        model.retain(|flow| flow.2 > now);
                        before - model.len()
                    });
                    continue;
                }
                19 => {
                    let gone = model.iter().filter(|flow| flow.1 == circuit).count();
                    model.retain(|flow| flow.1 != circuit);
                    prop_assert_eq!(map.forget_circuit(circuit), gone);
                    continue;
                }
                _ => {}
            }
            let packet = Sample::new(CLIENT, "8.8.8.8", (port, 53), Kind::Udp).build();
            let got = map.route(now, &packet, || (circuit > 0).then_some(circuit));
            let known = model.iter().position(|flow| flow.0 == port);
            let kept = known.map(|at| model[at]).filter(|flow| flow.2 > now).map(|flow| flow.1);
            let expected = kept.or((circuit > 0).then_some(circuit));
            prop_assert_eq!(got, expected.ok_or(DropReason::NoCircuit));
            if let Some(expected) = expected {
                match known {
                    Some(at) => drop(model.remove(at)),
                    None if model.len() == most => drop(model.remove(0)),
                    None => {}
                }
                model.push((port, expected, now + Duration::from_secs(300)));
            }
            prop_assert_eq!(map.len(), model.len());
            for circuit in 0..4 {
                let alive = |flow: &&(u16, u8, Instant)| flow.1 == circuit && flow.2 > now;
                prop_assert_eq!(map.flows_of(now, circuit), model.iter().filter(alive).count());
            }
        }
    }
}

#[test]
fn a_flow_keeps_its_circuit_and_a_new_one_chooses() {
    let now = Instant::now();
    let mut map = FlowMap::new(100);
    let tcp = |port, kind| Sample::new(CLIENT, "192.0.2.1", (port, 443), kind).build();
    assert_eq!(map.route(now, &tcp(1000, Kind::TcpSyn), || Some(1)), Ok(1));
    assert_eq!(map.route(now, &tcp(1001, Kind::TcpSyn), || Some(2)), Ok(2));
    let later = now + Duration::from_secs(7000);
    assert_eq!(map.route(later, &tcp(1000, Kind::Tcp), || Some(3)), Ok(1));
    assert_eq!(map.route(later, &tcp(1002, Kind::TcpSyn), || None), Err(DropReason::NoCircuit));
    let later = later + Duration::from_secs(7000);
    assert_eq!(map.route(later, &tcp(1000, Kind::Tcp), || Some(3)), Ok(1));
    assert_eq!(map.route(later, &tcp(1001, Kind::Tcp), || Some(3)), Ok(3));
}

#[test]
fn a_closed_connection_lets_go_soon() {
    let now = Instant::now();
    let mut map = FlowMap::new(100);
    let tcp = |kind| Sample::new(CLIENT6, "2001:db8::1", (1000, 443), kind).build();
    assert_eq!(map.route(now, &tcp(Kind::TcpSyn), || Some(1)), Ok(1));
    assert_eq!(map.route(now, &tcp(Kind::TcpFin), || Some(2)), Ok(1));
    assert_eq!(map.route(now, &tcp(Kind::Tcp), || Some(2)), Ok(1), "the last acknowledgement");
    assert_eq!(map.flows_of(now + Duration::from_secs(59), 1), 1);
    assert_eq!(map.flows_of(now + Duration::from_secs(61), 1), 0);
    assert_eq!(map.route(now, &tcp(Kind::TcpSyn), || Some(2)), Ok(2), "the same ports anew");
    assert_eq!(map.route(now + Duration::from_secs(61), &tcp(Kind::Tcp), || Some(3)), Ok(2));
}

#[test]
fn all_fragments_go_where_the_flow_goes() {
    let now = Instant::now();
    let mut map = FlowMap::new(100);
    let mut sample = Sample::new(CLIENT, "192.0.2.1", (1000, 53), Kind::Udp);
    assert_eq!(map.route(now, &sample.build(), || Some(1)), Ok(1));
    sample.payload = vec![7; 3000];
    for fragment in sample.fragments(1480, 9) {
        assert_eq!(map.route(now, &fragment, || Some(2)), Ok(1));
    }
    for fragment in sample.fragments(1480, 10).iter().rev() {
        let circuit = map.route(now, fragment, || Some(2)).unwrap();
        let is_first = fragment[6] & 0x1f == 0 && fragment[7] == 0;
        assert_eq!(circuit, if is_first { 1 } else { 2 });
    }
}

#[test]
fn an_error_of_the_client_follows_the_flow() {
    let now = Instant::now();
    let mut map = FlowMap::new(100);
    let out = Sample::new(CLIENT, "192.0.2.1", (1000, 53), Kind::Udp);
    assert_eq!(map.route(now, &out.build(), || Some(1)), Ok(1));
    let answer = turned(&out).build();
    let error = icmp_error(ip(CLIENT), ip("192.0.2.1"), 3, &answer[..28]);
    assert_eq!(map.route(now, &error, || Some(2)), Ok(1));
    assert_eq!(map.get(now, &flow(&out.build())), Some(1));
    assert_eq!(map.forget_circuit(1), 1);
    assert!(map.is_empty());
}

#[test]
fn source_routing_has_no_flow() {
    let mut packet = Sample::new(CLIENT, "192.0.2.1", (1, 2), Kind::Udp).build();
    packet[0] = 0x47;
    packet.splice(20..20, [131, 7, 4, 10, 0, 0, 1, 0]);
    let len = packet.len() as u16;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    assert_eq!(PacketFlow::parse(&packet), Err(DropReason::ExitPolicy));
    packet[20] = 7;
    assert!(PacketFlow::parse(&packet).is_ok());

    let mut packet = Sample::new(CLIENT6, "2001:db8::1", (1, 2), Kind::Udp).build();
    packet.splice(40..40, [17, 0, 2, 1, 0, 0, 0, 0]);
    packet[6] = 43;
    packet[5] += 8;
    assert_eq!(PacketFlow::parse(&packet), Err(DropReason::ExitPolicy));
    packet[43] = 0;
    assert_eq!(PacketFlow::parse(&packet).unwrap().protocol, 17);
}
