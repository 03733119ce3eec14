//! Connections: accepted up to a limit, served, ended when they are slow or old.
//!
//! In: a listener and a router. Out: answered connections. Called by: the controller's start.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, body::Body, http::Request};
use hyper::{body::Incoming, server::conn::http1, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};

use super::{
    app::{App, Peer},
    limit::{Source, source_of},
    metrics::count,
};
use crate::directory::LONG_POLL;

/// What the head of a request may take of memory, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// How long open connections have to finish when the controller stops.
const FAREWELL: Duration = Duration::from_secs(3);

/// One connection of a source, given back when dropped.
struct Place {
    app: Arc<App>,
    source: Source,
}

impl Place {
    fn take(app: &Arc<App>, peer: SocketAddr) -> Option<Self> {
        let source = source_of(peer.ip());
        let granted = app.limiter().connect(source, Instant::now());
        granted.then(|| Self { app: Arc::clone(app), source })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.app.limiter().disconnect(self.source);
    }
}

/// Serves connections until the controller stops; then lets open ones finish for a moment.
pub(crate) async fn serve(app: Arc<App>, listener: TcpListener, router: Router) {
    let places = Arc::new(Semaphore::new(app.settings.limits.connections));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let place = tokio::select! {
            () = app.stopped() => break,
            place = Arc::clone(&places).acquire_owned() => place,
        };
        let Ok(place) = place else { break };
        let accepted = tokio::select! {
            () = app.stopped() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: others must be closed first.
                log::warn!(event = "door"; "a connection was not accepted: {error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        count(&app.metrics.connections);
        let Some(own) = Place::take(&app, peer) else {
            count(&app.metrics.connections_refused);
            continue;
        };
        let (app, router) = (Arc::clone(&app), router.clone());
        connections.spawn(async move {
            serve_one(&app, stream, peer, router).await;
            drop((own, place));
        });
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(FAREWELL, all).await.is_err() {
        log::debug!("{} connections are cut", connections.len());
    }
}

async fn serve_one(app: &App, stream: TcpStream, peer: SocketAddr, router: Router) {
    // Answers are written whole, so waiting for more to send only adds delay.
    let _ = stream.set_nodelay(true);
    let routes = TowerToHyperService::new(router);
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        routes.call(request.map(Body::new))
    });
    let limits = &app.settings.limits;
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = tokio::time::sleep(limits.connection_life) => None,
        () = app.stopped() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            // The answer under way may still go out, unless its reader is what takes so long.
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(LONG_POLL + limits.body_timeout, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        log::debug!("connection of {peer}: {error}");
    }
}
