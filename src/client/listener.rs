//! Takes connections for a proxy: within the limits, each in a task of its own.
//!
//! In: a listening socket. Out: connections that have a seat. Called by: the proxies.

use std::{io, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use tokio::net::{TcpListener, TcpStream};

use super::counters::{Counters, Open, Seat, Sources, is_near};

/// How long to wait when the system has no descriptors left.
const BREATHER: Duration = Duration::from_millis(100);

/// A connection with its place in the counters.
pub(super) struct Guest {
    pub(super) stream: TcpStream,
    pub(super) from: SocketAddr,
    pub(super) counters: Arc<Counters>,
    _open: Open,
    _seat: Seat,
}

/// Serves connections until it is dropped.
pub(super) async fn serve<F: Future<Output = ()> + 'static>(
    listener: TcpListener,
    counters: Arc<Counters>,
    sources: Sources,
    handle: impl Fn(Guest) -> F + 'static,
) {
    let handle = Rc::new(handle);
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                pause_after(&error).await;
                continue;
            }
        };
        let seat = sources.seat(from.ip());
        let (true, Some(seat)) = (is_near(from.ip()), seat) else {
            counters.refuse();
            log::debug!("a connection from {} is over the limits", from.ip());
            let _ = stream.set_zero_linger();
            continue;
        };
        // Small segments of the circuit are as good as large ones.
        let _ = stream.set_nodelay(true);
        let guest = Guest {
            stream,
            from,
            _open: counters.open(),
            counters: Arc::clone(&counters),
            _seat: seat,
        };
        tokio::task::spawn_local(handle(guest));
    }
}

/// A connection that went away before it was taken is nothing; want of descriptors is.
async fn pause_after(error: &io::Error) {
    if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        log::warn!("a connection to the proxy was not taken: {error}");
        tokio::time::sleep(BREATHER).await;
    }
}
