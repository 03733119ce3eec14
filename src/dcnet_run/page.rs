//! The relay's page: a ring of its members, live.
//!
//! In: the status board. Out: HTML and JSON over HTTP. Called by: the relay program.

use axum::{
    Json, Router,
    http::header,
    response::{Html, IntoResponse},
    routing::get,
};
use tokio::net::TcpListener;

use crate::dcnet_run::status::{self, Board};

const PAGE: &str = include_str!("page.html");

/// Serves the page for ever.
///
/// # Errors
/// When no connection can be accepted any more.
pub async fn serve(listener: TcpListener, board: Board) -> std::io::Result<()> {
    let html = || async {
        let policy = "default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'";
        ([(header::CONTENT_SECURITY_POLICY, policy)], Html(PAGE)).into_response()
    };
    let json = move || async move { Json(status::read(&board)) };
    let router = Router::new().route("/", get(html)).route("/status.json", get(json));
    axum::serve(listener, router).await
}
