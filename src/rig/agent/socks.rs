//! A TCP connection, straight or through a SOCKS5 proxy.
//!
//! In: a server, perhaps a proxy. Out: a connection. Called by: rig::agent's TCP tools.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

const PATIENCE: Duration = Duration::from_secs(20);

/// Connects to `to`, through the proxy if there is one (RFC 1928, without authentication).
pub(super) fn connect(to: SocketAddr, proxy: Option<SocketAddr>) -> Result<TcpStream> {
    let first = proxy.unwrap_or(to);
    let mut stream = TcpStream::connect_timeout(&first, Duration::from_secs(10))
        .with_context(|| format!("connecting to {first}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    if proxy.is_none() {
        return Ok(stream);
    }
    let mut request = vec![5, 1, 0];
    stream.write_all(&request)?;
    let mut chosen = [0; 2];
    stream.read_exact(&mut chosen).context("greeting the proxy")?;
    ensure!(chosen == [5, 0], "expected a SOCKS5 proxy without password, got {chosen:?}");
    request = vec![5, 1, 0];
    match to.ip() {
        IpAddr::V4(address) => {
            request.push(1);
            request.extend(address.octets());
        }
        IpAddr::V6(address) => {
            request.push(4);
            request.extend(address.octets());
        }
    }
    request.extend(to.port().to_be_bytes());
    stream.write_all(&request)?;
    let mut head = [0; 4];
    stream.read_exact(&mut head).context("asking the proxy")?;
    ensure!(head[1] == 0, "the proxy refused {to}: code {}", head[1]);
    let rest = match head[3] {
        1 => 4 + 2,
        4 => 16 + 2,
        other => anyhow::bail!("expected an address from the proxy, got type {other}"),
    };
    let mut bound = [0; 18];
    stream.read_exact(&mut bound[..rest])?;
    Ok(stream)
}
