//! The downloads of a peer: what is kept of them, and their life.
//!
//! In: links, names, wishes of people. Out: running downloads. Called by: engine, page, cli.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, task::AbortHandle};

use super::{Engine, State, parse_id};
use crate::{
    peer::{
        link::{Content, LinkSecret, ShareLink},
        name::FileName,
        transfer::Stall,
        tree::{Root, hex32},
        view::{DownloadState, DownloadView},
    },
    peer_run::{
        download,
        error::PeerError,
        network::{CatalogueEntry, FileId},
        part::Part,
        state_file,
        wish::{Board, Outcome, Tell, Wish},
    },
};

/// What is kept of a download.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Record {
    id: String,
    name: FileName,
    secret: Option<String>,
    content: Option<Content>,
    size: u64,
    dest: PathBuf,
    via_code: bool,
    paused: bool,
    #[serde(default)]
    done: Option<PathBuf>,
}

/// One download as the engine knows it.
pub(super) struct Download {
    record: Record,
    pub(super) board: Board,
    pub(super) told: Option<mpsc::Sender<Tell>>,
    task: Option<AbortHandle>,
    pub(super) number: u64,
}

impl Drop for Download {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Engine {
    /// Starts, or goes on with, a download of a link, a catalogue name or a catalogue id. Its id.
    ///
    /// # Errors
    /// If the link is broken, or the name is not, or more than once, in the catalogue.
    pub async fn get(
        self: &Arc<Self>,
        what: &str,
        dest: Option<PathBuf>,
        via_code: bool,
    ) -> Result<String, PeerError> {
        let dest = dest.unwrap_or_else(|| self.settings.downloads.clone());
        let record = if ShareLink::is_meant(what) {
            let link: ShareLink = what.parse().map_err(PeerError::Link)?;
            Record {
                id: Root(link.id()).to_string(),
                name: link.name,
                secret: link.secret.map(|secret| Root(secret.0).to_string()),
                content: Some(link.content),
                size: link.content.size.bytes(),
                dest,
                via_code,
                paused: false,
                done: None,
            }
        } else {
            let entry = self.look_up(what).await?;
            Record {
                id: Root(entry.id).to_string(),
                name: FileName::new(entry.name)?,
                secret: None,
                content: None,
                size: entry.size,
                dest,
                via_code,
                paused: false,
                done: None,
            }
        };
        let id = record.id.clone();
        self.begin(record)?;
        Ok(id)
    }

    async fn look_up(&self, what: &str) -> Result<CatalogueEntry, PeerError> {
        let wanted = hex32(what).ok();
        let filter = if wanted.is_some() { String::new() } else { what.to_owned() };
        let mut entries = self.network.catalogue(filter).await?;
        entries.retain(|entry| match wanted {
            Some(id) => entry.id == id,
            None => entry.name == what,
        });
        entries.dedup_by_key(|entry| entry.id);
        match entries.len() {
            0 => Err(PeerError::Unknown(what.to_owned())),
            1 => Ok(entries.remove(0)),
            count => Err(PeerError::Ambiguous(what.to_owned(), count)),
        }
    }

    fn record_dir(&self, id: &str) -> PathBuf {
        self.settings.state.join("downloads").join(id)
    }

    /// Under the engine's lock: a file of a record is written by one at a time, in their order.
    fn keep(&self, _state: &State, record: &Record) -> Result<(), PeerError> {
        let dir = self.record_dir(&record.id);
        state_file::make_dir(&dir)?;
        state_file::save(&dir.join("record.json"), record)
    }

    /// Starts a download, unless it runs.
    fn begin(self: &Arc<Self>, mut record: Record) -> Result<(), PeerError> {
        let id = parse_id(&record.id)?;
        // Held until the download has its place: another call may begin the same one, and one that
        // is done at once looks for itself.
        let mut state = self.state();
        if state.downloads.get(&id).is_some_and(|download| download.task.is_some()) {
            return Ok(());
        }
        // What another run learned of it, and where it put what is there.
        let kept = self.record_dir(&record.id).join("record.json");
        if let Ok(before) = state_file::load::<Record>(&kept)
            && before.done.is_none()
        {
            record.content = record.content.or(before.content);
            record.dest = before.dest;
        }
        record.paused = false;
        record.done = None;
        self.keep(&state, &record)?;
        let board = self.board(&record, DownloadState::Checking);
        let (tell, told) = mpsc::channel(64);
        let wish = Wish {
            id,
            name: record.name.clone(),
            secret: record
                .secret
                .as_deref()
                .map(|text| hex32(text).map(LinkSecret))
                .transpose()
                .map_err(|_| PeerError::NoSuch("a secret".to_owned()))?,
            content: record.content,
            size: record.size,
            dest: record.dest.clone(),
            state: self.record_dir(&record.id),
            via_code: record.via_code,
        };
        log::debug!("a download of {} bytes begins", wish.size);
        let run = download::run(
            wish,
            self.settings.transfer,
            Arc::clone(&self.network),
            board.clone(),
            told,
        );
        let weak = Arc::downgrade(self);
        state.numbers += 1;
        let number = state.numbers;
        let task = tokio::spawn(async move {
            let outcome = run.await;
            if let Some(engine) = weak.upgrade() {
                engine.handle_outcome(id, number, outcome);
            }
        });
        let download =
            Download { number, record, board, told: Some(tell), task: Some(task.abort_handle()) };
        state.downloads.insert(id, download);
        drop(state);
        self.changed();
        Ok(())
    }

    fn board(&self, record: &Record, state: DownloadState) -> Board {
        let path = record.done.clone().unwrap_or_else(|| record.dest.join(record.name.as_str()));
        let view = DownloadView {
            id: record.id.clone(),
            name: record.name.as_str().to_owned(),
            size: record.content.map_or(record.size, |content| content.size.bytes()),
            have: if record.done.is_some() { record.size } else { 0 },
            root: record.content.map(|content| content.root.to_string()),
            is_dir: record.content.is_some_and(|content| content.dir.is_some()),
            path: path.display().to_string(),
            state,
            ..DownloadView::default()
        };
        Board { view: Arc::new(Mutex::new(view)), changes: self.changes.clone() }
    }

    /// Of the run with this number; one that another run has followed changes nothing.
    fn handle_outcome(&self, id: FileId, number: u64, outcome: Outcome) {
        let mut state = self.state();
        let Some(download) = state.downloads.get_mut(&id).filter(|d| d.number == number) else {
            return;
        };
        download.task = None;
        download.told = None;
        match outcome {
            Outcome::Done(path) => {
                download.board.change(|view| {
                    view.state = DownloadState::Done;
                    view.have = view.size;
                    view.path = path.display().to_string();
                    view.reason = None;
                    view.stall = None;
                    view.eta_s = None;
                    view.sources.clear();
                });
                let view = download.board.view.lock().unwrap_or_else(PoisonError::into_inner);
                download.record.size = view.size;
                drop(view);
                download.record.done = Some(path);
                let record = download.record.clone();
                let dir = self.record_dir(&record.id);
                for name in ["bitmap", "hashes", "front"] {
                    // A single file has no front.
                    let _ = std::fs::remove_file(dir.join(name));
                }
                if let Err(error) = self.keep(&state, &record) {
                    log::warn!("{error}");
                }
            }
            Outcome::Failed(error) => {
                let full = matches!(error, PeerError::DiskFull { .. });
                download.board.change(|view| {
                    view.state = DownloadState::Failed;
                    view.reason = Some(error.to_string());
                    view.stall = full.then(|| Stall::Disk { why: error.to_string() });
                    view.rate = 0.0;
                    view.eta_s = None;
                    view.sources.clear();
                });
            }
        }
        drop(state);
        self.changed();
    }

    pub(super) fn resume_all(self: &Arc<Self>) {
        let dir = self.settings.state.join("downloads");
        let Ok(read) = std::fs::read_dir(&dir) else { return };
        for entry in read.filter_map(Result::ok) {
            let record: Record = match state_file::load(&entry.path().join("record.json")) {
                Ok(record) => record,
                Err(error) => {
                    log::warn!("a download is left out: {error}");
                    continue;
                }
            };
            let is_done = record.done.is_some();
            if is_done || record.paused {
                let kind = if is_done { DownloadState::Done } else { DownloadState::Paused };
                let board = self.board(&record, kind);
                let Ok(id) = parse_id(&record.id) else { continue };
                let mut state = self.state();
                state.numbers += 1;
                let number = state.numbers;
                let download = Download { record, board, told: None, task: None, number };
                state.downloads.insert(id, download);
            } else if let Err(error) = self.begin(record) {
                log::warn!("a download does not go on: {error}");
            }
        }
    }

    /// Pauses a download; what is there stays.
    ///
    /// # Errors
    /// If there is no such download.
    pub fn pause(&self, id: &str) -> Result<(), PeerError> {
        let mut state = self.state();
        let download = state
            .downloads
            .get_mut(&parse_id(id)?)
            .ok_or_else(|| PeerError::NoSuch(id.to_owned()))?;
        if let Some(task) = download.task.take() {
            task.abort();
            download.told = None;
            download.record.paused = true;
            download.board.change(|view| {
                view.state = DownloadState::Paused;
                view.reason = Some("paused".to_owned());
                view.rate = 0.0;
                view.eta_s = None;
                view.sources.clear();
            });
        }
        let record = download.record.clone();
        self.keep(&state, &record)
    }

    /// Goes on with a download that is paused or failed.
    ///
    /// # Errors
    /// If there is no such download.
    pub fn resume(self: &Arc<Self>, id: &str) -> Result<(), PeerError> {
        let found = self.state().downloads.get(&parse_id(id)?).map(|d| d.record.clone());
        let record = found.ok_or_else(|| PeerError::NoSuch(id.to_owned()))?;
        if record.done.is_some() {
            return Ok(());
        }
        self.begin(record)
    }

    /// Forgets a download; a finished file stays, an unfinished one is thrown away.
    ///
    /// # Errors
    /// If there is no such download.
    pub fn remove(&self, id: &str) -> Result<(), PeerError> {
        let mut state = self.state();
        let gone = state.downloads.remove(&parse_id(id)?);
        let download = gone.ok_or_else(|| PeerError::NoSuch(id.to_owned()))?;
        let dir = self.record_dir(id);
        if let (None, Some(content)) = (&download.record.done, download.record.content) {
            let name = download.record.name.clone();
            let dest = download.record.dest.clone();
            drop(download);
            Part::open(&dir, &dest, id, name, content)?.discard();
        }
        std::fs::remove_dir_all(&dir).map_err(PeerError::system("removing", dir))?;
        drop(state);
        self.changed();
        Ok(())
    }
}
