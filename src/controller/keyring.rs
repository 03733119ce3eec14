//! The controller's own key: which file holds it, how it is made, changed and adopted.
//!
//! In: the state directory and its database. Out: the identity that signs.
//! Called by: the daemon at its start and after a change, administration.
//!
//! The database names the current key by its fingerprint, and the key is in the file
//! `controller-<first 16 digits>.pem`. A change writes the new file first and then renames in one
//! transaction, so that at any moment one key is the current one.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};

use super::{ControllerError, sqlite::Database};
use crate::{
    directory::SignedKeyChange,
    keys::{Identity, StateDir},
    model::NodeId,
};

const PREFIX: &str = "controller-";
const SUFFIX: &str = ".pem";

/// What signs, and how it came to be.
#[derive(Debug)]
pub(crate) struct Keyring {
    /// The current key.
    pub(crate) identity: Arc<Identity>,
    /// The changes that lead to it, the oldest first.
    pub(crate) changes: Vec<SignedKeyChange>,
}

/// The file of a key.
pub(crate) fn key_file(id: NodeId) -> String {
    let digits: String = id.to_string().chars().take(16).collect();
    format!("{PREFIX}{digits}{SUFFIX}")
}

/// The files of all controller keys in a directory.
pub(crate) fn key_files(dir: &Path) -> Result<Vec<PathBuf>, ControllerError> {
    let failed = |cause| ControllerError::Io { action: "list the state directory", cause };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(PREFIX) && name.ends_with(SUFFIX) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Loads the current key, or makes the first one.
pub(crate) fn current(
    dir: &StateDir,
    database: &mut Database,
) -> Result<Identity, ControllerError> {
    if let Some(id) = database.current_key()? {
        return load(dir, id);
    }
    let identity = Identity::generate()?;
    dir.write_identity(&key_file(identity.id()), &identity)?;
    if database.set_current_key(identity.id(), None)? {
        return Ok(identity);
    }
    // Another process was faster; this key was never in use.
    remove(dir, identity.id())?;
    match database.current_key()? {
        Some(id) => load(dir, id),
        None => Err(ControllerError::KeyMissing { path: dir.path().to_owned() }),
    }
}

/// Loads the key with this fingerprint.
pub(crate) fn load(dir: &StateDir, id: NodeId) -> Result<Identity, ControllerError> {
    let name = key_file(id);
    let missing = || ControllerError::KeyMissing { path: dir.file(&name) };
    let identity = dir.existing_identity(&name)?.ok_or_else(missing)?;
    if identity.id() == id { Ok(identity) } else { Err(missing()) }
}

/// Makes a new key, lets the old one sign it over, and removes the old one. Whoever knows the old
/// key can follow for as long as `overlap`.
pub(crate) fn rotate(
    dir: &StateDir,
    database: &mut Database,
    now: Timestamp,
    overlap: SignedDuration,
) -> Result<Identity, ControllerError> {
    let old = current(dir, database)?;
    let new = Identity::generate()?;
    let until = now.saturating_add(overlap).map_err(|_| ControllerError::Setting {
        setting: "overlap",
        expected: "a length of time that does not leave the calendar",
        got: overlap.to_string(),
    })?;
    let change = SignedKeyChange::sign(&old, new.public(), now, until)?;
    dir.write_identity(&key_file(new.id()), &new)?;
    if !database.set_current_key(new.id(), Some((old.id(), &change)))? {
        remove(dir, new.id())?;
        return Err(ControllerError::Busy { state: "another key change at the same time" });
    }
    remove(dir, old.id())?;
    Ok(new)
}

/// Makes an empty database for the one key whose database was lost.
pub(crate) fn adopt(dir: &StateDir) -> Result<Identity, ControllerError> {
    let files = key_files(dir.path())?;
    let cannot = |got: String| ControllerError::CannotAdopt { path: dir.path().to_owned(), got };
    if dir.file(super::sqlite::DATABASE).exists() {
        return Err(cannot("a controller.db".to_owned()));
    }
    let [file] = files.as_slice() else {
        return Err(cannot(format!("{} keys", files.len())));
    };
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = name.unwrap_or_default();
    let identity = dir
        .existing_identity(&name)?
        .ok_or_else(|| ControllerError::KeyMissing { path: file.clone() })?;
    let mut database = Database::make(dir)?;
    if key_file(identity.id()) != name {
        dir.write_identity(&key_file(identity.id()), &identity)?;
    }
    database.set_current_key(identity.id(), None)?;
    Ok(identity)
}

fn remove(dir: &StateDir, id: NodeId) -> Result<(), ControllerError> {
    std::fs::remove_file(dir.file(&key_file(id)))
        .map_err(|cause| ControllerError::Io { action: "remove a key that is not used", cause })
}
