//! What the page asks for and does, as JSON.
//!
//! In: requests that passed the door. Out: JSON, or an error in words. Called by: web (server).

use std::{pin::Pin, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_core::Stream;
use serde::Deserialize;
use serde_json::json;
use tokio::io::AsyncWriteExt;

use super::{Backend, Door, events};

#[derive(Clone)]
pub(super) struct App {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) door: Arc<Door>,
}

pub(super) fn router() -> Router<App> {
    Router::new()
        .route("/api/state", get(state))
        .route("/api/events", get(event_stream))
        .route("/api/catalogue", get(catalogue))
        .route("/api/get", post(start_download))
        .route("/api/share", post(share))
        .route("/api/drop", post(take_dropped))
        .route("/api/downloads/{id}/{action}", post(change_download))
        .route("/api/shares/{id}/remove", post(unshare))
}

/// An error in words.
fn refused(words: impl Into<String>) -> Response {
    let body = Json(json!({ "error": words.into() }));
    (StatusCode::UNPROCESSABLE_ENTITY, body).into_response()
}

fn answered<T>(result: Result<T, String>, body: impl FnOnce(T) -> serde_json::Value) -> Response {
    match result {
        Ok(value) => Json(body(value)).into_response(),
        Err(words) => refused(words),
    }
}

async fn state(State(app): State<App>, headers: HeaderMap) -> Response {
    let token = app.door.token(&headers).unwrap_or_default();
    Json(json!({ "token": token, "state": app.backend.view() })).into_response()
}

async fn event_stream(State(app): State<App>) -> Response {
    events::stream(app.backend).into_response()
}

#[derive(Deserialize)]
struct Filter {
    #[serde(default)]
    filter: String,
}

async fn catalogue(State(app): State<App>, Query(query): Query<Filter>) -> Response {
    let entries = app.backend.catalogue(query.filter).await;
    answered(entries, |entries| json!({ "entries": entries }))
}

#[derive(Deserialize)]
struct Get {
    what: String,
}

async fn start_download(State(app): State<App>, Json(body): Json<Get>) -> Response {
    answered(app.backend.get(body.what).await, |id| json!({ "id": id }))
}

/// How something is shared.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Visibility {
    Link,
    Catalogue,
}

#[derive(Deserialize)]
struct ShareBody {
    path: std::path::PathBuf,
    visibility: Visibility,
}

async fn share(State(app): State<App>, Json(body): Json<ShareBody>) -> Response {
    if !body.path.is_absolute() {
        return refused("expected a whole path, such as /home/me/photos");
    }
    let is_listed = body.visibility == Visibility::Catalogue;
    let skipped = app.backend.share(body.path, is_listed).await;
    answered(skipped, |skipped| json!({ "skipped": skipped }))
}

#[derive(Deserialize)]
struct Dropped {
    name: String,
    visibility: Visibility,
}

async fn take_dropped(
    State(app): State<App>,
    Query(query): Query<Dropped>,
    body: Body,
) -> Response {
    let path = match app.backend.room_for(query.name) {
        Ok(path) => path,
        Err(words) => return refused(words),
    };
    if let Err(error) = write_body(body, &path).await {
        // What came so far is of no use to anybody.
        let _ = tokio::fs::remove_file(&path).await;
        return refused(format!("the file was not taken: {error}"));
    }
    let is_listed = query.visibility == Visibility::Catalogue;
    answered(app.backend.share(path, is_listed).await, |skipped| json!({ "skipped": skipped }))
}

async fn write_body(body: Body, path: &std::path::Path) -> std::io::Result<()> {
    let mut file = tokio::fs::OpenOptions::new().write(true).create_new(true).open(path).await?;
    let mut stream = body.into_data_stream();
    while let Some(bytes) = std::future::poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)).await {
        file.write_all(&bytes.map_err(std::io::Error::other)?).await?;
    }
    file.flush().await
}

async fn change_download(
    State(app): State<App>,
    Path((id, action)): Path<(String, String)>,
) -> Response {
    let done = match action.as_str() {
        "pause" => app.backend.pause(&id),
        "resume" => app.backend.resume(&id),
        "remove" => app.backend.remove(&id),
        _ => Err("expected pause, resume or remove".to_owned()),
    };
    answered(done, |()| json!({}))
}

async fn unshare(State(app): State<App>, Path(id): Path<String>) -> Response {
    answered(app.backend.unshare(&id), |()| json!({}))
}
