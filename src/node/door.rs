//! The HTTP door on port 5000 (source 001): `POST /` with `{"CID", "payload"}`.
//!
//! In: connections. Out: envelopes to whoever answers them; 200, or problem+json with the reason.
//! Called by: the services of nodes and of the tracker.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Extension, Request},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use hyper::{body::Incoming, server::conn::http1, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use super::http_carrier::POLL_HEADER;
use crate::{
    directory::Problem,
    wire::share::{Envelope, MAX_ENVELOPE_LEN},
};

/// Connections at once.
const MOST_CONNECTIONS: usize = 1_024;
/// Connections of one address at once.
const MOST_OF_ONE: usize = 256;
/// How long the head and the body of a request may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest answer, a long poll.
const LONGEST: Duration = Duration::from_secs(40);
const MAX_HEAD: usize = 16 * 1024;

/// An answer of the door.
pub(crate) enum DoorAnswer {
    /// 200, with these bytes as JSON (`{}` if empty).
    Ok(Vec<u8>),
    /// A refusal: status, kind, detail.
    Refused(StatusCode, &'static str, String),
}

/// Whoever answers envelopes.
pub(crate) trait Doorkeeper: Clone + Send + Sync + 'static {
    /// Answers one envelope of a sender, who `polls` for what comes back, or can be reached.
    fn answer(
        &self,
        from: SocketAddr,
        polls: bool,
        envelope: Envelope,
    ) -> impl Future<Output = DoorAnswer> + Send;
}

/// Listens where the settings say.
///
/// # Errors
/// When the port is taken or not allowed.
pub(crate) async fn bind(addr: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if addr.is_ipv6() {
        tokio::net::TcpSocket::new_v6()?
    } else {
        tokio::net::TcpSocket::new_v4()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(256)
}

/// Serves the door for as long as the returned future lives.
pub(crate) async fn serve<K: Doorkeeper>(listener: TcpListener, keeper: K) {
    let router = Router::new().route(
        "/",
        post(move |Extension(Peer(from)): Extension<Peer>, request: Request| {
            let keeper = keeper.clone();
            async move { handle(&keeper, from, request).await.into_response() }
        }),
    );
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let of_source = Arc::new(Mutex::new(HashMap::<IpAddr, usize>::new()));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                log::warn!(event = "door"; "a connection was not accepted: {error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let Some(own) = Place::take(&of_source, from.ip()) else { continue };
        let router = router.clone();
        connections.spawn(async move {
            serve_one(stream, from, router).await;
            drop((own, place));
        });
    }
}

/// One connection of an address, given back when dropped.
struct Place(Arc<Mutex<HashMap<IpAddr, usize>>>, IpAddr);

impl Place {
    fn take(of_source: &Arc<Mutex<HashMap<IpAddr, usize>>>, ip: IpAddr) -> Option<Self> {
        let mut counts = of_source.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(ip).or_default();
        if *count >= MOST_OF_ONE {
            return None;
        }
        *count += 1;
        Some(Self(Arc::clone(of_source), ip))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.1);
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Peer(SocketAddr);

async fn serve_one(stream: TcpStream, from: SocketAddr, router: Router) {
    // Messages are written whole, so waiting for more to send only adds delay.
    let _ = stream.set_nodelay(true);
    let routes = TowerToHyperService::new(router);
    let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(Peer(from));
        routes.call(request.map(Body::new))
    });
    let ended = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(LONGEST)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = ended {
        log::trace!("a connection of the door ended: {error}");
    }
}

async fn handle<K: Doorkeeper>(keeper: &K, from: SocketAddr, request: Request) -> DoorAnswer {
    let polls = request.headers().contains_key(POLL_HEADER);
    let announced = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let too_large = || {
        DoorAnswer::Refused(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too-large",
            format!("expected at most {MAX_ENVELOPE_LEN} bytes, got more"),
        )
    };
    if announced.is_some_and(|length| length > MAX_ENVELOPE_LEN) {
        return too_large();
    }
    let read = to_bytes(request.into_body(), MAX_ENVELOPE_LEN);
    let body = match tokio::time::timeout(PATIENCE, read).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => return too_large(),
        Err(_) => {
            return DoorAnswer::Refused(
                StatusCode::REQUEST_TIMEOUT,
                "too-slow",
                "expected the whole message within 5 s".to_owned(),
            );
        }
    };
    match Envelope::parse(&body) {
        Ok(envelope) => keeper.answer(from, polls, envelope).await,
        Err(error) => {
            DoorAnswer::Refused(StatusCode::BAD_REQUEST, "bad-message", error.to_string())
        }
    }
}

impl IntoResponse for DoorAnswer {
    fn into_response(self) -> Response {
        match self {
            Self::Ok(bytes) => {
                let body = if bytes.is_empty() { b"{}".to_vec() } else { bytes };
                let kind = HeaderValue::from_static("application/json");
                ([(header::CONTENT_TYPE, kind)], body).into_response()
            }
            Self::Refused(status, kind, detail) => {
                let problem = Problem {
                    kind: format!("urn:cepa:problem:{kind}"),
                    title: "The message is refused".to_owned(),
                    status: status.as_u16(),
                    detail,
                    field: None,
                };
                let body = serde_json::to_vec(&problem).unwrap_or_default();
                let kind = HeaderValue::from_static("application/problem+json");
                (status, [(header::CONTENT_TYPE, kind)], body).into_response()
            }
        }
    }
}
