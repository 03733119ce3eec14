//! The files of a group on disk.
//!
//! In: a configuration directory. Out: parsed and checked files; private ones are made with mode
//! 0600 and refused when others may read them. Called by: the programs in `dcnet_run/` and the
//! command line.

use std::{
    fs,
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use crate::dcnet::{
    blame::VerdictFile,
    ceremony::Files,
    error::DcnetError,
    group::{Group, PrivateFile, Pseudonyms, Session, SessionPrivate, System},
    hex,
    identity::Identity,
    interval::{IntervalFile, SignedInterval},
};

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// Reads a JSON file; a missing one, a broken one and an unknown field are named.
///
/// # Errors
/// The file and what is wrong with it.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, DcnetError> {
    let text = Zeroizing::new(fs::read_to_string(path).map_err(|error| {
        DcnetError::config(shown(path), "file", format!("{error}; `cepa dcnet config` makes it"))
    })?);
    serde_json::from_str(&text).map_err(|error| {
        // serde names the field in its message: "missing field `port` at line 1 column 30".
        let message = error.to_string();
        let field = message.split('`').nth(1).unwrap_or("content").to_owned();
        DcnetError::config(shown(path), field, message)
    })
}

/// Reads a private JSON file, which nobody else may read.
///
/// # Errors
/// Also when its mode is wider than 0600.
pub fn load_private<T: DeserializeOwned>(path: &Path) -> Result<T, DcnetError> {
    let mode = fs::metadata(path).map(|meta| meta.permissions().mode() & 0o777).unwrap_or(0o600);
    if mode & 0o077 != 0 {
        return Err(DcnetError::config(
            shown(path),
            "permissions",
            format!("expected 0600, got {mode:04o}; run: chmod 600 {}", shown(path)),
        ));
    }
    load(path)
}

/// Writes a file in one step; `mode` as chmod has it.
///
/// # Errors
/// The file and the system's reason.
pub fn save<T: Serialize>(path: &Path, value: &T, mode: u32) -> Result<(), DcnetError> {
    let failed = |problem: String| DcnetError::config(shown(path), "file", problem);
    let text = Zeroizing::new(
        serde_json::to_vec_pretty(value).map_err(|error| failed(error.to_string()))?,
    );
    let fresh = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let _ = fs::remove_file(&fresh);
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh)?;
        file.write_all(&text)?;
        file.write_all(b"\n")?;
        fs::rename(&fresh, path)
    };
    write().map_err(|error| failed(error.to_string()))
}

/// The name of a party's session secrets.
pub fn session_file(id: &hex::Hex<32>, session: &hex::Hex<32>) -> String {
    format!("{id}-{}.json", &session.to_string()[..16])
}

/// The name of what a party must not forget within a session.
pub fn memory_file(id: &hex::Hex<32>, session: &hex::Hex<32>) -> String {
    format!("{id}-{}-memory.json", &session.to_string()[..16])
}

/// Reads what the program before has left; nothing if there was none.
///
/// # Errors
/// As [`load_private`], but for a file that is not there.
pub fn load_memory<T: DeserializeOwned + Default>(path: &Path) -> Result<T, DcnetError> {
    if path.exists() { load_private(path) } else { Ok(T::default()) }
}

/// Writes everything `cepa dcnet config` makes.
///
/// # Errors
/// The first file that cannot be written.
pub fn save_all(dir: &Path, files: &Files) -> Result<(), DcnetError> {
    fs::create_dir_all(dir)
        .and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(0o700)))
        .map_err(|error| DcnetError::config(shown(dir), "directory", error.to_string()))?;
    save(&dir.join("system.json"), &files.system, 0o644)?;
    save(&dir.join("session.json"), &files.session, 0o644)?;
    save(&dir.join("pseudonym.json"), &files.pseudonyms, 0o644)?;
    save_interval(dir, &files.interval)?;
    save(&dir.join("relay.json"), &files.relay, 0o600)?;
    for party in &files.parties {
        save(&dir.join(format!("{}.json", party.id)), party, 0o600)?;
    }
    for session in &files.sessions {
        save(&dir.join(session_file(&session.id, &session.session_id)), session, 0o600)?;
    }
    Ok(())
}

/// Writes `interval.json`.
///
/// # Errors
/// As [`save`].
pub fn save_interval(dir: &Path, interval: &SignedInterval) -> Result<(), DcnetError> {
    save(&dir.join("interval.json"), &interval.to_file(), 0o644)
}

/// Reads `interval.json`.
///
/// # Errors
/// When it is missing or its signed bytes have no interval's form.
pub fn load_interval(dir: &Path) -> Result<SignedInterval, DcnetError> {
    let path = dir.join("interval.json");
    let file: IntervalFile = load(&path)?;
    SignedInterval::parse(&file.signed)
        .map_err(|error| DcnetError::config(shown(&path), "signed", error.to_string()))
}

/// Reads and checks `system.json`, `session.json` and `pseudonym.json`.
///
/// # Errors
/// The file and field that does not hold.
pub fn load_group(dir: &Path) -> Result<Group, DcnetError> {
    let system: System = load(&dir.join("system.json"))?;
    let session: Session = load(&dir.join("session.json"))?;
    let pseudonyms: Pseudonyms = load(&dir.join("pseudonym.json"))?;
    Group::check(system, session, &pseudonyms)
}

/// Reads the verdicts a relay has left in its directory, `verdict-N.json`.
///
/// # Errors
/// The first that cannot be read.
pub fn load_verdicts(dir: &Path) -> Result<Vec<VerdictFile>, DcnetError> {
    let failed =
        |error: std::io::Error| DcnetError::config(shown(dir), "directory", error.to_string());
    let mut verdicts = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("verdict-") && name.ends_with(".json") {
            verdicts.push(load(&path)?);
        }
    }
    Ok(verdicts)
}

/// Reads an identity and checks that the file's id is its own.
///
/// # Errors
/// As [`load_private`], or when id and secret do not belong together.
pub fn load_identity(path: &Path) -> Result<Identity, DcnetError> {
    let file: PrivateFile = load_private(path)?;
    let identity = Identity::from_secret(&file.secret.0);
    if identity.id() != file.id {
        return Err(DcnetError::config(
            shown(path),
            "id",
            format!("expected {} for this secret, got {}", identity.id(), file.id),
        ));
    }
    Ok(identity)
}

/// Reads a party's secrets of the group's session.
///
/// # Errors
/// As [`load_private`], or when the file is of another session.
pub fn load_session(
    dir: &Path,
    group: &Group,
    id: &hex::Hex<32>,
) -> Result<SessionPrivate, DcnetError> {
    let path = dir.join(session_file(id, &group.session.session_id));
    let file: SessionPrivate = load_private(&path)?;
    if file.session_id != group.session.session_id || file.id != *id {
        return Err(DcnetError::config(
            shown(&path),
            "session-id",
            format!("expected {}, got {}", group.session.session_id, file.session_id),
        ));
    }
    Ok(file)
}
