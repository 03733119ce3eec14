//! What the data path reads of an inner IP packet before it trusts a byte of it.
//!
//! In: a packet, or its first bytes. Out: its declared length, where its headers stand, or why not.
//! Called by: stream, flow, exit.

use std::net::IpAddr;

use crate::model::{DropReason, INNER_MTU};

/// The shortest IPv4 header.
pub const V4_HEADER_LEN: usize = 20;
/// The IPv6 header.
pub const V6_HEADER_LEN: usize = 40;
/// With this many bytes of any packet its length is known.
pub const LEN_KNOWN_AT: usize = 6;

/// What the first bytes of a packet say about its length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Declared {
    /// The whole packet has this many bytes, header included, at most [`INNER_MTU`].
    Len(usize),
    /// More bytes are needed to tell.
    Unknown,
    /// No packet starts like this, or it is longer than the inner MTU.
    Malformed,
}

/// The length that a packet starting with `start` declares.
pub fn declared_len(start: &[u8]) -> Declared {
    let Some(first) = start.first() else { return Declared::Unknown };
    let (shortest, len) = match first >> 4 {
        4 => {
            let header = usize::from(first & 0x0f) * 4;
            if header < V4_HEADER_LEN {
                return Declared::Malformed;
            }
            let Some(len) = start.get(2..4) else { return Declared::Unknown };
            (header, usize::from(u16::from_be_bytes([len[0], len[1]])))
        }
        6 => {
            let Some(len) = start.get(4..6) else { return Declared::Unknown };
            (V6_HEADER_LEN, usize::from(u16::from_be_bytes([len[0], len[1]])) + V6_HEADER_LEN)
        }
        _ => return Declared::Malformed,
    };
    if (shortest..=INNER_MTU).contains(&len) { Declared::Len(len) } else { Declared::Malformed }
}

/// Protocol numbers that the data path looks into.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// DCCP.
    pub const DCCP: u8 = 33;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite.
    pub const UDP_LITE: u8 = 136;
}

/// IPv6 extension headers that the data path walks over.
mod extension {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const DESTINATION: u8 = 60;
}

/// More extension headers than anything sends for a good reason.
const MOST_EXTENSIONS: usize = 8;

/// The version of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Version {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Which part of a fragmented datagram a packet is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fragment {
    /// What the fragments of one datagram share.
    pub ident: u32,
    /// Whether it starts the datagram, and so holds the transport header.
    pub is_first: bool,
}

/// Where things stand in a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Headers {
    /// The version.
    pub version: Version,
    /// The transport protocol, behind all extension headers.
    pub protocol: u8,
    /// Where the transport header starts; in a later fragment, the payload.
    pub transport_at: usize,
    /// Set for a fragment of a datagram that has others.
    pub fragment: Option<Fragment>,
}

impl Headers {
    /// Reads a whole packet.
    ///
    /// # Errors
    ///
    /// `BadInnerPacket` when its declared length is not `packet.len()`, a header is cut, or the
    /// transport header is too short for its protocol; `ExitPolicy` for source routing, with which
    /// the destination that is judged would not be the one that is reached.
    pub fn parse(packet: &[u8]) -> Result<Self, DropReason> {
        if declared_len(packet) != Declared::Len(packet.len()) {
            return Err(DropReason::BadInnerPacket);
        }
        let headers = Self::parse_start(packet)?;
        if !headers.is_later_fragment()
            && packet.len() - headers.transport_at < transport_len(headers.protocol)
        {
            return Err(DropReason::BadInnerPacket);
        }
        Ok(headers)
    }

    /// Reads as much of a packet as an ICMP error quotes: the IP headers must be there.
    ///
    /// # Errors
    ///
    /// As for [`Headers::parse`], but for lengths.
    pub fn parse_start(packet: &[u8]) -> Result<Self, DropReason> {
        match packet.first().map(|first| first >> 4) {
            Some(4) => Self::parse_v4(packet),
            Some(6) => Self::parse_v6(packet),
            _ => None,
        }
        .ok_or(DropReason::BadInnerPacket)?
    }

    fn parse_v4(packet: &[u8]) -> Option<Result<Self, DropReason>> {
        let header: &[u8; V4_HEADER_LEN] = packet.first_chunk()?;
        let transport_at = usize::from(header[0] & 0x0f) * 4;
        let options = packet.get(V4_HEADER_LEN..transport_at)?;
        if !options.is_empty() && !v4_options_are_harmless(options)? {
            return Some(Err(DropReason::ExitPolicy));
        }
        let place = u16::from_be_bytes([header[6], header[7]]);
        let (more, offset) = (place & 0x2000 != 0, place & 0x1fff);
        let ident = u16::from_be_bytes([header[4], header[5]]).into();
        let fragment = (more || offset > 0).then_some(Fragment { ident, is_first: offset == 0 });
        Some(Ok(Self { version: Version::V4, protocol: header[9], transport_at, fragment }))
    }

    fn parse_v6(packet: &[u8]) -> Option<Result<Self, DropReason>> {
        let header: &[u8; V6_HEADER_LEN] = packet.first_chunk()?;
        let mut found = Self {
            version: Version::V6,
            protocol: header[6],
            transport_at: V6_HEADER_LEN,
            fragment: None,
        };
        let mut is_fragment = false;
        for _ in 0..MOST_EXTENSIONS {
            let at = found.transport_at;
            match found.protocol {
                extension::HOP_BY_HOP | extension::DESTINATION => {}
                extension::ROUTING => {
                    let segments_left = packet.get(at + 3)?;
                    if *segments_left > 0 {
                        return Some(Err(DropReason::ExitPolicy));
                    }
                }
                // Fragments of fragments: nobody sends them.
                extension::FRAGMENT if is_fragment => return None,
                extension::FRAGMENT => {
                    is_fragment = true;
                    let header: &[u8; 8] = packet.get(at..)?.first_chunk()?;
                    let place = u16::from_be_bytes([header[2], header[3]]);
                    let (more, is_first) = (place & 1 != 0, place & 0xfff8 == 0);
                    found.protocol = header[0];
                    found.transport_at += 8;
                    if more || !is_first {
                        let ident =
                            u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                        found.fragment = Some(Fragment { ident, is_first });
                    }
                    if !is_first {
                        return Some(Ok(found));
                    }
                    continue;
                }
                _ => return Some(Ok(found)),
            }
            let header = packet.get(at..at + 2)?;
            found.protocol = header[0];
            found.transport_at += (usize::from(header[1]) + 1) * 8;
            packet.get(..found.transport_at)?;
        }
        None
    }

    /// Whether the packet holds no transport header.
    pub fn is_later_fragment(&self) -> bool {
        self.fragment.is_some_and(|fragment| !fragment.is_first)
    }

    /// The source and destination ports, where the protocol has them.
    pub fn ports(&self, packet: &[u8]) -> Option<(u16, u16)> {
        use protocol::{DCCP, SCTP, TCP, UDP, UDP_LITE};
        if self.is_later_fragment() || !matches!(self.protocol, TCP | UDP | DCCP | SCTP | UDP_LITE)
        {
            return None;
        }
        let ports: &[u8; 4] = packet.get(self.transport_at..)?.first_chunk()?;
        let [a, b, c, d] = *ports;
        Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
    }

    /// The type of an ICMP message of the packet's version.
    pub fn icmp_type(&self, packet: &[u8]) -> Option<u8> {
        let is_icmp = match self.version {
            Version::V4 => self.protocol == protocol::ICMP,
            Version::V6 => self.protocol == protocol::ICMPV6,
        };
        if !is_icmp || self.is_later_fragment() {
            return None;
        }
        packet.get(self.transport_at).copied()
    }

    /// Where the packet that an ICMP error quotes starts.
    pub fn quoted_at(&self, packet: &[u8]) -> Option<usize> {
        let kind = self.icmp_type(packet)?;
        let is_error = match self.version {
            Version::V4 => matches!(kind, 3 | 4 | 5 | 11 | 12),
            Version::V6 => kind < 128,
        };
        is_error.then_some(self.transport_at + 8)
    }

    /// Where the source address stands.
    pub fn source_range(&self) -> std::ops::Range<usize> {
        match self.version {
            Version::V4 => 12..16,
            Version::V6 => 8..24,
        }
    }

    /// Where the destination address stands.
    pub fn destination_range(&self) -> std::ops::Range<usize> {
        match self.version {
            Version::V4 => 16..20,
            Version::V6 => 24..40,
        }
    }

    /// The source address of the packet these headers were read from.
    pub fn source(&self, packet: &[u8]) -> IpAddr {
        address(&packet[self.source_range()])
    }

    /// The destination address of the packet these headers were read from.
    pub fn destination(&self, packet: &[u8]) -> IpAddr {
        address(&packet[self.destination_range()])
    }
}

/// The address in 4 or 16 bytes.
fn address(bytes: &[u8]) -> IpAddr {
    match <[u8; 4]>::try_from(bytes) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => <[u8; 16]>::try_from(bytes).map_or(IpAddr::from([0; 16]), IpAddr::from),
    }
}

/// The shortest transport header of a protocol: what rewriting and policy read must be in the
/// first fragment (RFC 1858, RFC 7112).
fn transport_len(protocol: u8) -> usize {
    match protocol {
        protocol::TCP => 20,
        protocol::DCCP | protocol::SCTP => 12,
        protocol::UDP | protocol::UDP_LITE | protocol::ICMP | protocol::ICMPV6 => 8,
        _ => 0,
    }
}

/// Whether no option routes the packet elsewhere; none when the options are malformed.
fn v4_options_are_harmless(mut options: &[u8]) -> Option<bool> {
    const END: u8 = 0;
    const NOTHING: u8 = 1;
    const LOOSE_SOURCE_ROUTE: u8 = 131;
    const STRICT_SOURCE_ROUTE: u8 = 137;
    loop {
        match options.first() {
            None | Some(&END) => return Some(true),
            Some(&NOTHING) => options = &options[1..],
            Some(&(LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE)) => return Some(false),
            Some(_) => {
                let len = usize::from(*options.get(1)?);
                options = options.get(len.max(2)..)?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    use super::*;
    use crate::{
        forward::sample::{Kind, Sample, samples},
        model::{CLIENT_INNER_V4, CLIENT_INNER_V6},
    };

    #[test]
    fn lengths_are_those_that_packets_declare() {
        let v4 = |first: u8, len: u16| [first, 0, (len >> 8) as u8, len as u8, 0, 0];
        let v6 = |len: u16| [0x60, 0, 0, 0, (len >> 8) as u8, len as u8];
        for (start, declared) in [
            (v4(0x45, 20), Declared::Len(20)),
            (v4(0x45, 1500), Declared::Len(1500)),
            (v4(0x45, 1501), Declared::Malformed),
            (v4(0x45, 19), Declared::Malformed),
            (v4(0x4f, 60), Declared::Len(60)),
            (v4(0x4f, 59), Declared::Malformed),
            (v4(0x44, 60), Declared::Malformed),
            (v6(0), Declared::Len(40)),
            (v6(1460), Declared::Len(1500)),
            (v6(1461), Declared::Malformed),
            (v6(65535), Declared::Malformed),
            ([0x50; 6], Declared::Malformed),
            ([0; 6], Declared::Malformed),
        ] {
            assert_eq!(declared_len(&start), declared, "{start:?}");
        }
        assert_eq!(declared_len(&[]), Declared::Unknown);
        assert_eq!(declared_len(&[0x45, 0, 0]), Declared::Unknown);
        assert_eq!(declared_len(&[0x60, 0, 0, 0, 0]), Declared::Unknown);
    }

    /// The first fragment of a TCP segment with `cut` bytes of its header.
    fn first_fragment(cut: usize) -> Vec<u8> {
        let sample = Sample::new("100.64.0.2", "8.8.8.8", (1, 2), Kind::Tcp);
        let mut packet = sample.build();
        packet.truncate(20 + cut);
        packet[3] = packet.len() as u8;
        packet[6] = 0x20;
        packet
    }

    #[test]
    fn a_first_fragment_holds_the_transport_header() {
        assert!(Headers::parse(&first_fragment(20)).is_ok());
        for cut in [0, 8, 16] {
            assert_eq!(Headers::parse(&first_fragment(cut)), Err(DropReason::BadInnerPacket));
        }
    }

    #[test]
    fn endless_extension_headers_are_refused() {
        let mut packet = Sample::new("2001:db8::1", "2001:db8::2", (1, 2), Kind::Udp).build();
        let next = std::mem::replace(&mut packet[6], 60);
        for count in 1..20 {
            packet.splice(40..40, [if count == 1 { next } else { 60 }, 0, 1, 4, 0, 0, 0, 0]);
            packet[5] += 8;
            let parsed = Headers::parse(&packet);
            assert_eq!(parsed.is_ok(), count < MOST_EXTENSIONS, "{count}");
        }
    }

    proptest! {
        #[test]
        fn headers_are_where_etherparse_finds_them(
            sample in samples(CLIENT_INNER_V4.into(), CLIENT_INNER_V6.into()),
            room: Option<u8>,
            which: usize,
            changes in prop::collection::vec((0..70usize, any::<u8>()), 0..4),
        ) {
            let mut packet = match room {
                None => sample.build(),
                Some(room) => {
                    let fragments = sample.fragments(usize::from(room), 3);
                    fragments[which % fragments.len()].clone()
                }
            };
            for (at, byte) in changes {
                if let Some(old) = packet.get_mut(at) {
                    *old = byte;
                }
            }
            let Ok(headers) = Headers::parse(&packet) else { return Ok(()) };
            let Ok(theirs) = SlicedPacket::from_ip(&packet) else { return Ok(()) };
            let payload = match theirs.net.unwrap() {
                NetSlice::Ipv4(ip) => ip.payload().clone(),
                NetSlice::Ipv6(ip) => ip.payload().clone(),
                NetSlice::Arp(_) => return Err(TestCaseError::fail("no such packet was made")),
            };
            // An authentication header is opaque here, and walked over there; so is what starts a
            // later fragment.
            let walked_there = [0, 43, 44, 51, 60, 135, 139, 140, 253, 254];
            prop_assume!(!walked_there.contains(&headers.protocol));
            prop_assert_eq!(headers.protocol, payload.ip_number.0);
            prop_assert_eq!(packet.len() - headers.transport_at, payload.payload.len());
            prop_assert_eq!(headers.fragment.is_some(), payload.fragmented);
            if let Some(transport) = theirs.transport {
                let ports = match transport {
                    TransportSlice::Tcp(tcp) => Some((tcp.source_port(), tcp.destination_port())),
                    TransportSlice::Udp(udp) => Some((udp.source_port(), udp.destination_port())),
                    _ => None,
                };
                prop_assert_eq!(headers.ports(&packet), ports);
            }
        }
    }
}
