//! ICMP echoes, and ICMP errors that come back for packets that cannot arrive.
//!
//! In: an address. Out: round trips; the error's type, code and sender. Called by: rig::agent.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use super::percentile;
use crate::{capture::checksum::Sum, rig::plaintext};

/// How echoes went.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct PingAnswer {
    /// Requests.
    pub sent: u16,
    /// Answers, unchanged.
    pub received: u16,
    /// Half of the round trips were shorter.
    pub median_ms: Option<f64>,
    /// One in a hundred was longer.
    pub p99_ms: Option<f64>,
}

/// An ICMP error.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct IcmpError {
    /// Who sent it.
    pub from: IpAddr,
    /// Its type.
    pub kind: u8,
    /// Its code.
    pub code: u8,
}

/// A raw ICMP socket; the standard type gives it the calls that are needed.
struct Raw {
    socket: UdpSocket,
    v6: bool,
}

/// A message without its IP header, and who sent it.
struct Heard {
    from: IpAddr,
    bytes: Vec<u8>,
}

impl Raw {
    fn open(to: IpAddr) -> Result<Self> {
        let v6 = to.is_ipv6();
        let (domain, protocol) =
            if v6 { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
        let socket =
            Socket::new(domain, Type::RAW, Some(protocol)).context("opening a raw socket")?;
        Ok(Self { socket: socket.into(), v6 })
    }

    fn send(&self, to: IpAddr, id: u16, number: u16, payload: usize) -> io::Result<usize> {
        let mut bytes = vec![0; 8 + payload];
        bytes[0] = if self.v6 { 128 } else { 8 };
        bytes[4..6].copy_from_slice(&id.to_be_bytes());
        bytes[6..8].copy_from_slice(&number.to_be_bytes());
        plaintext::fill(&mut bytes[8..], u64::from(number));
        if !self.v6 {
            let sum = Sum::default().bytes(&bytes).finish();
            bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        self.socket.send_to(&bytes, (to, 0))
    }

    fn hear(&self, until: Instant) -> Option<Heard> {
        let left = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        self.socket.set_read_timeout(Some(left)).ok()?;
        let mut bytes = vec![0; 65_536];
        let (len, from) = self.socket.recv_from(&mut bytes).ok()?;
        bytes.truncate(len);
        // Only IPv4 raw sockets show the IP header.
        let header = if self.v6 { 0 } else { usize::from(bytes.first()? & 0x0f) * 4 };
        bytes.drain(..header.min(len));
        Some(Heard { from: from.ip(), bytes })
    }
}

pub(super) fn ping(to: IpAddr, count: u16, packet: usize, every: Duration) -> Result<PingAnswer> {
    let raw = Raw::open(to)?;
    let headers = if raw.v6 { 48 } else { 28 };
    ensure!(packet >= headers, "expected a packet of at least {headers} bytes, got {packet}");
    let payload = packet - headers;
    let id = std::process::id() as u16;
    let reply = if raw.v6 { 129 } else { 0 };
    let mut sent_at = Vec::new();
    let mut trips = Vec::new();
    let patience = Duration::from_secs(2);
    while sent_at.len() < usize::from(count) || trips.len() < sent_at.len() {
        let number = sent_at.len() as u16;
        let until = if number < count {
            sent_at.push(Instant::now());
            raw.send(to, id, number, payload).with_context(|| format!("sending {packet} bytes"))?;
            Instant::now() + every
        } else {
            sent_at.last().copied().unwrap_or_else(Instant::now) + patience
        };
        while let Some(Heard { from, bytes }) = raw.hear(until) {
            let ours = from == to
                && bytes.len() == 8 + payload
                && bytes[0] == reply
                && bytes[4..6] == id.to_be_bytes();
            if !ours {
                continue;
            }
            let number = u16::from_be_bytes([bytes[6], bytes[7]]);
            if let Some(at) = sent_at.get(usize::from(number))
                && plaintext::is_right(&bytes[8..], u64::from(number))
            {
                trips.push(at.elapsed().as_secs_f64() * 1e3);
            }
            if trips.len() == usize::from(count) {
                break;
            }
        }
        if number >= count {
            break;
        }
    }
    trips.sort_by(f64::total_cmp);
    Ok(PingAnswer {
        sent: count,
        received: trips.len() as u16,
        median_ms: percentile(&trips, 0.5),
        p99_ms: percentile(&trips, 0.99),
    })
}

/// Sends a packet three times if need be, and returns the first ICMP error that quotes it.
pub(super) fn provoke(to: SocketAddr, hops: u32) -> Result<Option<IcmpError>> {
    let raw = Raw::open(to.ip())?;
    let echo = to.port() == 0;
    let any: IpAddr = if raw.v6 { [0u16; 8].into() } else { [0, 0, 0, 0].into() };
    let udp = UdpSocket::bind((any, 0))?;
    for socket in [&raw.socket, &udp] {
        let socket = socket2::SockRef::from(socket);
        if raw.v6 {
            socket.set_unicast_hops_v6(hops)?;
        } else {
            socket.set_ttl_v4(hops)?;
        }
    }
    let id = std::process::id() as u16;
    let port = udp.local_addr()?.port();
    for number in 0..3 {
        if echo {
            raw.send(to.ip(), id, number, 32)?;
        } else {
            udp.send_to(b"nobody takes this", to)?;
        }
        let until = Instant::now() + Duration::from_secs(1);
        while let Some(Heard { from, bytes }) = raw.hear(until) {
            if quotes(&bytes, raw.v6, to, if echo { id } else { port }, echo) {
                return Ok(Some(IcmpError { from, kind: bytes[0], code: bytes[1] }));
            }
        }
    }
    Ok(None)
}

/// Whether an ICMP message is an error that quotes our packet: its destination and our number.
fn quotes(message: &[u8], v6: bool, to: SocketAddr, ours: u16, echo: bool) -> bool {
    let error = message
        .first()
        .is_some_and(|kind| if v6 { *kind < 128 } else { [3, 11, 12].contains(kind) });
    let Some(quoted) = message.get(8..).filter(|_| error) else { return false };
    let (destination, header) = match to.ip() {
        IpAddr::V4(ip) => (quoted.get(16..20) == Some(&ip.octets()), 20),
        IpAddr::V6(ip) => (quoted.get(24..40) == Some(&ip.octets()), 40),
    };
    let at = if echo { header + 4 } else { header };
    destination && quoted.get(at..at + 2) == Some(&ours.to_be_bytes())
}
