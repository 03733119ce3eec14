//! One circuit's address change at the exit: the client's inner address outside becomes the
//! circuit's pool address, and back.
//!
//! In: packets whose headers were read. Out: the same packets, changed in place, checksums exact.
//! Called by: the exit table; the client, for the devices of a gateway.
//!
//! | changed | also adjusted |
//! |---|---|
//! | IPv4 address | header checksum; TCP, UDP, UDP-Lite, DCCP checksums |
//! | IPv6 address | TCP, UDP, UDP-Lite, DCCP, ICMPv6 checksums |
//! | the same address in a packet that an ICMP error quotes | all of these in the quote as far as it reaches, and the ICMP checksum |
//!
//! A UDP checksum of zero (none) stays zero. A wrong checksum stays wrong by the same amount.
//! Later fragments carry no transport header and only their IP header changes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::Sum;
use crate::{
    forward::ip::{Headers, V4_HEADER_LEN, V6_HEADER_LEN, Version, protocol},
    model::{CLIENT_INNER_V4, CLIENT_INNER_V6, DropReason},
};

/// The two addresses that one circuit has in the exit's pool.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PoolAddress {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

/// Rewrites the packets of one circuit.
#[derive(Clone, Copy, Debug)]
pub struct Rewrite {
    pool: PoolAddress,
    /// How checksums change from the client's address to the pool's.
    out_v4: Sum,
    out_v6: Sum,
}

/// Which address of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Source,
    Destination,
}

/// One address change.
struct Change<'a> {
    end: End,
    from: &'a [u8],
    to: &'a [u8],
    sum: Sum,
}

impl Rewrite {
    /// The rewriting between the client's inner addresses and `pool`.
    pub fn new(pool: PoolAddress) -> Self {
        let between = |from: &[u8], to: &[u8]| Sum::of(to).minus(Sum::of(from));
        Self {
            pool,
            out_v4: between(&CLIENT_INNER_V4.octets(), &pool.v4.octets()),
            out_v6: between(&CLIENT_INNER_V6.octets(), &pool.v6.octets()),
        }
    }

    /// The circuit's addresses.
    pub fn pool_address(&self) -> PoolAddress {
        self.pool
    }

    /// Checks that a packet of the client has its inner address as source, and is no ICMP error
    /// about a packet that was never sent to it.
    ///
    /// # Errors
    ///
    /// `InnerSource` otherwise.
    pub fn check_source(&self, packet: &[u8], headers: &Headers) -> Result<(), DropReason> {
        let inner = match headers.version {
            Version::V4 => IpAddr::V4(CLIENT_INNER_V4),
            Version::V6 => IpAddr::V6(CLIENT_INNER_V6),
        };
        if headers.source(packet) != inner {
            return Err(DropReason::InnerSource);
        }
        match quote(packet, headers) {
            Some(quoted) if end_of(quoted, headers, End::Destination) != Some(inner) => {
                Err(DropReason::InnerSource)
            }
            _ => Ok(()),
        }
    }

    /// Makes the pool address the source of a packet that passed [`Rewrite::check_source`].
    pub fn outbound(&self, packet: &mut [u8], headers: &Headers) {
        self.change(End::Source, true, packet, headers);
    }

    /// Makes the client's inner address the destination of a packet for the pool address.
    pub fn inbound(&self, packet: &mut [u8], headers: &Headers) {
        self.change(End::Destination, false, packet, headers);
    }

    /// Makes the client's inner address the source of a packet of the pool address: at a client, of
    /// one of its devices.
    pub fn enter(&self, packet: &mut [u8], headers: &Headers) {
        self.change(End::Source, false, packet, headers);
    }

    /// Makes the pool address the destination of a packet for the client.
    pub fn leave(&self, packet: &mut [u8], headers: &Headers) {
        self.change(End::Destination, true, packet, headers);
    }

    /// Changes one end: the client's address to the pool's, or back.
    fn change(&self, end: End, to_pool: bool, packet: &mut [u8], headers: &Headers) {
        let sum = |out: Sum| if to_pool { out } else { Sum::default().minus(out) };
        match headers.version {
            Version::V4 => {
                let (inner, pool) = (CLIENT_INNER_V4.octets(), self.pool.v4.octets());
                let (from, to) = if to_pool { (&inner, &pool) } else { (&pool, &inner) };
                Change { end, from, to, sum: sum(self.out_v4) }.apply(packet, headers);
            }
            Version::V6 => {
                let (inner, pool) = (CLIENT_INNER_V6.octets(), self.pool.v6.octets());
                let (from, to) = if to_pool { (&inner, &pool) } else { (&pool, &inner) };
                Change { end, from, to, sum: sum(self.out_v6) }.apply(packet, headers);
            }
        }
    }
}

impl Change<'_> {
    fn apply(&self, packet: &mut [u8], headers: &Headers) {
        let range = range(headers, self.end);
        packet[range].copy_from_slice(self.to);
        if headers.version == Version::V4 {
            adjust(packet, 10, self.sum);
        }
        if headers.is_later_fragment() {
            return;
        }
        if let Some(at) = checksum_at(headers)
            && at + 2 <= packet.len()
        {
            adjust_transport(packet, at, headers.protocol, self.sum);
        }
        if let Some(at) = headers.quoted_at(packet)
            && at < packet.len()
        {
            let changed = self.apply_quoted(&mut packet[at..], headers.version);
            adjust(packet, headers.transport_at + 2, changed);
        }
    }

    /// Changes the other end of a quoted packet; returns how the sum over it changed.
    fn apply_quoted(&self, quoted: &mut [u8], version: Version) -> Sum {
        let (other, fixed) = match (version, self.end) {
            (Version::V4, End::Source) => (16..20, V4_HEADER_LEN),
            (Version::V4, End::Destination) => (12..16, V4_HEADER_LEN),
            (Version::V6, End::Source) => (24..40, V6_HEADER_LEN),
            (Version::V6, End::Destination) => (8..24, V6_HEADER_LEN),
        };
        if quoted.len() < fixed || quoted[other.clone()] != *self.from {
            return Sum::default();
        }
        quoted[other].copy_from_slice(self.to);
        let mut changed = self.sum;
        if version == Version::V4 {
            changed = changed.plus(adjust(quoted, 10, self.sum));
        }
        let Ok(inner) = Headers::parse_start(quoted) else { return changed };
        if inner.version != version || inner.is_later_fragment() {
            return changed;
        }
        match checksum_at(&inner) {
            Some(at) if at + 2 <= quoted.len() => {
                changed.plus(adjust_transport(quoted, at, inner.protocol, self.sum))
            }
            _ => changed,
        }
    }
}

/// The packet that an ICMP error quotes, as far as it does.
pub(super) fn quote<'a>(packet: &'a [u8], headers: &Headers) -> Option<&'a [u8]> {
    packet.get(headers.quoted_at(packet)?..)
}

/// Whether an ICMP error quotes a packet that `pool` did not send.
pub(super) fn quotes_another(packet: &[u8], headers: &Headers, pool: IpAddr) -> bool {
    quote(packet, headers).is_some_and(|quoted| end_of(quoted, headers, End::Source) != Some(pool))
}

/// An address of a quoted packet, if it is of the version of the packet that quotes it.
fn end_of(quoted: &[u8], outer: &Headers, end: End) -> Option<IpAddr> {
    let version = match outer.version {
        Version::V4 => 4,
        Version::V6 => 6,
    };
    if quoted.first()? >> 4 != version {
        return None;
    }
    let bytes = quoted.get(range(outer, end))?;
    match <[u8; 4]>::try_from(bytes) {
        Ok(v4) => Some(v4.into()),
        Err(_) => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}

fn range(headers: &Headers, end: End) -> std::ops::Range<usize> {
    match end {
        End::Source => headers.source_range(),
        End::Destination => headers.destination_range(),
    }
}

/// Where the checksum stands that covers a pseudo header with the addresses.
fn checksum_at(headers: &Headers) -> Option<usize> {
    let offset = match (headers.protocol, headers.version) {
        (protocol::TCP, _) => 16,
        (protocol::UDP | protocol::UDP_LITE | protocol::DCCP, _) => 6,
        (protocol::ICMPV6, Version::V6) => 2,
        _ => return None,
    };
    Some(headers.transport_at + offset)
}

/// Adjusts the checksum at `at` by `sum`; returns how the sum over the two bytes changed.
fn adjust(packet: &mut [u8], at: usize, sum: Sum) -> Sum {
    let before = u16::from_be_bytes([packet[at], packet[at + 1]]);
    set(packet, at, before, sum.apply(before))
}

fn adjust_transport(packet: &mut [u8], at: usize, protocol: u8, sum: Sum) -> Sum {
    let before = u16::from_be_bytes([packet[at], packet[at + 1]]);
    let is_udp = protocol == protocol::UDP;
    if is_udp && before == 0 {
        return Sum::default();
    }
    let after = match sum.apply(before) {
        0 if is_udp || protocol == protocol::UDP_LITE => 0xffff,
        after => after,
    };
    set(packet, at, before, after)
}

fn set(packet: &mut [u8], at: usize, before: u16, after: u16) -> Sum {
    packet[at..at + 2].copy_from_slice(&after.to_be_bytes());
    Sum::of_number(after.into()).minus(Sum::of_number(before.into()))
}

#[cfg(test)]
mod tests;
