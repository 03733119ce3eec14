//! Connections and datagrams, straight or through a SOCKS5 proxy (RFC 1928, no authentication).
//!
//! In: a server, perhaps a proxy. Out: a connection; how echoes went. Called by: rig::agent's tools.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Socket, Type};

use super::{EchoAnswer, port};
use crate::rig::plaintext;

const PATIENCE: Duration = Duration::from_secs(20);
/// How long one datagram may take to come back.
const ECHO_PATIENCE: Duration = Duration::from_secs(2);
const CONNECT: u8 = 1;
const ASSOCIATE: u8 = 3;

/// Connects to `to`, through the proxy if there is one.
pub(super) fn connect(to: SocketAddr, proxy: Option<SocketAddr>) -> Result<TcpStream> {
    connect_as(0, to, proxy)
}

/// The same as one of several users of the proxy, who differ by their loopback addresses: Tor gives
/// each of them circuits of its own.
pub(super) fn connect_as(user: u8, to: SocketAddr, proxy: Option<SocketAddr>) -> Result<TcpStream> {
    let Some(proxy) = proxy else { return open(None, to) };
    let own = Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + u32::from(user));
    ask(open(Some(own), proxy)?, CONNECT, to).map(|(stream, _)| stream)
}

/// Datagrams to the echo server and back by UDP ASSOCIATE, one after the other.
pub(super) fn echo(to: IpAddr, count: u32, size: usize, proxy: SocketAddr) -> Result<EchoAnswer> {
    let (control, relay) = ask(open(None, proxy)?, ASSOCIATE, (Ipv4Addr::UNSPECIFIED, 0).into())?;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect(relay)?;
    socket.set_read_timeout(Some(ECHO_PATIENCE))?;
    let mut datagram = vec![0, 0, 0];
    datagram.extend(address(SocketAddr::new(to, port::ECHO)));
    let header = datagram.len();
    datagram.resize(header + size.max(4), 0);
    let (started, mut trips) = (Instant::now(), Vec::new());
    let mut back = [0; 65_536];
    for number in 0..count {
        plaintext::fill(&mut datagram[header..], u64::from(number));
        datagram[header..header + 4].copy_from_slice(&number.to_be_bytes());
        let sent = Instant::now();
        socket.send(&datagram)?;
        let len = socket.recv(&mut back);
        if len.is_ok_and(|len| back[..len] == datagram) {
            trips.push(sent.elapsed().as_secs_f64() * 1e3);
        }
    }
    drop(control);
    Ok(EchoAnswer::of(count.into(), size, trips, started.elapsed()))
}

fn open(from: Option<Ipv4Addr>, to: SocketAddr) -> Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    if let Some(from) = from {
        socket.bind(&SocketAddr::from((from, 0)).into())?;
    }
    socket
        .connect_timeout(&to.into(), Duration::from_secs(10))
        .with_context(|| format!("connecting to {to}"))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}

/// Asks a proxy for something; the connection, and the address in its answer.
fn ask(mut stream: TcpStream, command: u8, to: SocketAddr) -> Result<(TcpStream, SocketAddr)> {
    stream.write_all(&[5, 1, 0])?;
    let mut chosen = [0; 2];
    stream.read_exact(&mut chosen).context("greeting the proxy")?;
    ensure!(chosen == [5, 0], "expected a SOCKS5 proxy without password, got {chosen:?}");
    let mut request = vec![5, command, 0];
    request.extend(address(to));
    stream.write_all(&request)?;
    let mut head = [0; 4];
    stream.read_exact(&mut head).context("asking the proxy")?;
    ensure!(head[1] == 0, "the proxy refused {to}: code {}", head[1]);
    let ip: IpAddr = match head[3] {
        1 => read::<4>(&mut stream)?.into(),
        4 => read::<16>(&mut stream)?.into(),
        other => anyhow::bail!("expected an address from the proxy, got type {other}"),
    };
    let port = u16::from_be_bytes(read::<2>(&mut stream)?);
    Ok((stream, SocketAddr::new(ip, port)))
}

fn read<const N: usize>(stream: &mut TcpStream) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The type, the address and the port, as requests and datagrams have them.
fn address(to: SocketAddr) -> Vec<u8> {
    let mut bytes = match to.ip() {
        IpAddr::V4(address) => [&[1u8][..], &address.octets()].concat(),
        IpAddr::V6(address) => [&[4u8][..], &address.octets()].concat(),
    };
    bytes.extend(to.port().to_be_bytes());
    bytes
}
