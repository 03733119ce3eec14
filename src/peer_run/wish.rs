//! What a download is told and tells: the wish, news of its bridges, its view, its outcome.
//!
//! In: nothing. Out: plain types. Called by: engine, download.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

use super::{
    error::PeerError,
    network::{FileId, OpenBridge, SessionId},
};
use crate::peer::{
    link::{Content, LinkSecret},
    name::FileName,
    view::DownloadView,
};

/// What is wanted.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) id: FileId,
    pub(super) name: FileName,
    pub(super) secret: Option<LinkSecret>,
    /// Known from a link; a catalogue entry's first source says it, and the id proves it.
    pub(super) content: Option<Content>,
    /// The size that the catalogue says, until the content is known.
    pub(super) size: u64,
    pub(super) dest: PathBuf,
    /// Where the state of this download is.
    pub(super) state: PathBuf,
    pub(super) via_code: bool,
}

/// What the engine tells a download.
#[derive(Debug)]
pub(super) enum Tell {
    Opened(OpenBridge),
    Closed { session: SessionId, is_exit_lost: bool },
}

/// How a download ended.
#[derive(Debug)]
pub(super) enum Outcome {
    Done(PathBuf),
    Failed(PeerError),
}

/// Where the views are kept.
#[derive(Clone, Debug)]
pub(super) struct Board {
    pub(super) view: Arc<Mutex<DownloadView>>,
    pub(super) changes: watch::Sender<u64>,
}

impl Board {
    pub(super) fn change(&self, change: impl FnOnce(&mut DownloadView)) {
        change(&mut self.view.lock().unwrap_or_else(PoisonError::into_inner));
        self.changes.send_modify(|count| *count += 1);
    }
}
