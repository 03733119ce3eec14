//! Serves the page on the loopback address.
//!
//! In: a listener, a backend, a door. Out: HTTP. Called by: cli.

use std::sync::Arc;

use axum::{
    Form, Router,
    extract::{DefaultBodyLimit, Query, Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Redirect, Response},
    routing::get,
};
use serde::Deserialize;
use tokio::net::TcpListener;

use super::{
    Backend, Door,
    api::{self, App},
};

const PAGE: &str = include_str!("page/index.html");
const ENTER: &str = include_str!("page/enter.html");
const STYLE: &str = include_str!("page/app.css");
const SCRIPT: &str = include_str!("page/app.js");
const ICON: &str = include_str!("page/icon.svg");

/// Nothing but our own files, nobody around us, nothing remembered.
const HEADERS: &[(&str, &str)] = &[
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
         connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", "no-store"),
];

/// Serves until the listener fails.
///
/// # Errors
/// When no connection can be accepted any more.
pub async fn serve(
    listener: TcpListener,
    backend: Arc<dyn Backend>,
    door: Arc<Door>,
) -> std::io::Result<()> {
    let app = App { backend, door };
    let router = Router::new()
        .route("/", get(page))
        .route("/enter", get(enter_page).post(enter))
        .route("/app.css", get(async || file("text/css; charset=utf-8", STYLE)))
        .route("/app.js", get(async || file("text/javascript; charset=utf-8", SCRIPT)))
        .route("/icon.svg", get(async || file("image/svg+xml", ICON)))
        .merge(api::router().layer(DefaultBodyLimit::disable()))
        .layer(middleware::from_fn_with_state(app.clone(), guard))
        .with_state(app);
    axum::serve(listener, router).await
}

fn file(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

fn no(status: StatusCode, words: &'static str) -> Response {
    (status, axum::Json(serde_json::json!({ "error": words }))).into_response()
}

/// Every request passes here: host, origin, session, token; every answer leaves with our headers.
async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    let mut response = match refusal(&app.door, &request) {
        Some(refusal) => refusal,
        None => next.run(request).await,
    };
    for (name, value) in HEADERS {
        response
            .headers_mut()
            .insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

fn refusal(door: &Door, request: &Request) -> Option<Response> {
    let headers = request.headers();
    if !door.is_our_host(headers) {
        return Some(no(StatusCode::MISDIRECTED_REQUEST, "expected a loopback name and our port"));
    }
    let path = request.uri().path();
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    if path == "/enter" {
        let is_ours = is_read || door.is_our_origin(headers);
        return (!is_ours).then(|| no(StatusCode::FORBIDDEN, "expected a form of our own page"));
    }
    if !path.starts_with("/api/") {
        return None;
    }
    if door.token(headers).is_none() {
        return Some(no(StatusCode::UNAUTHORIZED, "the code of the terminal opens this page"));
    }
    let may = is_read || door.may_change(headers);
    (!may).then(|| no(StatusCode::FORBIDDEN, "expected a request of our own page"))
}

async fn page(State(app): State<App>, Query(query): Query<Code>, request: Request) -> Response {
    if !query.code.is_empty() {
        return admit(&app, &query.code);
    }
    match app.door.token(request.headers()) {
        Some(_) => Html(PAGE).into_response(),
        None => (StatusCode::UNAUTHORIZED, Html(ENTER)).into_response(),
    }
}

#[derive(Deserialize)]
struct Code {
    #[serde(default)]
    code: String,
}

async fn enter_page() -> Response {
    Html(ENTER).into_response()
}

async fn enter(State(app): State<App>, Form(form): Form<Code>) -> Response {
    admit(&app, &form.code)
}

fn admit(app: &App, code: &str) -> Response {
    match app.door.enter(code) {
        Some(cookie) => ([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response(),
        None => (StatusCode::UNAUTHORIZED, Html(ENTER)).into_response(),
    }
}
