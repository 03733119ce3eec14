//! The relay's page: a ring of its members, live.
//!
//! In: the status board. Out: HTML, style, script and JSON over HTTP. Called by: the relay program.

use axum::{
    Json, Router,
    http::{HeaderName, header},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;

use crate::dcnet_run::status::{self, Board};

/// Nothing but the page's own files, in nobody's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

fn file(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let headers: [(HeaderName, &str); 5] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text)
}

/// Serves the page for ever.
///
/// # Errors
/// When no connection can be accepted any more.
pub async fn serve(listener: TcpListener, board: Board) -> std::io::Result<()> {
    let html = || async { file("text/html; charset=utf-8", include_str!("page.html")) };
    let style = || async { file("text/css", include_str!("page.css")) };
    let script = || async { file("text/javascript", include_str!("page.js")) };
    let json = move || async move { Json(status::read(&board)) };
    let router = Router::new()
        .route("/", get(html))
        .route("/page.css", get(style))
        .route("/page.js", get(script))
        .route("/status.json", get(json));
    axum::serve(listener, router).await
}
