//! Tells a client that the exit did not let a packet out.
//!
//! In: a packet of the client. Out: an ICMP or ICMPv6 "administratively prohibited" for it.
//! Called by: the exit table, which limits the rate.

use super::checksum::Sum;
use crate::{
    forward::ip::{Headers, V4_HEADER_LEN, V6_HEADER_LEN, Version, protocol},
    model::{EXIT_INNER_V4, EXIT_INNER_V6, PacketBatch},
};

const HEADER_LEN: usize = 8;
/// An ICMP error is at most as long as every host must take (RFC 1812: 576 bytes).
const MOST_V4: usize = 576;
/// The same for IPv6 (RFC 4443: the minimum MTU).
const MOST_V6: usize = 1280;
const HOP_LIMIT: u8 = 64;

/// Appends the answer to `packet`, and says whether there is one: ICMP errors, later fragments and
/// packets to many receivers get none (RFC 1122, RFC 4443).
pub fn unreachable(packet: &[u8], headers: &Headers, replies: &mut PacketBatch) -> bool {
    let destination = headers.destination(packet);
    let to_many = destination.is_multicast()
        || matches!(destination, std::net::IpAddr::V4(v4) if v4.is_broadcast());
    if to_many || headers.is_later_fragment() || headers.quoted_at(packet).is_some() {
        return false;
    }
    // A redirect of ICMPv6 has an informational number and is an error all the same.
    if headers.version == Version::V6 && headers.icmp_type(packet) == Some(137) {
        return false;
    }
    match headers.version {
        Version::V4 => unreachable_v4(packet, replies),
        Version::V6 => unreachable_v6(packet, replies),
    }
    true
}

fn unreachable_v4(packet: &[u8], replies: &mut PacketBatch) {
    const DESTINATION_UNREACHABLE: u8 = 3;
    const PROHIBITED: u8 = 13;
    let quoted = &packet[..packet.len().min(MOST_V4 - V4_HEADER_LEN - HEADER_LEN)];
    let mut ip = [0; V4_HEADER_LEN];
    ip[0] = 0x45;
    ip[1] = 0xc0;
    let len = (V4_HEADER_LEN + HEADER_LEN + quoted.len()) as u16;
    ip[2..4].copy_from_slice(&len.to_be_bytes());
    ip[6] = 0x40;
    ip[8] = HOP_LIMIT;
    ip[9] = protocol::ICMP;
    ip[12..16].copy_from_slice(&EXIT_INNER_V4.octets());
    ip[16..20].copy_from_slice(&packet[12..16]);
    let checksum = Sum::of(&ip).checksum();
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut icmp = [DESTINATION_UNREACHABLE, PROHIBITED, 0, 0, 0, 0, 0, 0];
    let checksum = Sum::of(&icmp).plus(Sum::of(quoted)).checksum();
    icmp[2..4].copy_from_slice(&checksum.to_be_bytes());
    replies.push(&[&ip, &icmp, quoted]);
}

fn unreachable_v6(packet: &[u8], replies: &mut PacketBatch) {
    const DESTINATION_UNREACHABLE: u8 = 1;
    const PROHIBITED: u8 = 1;
    let quoted = &packet[..packet.len().min(MOST_V6 - V6_HEADER_LEN - HEADER_LEN)];
    let len = (HEADER_LEN + quoted.len()) as u16;
    let mut ip = [0; V6_HEADER_LEN];
    ip[0] = 0x60;
    ip[4..6].copy_from_slice(&len.to_be_bytes());
    ip[6] = protocol::ICMPV6;
    ip[7] = HOP_LIMIT;
    ip[8..24].copy_from_slice(&EXIT_INNER_V6.octets());
    ip[24..40].copy_from_slice(&packet[8..24]);
    let mut icmp = [DESTINATION_UNREACHABLE, PROHIBITED, 0, 0, 0, 0, 0, 0];
    let checksum = Sum::of(&ip[8..])
        .plus(Sum::of_number(len.into()))
        .plus(Sum::of_number(protocol::ICMPV6.into()))
        .plus(Sum::of(&icmp))
        .plus(Sum::of(quoted))
        .checksum();
    icmp[2..4].copy_from_slice(&checksum.to_be_bytes());
    replies.push(&[&ip, &icmp, quoted]);
}
