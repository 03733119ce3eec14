//! What stands behind a relay: a SOCKS5 server, or an echo.
//!
//! In: TCP connections of the relay. Out: connections to the world (RFC 1928, CONNECT; the parser
//! is that of [`crate::client::socks`]), or the same bytes back.
//! Called by: `cepa dcnet socks5|echo`.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use tokio::{
    io::{AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream, lookup_host},
    time::timeout,
};

use crate::{
    client::{
        Host,
        socks::{
            Stop,
            message::{self, LOGIN_ACCEPTED, Method, Read, Refusal, Reply, Request},
            read_message,
        },
    },
    dcnet_run::dial::accept,
};

/// How long a client may take until its request is whole.
const HANDSHAKE: Duration = Duration::from_secs(10);

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

/// Sends the reply and gives the reason for the log.
async fn refuse(stream: &mut TcpStream, reply: Reply, why: String) -> anyhow::Error {
    let _ = stream.write_all(&Refusal::Reply(reply).emit()).await;
    anyhow!(why)
}

/// What the client asks for, after its greeting; whoever logs in is let in.
async fn request(stream: &mut TcpStream) -> Result<Request, Stop> {
    let method = read_message(stream, Method::choose).await?;
    stream.write_all(&method.emit()).await?;
    match method {
        Method::Nobody => {}
        Method::Login => {
            let parse = |bytes: &[u8]| {
                Ok(match message::parse_login(bytes)? {
                    Read::Missing(count) => Read::Missing(count),
                    Read::Whole(_) => Read::Whole(()),
                })
            };
            read_message(stream, parse).await?;
            stream.write_all(&LOGIN_ACCEPTED).await?;
        }
        Method::None => return Err(Stop::Refused(Refusal::Silence)),
    }
    read_message(stream, Request::parse).await
}

async fn serve(mut stream: TcpStream, allow_private: bool) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let target = match timeout(HANDSHAKE, request(&mut stream)).await.context("the request")? {
        Ok(Request::Connect(target)) => target,
        Ok(Request::Associate(_)) => {
            let why = "only CONNECT is served, got UDP ASSOCIATE".into();
            return Err(refuse(&mut stream, Reply::UnknownCommand, why).await);
        }
        Err(Stop::Gone) => bail!("the client went away"),
        Err(Stop::Refused(refusal)) => {
            stream.write_all(&refusal.emit()).await?;
            bail!("expected a SOCKS5 request, got one that is refused: {refusal:?}");
        }
    };
    let addresses: Vec<SocketAddr> = match target.host {
        Host::Address(ip) => vec![(ip, target.port).into()],
        Host::Name(name) => match lookup_host((name, target.port)).await {
            Ok(addresses) => addresses.collect(),
            Err(error) => {
                let why = format!("the host is not found: {error}");
                return Err(refuse(&mut stream, Reply::HostUnreachable, why).await);
            }
        },
    };
    let allowed: Vec<SocketAddr> =
        addresses.into_iter().filter(|a| allow_private || is_public(a.ip())).collect();
    if allowed.is_empty() {
        let why = "the destination is private; --allow-private lets it through".into();
        return Err(refuse(&mut stream, Reply::NotAllowed, why).await);
    }
    match TcpStream::connect(allowed.as_slice()).await {
        Ok(mut remote) => {
            remote.set_nodelay(true)?;
            stream.write_all(&Reply::Succeeded.emit(([0, 0, 0, 0], 0).into())).await?;
            copy_bidirectional(&mut stream, &mut remote).await?;
            Ok(())
        }
        Err(error) => {
            let reply = match error.kind() {
                io::ErrorKind::ConnectionRefused => Reply::Refused,
                io::ErrorKind::NetworkUnreachable => Reply::NetworkUnreachable,
                _ => Reply::HostUnreachable,
            };
            Err(refuse(&mut stream, reply, format!("connecting: {error}")).await)
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
