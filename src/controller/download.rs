//! `GET /directory`: the signed directory, at once or when it changes.
//!
//! In: the version that the caller has. Out: the newest one, or 304. Called by: the router.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};

use super::{app::App, problem::Refusal, publish::Published, query::parameters};
use crate::directory::LONG_POLL;

pub(crate) async fn directory(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let wanted = parameters(&uri, &["after"])?;
    let after: Option<u64> = match wanted.get("after") {
        Some(text) => Some(text.parse().map_err(|_| {
            Refusal::bad_request("expected a version number in `after`, got another text")
                .field("after")
        })?),
        None => None,
    };
    let mut published = app.published.subscribe();
    let current = published.borrow_and_update().clone();
    let current = current.ok_or_else(|| Refusal::unavailable("no directory is signed yet"))?;
    // Only the very version is worth waiting behind: whoever has a later one learns at once that
    // the controller went back.
    if after == Some(current.version) {
        let changed = published.wait_for(|published| {
            published.as_ref().is_some_and(|published| published.version != current.version)
        });
        let newer = tokio::select! {
            newer = changed => newer.ok().and_then(|newer| newer.clone()),
            () = tokio::time::sleep(LONG_POLL) => None,
            () = app.stopped() => None,
        };
        return Ok(newer.map_or_else(|| unchanged(current.version), |newer| whole(&newer)));
    }
    let tag = tag(current.version);
    let has_it = headers.get_all(header::IF_NONE_MATCH).iter().any(|value| {
        value.to_str().is_ok_and(|text| {
            text.split(',').any(|part| part.trim().trim_start_matches("W/") == tag)
        })
    });
    Ok(if has_it { unchanged(current.version) } else { whole(&current) })
}

fn tag(version: u64) -> String {
    format!("\"{version}\"")
}

fn whole(published: &Published) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/json".to_owned()),
        (header::ETAG, tag(published.version)),
        (header::CACHE_CONTROL, "no-cache".to_owned()),
    ];
    (headers, published.body.clone()).into_response()
}

fn unchanged(version: u64) -> Response {
    (StatusCode::NOT_MODIFIED, [(header::ETAG, tag(version))]).into_response()
}
