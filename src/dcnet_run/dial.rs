//! Dialling a relay that may start a moment later, and accepting whoever dials.
//!
//! In: `host:port`, a listener. Out: a TCP link, or the reason after a minute.
//! Called by: every party.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};

/// Before accepting again when the system had no room for a connection.
const PAUSE: Duration = Duration::from_millis(300);
/// How long a party waits for its relay to come up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Connects, again and again for up to a minute.
///
/// # Errors
/// The last reason.
pub async fn dial(address: &str) -> anyhow::Result<TcpStream> {
    let end = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(_) if Instant::now() < end => sleep(Duration::from_millis(50)).await,
            Err(error) => {
                return Err(error).with_context(|| {
                    format!("the relay at {address} cannot be reached; is it running?")
                });
            }
        }
    }
}

/// The next connection. A system that has no room for one, such as too few file handles, is asked
/// again: those there are go on.
pub async fn accept(listener: &TcpListener, what: &str) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => log::warn!("{what} was not accepted: {error}"),
        }
        sleep(PAUSE).await;
    }
}
