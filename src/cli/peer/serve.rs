//! `cepa peer serve`: the peer as a daemon, with its page.
//!
//! In: settings. Out: a page on the loopback address, until it is stopped. Called by: `cepa peer`.

use std::sync::Arc;

use anyhow::Context;
use tokio::net::TcpListener;

use super::{access::Access, progress::log_line};
use crate::{
    config::{Loaded, PeerConfig},
    peer_run::PageBackend,
    telemetry::service_manager::{ready, stop_signal},
    web::{Door, serve},
};

pub(super) async fn run(loaded: &Loaded<PeerConfig>) -> anyhow::Result<()> {
    let address = loaded.settings.web;
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("listening on {address}; is another peer running, or the port taken? see --web")
    })?;
    let address = listener.local_addr()?;
    let stopped = stop_signal();
    let own = Access::serve(loaded).await?;
    let door = Door::new(address.port(), move |code| {
        log_line(&format!("Page (opens one browser, once): http://{address}/?code={code}"));
    });
    let backend = Arc::new(PageBackend(Arc::clone(&own.engine)));
    ready();
    let result = tokio::select! {
        ended = serve(listener, backend, Arc::new(door)) => Ok(ended?),
        () = stopped => Ok(()),
    };
    own.end().await;
    result
}
