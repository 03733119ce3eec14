//! The HTTP proxy: CONNECT, and plain requests with an absolute address.
//!
//! In: connections to the proxy. Out: the same through the circuit. Called by: the proxies.
//!
//! | client says | server does |
//! |---|---|
//! | `CONNECT host:port` | resolves at the exit, connects, splices |
//! | `GET http://host/path` and the like | the same, sends the request on, closes after the answer |
//! | `Proxy-Authorization: Basic` | all are accepted; each pair has circuits of its own |
//! | anything else | a status that says what is wrong, and the end |

pub mod head;

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::TcpStream as LocalStream,
    time::timeout,
};

use self::head::{Asked, Body, Head, Read, Refusal};
use super::{DialError, Dialer, groups::Groups, listener::Guest};
use crate::stack::{TcpStream, splice};

/// How long a client may take until its request is whole.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Serves one connection from its request to its end.
pub(super) async fn serve(mut guest: Guest, dialer: Dialer, groups: Groups) {
    let asked = match timeout(HANDSHAKE, read_head(&mut guest.stream)).await {
        Ok(Ok(asked)) => asked,
        Ok(Err(Some(refusal))) => return refuse(guest, refusal).await,
        // It went away.
        Ok(Err(None)) => return guest.counters.refuse(),
        Err(_) => return refuse(guest, Refusal::TooSlow).await,
    };
    let (head, early) = asked;
    let group = head.login.as_deref().map_or(0, |login| groups.of(login));
    let target = match &head.asked {
        Asked::Connect(target) | Asked::Forward { target, .. } => target,
    };
    let remote = match dialer.dial(target, group, &guest.stream).await {
        Ok(remote) => remote,
        Err(DialError::Gone) => return guest.counters.refuse(),
        Err(error) => {
            log::debug!("HTTP: {error}");
            return refuse(guest, Refusal::Dial(error.to_string(), status_of(&error))).await;
        }
    };
    let Guest { stream, .. } = guest;
    let moved = match head.asked {
        Asked::Connect(_) => tunnel(stream, remote, &early).await,
        Asked::Forward { head, body, .. } => forward(stream, remote, &head, body, early).await,
    };
    if let Err(error) = moved {
        log::trace!("a connection broke: {error}");
    }
}

fn status_of(error: &DialError) -> &'static str {
    match error {
        DialError::Prohibited => "403 Forbidden",
        DialError::Busy => "503 Service Unavailable",
        DialError::Silent => "504 Gateway Timeout",
        DialError::Name(_) | DialError::Refused | DialError::Unreachable | DialError::Gone => {
            "502 Bad Gateway"
        }
    }
}

/// Reads until the head is whole; what came behind it is the second part.
async fn read_head(stream: &mut LocalStream) -> Result<(Head, Vec<u8>), Option<Refusal>> {
    let mut bytes = Vec::with_capacity(1024);
    loop {
        if let Read::Whole(head, len) = head::parse(&bytes).map_err(Some)? {
            return Ok((head, bytes.split_off(len)));
        }
        match stream.read_buf(&mut bytes).await {
            Ok(1..) => {}
            _ => return Err(None),
        }
    }
}

/// Says what is wrong and closes.
async fn refuse(mut guest: Guest, refusal: Refusal) {
    guest.counters.refuse();
    let answer = refusal.emit();
    let stream = &mut guest.stream;
    if stream.write_all(&answer).await.is_ok() && stream.shutdown().await.is_ok() {
        let mut rest = [0; 1024];
        let drain = async {
            for _ in 0..64 {
                if !matches!(stream.read(&mut rest).await, Ok(1..)) {
                    return;
                }
            }
        };
        // Whoever does not close gets a reset.
        let _ = timeout(Duration::from_secs(1), drain).await;
    }
}

async fn tunnel(mut local: LocalStream, mut remote: TcpStream, early: &[u8]) -> io::Result<()> {
    local.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    remote.write_all(early).await?;
    splice(local, remote).await.map(drop)
}

/// Sends one request on, and its answer back until its end: nothing else of this connection goes
/// to that server.
async fn forward(
    mut local: LocalStream,
    mut remote: TcpStream,
    head: &[u8],
    body: Body,
    early: Vec<u8>,
) -> io::Result<()> {
    remote.write_all(head).await?;
    if body == Body::Chunked {
        remote.write_all(&early).await?;
        return splice(local, remote).await.map(drop);
    }
    let Body::Length(len) = body else { return answer(&mut remote, &mut local).await };
    let (mut from, mut back) = tokio::io::split(remote);
    let (reader, mut writer) = local.split();
    let mut body = early.chain(reader).take(len);
    let upload = async {
        copy(&mut body, &mut back).await?;
        std::future::pending::<io::Result<()>>().await
    };
    tokio::select! {
        // A server may answer before it has everything.
        answered = copy(&mut from, &mut writer) => answered?,
        broken = upload => return broken,
    };
    local.shutdown().await
}

async fn answer(remote: &mut TcpStream, local: &mut LocalStream) -> io::Result<()> {
    let (mut reader, mut writer) = local.split();
    let gone = async {
        let mut nothing = [0; 256];
        while matches!(reader.read(&mut nothing).await, Ok(1..)) {}
    };
    tokio::select! {
        answered = copy(remote, &mut writer) => answered?,
        () = gone => return Err(io::ErrorKind::ConnectionAborted.into()),
    };
    local.shutdown().await
}
