//! What callers ask: who am I, which nodes are there, who is this one, is all well.
//!
//! In: requests without bodies. Out: JSON and text. Called by: the router.

use std::{collections::HashMap, sync::Arc};

use axum::{
    Extension, Json,
    extract::{Path, Query, State},
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
};

use super::{
    app::{App, Peer},
    metrics::Gauges,
    problem::Refusal,
};
use crate::{
    directory::{Descriptor, Entry, NodeAnswer, NodeList, NodeSummary, SignedEntry, Whoami},
    model::{NodeId, Role},
    telemetry::metrics,
};

/// The parameters behind the question mark, of which only `known` ones are accepted.
pub(crate) fn parameters(uri: &Uri, known: &[&str]) -> Result<HashMap<String, String>, Refusal> {
    let Query(found) = Query::<HashMap<String, String>>::try_from_uri(uri)
        .map_err(|error| Refusal::bad_request(format!("expected parameters, got: {error}")))?;
    match found.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(found),
        Some(key) => {
            let key: String = key.chars().take(40).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            Err(Refusal::bad_request(format!("expected parameters of: {known}; got {key:?}"))
                .field(&key))
        }
    }
}

pub(crate) async fn whoami(Extension(Peer(peer)): Extension<Peer>) -> Json<Whoami> {
    Json(Whoami { ip: peer.ip().to_canonical(), port: peer.port() })
}

pub(crate) async fn list(State(app): State<Arc<App>>, uri: Uri) -> Result<Json<NodeList>, Refusal> {
    let wanted = parameters(&uri, &["role", "name"])?;
    let role: Option<Role> = match wanted.get("role") {
        Some(text) => {
            Some(text.parse().map_err(|error: String| Refusal::bad_request(error).field("role"))?)
        }
        None => None,
    };
    let now = app.now();
    let registry = app.registry();
    let nodes = registry
        .listed(now)
        .into_iter()
        .filter(|node| role.is_none_or(|role| node.descriptor.has(role)))
        .filter(|node| wanted.get("name").is_none_or(|name| *name == node.record.name))
        .map(|node| NodeSummary {
            id: node.record.id,
            name: node.record.name.clone(),
            public_ip: node.addr().ip(),
            port: node.addr().port(),
            roles: node.descriptor.roles.clone(),
            operator: node.descriptor.operator.clone(),
            last_seen: node.record.last_seen,
        })
        .collect();
    drop(registry);
    Ok(Json(NodeList { nodes, directory_version: app.version() }))
}

pub(crate) async fn one(
    State(app): State<Arc<App>>,
    Path(who): Path<String>,
    uri: Uri,
) -> Result<Json<NodeAnswer>, Refusal> {
    parameters(&uri, &[])?;
    let mut answer = look_up(&app, &who)?;
    if answer.entry.is_none() {
        answer.entry = Some(sign_entry(&app, &answer).await?);
    }
    let Found { id, descriptor, last_seen, signed, public_key, entry } = answer;
    let entry = entry.ok_or_else(|| Refusal::unavailable("the entry was not signed"))?;
    let addr = descriptor.addrs[0];
    Ok(Json(NodeAnswer {
        id,
        name: descriptor.name,
        public_ip: addr.ip(),
        port: addr.port(),
        public_key,
        onion_key: descriptor.onion_key,
        roles: descriptor.roles,
        exit_policy: descriptor.exit_policy,
        suites: descriptor.suites,
        operator: descriptor.operator,
        last_seen,
        descriptor: signed.bytes,
        descriptor_signature: signed.signature,
        entry,
    }))
}

/// What the registry says of one node.
struct Found {
    id: NodeId,
    descriptor: Descriptor,
    last_seen: jiff::Timestamp,
    signed: crate::directory::SignedDescriptor,
    public_key: String,
    entry: Option<SignedEntry>,
}

fn look_up(app: &App, who: &str) -> Result<Found, Refusal> {
    let now = app.now();
    let registry = app.registry();
    let shown: String = who.chars().take(80).collect();
    let Some(node) = registry.find(who) else {
        let hint = match registry.nearest_name(who) {
            Some(name) => format!("did you mean {name}?"),
            None => "GET /nodes lists them".to_owned(),
        };
        return Err(Refusal::not_found(format!(
            "expected the name or id of a node, got {shown:?}; {hint}"
        )));
    };
    if !registry.is_listed(node, now) {
        let why = if node.is_reachable() {
            "it has not renewed since"
        } else {
            "its UDP port has not answered the controller since"
        };
        return Err(Refusal::not_found(format!(
            "expected a live node, got {}, which was last seen at {}: {why}",
            node.record.name, node.record.last_seen
        )));
    }
    Ok(Found {
        id: node.record.id,
        descriptor: node.descriptor.clone(),
        last_seen: node.record.last_seen,
        signed: node.record.signed.clone(),
        public_key: node.identity.to_pem(),
        entry: node.entry.clone(),
    })
}

async fn sign_entry(app: &Arc<App>, found: &Found) -> Result<SignedEntry, Refusal> {
    let entry = Entry {
        id: found.id,
        name: found.descriptor.name.clone(),
        addrs: found.descriptor.addrs.clone(),
        spki: found.descriptor.spki.clone(),
        onion_key: found.descriptor.onion_key,
        signed_at: jiff::Timestamp::now(),
    };
    let keyring = app.keyring();
    let signed = tokio::task::spawn_blocking(move || SignedEntry::sign(&entry, &keyring.identity))
        .await
        .map_err(|_| Refusal::unavailable("the entry was not signed"))?
        .map_err(|error| Refusal::unavailable(error.to_string()))?;
    app.registry().keep_entry(found.id, &found.descriptor, signed.clone());
    Ok(signed)
}

pub(crate) async fn health() -> Json<serde_json::Value> {
    Json(serde_json::json!({ "status": "ok" }))
}

pub(crate) async fn ready(State(app): State<Arc<App>>) -> Result<Json<serde_json::Value>, Refusal> {
    let version = app.version();
    if version == 0 {
        return Err(Refusal::unavailable("no directory has been signed yet"));
    }
    app.store.changes_by_others().await?;
    Ok(Json(serde_json::json!({ "status": "ready", "directory_version": version })))
}

pub(crate) async fn metrics(
    State(app): State<Arc<App>>,
    Extension(Peer(peer)): Extension<Peer>,
) -> Result<Response, Refusal> {
    if !peer.ip().to_canonical().is_loopback() {
        return Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "loopback-only",
            "Metrics are for this machine only",
            "expected a caller on a loopback address; ask 127.0.0.1",
        ));
    }
    let now = app.now();
    let (registered, listed) = {
        let registry = app.registry();
        (registry.len(), registry.listed(now).len())
    };
    let uptime_s = app.started.elapsed().as_secs();
    let gauges = Gauges { registered, listed, version: app.version(), uptime_s };
    match app.metrics.text(gauges) {
        Some(text) => Ok(([(header::CONTENT_TYPE, metrics::CONTENT)], text).into_response()),
        None => Ok(StatusCode::SERVICE_UNAVAILABLE.into_response()),
    }
}
