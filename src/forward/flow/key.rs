//! The 5-tuple of a packet.
//!
//! In: a packet and its headers. Out: a key that is equal for all packets of one flow and
//! direction. Called by: the flow map, the exit's connection cap.

use crate::{
    forward::ip::{Headers, Version, protocol},
    model::DropReason,
};

/// What all packets of one flow and direction share: version, addresses, protocol, ports.
///
/// The identifier of an ICMP echo stands for both ports; other packets without ports have zeros.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowKey {
    /// Addresses in the low bits: two words of source, two of destination.
    addresses: [u64; 4],
    /// From the top: source port or high half of an ident 16, destination port or low half 16,
    /// protocol 8, what it is 8.
    rest: u64,
}

/// The lowest byte of `rest`.
const FLOW_V4: u8 = 4;
const FLOW_V6: u8 = 6;
/// A key of one fragmented datagram, not of a flow.
const DATAGRAM: u8 = 0x80;

/// The keys of one packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PacketFlow {
    /// The flow; none for a later fragment, which does not tell its ports.
    pub flow: Option<FlowKey>,
    /// The datagram that a fragment belongs to.
    pub datagram: Option<FlowKey>,
    /// The TCP flags.
    pub tcp_flags: Option<u8>,
    /// The protocol of the flow.
    pub protocol: u8,
}

impl FlowKey {
    fn new(packet: &[u8], headers: &Headers, high: u16, low: u16, what: u8) -> Self {
        let wide = |range| {
            let bytes: &[u8] = &packet[range];
            let mut wide = [0; 16];
            wide[16 - bytes.len()..].copy_from_slice(bytes);
            let bits = u128::from_be_bytes(wide);
            ((bits >> 64) as u64, bits as u64)
        };
        let (source_high, source_low) = wide(headers.source_range());
        let (destination_high, destination_low) = wide(headers.destination_range());
        let version = match headers.version {
            Version::V4 => FLOW_V4,
            Version::V6 => FLOW_V6,
        };
        Self {
            addresses: [source_high, source_low, destination_high, destination_low],
            rest: u64::from(high) << 32
                | u64::from(low) << 16
                | u64::from(headers.protocol) << 8
                | u64::from(version | what),
        }
    }

    /// The key of the packets that come back.
    #[must_use]
    pub fn reversed(self) -> Self {
        let [a, b, c, d] = self.addresses;
        let addresses = [c, d, a, b];
        if self.rest as u8 & DATAGRAM != 0 {
            return Self { addresses, ..self };
        }
        let (high, low) = (self.rest >> 32 & 0xffff, self.rest >> 16 & 0xffff);
        Self { addresses, rest: low << 32 | high << 16 | self.rest & 0xffff }
    }
}

impl PacketFlow {
    /// The keys of a whole packet.
    ///
    /// # Errors
    ///
    /// As for [`Headers::parse`].
    pub fn parse(packet: &[u8]) -> Result<Self, DropReason> {
        Headers::parse(packet).map(|headers| Self::of(packet, &headers))
    }

    /// What tells flows apart where they queue: the same for all packets of a flow that are not
    /// fragments; nothing for what is no packet.
    pub fn queue_key(packet: &[u8]) -> (Option<FlowKey>, Option<FlowKey>) {
        Self::parse(packet).map(|keys| (keys.flow, keys.datagram)).unwrap_or_default()
    }

    /// The keys of a packet whose headers were read. An ICMP error belongs to the flow whose
    /// packet it quotes, in the direction of the error.
    pub fn of(packet: &[u8], headers: &Headers) -> Self {
        let quoted = headers
            .quoted_at(packet)
            .and_then(|at| packet.get(at..))
            .and_then(|quoted| Headers::parse_start(quoted).ok().map(|headers| (quoted, headers)));
        if let Some((quoted, inner)) = quoted
            && inner.version == headers.version
        {
            let flow = flow_key(quoted, &inner).map(FlowKey::reversed);
            let datagram = match flow {
                Some(_) => None,
                None => datagram_key(quoted, &inner).map(FlowKey::reversed),
            };
            return Self { flow, datagram, tcp_flags: None, protocol: inner.protocol };
        }
        let tcp_flags = (headers.protocol == protocol::TCP && !headers.is_later_fragment())
            .then(|| packet.get(headers.transport_at + 13).copied())
            .flatten();
        Self {
            flow: flow_key(packet, headers),
            datagram: datagram_key(packet, headers),
            tcp_flags,
            protocol: headers.protocol,
        }
    }
}

fn flow_key(packet: &[u8], headers: &Headers) -> Option<FlowKey> {
    if headers.is_later_fragment() {
        return None;
    }
    let (high, low) = headers.ports(packet).unwrap_or_else(|| {
        let ident = echo_ident(packet, headers).unwrap_or(0);
        (ident, ident)
    });
    Some(FlowKey::new(packet, headers, high, low, 0))
}

fn echo_ident(packet: &[u8], headers: &Headers) -> Option<u16> {
    let is_echo = match (headers.version, headers.icmp_type(packet)?) {
        (Version::V4, kind) => matches!(kind, 0 | 8),
        (Version::V6, kind) => matches!(kind, 128 | 129),
    };
    let ident = packet.get(headers.transport_at + 4..headers.transport_at + 6)?;
    is_echo.then(|| u16::from_be_bytes([ident[0], ident[1]]))
}

fn datagram_key(packet: &[u8], headers: &Headers) -> Option<FlowKey> {
    let ident = headers.fragment?.ident;
    Some(FlowKey::new(packet, headers, (ident >> 16) as u16, ident as u16, DATAGRAM))
}
