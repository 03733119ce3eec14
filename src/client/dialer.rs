//! From a target to an open stream: resolves at the exit, tries the addresses, says why not.
//!
//! In: targets and isolation groups. Out: streams. Called by: the proxies.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use tokio::{net::TcpStream as LocalStream, task::JoinSet, time::timeout};

use super::{
    names::{LookupError, Names},
    target::{Host, Target},
};
use crate::stack::{Stack, TcpStream};

/// How long another end may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// The head start of an address before the next one is tried (RFC 8305 recommends 250 ms).
const HEAD_START: Duration = Duration::from_millis(250);
/// Addresses of one name that are tried.
const MOST_ADDRESSES: usize = 6;

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name leads nowhere.
    #[error("the name was not resolved: {0}")]
    Name(#[from] LookupError),
    /// Nobody listens there.
    #[error("the connection was refused")]
    Refused,
    /// There is no way there.
    #[error("the host cannot be reached")]
    Unreachable,
    /// The exit's rules forbid it.
    #[error("the exit does not let connections to this address or port through")]
    Prohibited,
    /// No answer.
    #[error("no answer came within {} s", PATIENCE.as_secs())]
    Silent,
    /// This side has no room.
    #[error("too many connections are open")]
    Busy,
    /// Whoever wanted it has gone.
    #[error("the client closed the connection while it was waiting")]
    Gone,
}

impl From<io::Error> for DialError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Self::Refused,
            io::ErrorKind::PermissionDenied => Self::Prohibited,
            io::ErrorKind::TimedOut => Self::Silent,
            io::ErrorKind::ResourceBusy | io::ErrorKind::AddrInUse => Self::Busy,
            _ => Self::Unreachable,
        }
    }
}

/// Opens streams; clones are the same dialer.
#[derive(Clone)]
pub struct Dialer {
    stack: Stack,
    names: Rc<Names>,
}

impl Dialer {
    /// A dialer on a stack.
    pub fn new(stack: Stack, names: Rc<Names>) -> Self {
        Self { stack, names }
    }

    /// The stack.
    pub fn stack(&self) -> &Stack {
        &self.stack
    }

    /// The addresses of a host, IPv4 first: fewer exits have IPv6.
    ///
    /// # Errors
    /// When a name does not lead to any.
    pub async fn addresses(&self, host: &Host, group: u32) -> Result<Vec<IpAddr>, LookupError> {
        match host {
            Host::Address(ip) => Ok(vec![*ip]),
            Host::Name(name) => self.names.addresses(name, group).await,
        }
    }

    /// Opens a stream, unless `waiting` is closed by its other end meanwhile.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn dial(
        &self,
        target: &Target,
        group: u32,
        waiting: &LocalStream,
    ) -> Result<TcpStream, DialError> {
        let dialing = async {
            let addresses = self.addresses(&target.host, group).await?;
            self.race(addresses, target.port, group).await
        };
        tokio::select! {
            dialed = timeout(PATIENCE, dialing) => dialed.unwrap_or(Err(DialError::Silent)),
            () = closed(waiting) => Err(DialError::Gone),
        }
    }

    /// Tries the addresses one after the other, each with a head start before the next.
    async fn race(
        &self,
        addresses: Vec<IpAddr>,
        port: u16,
        group: u32,
    ) -> Result<TcpStream, DialError> {
        let mut attempts = JoinSet::new();
        let mut left = addresses.into_iter().take(MOST_ADDRESSES);
        let mut why = DialError::Unreachable;
        loop {
            let next = left.next();
            if let Some(ip) = next {
                let stack = self.stack.clone();
                attempts.spawn_local(async move {
                    stack.connect(SocketAddr::new(ip, port), group).await
                });
            } else if attempts.is_empty() {
                return Err(why);
            }
            let wait = async {
                match left.len() {
                    0 => attempts.join_next().await,
                    _ => timeout(HEAD_START, attempts.join_next()).await.ok().flatten(),
                }
            };
            match wait.await {
                Some(Ok(Ok(stream))) => return Ok(stream),
                Some(Ok(Err(error))) => why = error.into(),
                Some(Err(_)) | None => {}
            }
        }
    }
}

/// Waits until the other end of a socket closes it or resets it; for ever once it wrote something
/// instead, which is for later.
async fn closed(stream: &LocalStream) {
    let mut byte = [0];
    match stream.peek(&mut byte).await {
        Ok(0) | Err(_) => {}
        Ok(_) => std::future::pending().await,
    }
}
