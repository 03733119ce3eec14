//! What a packet is to the stack, and the packets that the stack writes without smoltcp.
//!
//! In: inner packets. Out: their ends and contents; datagrams, refusals. Called by: the stack.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    Icmpv4Type, Icmpv6Type, IpHeaders, PacketBuilder, PacketBuilderStep, icmpv4, icmpv6,
};
use smoltcp::wire::UdpPacket;

use crate::{
    forward::ip::{Headers, Version, protocol},
    model::{INNER_MTU, PacketBatch},
};

const HOP_LIMIT: u8 = 64;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
/// An ICMP error quotes at most what every host must take.
const MOST_QUOTED: usize = 548;

/// The two ends of a flow, as the stack sees them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ends {
    /// The stack's end.
    pub local: SocketAddr,
    /// The other one.
    pub remote: SocketAddr,
}

/// The opening segment of a connection that the stack has not accepted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opening {
    /// Its ends.
    pub ends: Ends,
    pub(super) packet: Vec<u8>,
}

/// An ICMP echo request to an address that is not the stack's own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EchoRequest {
    /// Who asks.
    pub from: IpAddr,
    /// Who is asked.
    pub to: IpAddr,
    /// The identifier of the one who asks.
    pub ident: u16,
    /// The sequence number.
    pub seq: u16,
    /// What is to come back.
    pub payload: Vec<u8>,
}

/// Why a packet could not be delivered, for the one who sent it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Undeliverable {
    /// There is no way to the network or host.
    Host,
    /// Nobody listens.
    Port,
    /// The protocol is not carried.
    Protocol,
    /// The rules forbid it.
    Prohibited,
}

/// What arrived.
#[derive(Debug)]
pub(super) enum Arrival<'a> {
    Tcp {
        ends: Ends,
        opens: bool,
        resets: bool,
    },
    Datagram {
        ends: Ends,
        payload: &'a [u8],
    },
    Echo(EchoRequest),
    /// Something the stack sent did not arrive.
    Failure {
        ends: Ends,
        tcp: bool,
        why: Undeliverable,
    },
    Other,
}

pub(super) fn parse(packet: &[u8]) -> Option<Arrival<'_>> {
    let headers = Headers::parse(packet).ok()?;
    if headers.fragment.is_some() {
        return None;
    }
    let (from, to) = (headers.source(packet), headers.destination(packet));
    let rest = packet.get(headers.transport_at..)?;
    match headers.protocol {
        protocol::TCP => {
            let (source, destination) = headers.ports(packet)?;
            let flags = *rest.get(13)?;
            let ends = Ends { local: (to, destination).into(), remote: (from, source).into() };
            let opens = flags & (SYN | ACK | RST | FIN) == SYN;
            Some(Arrival::Tcp { ends, opens, resets: flags & RST != 0 })
        }
        protocol::UDP => {
            let udp = UdpPacket::new_checked(rest).ok()?;
            if !udp.verify_checksum(&from.into(), &to.into()) {
                return None;
            }
            let ends =
                Ends { local: (to, udp.dst_port()).into(), remote: (from, udp.src_port()).into() };
            Some(Arrival::Datagram { ends, payload: udp.payload() })
        }
        protocol::ICMP | protocol::ICMPV6 => icmp(packet, &headers, rest),
        _ => Some(Arrival::Other),
    }
}

fn icmp<'a>(packet: &'a [u8], headers: &Headers, rest: &'a [u8]) -> Option<Arrival<'a>> {
    let (kind, code) = (*rest.first()?, *rest.get(1)?);
    let is_request = matches!((headers.version, kind), (Version::V4, 8) | (Version::V6, 128));
    if is_request {
        let number = |at| Some(u16::from_be_bytes([*rest.get(at)?, *rest.get(at + 1)?]));
        return Some(Arrival::Echo(EchoRequest {
            from: headers.source(packet),
            to: headers.destination(packet),
            ident: number(4)?,
            seq: number(6)?,
            payload: rest.get(8..)?.to_vec(),
        }));
    }
    let quoted = packet.get(headers.quoted_at(packet)?..)?;
    let inner = Headers::parse_start(quoted).ok()?;
    let (source, destination) = inner.ports(quoted)?;
    let why = match (headers.version, kind, code) {
        (Version::V4, 3, 2) => Undeliverable::Protocol,
        (Version::V4, 3, 3) | (Version::V6, 1, 4) => Undeliverable::Port,
        (Version::V4, 3, 9 | 10 | 13) | (Version::V6, 1, 1 | 5) => Undeliverable::Prohibited,
        (Version::V4, 3, 4) => return Some(Arrival::Other),
        (Version::V4, 3 | 11, _) | (Version::V6, 1 | 3, _) => Undeliverable::Host,
        _ => return Some(Arrival::Other),
    };
    let ends = Ends {
        local: (inner.source(quoted), source).into(),
        remote: (inner.destination(quoted), destination).into(),
    };
    Some(Arrival::Failure { ends, tcp: inner.protocol == protocol::TCP, why })
}

/// The start of a packet between two addresses of one family.
fn headers(from: IpAddr, to: IpAddr) -> Option<PacketBuilderStep<IpHeaders>> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            Some(PacketBuilder::ipv4(from.octets(), to.octets(), HOP_LIMIT))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            Some(PacketBuilder::ipv6(from.octets(), to.octets(), HOP_LIMIT))
        }
        _ => None,
    }
}

/// Appends a packet that `write` builds; nothing if it cannot be built.
fn push<E>(out: &mut PacketBatch, write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> bool {
    let mut buffer = out.take_spare();
    if write(&mut buffer).is_ok() {
        out.push_owned(buffer);
        true
    } else {
        out.give_back(buffer);
        false
    }
}

/// Appends a datagram; says whether the ends and the length make one.
pub(super) fn datagram(ends: Ends, payload: &[u8], out: &mut PacketBatch) -> bool {
    let (local, remote) = (ends.local, ends.remote);
    headers(local.ip(), remote.ip()).is_some_and(|ip| {
        let udp = ip.udp(local.port(), remote.port());
        udp.size(payload.len()) <= INNER_MTU && push(out, |to| udp.write(to, payload))
    })
}

/// Appends the answer to an echo request.
pub(super) fn echo_reply(request: &EchoRequest, payload: &[u8], out: &mut PacketBatch) -> bool {
    let EchoRequest { from, to, ident, seq, .. } = *request;
    headers(to, from).is_some_and(|ip| match to {
        IpAddr::V4(_) => push(out, |to| ip.icmpv4_echo_reply(ident, seq).write(to, payload)),
        IpAddr::V6(_) => push(out, |to| ip.icmpv6_echo_reply(ident, seq).write(to, payload)),
    })
}

/// Appends a reset that answers a TCP segment, as RFC 9293 section 3.10.7.1 wants it.
pub(super) fn reset(packet: &[u8], out: &mut PacketBatch) -> bool {
    let Ok(read) = Headers::parse(packet) else { return false };
    let Some(tcp) = packet.get(read.transport_at..) else { return false };
    let Ok(tcp) = smoltcp::wire::TcpPacket::new_checked(tcp) else { return false };
    let Some(ip) = headers(read.destination(packet), read.source(packet)) else { return false };
    let (source, destination) = (tcp.dst_port(), tcp.src_port());
    let after = tcp.seq_number().0.wrapping_add(tcp.segment_len() as i32) as u32;
    let answer = if tcp.ack() {
        ip.tcp(source, destination, tcp.ack_number().0 as u32, 0).rst()
    } else {
        ip.tcp(source, destination, 0, 0).rst().ack(after)
    };
    push(out, |to| answer.write(to, &[]))
}

/// Appends an ICMP error from `from` about a packet that could not be delivered.
pub(super) fn undeliverable(
    from: IpAddr,
    packet: &[u8],
    why: Undeliverable,
    out: &mut PacketBatch,
) -> bool {
    let Ok(read) = Headers::parse(packet) else { return false };
    if read.quoted_at(packet).is_some() {
        return false;
    }
    let Some(ip) = headers(from, read.source(packet)) else { return false };
    let quoted = &packet[..packet.len().min(MOST_QUOTED)];
    match read.version {
        Version::V4 => {
            use icmpv4::DestUnreachableHeader as Why;
            let why = match why {
                Undeliverable::Host => Why::Host,
                Undeliverable::Port => Why::Port,
                Undeliverable::Protocol => Why::Protocol,
                Undeliverable::Prohibited => Why::FilterProhibited,
            };
            let icmp = ip.icmpv4(Icmpv4Type::DestinationUnreachable(why));
            push(out, |to| icmp.write(to, quoted))
        }
        Version::V6 => {
            use icmpv6::DestUnreachableCode as Why;
            let icmp = match why {
                Undeliverable::Host => Icmpv6Type::DestinationUnreachable(Why::Address),
                Undeliverable::Port => Icmpv6Type::DestinationUnreachable(Why::Port),
                Undeliverable::Prohibited => Icmpv6Type::DestinationUnreachable(Why::Prohibited),
                Undeliverable::Protocol => {
                    Icmpv6Type::ParameterProblem(icmpv6::ParameterProblemHeader {
                        code: icmpv6::ParameterProblemCode::UnrecognizedNextHeader,
                        pointer: 6,
                    })
                }
            };
            push(out, |to| ip.icmpv6(icmp).write(to, quoted))
        }
    }
}
