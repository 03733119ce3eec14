//! What stands behind a relay: a SOCKS5 server, or an echo.
//!
//! In: TCP connections of the relay. Out: connections to the world (RFC 1928, CONNECT without
//! authentication), or the same bytes back. Called by: `cepa dcnet socks5|echo`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream, lookup_host},
};

use crate::dcnet_run::dial::accept;

const SUCCEEDED: u8 = 0;
const FAILED: u8 = 1;
const NOT_ALLOWED: u8 = 2;
const HOST_UNREACHABLE: u8 = 4;
const COMMAND_UNKNOWN: u8 = 7;

/// Sends everything back, for ever.
pub async fn run_echo(listener: TcpListener) {
    loop {
        let (mut stream, _) = accept(&listener, "a connection").await;
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let (mut reader, mut writer) = stream.split();
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
            let _ = writer.shutdown().await;
        });
    }
}

/// Serves SOCKS5, for ever; private destinations only when `allow_private`.
pub async fn run_socks(listener: TcpListener, allow_private: bool) {
    loop {
        let (stream, _) = accept(&listener, "a connection").await;
        tokio::spawn(async move {
            if let Err(error) = serve(stream, allow_private).await {
                log::debug!("a SOCKS connection ended: {error:#}");
            }
        });
    }
}

async fn reply(stream: &mut TcpStream, code: u8) -> std::io::Result<()> {
    stream.write_all(&[5, code, 0, 1, 0, 0, 0, 0, 0, 0]).await
}

async fn serve(mut stream: TcpStream, allow_private: bool) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let (version, methods) = (stream.read_u8().await?, stream.read_u8().await?);
    if version != 5 {
        bail!("expected SOCKS version 5, got {version}");
    }
    let mut offered = vec![0; usize::from(methods)];
    stream.read_exact(&mut offered).await?;
    if !offered.contains(&0) {
        stream.write_all(&[5, 0xff]).await?;
        bail!("the client insists on authentication");
    }
    stream.write_all(&[5, 0]).await?;
    let mut request = [0; 4];
    stream.read_exact(&mut request).await?;
    let host = match request[3] {
        1 => IpAddr::from(Ipv4Addr::from(stream.read_u32().await?)).to_string(),
        4 => format!("[{}]", std::net::Ipv6Addr::from(stream.read_u128().await?)),
        3 => {
            let len = stream.read_u8().await?;
            let mut name = vec![0; usize::from(len)];
            stream.read_exact(&mut name).await?;
            String::from_utf8(name).context("the host name")?
        }
        other => {
            reply(&mut stream, FAILED).await?;
            bail!("unknown address type {other}");
        }
    };
    let port = stream.read_u16().await?;
    if request[1] != 1 {
        reply(&mut stream, COMMAND_UNKNOWN).await?;
        bail!("only CONNECT is served, got command {}", request[1]);
    }
    let addresses: Vec<SocketAddr> = match lookup_host(format!("{host}:{port}")).await {
        Ok(addresses) => addresses.collect(),
        Err(error) => {
            reply(&mut stream, HOST_UNREACHABLE).await?;
            return Err(error).context("looking up the host");
        }
    };
    let allowed: Vec<SocketAddr> =
        addresses.into_iter().filter(|a| allow_private || is_public(a.ip())).collect();
    if allowed.is_empty() {
        reply(&mut stream, NOT_ALLOWED).await?;
        bail!("the destination is private; --allow-private lets it through");
    }
    match TcpStream::connect(allowed.as_slice()).await {
        Ok(mut target) => {
            target.set_nodelay(true)?;
            reply(&mut stream, SUCCEEDED).await?;
            copy_bidirectional(&mut stream, &mut target).await?;
            Ok(())
        }
        Err(error) => {
            reply(&mut stream, HOST_UNREACHABLE).await?;
            Err(error).context("connecting")
        }
    }
}

/// Neither this host nor a private network.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let shared = v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64;
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.octets()[0] == 0
                || shared)
        }
        IpAddr::V6(v6) => {
            !(v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unique_local()
                || v6.is_unicast_link_local())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses_are_private_in_every_dress() {
        for text in [
            "127.0.0.1",
            "10.1.2.3",
            "192.168.0.1",
            "169.254.1.1",
            "::1",
            "fd00::1",
            "::ffff:10.0.0.1",
            "100.64.0.1",
            "0.0.0.0",
            "fe80::1",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
        for text in ["1.1.1.1", "100.128.0.1", "2606:4700::1"] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }
}
