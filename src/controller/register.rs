//! `POST /nodes`: registers a node, or renews a known one.
//!
//! In: a signed descriptor, the first time with the proof of a token. Out: a place in the registry.
//! Called by: the router.
//!
//! ```text
//! body -> signature, rules, clock -> known? -> renewal
//!                                 -> unknown -> token (or open) -> one transaction: token used, node in
//! ```

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Request, State},
    http::StatusCode,
};
use jiff::{SignedDuration, Timestamp};

use super::{
    app::App,
    body::read_body,
    metrics::count,
    problem::Refusal,
    registry::{Moment, Renewal},
    store::{Admitted, NodeRecord, TokenRole},
};
use crate::{
    config::Admission,
    directory::{
        CLOCK_TOLERANCE, Descriptor, JoinProof, MAX_REQUEST_LEN, Registered, Registration,
        SignedDescriptor, TokenId,
    },
    keys::PublicIdentity,
    model::NodeId,
};

/// How often a node renews; it counts as down after three times that.
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// How long a registration waits for the answer to the probe, to say at once whether it came.
const PROBE_PATIENCE: Duration = Duration::from_millis(800);
/// The longest validity of a descriptor.
const MAX_VALIDITY: SignedDuration = SignedDuration::from_hours(31 * 24);

/// A descriptor whose signature and rules were checked.
struct Checked {
    signed: SignedDescriptor,
    descriptor: Descriptor,
    identity: PublicIdentity,
}

pub(crate) async fn register(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<(StatusCode, Json<Registered>), Refusal> {
    let answer = handle(&app, request).await;
    if let Err(refusal) = &answer
        && refusal.is_about_rights()
    {
        count(&app.metrics.not_admitted);
    }
    answer
}

async fn handle(
    app: &Arc<App>,
    request: Request,
) -> Result<(StatusCode, Json<Registered>), Refusal> {
    let body = read_body(request, MAX_REQUEST_LEN, app.settings.limits.body_timeout).await?;
    let registration: Registration =
        serde_json::from_slice(&body).map_err(|error| Refusal::bad_json(&error))?;
    let Registration { signed, join } = registration;
    let (descriptor, identity) =
        signed.verify().map_err(|error| Refusal::bad_descriptor(&error))?;
    let now = app.now();
    check_time(app, &descriptor, now.wall)?;
    let node = Checked { signed, descriptor, identity };
    let id = node.identity.id();

    let renewal = app.registry().compare(id, &node.signed, &node.descriptor);
    let status = match renewal {
        Renewal::Unknown => admit(app, node, join, now).await?,
        known => renew(app, node, known, now).await?,
    };
    Ok((status, Json(answer(app, id).await)))
}

/// Compares the descriptor's times with this clock and with the life of directories.
fn check_time(app: &App, descriptor: &Descriptor, now: Timestamp) -> Result<(), Refusal> {
    let wrong = |field, detail: String| {
        let title = "The descriptor's time does not fit";
        Refusal::new(StatusCode::BAD_REQUEST, "bad-time", title, detail).field(field)
    };
    let Descriptor { valid_after, valid_until, .. } = *descriptor;
    let apart = now.duration_since(valid_after).abs();
    if apart > CLOCK_TOLERANCE {
        return Err(wrong(
            "valid_after",
            format!(
                "expected a descriptor signed within 10 minutes of {now} (the controller's \
                 clock), got one of {valid_after}; set the node's clock (timedatectl set-ntp true)"
            ),
        ));
    }
    let settings = &app.settings;
    let needed = settings.valid_for.saturating_add(settings.sign_every.saturating_mul(2));
    let least = SignedDuration::try_from(needed).unwrap_or(SignedDuration::MAX);
    let left = valid_until.duration_since(now);
    if left < least || valid_until.duration_since(valid_after) > MAX_VALIDITY {
        return Err(wrong(
            "valid_until",
            format!(
                "expected a descriptor valid for {least:#} from now to {MAX_VALIDITY:#} in all, \
                 got one that ends at {valid_until}"
            ),
        ));
    }
    Ok(())
}

/// A node that is known.
async fn renew(
    app: &Arc<App>,
    node: Checked,
    renewal: Renewal,
    now: Moment,
) -> Result<StatusCode, Refusal> {
    let id = node.identity.id();
    match renewal {
        Renewal::Unknown => return Err(gone(id)),
        // The answer got lost, or someone replays: answered, but no sign of life.
        Renewal::Again => return Ok(StatusCode::OK),
        Renewal::Older(newest) => {
            return Err(Refusal::new(
                StatusCode::CONFLICT,
                "older-descriptor",
                "A newer descriptor is registered",
                format!(
                    "expected a descriptor signed after {newest}, got one of {}; sign it anew \
                     and check the node's clock",
                    node.descriptor.valid_after
                ),
            )
            .field("valid_after"));
        }
        Renewal::RoleNotAllowed(role) => return Err(role_not_allowed(role.name())),
        Renewal::Changed => {
            let record = app.registry().get(id).map(|known| known.record.clone());
            let mut record = record.ok_or_else(|| gone(id))?;
            record.name.clone_from(&node.descriptor.name);
            record.signed = node.signed.clone();
            record.last_seen = now.wall;
            if let Some(owner) = app.store.update(vec![record]).await? {
                return Err(name_taken(&node.descriptor.name, owner));
            }
        }
        Renewal::Same => {}
    }
    count(&app.metrics.renewed);
    app.registry().renew(id, node.signed, node.descriptor, now);
    app.changed.notify_one();
    Ok(StatusCode::OK)
}

/// A node that nobody knows.
async fn admit(
    app: &Arc<App>,
    node: Checked,
    join: Option<JoinProof>,
    now: Moment,
) -> Result<StatusCode, Refusal> {
    if app.registry().len() >= app.settings.limits.nodes {
        return Err(Refusal::unavailable(format!(
            "expected room for a node, got none: {} are registered",
            app.settings.limits.nodes
        )));
    }
    let Pass { token, allowed, label } = pass(app, &node, join.as_ref(), now.wall).await?;
    let denied = node.descriptor.roles.iter().find(|role| !allowed.allows(**role));
    if let Some(role) = denied {
        return Err(role_not_allowed(role.name()));
    }
    let Checked { signed, descriptor, identity } = node;
    let record = NodeRecord {
        id: identity.id(),
        name: descriptor.name.clone(),
        signed: signed.clone(),
        allowed,
        label,
        admitted: now.wall,
        last_seen: now.wall,
        revoked: None,
    };
    let id = record.id;
    match app.store.admit(record.clone(), token, now.wall).await? {
        Admitted::New => {
            log::info!(event = "admitted"; "node {} ({}) was let in", record.name, id.short());
            count(&app.metrics.admitted);
            app.registry().insert(record, descriptor, identity, now);
            Ok(StatusCode::CREATED)
        }
        Admitted::Known => {
            // Two first registrations at once, and the other one was faster.
            app.reload().await?;
            let renewal = app.registry().compare(id, &signed, &descriptor);
            renew(app, Checked { signed, descriptor, identity }, renewal, now).await
        }
        Admitted::Revoked => Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "revoked",
            "The node was revoked",
            format!(
                "expected a node in good standing, got {}, which was revoked; a machine comes \
                 back with a new identity (another state directory) and a new token",
                id.short()
            ),
        )),
        Admitted::NameTaken(owner) => Err(name_taken(&record.name, owner)),
        Admitted::TokenGone(why) => Err(bad_token(why)),
    }
}

/// What lets a node in.
struct Pass {
    token: Option<TokenId>,
    allowed: TokenRole,
    label: Option<String>,
}

async fn pass(
    app: &App,
    node: &Checked,
    join: Option<&JoinProof>,
    now: Timestamp,
) -> Result<Pass, Refusal> {
    if app.settings.admission == Admission::Open {
        return Ok(Pass { token: None, allowed: TokenRole::Any, label: None });
    }
    let Some(join) = join else {
        return Err(unauthorized(
            "no-token",
            "expected the proof of a join token, got none: this controller lets nodes in by \
             single-use tokens; make one there (cepa controller token new) and start the node \
             with --join TOKEN",
        )
        .field("join"));
    };
    let id: TokenId = join.token.parse().map_err(|_| bad_token("unknown"))?;
    let token = app.store.token(id).await?.ok_or_else(|| bad_token("unknown"))?;
    if let Some(refusal) = token.refusal(now) {
        return Err(bad_token(refusal));
    }
    let proven = token.secret.is_some_and(|secret| secret.accepts(&node.signed.bytes, &join.mac));
    if !proven {
        return Err(bad_token("unknown"));
    }
    Ok(Pass { token: Some(id), allowed: token.role, label: token.label })
}

fn unauthorized(kind: &str, detail: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::UNAUTHORIZED, kind, "The node is not admitted", detail)
}

fn bad_token(why: &str) -> Refusal {
    let got = match why {
        "unknown" => "one that is unknown or whose proof is wrong".to_owned(),
        other => format!("one that is {other}"),
    };
    unauthorized(
        "bad-token",
        format!(
            "expected a valid join token, got {got}; make a new one (cepa controller token new)"
        ),
    )
    .field("join")
}

fn role_not_allowed(role: &str) -> Refusal {
    Refusal::new(
        StatusCode::FORBIDDEN,
        "role-not-allowed",
        "The token does not allow this role",
        format!(
            "expected roles that the node's token allows, got {role}; make a token for it \
             (cepa controller token new --role ...) and join with a new identity"
        ),
    )
    .field("roles")
}

fn name_taken(name: &str, owner: NodeId) -> Refusal {
    let owner = owner.short();
    Refusal::new(
        StatusCode::CONFLICT,
        "name-taken",
        "Another node has this name",
        format!(
            "expected a free name, got {name}, which node {owner} has; choose another --name, or \
             free it at the controller: cepa controller nodes revoke {owner}"
        ),
    )
    .field("name")
}

/// Revoked between two looks.
fn gone(id: NodeId) -> Refusal {
    Refusal::new(
        StatusCode::FORBIDDEN,
        "revoked",
        "The node was revoked",
        format!("expected a registered node, got {}, which was revoked", id.short()),
    )
}

/// Tells the node how it stands; waits a moment for a probe that is out.
async fn answer(app: &Arc<App>, id: NodeId) -> Registered {
    let is_reachable = || app.registry().get(id).is_some_and(super::registry::Node::is_reachable);
    let deadline = tokio::time::Instant::now() + PROBE_PATIENCE;
    let mut reachable = is_reachable();
    app.probe_if_needed(id);
    while !reachable {
        let woken = app.reached.notified();
        reachable = is_reachable();
        if reachable || tokio::time::timeout_at(deadline, woken).await.is_err() {
            break;
        }
    }
    let renew_in = RENEW_EVERY.min(app.settings.down_after / 3);
    Registered {
        id,
        reachable,
        renew_in_s: renew_in.as_secs().max(1),
        directory_version: app.version(),
        now: Timestamp::now(),
    }
}
