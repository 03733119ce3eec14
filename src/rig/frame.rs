//! What a captured Ethernet frame carries.
//!
//! In: a frame's bytes. Out: addresses, ports, payload. Called by: rig::inspect, rig::agent.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// UDP's number.
const UDP: u8 = 17;

/// An IP packet in a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame<'a> {
    /// Who sent it.
    pub from: IpAddr,
    /// Where it goes.
    pub to: IpAddr,
    /// What its IP header announces.
    pub protocol: u8,
    /// The length of the IP packet.
    pub ip_len: usize,
    /// IPv4: must not be fragmented.
    pub df: bool,
    /// It is a piece of a packet.
    pub fragment: bool,
    /// What stands behind the IP header.
    pub body: &'a [u8],
}

/// A UDP datagram in a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Datagram<'a> {
    /// Who sent it.
    pub from: SocketAddr,
    /// Where it goes.
    pub to: SocketAddr,
    /// What it carries.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Reads an Ethernet frame; none if it carries no IP.
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        match frame.get(12..14)? {
            [0x08, 0x00] => Self::v4(&frame[14..]),
            [0x86, 0xdd] => Self::v6(&frame[14..]),
            _ => None,
        }
    }

    fn v4(packet: &'a [u8]) -> Option<Self> {
        let header = packet.first_chunk::<20>()?;
        let header_len = usize::from(header[0] & 0x0f) * 4;
        let ip_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let flags = u16::from_be_bytes([header[6], header[7]]);
        Some(Self {
            from: Ipv4Addr::from(*packet[12..].first_chunk()?).into(),
            to: Ipv4Addr::from(*packet[16..].first_chunk()?).into(),
            protocol: header[9],
            ip_len,
            df: flags & 0x4000 != 0,
            fragment: flags & 0x3fff != 0,
            body: packet.get(header_len..ip_len)?,
        })
    }

    fn v6(packet: &'a [u8]) -> Option<Self> {
        let header = packet.first_chunk::<40>()?;
        let ip_len = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
        Some(Self {
            from: Ipv6Addr::from(*packet[8..].first_chunk::<16>()?).into(),
            to: Ipv6Addr::from(*packet[24..].first_chunk::<16>()?).into(),
            protocol: header[6],
            ip_len,
            df: true,
            fragment: header[6] == 44,
            body: packet.get(40..ip_len)?,
        })
    }

    /// The UDP datagram it carries whole.
    pub fn udp(self) -> Option<Datagram<'a>> {
        let header =
            self.body.first_chunk::<8>().filter(|_| self.protocol == UDP && !self.fragment)?;
        let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        Some(Datagram {
            from: SocketAddr::new(self.from, port(0)),
            to: SocketAddr::new(self.to, port(2)),
            payload: self.body.get(8..usize::from(port(4)))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_are_found_and_noise_is_not() {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0, 0, 31, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0x13, 0x88, 0, 53, 0, 11, 0, 0, b'a', b'b', b'c']);
        let parsed = Frame::parse(&frame).unwrap();
        assert!(parsed.df && !parsed.fragment);
        let udp = parsed.udp().unwrap();
        assert_eq!((udp.from.port(), udp.to.port(), udp.payload), (5000, 53, b"abc".as_slice()));
        for len in 0..frame.len() {
            assert!(Frame::parse(&frame[..len]).and_then(Frame::udp).is_none(), "{len}");
        }
    }
}
