//! Why a peer cannot do what it was asked.
//!
//! In: causes. Out: one sentence a person can act on. Called by: peer_run, cli.

use std::{io, path::PathBuf};

use super::network::NetworkError;
use crate::peer::{
    agreement::AgreementError,
    geometry::TooLarge,
    link::BadLink,
    manifest::BadManifest,
    name::{BadName, printable},
};

/// Every way a peer refuses or fails.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The system refuses.
    #[error("{doing} {}: {source}", printable(&.path.display().to_string()))]
    System {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The disk is full.
    #[error(
        "no space left for {}; {have} of {size} bytes are kept: free some space, then resume",
        printable(&.path.display().to_string())
    )]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// Bytes that are there.
        have: u64,
        /// Bytes in all.
        size: u64,
    },
    /// A path that cannot be shared.
    #[error("expected a file or directory to share, got {}: {why}", printable(&.path.display().to_string()))]
    NotShareable {
        /// The path.
        path: PathBuf,
        /// What it is.
        why: &'static str,
    },
    /// A shared file is not what it was.
    #[error("{} changed since it was shared; share it again", printable(&.0.display().to_string()))]
    Changed(PathBuf),
    /// A name that is not safe.
    #[error(transparent)]
    Name(#[from] BadName),
    /// A size nobody can share.
    #[error(transparent)]
    Size(#[from] TooLarge),
    /// The list of a directory is not one.
    #[error("the sharer's {0}; nothing was written outside the download")]
    Manifest(#[from] BadManifest),
    /// A file of the state directory is broken.
    #[error("{}: {why}; remove it and start the download or share anew", .path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A link that does not read.
    #[error(transparent)]
    Link(BadLink),
    /// Nothing has this name.
    #[error(
        "expected a name of the catalogue or a link, got {0:?}; `cepa peer ls` shows the catalogue"
    )]
    Unknown(String),
    /// Several contents have this name.
    #[error("{0:?} is the name of {1} different contents; take the id of one from `cepa peer ls`")]
    Ambiguous(String, usize),
    /// What arrived adds up to something else.
    #[error("what arrived is not the content of the link; the disk may be failing, start it anew")]
    WrongRoot,
    /// There is no such download or share.
    #[error("expected the id of a download or share, got {0:?}")]
    NoSuch(String),
    /// The network does not do it.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Keys of no use.
    #[error(transparent)]
    Agreement(#[from] AgreementError),
}

impl PeerError {
    /// The system's refusal of `doing` something to `path`.
    pub fn system(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::System { doing, path, source }
    }
}
