//! Packets that must not leave: one of each kind that leaks.
//!
//! In: a kind, a destination, perhaps an interface. Out: one packet handed to the kernel.
//! Called by: node's leak test, the rig.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

/// What is sent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A TCP connection to this port is begun.
    Tcp(u16),
    /// A UDP datagram to this port.
    Udp(u16),
    /// An ICMP echo request.
    Echo,
    /// An IP packet of a protocol for experiments (RFC 3692).
    Raw,
}

/// The protocol of [`Kind::Raw`].
pub const RAW_PROTOCOL: u8 = 253;

/// The kinds that matter: web, DNS over everything, QUIC, ping, and what no firewall thinks of.
pub const KINDS: [Kind; 8] = [
    Kind::Tcp(80),
    Kind::Tcp(443),
    Kind::Udp(443),
    Kind::Udp(53),
    Kind::Tcp(53),
    Kind::Tcp(853),
    Kind::Echo,
    Kind::Raw,
];

impl Kind {
    /// `TCP 80`, `ICMP echo`.
    pub fn words(self) -> String {
        match self {
            Self::Tcp(port) => format!("TCP {port}"),
            Self::Udp(port) => format!("UDP {port}"),
            Self::Echo => "ICMP echo".to_owned(),
            Self::Raw => format!("IP protocol {RAW_PROTOCOL}"),
        }
    }

    /// Hands one packet to the kernel, by `device` if one is named, whatever the routes say.
    ///
    /// # Errors
    /// What the kernel says; that it was held back is one of these.
    pub fn fire(self, to: IpAddr, device: Option<&str>) -> io::Result<()> {
        let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let echo = if to.is_ipv4() { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
        let (kind, protocol, port) = match self {
            Self::Tcp(port) => (Type::STREAM, Protocol::TCP, port),
            Self::Udp(port) => (Type::DGRAM, Protocol::UDP, port),
            Self::Echo => (Type::RAW, echo, 0),
            Self::Raw => (Type::RAW, Protocol::from(i32::from(RAW_PROTOCOL)), 0),
        };
        let socket = Socket::new(domain, kind, Some(protocol))?;
        socket.set_nonblocking(true)?;
        if let Some(device) = device {
            socket.bind_device(Some(device.as_bytes()))?;
        }
        let to = SocketAddr::new(to, port).into();
        match self {
            Self::Tcp(_) => match socket.connect(&to) {
                Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
                other => other,
            },
            Self::Udp(53) => socket.send_to(&question(), &to).map(drop),
            Self::Echo => socket.send_to(&echo_request(domain == Domain::IPV4), &to).map(drop),
            Self::Udp(_) | Self::Raw => socket.send_to(PAYLOAD, &to).map(drop),
        }
    }
}

/// What a probe says to whoever sees it.
const PAYLOAD: &[u8] = b"cepa probe: this must not be seen outside";

/// A question for the address of `probe.invalid` (RFC 6761: no such name exists).
fn question() -> Vec<u8> {
    let mut bytes = vec![0xce, 0x9a, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in ["probe", "invalid"] {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

/// An echo request; of IPv6 the kernel fills the checksum in.
fn echo_request(v4: bool) -> Vec<u8> {
    let mut bytes = vec![if v4 { 8 } else { 128 }, 0, 0, 0, 0xce, 0x9a, 0, 1];
    bytes.extend(PAYLOAD);
    if v4 {
        let words = bytes.chunks(2).map(|pair| {
            u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))
        });
        let sum: u32 = words.sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        let sum = !((folded & 0xffff) + (folded >> 16)) as u16;
        bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

/// Addresses that exist nowhere and are routed like any other (RFC 5737, RFC 3849).
pub const NOWHERE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xce9a, 0, 0, 0, 0, 1)),
];
