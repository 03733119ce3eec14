//! Rewritten packets against packets that etherparse built with the other address from the start.

use proptest::prelude::*;

use super::*;
use crate::forward::sample::{KINDS, Kind, Sample, icmp_error, ip, samples};

const CLIENT: IpAddr = IpAddr::V4(CLIENT_INNER_V4);
const CLIENT6: IpAddr = IpAddr::V6(CLIENT_INNER_V6);

fn pool_address() -> impl Strategy<Value = PoolAddress> {
    (any::<u16>(), any::<u32>()).prop_map(|(v4, v6)| PoolAddress {
        v4: Ipv4Addr::from_bits(0x6441_0000 | u32::from(v4)),
        v6: Ipv6Addr::from_bits(0xfd63_6570_6101 << 80 | u128::from(v6)),
    })
}

fn pool_of(pool: PoolAddress, like: IpAddr) -> IpAddr {
    if like.is_ipv4() { pool.v4.into() } else { pool.v6.into() }
}

/// The packet with the pool address where the client's stood.
fn out(pool: PoolAddress, packet: &[u8]) -> Vec<u8> {
    let rewrite = Rewrite::new(pool);
    let headers = Headers::parse(packet).unwrap();
    let mut packet = packet.to_vec();
    rewrite.check_source(&packet, &headers).unwrap();
    rewrite.outbound(&mut packet, &headers);
    packet
}

/// The packet with the client's address where the pool address stood.
fn back(pool: PoolAddress, packet: &[u8]) -> Vec<u8> {
    let headers = Headers::parse(packet).unwrap();
    let mut packet = packet.to_vec();
    assert!(!quotes_another(&packet, &headers, headers.destination(&packet)));
    Rewrite::new(pool).inbound(&mut packet, &headers);
    packet
}

fn turned(sample: &Sample) -> Sample {
    let (source, destination) = (sample.destination, sample.source);
    Sample { source, destination, ..sample.clone() }
}

proptest! {
    #[test]
    fn both_ways_are_exact(sample in samples(CLIENT, CLIENT6), pool in pool_address()) {
        let of_pool = Sample { source: pool_of(pool, sample.source), ..sample.clone() };
        prop_assert_eq!(out(pool, &sample.build()), of_pool.build());
        let (answer, of_pool) = (turned(&sample).build(), turned(&of_pool).build());
        prop_assert_eq!(back(pool, &of_pool), answer);
    }

    #[test]
    fn fragments_are_exact(
        sample in samples(CLIENT, CLIENT6),
        pool in pool_address(),
        room in 24..700usize,
    ) {
        let of_pool = Sample { source: pool_of(pool, sample.source), ..sample.clone() };
        let pairs = sample.fragments(room, 5).into_iter().zip(of_pool.fragments(room, 5));
        for (fragment, expected) in pairs {
            prop_assert_eq!(out(pool, &fragment), expected);
        }
        let pairs = turned(&sample).fragments(room, 5).into_iter();
        for (expected, fragment) in pairs.zip(turned(&of_pool).fragments(room, 5)) {
            prop_assert_eq!(back(pool, &fragment), expected);
        }
    }

    #[test]
    fn quoted_packets_are_exact(
        sample in samples(CLIENT, CLIENT6),
        pool in pool_address(),
        router in any::<[u8; 3]>(),
        kind in prop::sample::select(vec![1, 2, 3, 4]),
        // Half a checksum cannot be adjusted, and nobody quotes one.
        cut in (14..300usize).prop_map(|half| half * 2),
        fragment: Option<usize>,
    ) {
        let is_v4 = sample.source.is_ipv4();
        let kind = if is_v4 { [3, 4, 11, 12][kind - 1] } else { kind as u8 };
        let router = if is_v4 { IpAddr::from([9, router[0], router[1], router[2]]) } else { ip("2a00::1") };
        let of_pool = Sample { source: pool_of(pool, sample.source), ..sample.clone() };
        let quote = |sample: &Sample| {
            let packet = match fragment {
                None => sample.build(),
                Some(which) => {
                    let fragments = sample.fragments(48, 6);
                    fragments[which % fragments.len()].clone()
                }
            };
            packet[..packet.len().min(cut.max(if is_v4 { 28 } else { 48 }))].to_vec()
        };
        // From a router on the way, about a packet that the client sent.
        let arriving = icmp_error(router, of_pool.source, kind, &quote(&of_pool));
        let expected = icmp_error(router, sample.source, kind, &quote(&sample));
        prop_assert_eq!(back(pool, &arriving), expected);
        // From the client, about an answer that it got.
        let (answer, of_pool) = (turned(&sample), turned(&of_pool));
        let leaving = icmp_error(sample.source, router, kind, &quote(&answer));
        let expected = icmp_error(of_pool.destination, router, kind, &quote(&of_pool));
        prop_assert_eq!(out(pool, &leaving), expected);
    }

    #[test]
    fn extension_headers_and_options_are_walked_over(
        sample in samples(CLIENT, CLIENT6),
        pool in pool_address(),
        extensions in prop::collection::vec(prop::sample::select(vec![0u8, 43, 60]), 0..7),
    ) {
        let of_pool = Sample { source: pool_of(pool, sample.source), ..sample.clone() };
        prop_assume!(sample.payload.len() < 1300);
        let with = |sample: &Sample| {
            let mut packet = sample.build();
            if packet[0] >> 4 == 4 {
                let (header, rest) = etherparse::Ipv4Header::from_slice(&packet).unwrap();
                let mut header = header;
                header.options = [1, 7, 7, 4, 0, 0, 0, 0].into();
                header.set_payload_len(rest.len()).unwrap();
                header.header_checksum = header.calc_header_checksum();
                let mut bytes = header.to_bytes().to_vec();
                bytes.extend_from_slice(rest);
                return bytes;
            }
            let mut next = packet[6];
            for extension in &extensions {
                packet.splice(40..40, [next, 0, 1, 0, 0, 0, 0, 0]);
                next = *extension;
            }
            packet[6] = next;
            let len = packet.len() as u16 - 40;
            packet[4..6].copy_from_slice(&len.to_be_bytes());
            packet
        };
        prop_assert_eq!(out(pool, &with(&sample)), with(&of_pool));
        prop_assert_eq!(back(pool, &with(&turned(&of_pool))), with(&turned(&sample)));
    }

    #[test]
    fn any_bytes_are_rewritten_or_refused(
        mut sample in samples(CLIENT, CLIENT6),
        pool in pool_address(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        quoting: Option<u8>,
        shorter in 0..60usize,
    ) {
        sample.payload.truncate(600);
        let mut packet = sample.build();
        if let Some(kind) = quoting {
            packet = icmp_error(sample.source, sample.destination, kind, &turned(&sample).build());
        }
        for (index, byte) in changes {
            let at = index.index(packet.len());
            packet[at] = byte;
        }
        let len = packet.len().saturating_sub(shorter).max(1);
        packet.truncate(len);
        if packet.len() >= 40 {
            let (at, declared) = if packet[0] >> 4 == 6 { (4, len - 40) } else { (2, len) };
            packet[at..at + 2].copy_from_slice(&(declared as u16).to_be_bytes());
        }
        let Ok(headers) = Headers::parse(&packet) else { return Ok(()) };
        let rewrite = Rewrite::new(pool);
        let mut inward = packet.clone();
        rewrite.inbound(&mut inward, &headers);
        prop_assert_eq!(inward.len(), packet.len());
        if rewrite.check_source(&packet, &headers).is_ok() {
            let mut outward = packet.clone();
            rewrite.outbound(&mut outward, &headers);
            // Never the client's address in the source.
            prop_assert_eq!(headers.source(&outward), pool_of(pool, headers.source(&packet)));
        }
    }
}

#[test]
fn every_udp_checksum_is_exact_and_none_becomes_zero() {
    let pool = PoolAddress { v4: Ipv4Addr::new(100, 65, 7, 9), v6: "fd63::9".parse().unwrap() };
    let mut all_ones = 0;
    for port in 0..=u16::MAX {
        let mut sample = Sample::new("100.64.0.2", "8.8.8.8", (port, 53), Kind::Udp);
        let packet = sample.build();
        sample.source = pool.v4.into();
        let expected = sample.build();
        all_ones += usize::from(expected[26..28] == [0xff, 0xff]);
        assert_eq!(out(pool, &packet), expected, "{port}");
    }
    assert!(all_ones > 0, "the port that sums up to zero was among them");
}

#[test]
fn other_sources_are_refused() {
    let pool = PoolAddress { v4: Ipv4Addr::new(100, 65, 7, 9), v6: "fd63::9".parse().unwrap() };
    let rewrite = Rewrite::new(pool);
    let check = |packet: &[u8]| rewrite.check_source(packet, &Headers::parse(packet).unwrap());
    for kind in KINDS {
        for source in ["100.64.0.3", "100.65.7.9", "10.0.0.1", "8.8.8.8"] {
            let packet = Sample::new(source, "8.8.4.4", (1, 2), kind).build();
            assert_eq!(check(&packet), Err(DropReason::InnerSource), "{source}");
        }
        for source in ["fd63:6570:6100::3", "fd63::9", "fe80::1", "2001:db8::1"] {
            let packet = Sample::new(source, "2001:db8::2", (1, 2), kind).build();
            assert_eq!(check(&packet), Err(DropReason::InnerSource), "{source}");
        }
    }
}

#[test]
fn errors_about_the_packets_of_others_are_refused() {
    let pool = PoolAddress { v4: Ipv4Addr::new(100, 65, 7, 9), v6: "fd63::9".parse().unwrap() };
    let rewrite = Rewrite::new(pool);
    let remote = ip("8.8.8.8");
    let others = Sample::new("8.8.8.8", "203.0.113.7", (1, 2), Kind::Tcp).build();
    let mine = Sample::new("8.8.8.8", "100.64.0.2", (1, 2), Kind::Tcp).build();
    for (quoted, is_right) in [(&others[..28], false), (&mine[..28], true), (&mine[..10], false)] {
        let packet = icmp_error(CLIENT, remote, 3, quoted);
        let result = rewrite.check_source(&packet, &Headers::parse(&packet).unwrap());
        assert_eq!(result.is_ok(), is_right);
    }
    let mine = Sample::new("100.65.7.9", "8.8.8.8", (1, 2), Kind::Tcp).build();
    for (quoted, is_right) in [(&others[..28], false), (&mine[..28], true), (&mine[..10], false)] {
        let packet = icmp_error(remote, pool.v4.into(), 3, quoted);
        let headers = Headers::parse(&packet).unwrap();
        assert_eq!(quotes_another(&packet, &headers, pool.v4.into()), !is_right);
    }
}
