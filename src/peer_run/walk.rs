//! What a path to share is: one file, or a directory with its list.
//!
//! In: a path. Out: a name, a size, a list, the files in order. Called by: shares.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::error::PeerError;
use crate::peer::{
    geometry::Size,
    layout::Layout,
    manifest::{Entry, EntryKind, LONGEST_LIST, Manifest},
    name::{FileName, InnerPath},
};

/// A path, looked at.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) name: FileName,
    pub(super) path: PathBuf,
    pub(super) size: Size,
    /// The list of a directory.
    pub(super) manifest: Option<Manifest>,
    /// What was left out: links, devices, sockets.
    pub(super) skipped: Vec<PathBuf>,
}

/// Where the files of a content are, in the order of its layout.
pub(super) fn files_of(path: &Path, manifest: Option<&Manifest>) -> Vec<PathBuf> {
    match manifest {
        None => vec![path.to_owned()],
        Some(manifest) => {
            manifest.entries().iter().map(|entry| path.join(entry.path.as_str())).collect()
        }
    }
}

/// The layout of a content.
pub(super) fn layout_of(size: Size, manifest: Option<&Manifest>) -> Layout {
    manifest.map_or_else(|| Layout::single(size.bytes()), Layout::directory)
}

fn text_of(path: &Path, name: &std::ffi::OsStr) -> Result<String, PeerError> {
    name.to_str().map(str::to_owned).ok_or_else(|| PeerError::NotShareable {
        path: path.to_owned(),
        why: "its name is not UTF-8; rename it",
    })
}

/// Looks at what is to be shared. Links inside a directory are not followed.
pub(super) fn look(path: &Path) -> Result<Found, PeerError> {
    let path = fs::canonicalize(path).map_err(PeerError::system("opening", path))?;
    let meta = fs::metadata(&path).map_err(PeerError::system("opening", &path))?;
    let name = path
        .file_name()
        .ok_or_else(|| PeerError::NotShareable { path: path.clone(), why: "it has no name" })?;
    let name = FileName::new(text_of(&path, name)?)?;
    if meta.is_file() {
        let size = Size::try_from(meta.len())?;
        return Ok(Found { name, path, size, manifest: None, skipped: Vec::new() });
    }
    if !meta.is_dir() {
        return Err(PeerError::NotShareable { path, why: "it is a device or socket" });
    }
    let mut entries = Vec::new();
    let mut skipped = Vec::new();
    let mut open = vec![(path.clone(), String::new())];
    while let Some((dir, inner)) = open.pop() {
        let mut is_empty = true;
        for entry in fs::read_dir(&dir).map_err(PeerError::system("reading", &dir))? {
            let entry = entry.map_err(PeerError::system("reading", &dir))?;
            is_empty = false;
            let here = entry.path();
            let name = text_of(&here, &entry.file_name())?;
            let inner = if inner.is_empty() { name } else { format!("{inner}/{name}") };
            let meta = entry.metadata().map_err(PeerError::system("opening", &here))?;
            if meta.is_dir() {
                open.push((here, inner));
            } else if meta.is_file() {
                let is_runnable = meta.permissions().mode() & 0o100 != 0;
                let kind = if is_runnable { EntryKind::Runnable } else { EntryKind::File };
                entries.push(Entry { kind, size: meta.len(), path: InnerPath::new(inner)? });
            } else {
                skipped.push(here);
            }
        }
        if is_empty && !inner.is_empty() {
            let path = InnerPath::new(inner)?;
            entries.push(Entry { kind: EntryKind::Directory, size: 0, path });
        }
    }
    let manifest = Manifest::new(entries)?;
    let list = manifest.encoded_len();
    if list > LONGEST_LIST as usize {
        return Err(PeerError::NotShareable { path, why: "it has too many files for one share" });
    }
    let size = Size::try_from(manifest.files_len().saturating_add(list as u64))?;
    Ok(Found { name, path, size, manifest: Some(manifest), skipped })
}
