//! SOCKS5: connections and datagrams for programs that ask for them.
//!
//! In: connections to the proxy. Out: the same through the circuit. Called by: the proxies; the
//! exit of a DC-net reads its requests the same way.
//!
//! | client says | server does |
//! |---|---|
//! | methods | a login if offered, else nobody |
//! | user and password | all are accepted; each pair has circuits of its own |
//! | CONNECT | resolves at the exit, connects, splices |
//! | UDP ASSOCIATE | a port for datagrams while the connection stands |
//! | BIND, anything else | reply 7 and the end |

mod associate;
pub mod message;

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use self::message::{LOGIN_ACCEPTED, Method, Read, Refusal, Reply, Request};
use super::{DialError, Dialer, groups::Groups, listener::Guest, target::Target};
use crate::stack::splice;

/// How long a client may take until its request is whole.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The longest message.
const MOST_BYTES: usize = 3 + 1 + 255 + 255 + 2;

/// How a handshake ended early.
pub enum Stop {
    /// The client went away or was too slow.
    Gone,
    /// It said something wrong and gets this.
    Refused(Refusal),
}

impl From<io::Error> for Stop {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

/// Serves one connection from its greeting to its end.
pub(super) async fn serve(mut guest: Guest, dialer: Dialer, groups: Groups) {
    let handshake = timeout(HANDSHAKE, handshake(&mut guest.stream, &groups)).await;
    let (request, group) = match handshake {
        Ok(Ok(asked)) => asked,
        Ok(Err(stop)) => {
            guest.counters.refuse();
            if let Stop::Refused(refusal) = stop {
                say_goodbye(guest.stream, &refusal.emit()).await;
            }
            return;
        }
        Err(_) => {
            log::debug!("a SOCKS client took longer than {} s", HANDSHAKE.as_secs());
            return guest.counters.refuse();
        }
    };
    match request {
        Request::Connect(target) => connect(guest, &dialer, &target, group).await,
        Request::Associate(port) => associate::serve(guest, dialer, port, group).await,
    }
}

/// Reads until `parse` has a whole message, and never beyond it.
///
/// # Errors
/// When the client goes away, or `parse` refuses what it says.
pub async fn read_message<T>(
    stream: &mut TcpStream,
    parse: impl Fn(&[u8]) -> Result<Read<T>, Refusal>,
) -> Result<T, Stop> {
    let mut bytes = Vec::with_capacity(64);
    loop {
        match parse(&bytes).map_err(Stop::Refused)? {
            Read::Whole(message) => return Ok(message),
            Read::Missing(count) if bytes.len() + count <= MOST_BYTES => {
                let at = bytes.len();
                bytes.resize(at + count, 0);
                // A wrong first byte is answered at once, not when the rest is there.
                let first = if at == 0 { 1 } else { count };
                bytes.truncate(at + first);
                stream.read_exact(&mut bytes[at..]).await?;
            }
            Read::Missing(_) => return Err(Stop::Refused(Refusal::Reply(Reply::Failure))),
        }
    }
}

async fn handshake(stream: &mut TcpStream, groups: &Groups) -> Result<(Request, u32), Stop> {
    let method = match read_message(stream, Method::choose).await {
        Err(Stop::Refused(Refusal::Silence)) => {
            let _ = stream.try_write(NOT_SOCKS5);
            return Err(Stop::Refused(Refusal::Silence));
        }
        other => other?,
    };
    stream.write_all(&method.emit()).await?;
    let group = match method {
        Method::Nobody => 0,
        Method::Login => {
            let parse = |bytes: &[u8]| {
                Ok(match message::parse_login(bytes)? {
                    Read::Missing(count) => Read::Missing(count),
                    Read::Whole(login) => Read::Whole(groups.of(login)),
                })
            };
            let group = read_message(stream, parse).await?;
            stream.write_all(&LOGIN_ACCEPTED).await?;
            group
        }
        Method::None => return Err(Stop::Refused(Refusal::Silence)),
    };
    Ok((read_message(stream, Request::parse).await?, group))
}

/// Somebody's browser speaks HTTP to this port, most likely.
const NOT_SOCKS5: &[u8] = b"HTTP/1.0 501 Not Implemented\r\nConnection: close\r\n\
    Content-Type: text/plain\r\n\r\nThis is a SOCKS5 proxy, not an HTTP proxy. The setting of a \
    program that uses it is called SOCKS v5 host.\n";

/// Sends a last word and closes; what the client still sends does not turn it into a reset.
async fn say_goodbye(mut stream: TcpStream, bytes: &[u8]) {
    if stream.write_all(bytes).await.is_ok() && stream.shutdown().await.is_ok() {
        let mut rest = [0; 512];
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

async fn connect(mut guest: Guest, dialer: &Dialer, target: &Target, group: u32) {
    match dialer.dial(target, group, &guest.stream).await {
        Ok(remote) => {
            let bound = SocketAddr::from(([0, 0, 0, 0], 0));
            if guest.stream.write_all(&Reply::Succeeded.emit(bound)).await.is_ok() {
                let Guest { stream, .. } = guest;
                if let Err(error) = splice(stream, remote).await {
                    log::trace!("a connection broke: {error}");
                }
            }
        }
        Err(error) => {
            guest.counters.refuse();
            log::debug!("SOCKS: {error}");
            if let Some(reply) = reply_to(&error) {
                say_goodbye(guest.stream, &Refusal::Reply(reply).emit()).await;
            }
        }
    }
}

fn reply_to(error: &DialError) -> Option<Reply> {
    Some(match error {
        DialError::Refused => Reply::Refused,
        DialError::Prohibited => Reply::NotAllowed,
        DialError::Name(_) | DialError::Unreachable | DialError::Silent => Reply::HostUnreachable,
        DialError::Busy => Reply::Failure,
        DialError::Gone => return None,
    })
}
