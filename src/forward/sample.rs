//! Packets for the tests of this folder, with checksums computed by etherparse.
//!
//! In: addresses, ports and what kind. Out: whole packets, fragments, ICMP errors.
//! Called by: unit tests only.

use std::net::IpAddr;

use etherparse::{
    Icmpv4Type, Icmpv6Type, IpHeaders, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder,
};
use proptest::prelude::*;

use super::ip::Version;

/// What a sample packet carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Tcp,
    TcpSyn,
    TcpFin,
    Udp,
    /// UDP whose sender did not compute a checksum (IPv4).
    UdpUnchecked,
    EchoRequest,
    EchoReply,
    /// A protocol that is not looked into.
    Other,
}

pub(super) const KINDS: [Kind; 8] = [
    Kind::Tcp,
    Kind::TcpSyn,
    Kind::TcpFin,
    Kind::Udp,
    Kind::UdpUnchecked,
    Kind::EchoRequest,
    Kind::EchoReply,
    Kind::Other,
];

/// Who sends what to whom.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Sample {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) ports: (u16, u16),
    pub(super) kind: Kind,
    pub(super) payload: Vec<u8>,
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

impl Sample {
    pub(super) fn new(source: &str, destination: &str, ports: (u16, u16), kind: Kind) -> Self {
        let (source, destination) = (ip(source), ip(destination));
        Self { source, destination, ports, kind, payload: b"payload".to_vec() }
    }

    pub(super) fn build(&self) -> Vec<u8> {
        let is_v4 = self.source.is_ipv4();
        let step = PacketBuilder::ip(header(self.source, self.destination));
        let (high, low) = self.ports;
        let mut bytes = Vec::new();
        let payload = &self.payload;
        match self.kind {
            Kind::Tcp => step.tcp(high, low, 7, 1024).ack(9).write(&mut bytes, payload),
            Kind::TcpSyn => step.tcp(high, low, 7, 1024).syn().write(&mut bytes, payload),
            Kind::TcpFin => step.tcp(high, low, 7, 1024).fin().ack(9).write(&mut bytes, payload),
            Kind::Udp | Kind::UdpUnchecked => step.udp(high, low).write(&mut bytes, payload),
            Kind::EchoRequest if is_v4 => {
                step.icmpv4_echo_request(high, 1).write(&mut bytes, payload)
            }
            Kind::EchoRequest => step.icmpv6_echo_request(high, 1).write(&mut bytes, payload),
            Kind::EchoReply if is_v4 => step.icmpv4_echo_reply(high, 1).write(&mut bytes, payload),
            Kind::EchoReply => step.icmpv6_echo_reply(high, 1).write(&mut bytes, payload),
            Kind::Other => step.write(&mut bytes, IpNumber(199), payload),
        }
        .unwrap();
        if self.kind == Kind::UdpUnchecked && is_v4 {
            bytes[26..28].fill(0);
        }
        bytes
    }

    /// The datagram in fragments of at most `room` payload bytes each (rounded down to eights).
    pub(super) fn fragments(&self, room: usize, ident: u16) -> Vec<Vec<u8>> {
        let whole = self.build();
        let (at, protocol) = if self.source.is_ipv4() { (20, whole[9]) } else { (40, whole[6]) };
        let chunks: Vec<&[u8]> = whole[at..].chunks((room / 8).max(1) * 8).collect();
        let mut offset = 0u16;
        let mut fragments = Vec::new();
        for (index, chunk) in chunks.iter().enumerate() {
            let more = index + 1 < chunks.len();
            let mut bytes = Vec::new();
            match header(self.source, self.destination) {
                IpHeaders::Ipv4(mut header, _) => {
                    header.protocol = IpNumber(protocol);
                    header.identification = ident;
                    header.dont_fragment = false;
                    header.more_fragments = more;
                    header.fragment_offset = (offset / 8).try_into().unwrap();
                    header.set_payload_len(chunk.len()).unwrap();
                    header.header_checksum = header.calc_header_checksum();
                    header.write(&mut bytes).unwrap();
                }
                IpHeaders::Ipv6(mut header, _) => {
                    header.next_header = IpNumber::IPV6_FRAGMENTATION_HEADER;
                    header.payload_length = chunk.len() as u16 + 8;
                    header.write(&mut bytes).unwrap();
                    bytes.extend_from_slice(&[protocol, 0]);
                    bytes.extend_from_slice(&(offset | u16::from(more)).to_be_bytes());
                    bytes.extend_from_slice(&u32::from(ident).to_be_bytes());
                }
            }
            bytes.extend_from_slice(chunk);
            fragments.push(bytes);
            offset += chunk.len() as u16;
        }
        fragments
    }
}

/// An ICMP error from `source` to `destination` that quotes the start of a packet.
pub(super) fn icmp_error(source: IpAddr, destination: IpAddr, kind: u8, quoted: &[u8]) -> Vec<u8> {
    let step = PacketBuilder::ip(header(source, destination));
    let mut bytes = Vec::new();
    if source.is_ipv4() {
        let kind = Icmpv4Type::Unknown { type_u8: kind, code_u8: 1, bytes5to8: [0, 0, 5, 0] };
        step.icmpv4(kind).write(&mut bytes, quoted).unwrap();
    } else {
        let kind = Icmpv6Type::Unknown { type_u8: kind, code_u8: 1, bytes5to8: [0, 0, 5, 0] };
        step.icmpv6(kind).write(&mut bytes, quoted).unwrap();
    }
    bytes
}

fn header(source: IpAddr, destination: IpAddr) -> IpHeaders {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header =
                Ipv4Header::new(0, 64, IpNumber(0), source.octets(), destination.octets()).unwrap();
            IpHeaders::Ipv4(header, Default::default())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = Ipv6Header {
                hop_limit: 64,
                source: source.octets(),
                destination: destination.octets(),
                ..Default::default()
            };
            IpHeaders::Ipv6(header, Default::default())
        }
        _ => panic!("one version, please"),
    }
}

/// Destinations that every exit lets out.
pub(super) fn public(version: Version) -> BoxedStrategy<IpAddr> {
    match version {
        Version::V4 => any::<[u8; 3]>().prop_map(|[a, b, c]| [8, a, b, c].into()).boxed(),
        Version::V6 => any::<[u8; 14]>()
            .prop_map(|rest| {
                let mut bytes = [0x24; 16];
                bytes[2..].copy_from_slice(&rest);
                bytes.into()
            })
            .boxed(),
    }
}

/// Any sample from `source_v4` or `source_v6` to a public address.
pub(super) fn samples(source_v4: IpAddr, source_v6: IpAddr) -> impl Strategy<Value = Sample> {
    let version = prop_oneof![Just(Version::V4), Just(Version::V6)];
    let payload = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..40),
        prop::collection::vec(any::<u8>(), 1..1400),
    ];
    (version, any::<(u16, u16)>(), prop::sample::select(&KINDS[..]), payload).prop_flat_map(
        move |(version, ports, kind, payload)| {
            public(version).prop_map(move |destination| {
                let source = if version == Version::V4 { source_v4 } else { source_v6 };
                Sample { source, destination, ports, kind, payload: payload.clone() }
            })
        },
    )
}
