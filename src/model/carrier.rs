//! Which carrier a link uses, and the addresses of neighbours that are reached over HTTP.
//!
//! In: node ids, circuit ids, addresses. Out: stand-in addresses, and what they stand for.
//! Called by: circuit, node, config.
//!
//! The core knows neighbours by socket address alone. A neighbour over HTTP has a stand-in from the
//! discard prefix 100::/64 (RFC 6666), which no packet can come from.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use super::{Cid, NodeId};

/// How cells travel on a link.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, Debug, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Carrier {
    /// One cell a datagram.
    #[default]
    Udp,
    /// Up to 32 cells a `POST`, for networks where UDP is blocked (source 001).
    Http,
}

impl Carrier {
    /// The name used in settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Http => "http",
        }
    }
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Carrier {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "udp" => Ok(Self::Udp),
            "http" => Ok(Self::Http),
            _ => Err(format!("expected a carrier (udp, http), got {text:?}")),
        }
    }
}

/// A neighbour that is reached over HTTP.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum HttpPeer {
    /// A member, by the start of its node id: it is posted to.
    Member([u8; 8]),
    /// Somebody who cannot be reached, by the start of a circuit id: it polls.
    Poller([u8; 8]),
}

const MEMBERS: [u8; 8] = [1, 0, 0, 0, 0, 0, 0, 0];
const POLLERS: [u8; 8] = [1, 0, 0, 0, 0, 0, 0, 1];
/// Stand-ins need some port; this one is nobody's.
const PORT: u16 = 9;

impl HttpPeer {
    /// A member.
    pub fn member(id: &NodeId) -> Self {
        Self::Member(start(id.as_bytes()))
    }

    /// Whoever polls for this circuit.
    pub fn poller(cid: Cid) -> Self {
        Self::Poller(start(cid.as_bytes()))
    }

    /// The stand-in address.
    pub fn addr(self) -> SocketAddr {
        let (prefix, id) = match self {
            Self::Member(id) => (MEMBERS, id),
            Self::Poller(id) => (POLLERS, id),
        };
        let mut octets = [0; 16];
        octets[..8].copy_from_slice(&prefix);
        octets[8..].copy_from_slice(&id);
        SocketAddr::new(Ipv6Addr::from(octets).into(), PORT)
    }

    /// What an address stands for, if it is a stand-in.
    pub fn of(addr: &SocketAddr) -> Option<Self> {
        let IpAddr::V6(ip) = addr.ip() else { return None };
        let octets = ip.octets();
        let id = octets.last_chunk().copied()?;
        match *octets.first_chunk()? {
            MEMBERS => Some(Self::Member(id)),
            POLLERS => Some(Self::Poller(id)),
            _ => None,
        }
    }

    /// Whether this is that member.
    pub fn is_member(self, id: &NodeId) -> bool {
        self == Self::member(id)
    }
}

fn start<const N: usize>(bytes: &[u8; N]) -> [u8; 8] {
    std::array::from_fn(|at| bytes[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stand_ins_are_read_back_and_real_addresses_are_none() {
        let id = NodeId::from_bytes([7; 32]);
        let cid = Cid::from_bytes([9; 16]);
        for peer in [HttpPeer::member(&id), HttpPeer::poller(cid)] {
            assert_eq!(HttpPeer::of(&peer.addr()), Some(peer));
        }
        assert!(HttpPeer::member(&id).is_member(&id));
        assert!(!HttpPeer::poller(cid).is_member(&id));
        for addr in ["10.0.0.1:5000", "[fd77::1]:5000", "[100:0:0:2::1]:9"] {
            assert_eq!(HttpPeer::of(&addr.parse().unwrap()), None);
        }
    }
}
