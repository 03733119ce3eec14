//! Which request goes where.
//!
//! In: requests. Out: answers, all errors as problem+json. Called by: the server.

use std::{sync::Arc, time::Instant};

use axum::{
    Extension, Router,
    extract::{Request, State},
    http::{Method, StatusCode, Uri},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};

use super::{
    app::{App, Peer},
    download, limit,
    metrics::count,
    problem::Refusal,
    query, register,
};

/// All routes.
pub(crate) fn routes(app: &Arc<App>) -> Router {
    Router::new()
        .route("/whoami", get(query::whoami))
        .route("/nodes", get(query::list).post(register::register))
        .route("/nodes/{who}", get(query::one))
        .route("/directory", get(download::directory))
        .route("/healthz", get(query::health))
        .route("/readyz", get(query::ready))
        .route("/metrics", get(query::metrics))
        .fallback(nowhere)
        .method_not_allowed_fallback(other_method)
        .layer(middleware::from_fn_with_state(Arc::clone(app), admit_request))
        .with_state(Arc::clone(app))
}

/// `/metrics` alone, for a listener of its own.
pub(crate) fn metrics_only(app: &Arc<App>) -> Router {
    Router::new()
        .route("/metrics", get(query::metrics))
        .fallback(nowhere)
        .with_state(Arc::clone(app))
}

/// Limits the rate of each source, and counts the answers.
async fn admit_request(
    State(app): State<Arc<App>>,
    Extension(Peer(peer)): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let granted = app.limiter().request(limit::source_of(peer.ip()), Instant::now());
    let response = match granted {
        Ok(()) => next.run(request).await,
        Err(wait) => {
            count(&app.metrics.rate_limited);
            Refusal::too_many(wait).into_response()
        }
    };
    app.metrics.answered(response.status());
    response
}

async fn nowhere(uri: Uri) -> Refusal {
    let path: String = uri.path().chars().take(80).collect();
    Refusal::not_found(format!(
        "expected one of /whoami, /nodes, /nodes/ID, /directory, /healthz, /readyz, /metrics; \
         got {path:?}"
    ))
}

async fn other_method(method: Method) -> Refusal {
    Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method-not-allowed",
        "This path does not take this method",
        format!("expected GET, or POST on /nodes; got {method}"),
    )
}
