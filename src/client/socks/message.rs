//! The messages of SOCKS5 (RFC 1928) and of its user/password subnegotiation (RFC 1929).
//!
//! In: the bytes of a client so far. Out: a message, how many bytes are missing, or the reply that
//! a malformed one gets. Called by: the SOCKS server, its fuzz target.
//!
//! ```text
//! client  5 | n | n methods          1 | len | user | len | password     5 | cmd | 0 | address
//! server  5 | method                 1 | 0                               5 | reply | 0 | address
//! address 1 | 4 bytes | port      3 | len | name | port      4 | 16 bytes | port
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::client::Target;

/// The version byte of every message but the login's.
pub const VERSION: u8 = 5;
const LOGIN_VERSION: u8 = 1;
const CONNECT: u8 = 1;
const ASSOCIATE: u8 = 3;
const V4: u8 = 1;
const NAME: u8 = 3;
const V6: u8 = 4;

/// How far a message has come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Read<T> {
    /// At least so many bytes are missing.
    Missing(usize),
    /// The message.
    Whole(T),
}

/// How the client wants to say who it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Method {
    /// Not at all.
    Nobody = 0,
    /// With a user and a password, which select circuits of their own.
    Login = 2,
    /// In no way that is spoken here.
    None = 0xff,
}

/// What the client wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// A connection.
    Connect(Target),
    /// Datagrams, as long as the connection stands; the port that they will come from, if known.
    Associate(u16),
}

/// What the server answers to a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Reply {
    /// It is done.
    Succeeded = 0,
    /// Something else is wrong.
    Failure = 1,
    /// The exit's rules forbid it.
    NotAllowed = 2,
    /// There is no way to the network.
    NetworkUnreachable = 3,
    /// There is no way to the host, or no such host.
    HostUnreachable = 4,
    /// Nobody listens there.
    Refused = 5,
    /// The command is not known.
    UnknownCommand = 7,
    /// The kind of address is not known.
    UnknownAddress = 8,
}

/// What a malformed message gets before the connection is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Not SOCKS5: nothing that it would understand.
    Silence,
    /// A login that is none.
    BadLogin,
    /// A request that is none.
    Reply(Reply),
}

impl Refusal {
    /// The bytes to send.
    pub fn emit(self) -> Vec<u8> {
        match self {
            Self::Silence => Vec::new(),
            Self::BadLogin => vec![LOGIN_VERSION, 1],
            Self::Reply(reply) => reply.emit(unspecified()),
        }
    }
}

fn unspecified() -> SocketAddr {
    (Ipv4Addr::UNSPECIFIED, 0).into()
}

fn missing<T>(bytes: &[u8], needed: usize) -> Option<Read<T>> {
    (bytes.len() < needed).then(|| Read::Missing(needed - bytes.len()))
}

impl Method {
    /// The method that is chosen from a client's greeting.
    ///
    /// # Errors
    /// When the greeting is not one of SOCKS5.
    pub fn choose(bytes: &[u8]) -> Result<Read<Self>, Refusal> {
        if bytes.first().is_some_and(|version| *version != VERSION) {
            return Err(Refusal::Silence);
        }
        if let Some(read) = missing(bytes, 2) {
            return Ok(read);
        }
        let end = 2 + usize::from(bytes[1]);
        if let Some(read) = missing(bytes, end) {
            return Ok(read);
        }
        let offered = &bytes[2..end];
        let method = [Self::Login, Self::Nobody]
            .into_iter()
            .find(|method| offered.contains(&(*method as u8)))
            .unwrap_or(Self::None);
        Ok(Read::Whole(method))
    }

    /// The answer to the greeting.
    pub fn emit(self) -> [u8; 2] {
        [VERSION, self as u8]
    }
}

/// The bytes of a login between its version and its end: whoever sends the same is the same.
///
/// # Errors
/// When it is malformed.
pub fn parse_login(bytes: &[u8]) -> Result<Read<&[u8]>, Refusal> {
    if bytes.first().is_some_and(|version| *version != LOGIN_VERSION) {
        return Err(Refusal::BadLogin);
    }
    if let Some(read) = missing(bytes, 2) {
        return Ok(read);
    }
    let password_at = 2 + usize::from(bytes[1]);
    if let Some(read) = missing(bytes, password_at + 1) {
        return Ok(read);
    }
    let end = password_at + 1 + usize::from(bytes[password_at]);
    if let Some(read) = missing(bytes, end) {
        return Ok(read);
    }
    Ok(Read::Whole(&bytes[1..end]))
}

/// The answer to a login.
pub const LOGIN_ACCEPTED: [u8; 2] = [LOGIN_VERSION, 0];

/// An address and how many bytes it took.
fn parse_address(bytes: &[u8]) -> Result<Read<(Target, usize)>, Reply> {
    let Some(kind) = bytes.first() else { return Ok(Read::Missing(2)) };
    let host_len = match *kind {
        V4 => 4,
        V6 => 16,
        NAME => match bytes.get(1) {
            Some(len) => 1 + usize::from(*len),
            None => return Ok(Read::Missing(1)),
        },
        _ => return Err(Reply::UnknownAddress),
    };
    let end = 1 + host_len + 2;
    if let Some(read) = missing(bytes, end) {
        return Ok(read);
    }
    let host = &bytes[1..1 + host_len];
    let port = u16::from_be_bytes([bytes[end - 2], bytes[end - 1]]);
    let address = |ip: IpAddr| Target::from(SocketAddr::new(ip, port));
    let target = match *kind {
        V4 => host.first_chunk().map(|v4: &[u8; 4]| address(Ipv4Addr::from(*v4).into())),
        V6 => host.first_chunk().map(|v6: &[u8; 16]| address(Ipv6Addr::from(*v6).into())),
        _ => std::str::from_utf8(&host[1..]).ok().and_then(|name| Target::new(name, port).ok()),
    };
    target.map(|target| Read::Whole((target, end))).ok_or(Reply::HostUnreachable)
}

impl Request {
    /// A request.
    ///
    /// # Errors
    /// The reply that a malformed one gets.
    pub fn parse(bytes: &[u8]) -> Result<Read<Self>, Refusal> {
        if bytes.first().is_some_and(|version| *version != VERSION) {
            return Err(Refusal::Reply(Reply::Failure));
        }
        if let Some(read) = missing(bytes, 4) {
            return Ok(read);
        }
        let (command, reserved) = (bytes[1], bytes[2]);
        if !matches!(command, CONNECT | ASSOCIATE) {
            return Err(Refusal::Reply(Reply::UnknownCommand));
        }
        if reserved != 0 {
            return Err(Refusal::Reply(Reply::Failure));
        }
        let (target, _) = match parse_address(&bytes[3..]).map_err(Refusal::Reply)? {
            Read::Missing(count) => return Ok(Read::Missing(count)),
            Read::Whole(parsed) => parsed,
        };
        Ok(Read::Whole(match command {
            CONNECT if target.port == 0 => return Err(Refusal::Reply(Reply::Failure)),
            CONNECT => Self::Connect(target),
            _ => Self::Associate(target.port),
        }))
    }
}

fn push_address(address: SocketAddr, bytes: &mut Vec<u8>) {
    match address.ip() {
        IpAddr::V4(v4) => {
            bytes.push(V4);
            bytes.extend(v4.octets());
        }
        IpAddr::V6(v6) => {
            bytes.push(V6);
            bytes.extend(v6.octets());
        }
    }
    bytes.extend(address.port().to_be_bytes());
}

impl Reply {
    /// The bytes of the reply, with the address that the server bound.
    pub fn emit(self, bound: SocketAddr) -> Vec<u8> {
        let mut bytes = vec![VERSION, self as u8, 0];
        push_address(bound, &mut bytes);
        bytes
    }
}

/// A datagram of an association: where it goes and what it says. None if it is malformed or a
/// fragment, which RFC 1928 lets a server drop.
pub fn parse_datagram(bytes: &[u8]) -> Option<(Target, &[u8])> {
    let [0, 0, 0, rest @ ..] = bytes else { return None };
    match parse_address(rest).ok()? {
        Read::Whole((target, end)) if target.port != 0 => Some((target, &rest[end..])),
        _ => None,
    }
}

/// A datagram for the client of an association.
pub fn emit_datagram(from: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0];
    push_address(from, &mut bytes);
    bytes.extend(payload);
    bytes
}

#[cfg(test)]
mod tests;
