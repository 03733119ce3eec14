//! Dialling a relay that may start a moment later.
//!
//! In: `host:port`. Out: a TCP link, or the reason after a minute. Called by: every party.

use std::time::Duration;

use anyhow::Context;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};

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
