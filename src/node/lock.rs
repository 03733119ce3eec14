//! The lockdown in force: turned on from what is on disk, kept up to date by the running client.
//!
//! In: settings, the state directory, directories. Out: the kernel's table.
//! Called by: cli (lockdown, unlock, doctor), the client's service.

use std::{fs, path::Path, sync::Arc};

use jiff::Timestamp;
use tokio::sync::watch;

use crate::{
    capture::{CaptureError, nft},
    client::lockdown::{self, Endpoints, Lockdown, TABLE},
    config::ClientConfig,
    directory::{ControllerLink, Directory, DirectoryCache},
    keys::StateDir,
    telemetry::LockdownStatus,
};

/// A plan, and what stood in the way of a better one.
#[derive(Clone, Debug, Default)]
pub struct Planned {
    /// What to put in force.
    pub plan: Lockdown,
    /// What a person should know; none of it opens anything.
    pub warnings: Vec<String>,
}

/// The plan of these settings, from what is on disk: no network is asked.
pub fn plan(config: &ClientConfig) -> Planned {
    let mut warnings = Vec::new();
    let uid = uid_of(&config.user);
    if uid.is_none() {
        warnings.push(format!(
            "expected a user {:?} in /etc/passwd, got none; until there is one the client cannot \
             reach anybody (sudo adduser --system {}, or name another with --user)",
            config.user, config.user
        ));
    }
    let mut directory = None;
    match &config.controller {
        None => warnings.push(
            "expected the controller's link, got none; set controller in /etc/cepa/client.toml, or \
             the client cannot reach it"
                .to_owned(),
        ),
        Some(link) => {
            if Endpoints::new(Some(link), None).is_empty() {
                warnings.push(format!(
                    "expected a link with an IP address, got the name {}; no name can be resolved \
                     during a lockdown: use the link with the controller's address",
                    link.host()
                ));
            }
            match cached(&config.state, link) {
                Ok(cached) => directory = cached,
                Err(why) => warnings.push(why),
            }
        }
    }
    let endpoints = Endpoints::new(config.controller.as_ref(), directory.as_deref());
    Planned { plan: Lockdown::new(config, uid, endpoints), warnings }
}

/// The plan when the settings cannot be read: the last one, or nothing at all may leave.
pub fn plan_without_settings(state: &Path, why: &str) -> Planned {
    let last = Lockdown::load(state);
    let instead = match last {
        Some(_) => "locking with the plan of the last time",
        None => "and no plan of an earlier time: locking everything",
    };
    Planned { plan: last.unwrap_or_default(), warnings: vec![format!("{why}; {instead}")] }
}

/// The signed directory that the client keeps, whatever its age.
fn cached(state: &Path, link: &ControllerLink) -> Result<Option<Arc<Directory>>, String> {
    if !state.exists() {
        return Ok(None);
    }
    let dir = StateDir::open_existing(state).map_err(|error| error.to_string())?;
    let cache =
        DirectoryCache::open(&dir, link, Timestamp::now()).map_err(|error| error.to_string())?;
    Ok(cache.newest().cloned())
}

/// The number of a user: a number itself, or a name of `/etc/passwd`, where static users are.
fn uid_of(user: &str) -> Option<u32> {
    if let Ok(uid) = user.parse() {
        return Some(uid);
    }
    let text = fs::read_to_string("/etc/passwd").ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(user)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

/// Puts a plan in force, in one transaction. An unlock ends; what had leaked stays counted.
///
/// # Errors
/// Without `nft` or the privilege.
pub fn turn_on(plan: &Lockdown) -> Result<(), CaptureError> {
    let leaked = nft::list("inet", TABLE)?
        .map(|items| lockdown::counters(&items, "leaked"))
        .unwrap_or_default();
    nft::apply(&plan.rules(leaked), "set the lockdown's rules")
}

/// Takes the rules away. Says whether there were any.
///
/// # Errors
/// Without `nft` or the privilege.
pub fn turn_off() -> Result<bool, CaptureError> {
    if nft::list("inet", TABLE)?.is_none() {
        return Ok(false);
    }
    nft::apply(&lockdown::removal(), "remove the lockdown's rules")?;
    Ok(true)
}

/// Lets packets of this machine out for so many seconds.
///
/// # Errors
/// Without `nft` or the privilege, or when there is no lockdown.
pub fn unlock(seconds: u64) -> Result<(), CaptureError> {
    nft::apply(&lockdown::unlock(seconds), "unlock")
}

/// How it stands.
///
/// # Errors
/// Without `nft` or the privilege.
pub fn status() -> Result<LockdownStatus, CaptureError> {
    Ok(lockdown::read(nft::list("inet", TABLE)?.as_deref()))
}

/// Lets the client talk to the members of each newer directory before it hears of them, for as long
/// as the returned future lives.
pub(super) async fn follow(
    link: ControllerLink,
    mut directories: watch::Receiver<Option<Arc<Directory>>>,
    allowed: watch::Sender<Option<Arc<Directory>>>,
) {
    let mut last = None;
    loop {
        let directory = directories.borrow_and_update().clone();
        if let Some(directory) = directory {
            let endpoints = Endpoints::new(Some(&link), Some(&directory));
            if last.as_ref() != Some(&endpoints) {
                let wanted = endpoints.clone();
                match tokio::task::spawn_blocking(move || update(&wanted)).await {
                    Ok(Ok(())) => last = Some(endpoints),
                    Ok(Err(error)) => {
                        log::warn!(event = "lockdown"; "the lockdown keeps its endpoints: {error}")
                    }
                    Err(error) => {
                        log::warn!(event = "lockdown"; "the lockdown keeps its endpoints: {error}")
                    }
                }
            }
            allowed.send_replace(Some(directory));
        }
        if directories.changed().await.is_err() {
            return;
        }
    }
}

/// Puts other endpoints in force, if there is a lockdown.
fn update(endpoints: &Endpoints) -> Result<(), CaptureError> {
    match nft::list("inet", TABLE) {
        Ok(None) => Ok(()),
        Ok(Some(_)) => nft::apply(&lockdown::update(endpoints), "set the lockdown's endpoints"),
        // Without nft there is no lockdown of ours; a client without the privilege to look (one
        // that only serves proxies) is not the one that a lockdown lets out.
        Err(CaptureError::NoProgram { .. }) => Ok(()),
        Err(error) if error.is_missing_privilege() => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_numbers() {
        assert_eq!(uid_of("990"), Some(990));
        assert_eq!(uid_of("root"), Some(0));
        assert_eq!(uid_of("no-such-user"), None);
    }

    #[test]
    fn without_anything_on_disk_nothing_may_leave() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("client");
        let planned = plan_without_settings(&state, "broken");
        assert_eq!(planned.plan, Lockdown::default());
        assert!(planned.warnings[0].contains("locking everything"));
        let config = ClientConfig { state, user: "0".to_owned(), ..ClientConfig::default() };
        let planned = plan(&config);
        assert!(planned.plan.endpoints.is_empty());
        assert!(planned.warnings[0].contains("controller"), "{:?}", planned.warnings);
    }
}
