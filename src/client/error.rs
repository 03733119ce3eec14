//! Why the proxies cannot run.
//!
//! In: errors of the system. Out: words with the way out. Called by: node.

use std::{io, net::SocketAddr};

/// Why the proxies cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// An address cannot be listened on.
    #[error(
        "expected to listen on {address} for {kind}, but {}; choose another address with \
         --{flag} IP:PORT", words(.source)
    )]
    Listen {
        /// The flag that names the address.
        flag: &'static str,
        /// What was to be offered there.
        kind: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The system refuses a thread or its notification of events.
    #[error("the proxies cannot be started")]
    Start(#[source] io::Error),
}

fn words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another program listens there".to_owned(),
        io::ErrorKind::AddrNotAvailable => "no interface of this machine has it".to_owned(),
        io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE".to_owned(),
        _ => error.to_string(),
    }
}
