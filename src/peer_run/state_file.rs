//! Small files of the state directory: private, and written in one step.
//!
//! In: values. Out: JSON files of mode 0600. Called by: shares, part, engine.

use std::{
    fs,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::error::PeerError;

/// Makes a directory that only its owner can open.
pub(super) fn make_dir(path: &Path) -> Result<(), PeerError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(PeerError::system("making", path))
}

/// Replaces a file in one step. Of several who do so at once the last one stays: each writes to a
/// name of its own first.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), PeerError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let fresh = path.with_added_extension(format!("{number}.new"));
    let write = || {
        let _ = fs::remove_file(&fresh);
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(bytes)?;
        fs::rename(&fresh, path)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&fresh);
        PeerError::system("writing", path)(error)
    })
}

/// Writes a value as JSON.
pub(super) fn save(path: &Path, value: &impl Serialize) -> Result<(), PeerError> {
    let text = serde_json::to_vec_pretty(value)
        .map_err(|error| PeerError::State { path: path.to_owned(), why: error.to_string() })?;
    write(path, &Zeroizing::new(text))
}

/// Reads a value.
pub(super) fn load<T: DeserializeOwned>(path: &Path) -> Result<T, PeerError> {
    let text = Zeroizing::new(fs::read(path).map_err(PeerError::system("reading", path))?);
    serde_json::from_slice(&text)
        .map_err(|error| PeerError::State { path: path.to_owned(), why: error.to_string() })
}

/// 32 bytes drawn once and kept.
pub(super) fn seed(path: &Path) -> Result<Zeroizing<[u8; 32]>, PeerError> {
    match fs::read(path) {
        Ok(bytes) => {
            let seed = bytes.try_into().map_err(|bytes: Vec<u8>| PeerError::State {
                path: path.to_owned(),
                why: format!("expected 32 bytes, got {}", bytes.len()),
            })?;
            Ok(Zeroizing::new(seed))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let seed = Zeroizing::new(rand::random::<[u8; 32]>());
            write(path, seed.as_ref())?;
            Ok(seed)
        }
        Err(error) => Err(PeerError::system("reading", path)(error)),
    }
}
