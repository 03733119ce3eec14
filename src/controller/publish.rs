//! Signs the directory: when it changes, and every ten minutes.
//!
//! In: the registry, the key, time. Out: signed directories, remembered and handed to callers.
//! Called by: the controller's start, as a task.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::body::Bytes;
use jiff::{SignedDuration, Timestamp};

use super::{
    ControllerError,
    app::App,
    metrics::count,
    registry::{Listing, Moment},
};
use crate::{
    directory::{DirectoryBody, DirectoryError, SignedDescriptor, SignedDirectory},
    model::{NodeId, Role},
};

/// How often time alone is looked at: nodes go down without a call.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A directory as it is handed out.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) version: u64,
    pub(crate) body: Bytes,
    pub(crate) nodes: usize,
    pub(crate) exits: usize,
    pub(crate) valid_until: Timestamp,
    listing: Listing,
    signed: Instant,
    signer: NodeId,
}

/// The version after `previous`. It follows the wall clock, so that it grows even after the
/// database was lost and only the key was kept.
pub(crate) fn next_version(previous: u64, now: Timestamp) -> u64 {
    u64::try_from(now.as_second()).unwrap_or(0).max(previous.saturating_add(1))
}

/// Keeps the directory up to date, until this future is dropped.
pub(crate) async fn keep_published(app: &Arc<App>, mut previous: u64) {
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = look.tick() => {}
            () = app.changed.notified() => {}
        }
        let now = app.now();
        if !is_due(app, now) {
            continue;
        }
        match publish(app, next_version(previous, now.wall), now).await {
            Ok(version) => previous = version,
            Err(error) => {
                log::error!(event = "directory"; "the directory was not signed: {error}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

fn is_due(app: &App, now: Moment) -> bool {
    let published = app.published.borrow().clone();
    let Some(published) = published else { return true };
    let age = now.steady.saturating_duration_since(published.signed);
    age >= app.settings.sign_every
        || published.listing != app.registry().listing(now)
        || app.keyring().identity.id() != published.signer
}

/// Signs, remembers and hands out one directory.
pub(crate) async fn publish(
    app: &Arc<App>,
    version: u64,
    now: Moment,
) -> Result<u64, ControllerError> {
    let keyring = app.keyring();
    let (listing, nodes, exits) = {
        let registry = app.registry();
        let listed = registry.listed(now);
        let nodes: Vec<SignedDescriptor> =
            listed.iter().map(|node| node.record.signed.clone()).collect();
        let exits = listed.iter().filter(|node| node.descriptor.has(Role::Exit)).count();
        (registry.listing(now), nodes, exits)
    };
    let count_of_nodes = nodes.len();
    let valid_for = SignedDuration::try_from(app.settings.valid_for).unwrap_or(SignedDuration::MAX);
    let valid_until = now.wall.saturating_add(valid_for).unwrap_or(Timestamp::MAX);
    let body = DirectoryBody::new(version, now.wall, valid_until, nodes);
    let signer = Arc::clone(&keyring);
    let signed = tokio::task::spawn_blocking(move || {
        SignedDirectory::sign(&body, &signer.identity, signer.changes.clone())
    })
    .await
    .map_err(|error| ControllerError::Io {
        action: "sign the directory",
        cause: std::io::Error::other(error),
    })??;
    let body = serde_json::to_vec(&signed).map_err(|error| DirectoryError::Malformed {
        expected: "a directory",
        got: error.to_string(),
    })?;
    app.store.publish(version, signed).await?;
    count(&app.metrics.directories);
    log::debug!("directory {version} lists {count_of_nodes} nodes");
    app.published.send_replace(Some(Arc::new(Published {
        version,
        body: body.into(),
        nodes: count_of_nodes,
        exits,
        valid_until,
        listing,
        signed: now.steady,
        signer: keyring.identity.id(),
    })));
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_grow_whatever_the_clock_does() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        assert_eq!(next_version(0, at(1000)), 1000);
        assert_eq!(next_version(1000, at(1000)), 1001);
        assert_eq!(next_version(5000, at(1000)), 5001);
        assert_eq!(next_version(5000, at(-1000)), 5001);
        assert_eq!(next_version(u64::MAX, at(0)), u64::MAX);
    }
}
