//! The peer: its shares, its downloads, and the network between them.
//!
//! In: wishes of people, events of the network. Out: uploads, downloads, a view.
//! Called by: cli, page, control.

mod answering;
mod downloads;

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
};

use self::downloads::Download;
use super::{
    error::PeerError,
    network::{FileId, Listing, Network, NetworkEvent, SessionId},
    shares::{Share, ShareIndex, Visibility},
    state_file,
};
use crate::peer::{
    agreement::{SessionSecrets, Sharer},
    transfer::TransferConfig,
    tree::{Root, hex32},
    view::{CatalogueView, DownloadView, PeerView, ReadingView},
};

/// What a peer can be told.
#[derive(Clone, Debug)]
pub struct EngineSettings {
    /// The state directory.
    pub state: PathBuf,
    /// Where downloads go unless told otherwise.
    pub downloads: PathBuf,
    /// How transfers behave.
    pub transfer: TransferConfig,
}

#[derive(Default)]
struct State {
    shares: BTreeMap<FileId, Arc<Share>>,
    downloads: BTreeMap<FileId, Download>,
    accepted: HashMap<SessionId, (Arc<Share>, SessionSecrets, Instant)>,
    uploads: HashMap<SessionId, (AbortHandle, u32)>,
    reading: BTreeMap<u64, ReadingView>,
    numbers: u64,
}

/// The running peer.
pub struct Engine {
    settings: EngineSettings,
    index: ShareIndex,
    sharer: Sharer,
    network: Arc<dyn Network>,
    state: Mutex<State>,
    changes: watch::Sender<u64>,
}

impl Engine {
    /// Loads shares, and starts to answer the network. Downloads that were not finished go on if
    /// `resume`.
    ///
    /// # Errors
    /// If the state directory cannot be read.
    pub fn start(
        settings: EngineSettings,
        network: Arc<dyn Network>,
        mut events: mpsc::Receiver<NetworkEvent>,
        resume: bool,
    ) -> Result<Arc<Self>, PeerError> {
        state_file::make_dir(&settings.state)?;
        let seed = state_file::seed(&settings.state.join("sharer.key"))?;
        let index = ShareIndex::open(&settings.state, &seed)?;
        let shares = index.load()?.into_iter().map(|share| (share.id(), share)).collect();
        let engine = Arc::new(Self {
            sharer: Sharer::from_seed(&seed)?,
            index,
            network,
            state: Mutex::new(State { shares, ..State::default() }),
            changes: watch::channel(0).0,
            settings,
        });
        engine.announce();
        if resume {
            engine.resume_all();
        }
        let answering = Arc::downgrade(&engine);
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                let Some(engine) = answering.upgrade() else { return };
                engine.handle_event(event);
            }
        });
        Ok(engine)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Changes whenever the view may have.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Where files that were dropped on the page are kept.
    pub fn dropped_dir(&self) -> PathBuf {
        self.settings.state.join("dropped")
    }

    fn announce(&self) {
        let listings = self
            .state()
            .shares
            .values()
            .map(|share| Listing {
                id: share.id(),
                name: match share.is_listed() {
                    true => share.link().name.as_str().to_owned(),
                    false => String::new(),
                },
                size: if share.is_listed() { share.link().content.size.bytes() } else { 0 },
                key: share.is_listed().then(|| self.sharer.public()),
            })
            .collect();
        self.network.announce(listings);
    }

    /// Shares a file or directory, reading it once; what it left out is returned with it.
    ///
    /// # Errors
    /// If it cannot be read or shared.
    pub async fn share(
        self: &Arc<Self>,
        path: &Path,
        visibility: Visibility,
    ) -> Result<(Arc<Share>, Vec<PathBuf>), PeerError> {
        let (engine, path) = (Arc::clone(self), path.to_owned());
        let number = {
            let mut state = self.state();
            state.numbers += 1;
            state.numbers
        };
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let added = tokio::task::spawn_blocking(move || {
            let mut shown = Instant::now();
            let added = engine.index.add(&path, visibility, |done, size| {
                if shown.elapsed() > Duration::from_millis(100) {
                    shown = Instant::now();
                    let reading = ReadingView { name: name.clone(), done, size };
                    engine.state().reading.insert(number, reading);
                    engine.changed();
                }
                true
            });
            engine.state().reading.remove(&number);
            added
        })
        .await
        .map_err(|_| PeerError::NoSuch("a share".to_owned()))?;
        let (share, skipped) = added?;
        self.state().shares.insert(share.id(), Arc::clone(&share));
        self.announce();
        self.changed();
        Ok((share, skipped))
    }

    /// Stops sharing; the file stays.
    ///
    /// # Errors
    /// If there is no such share.
    pub fn unshare(&self, id: &str) -> Result<(), PeerError> {
        let id = parse_id(id)?;
        let gone = self.state().shares.remove(&id);
        gone.ok_or_else(|| PeerError::NoSuch(Root(id).to_string()))?;
        self.index.remove(&id)?;
        self.announce();
        self.changed();
        Ok(())
    }

    /// The catalogue's entries whose name contains `filter`.
    ///
    /// # Errors
    /// If the tracker does not answer.
    pub async fn catalogue(&self, filter: &str) -> Result<Vec<CatalogueView>, PeerError> {
        let entries = self.network.catalogue(filter.to_owned()).await?;
        let state = self.state();
        Ok(entries
            .into_iter()
            .map(|entry| CatalogueView {
                is_mine: state.shares.contains_key(&entry.id),
                id: Root(entry.id).to_string(),
                name: entry.name,
                size: entry.size,
                sources: entry.sources,
            })
            .collect())
    }

    /// One download.
    pub fn download(&self, id: &str) -> Option<DownloadView> {
        let state = self.state();
        let download = state.downloads.get(&parse_id(id).ok()?)?;
        Some(download.board.view.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Everything at this moment.
    pub fn view(&self) -> PeerView {
        let state = self.state();
        let mut downloads: Vec<_> = state
            .downloads
            .values()
            .map(|download| {
                let view = download.board.view.lock().unwrap_or_else(PoisonError::into_inner);
                (download.number, view.clone())
            })
            .collect();
        downloads.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
        let mut shares: Vec<_> = state.shares.values().map(|share| share.view()).collect();
        shares.sort_by(|a, b| a.name.cmp(&b.name).then_with(|| a.id.cmp(&b.id)));
        let mut circuits = self.network.circuits();
        for circuit in &mut circuits {
            let is_here = |number: &u32| *number == circuit.number;
            let sources = downloads.iter().flat_map(|(_, view)| &view.sources);
            let uploads = state.uploads.values().filter(|(task, _)| !task.is_finished());
            circuit.sessions = sources.filter(|source| is_here(&source.circuit)).count()
                + uploads.filter(|(_, number)| is_here(number)).count();
        }
        PeerView {
            network: self.network.stage(),
            circuits,
            downloads: downloads.into_iter().map(|(_, view)| view).collect(),
            shares,
            reading: state.reading.values().cloned().collect(),
        }
    }
}

fn parse_id(id: &str) -> Result<FileId, PeerError> {
    hex32(id).map_err(|_| PeerError::NoSuch(id.chars().take(80).collect()))
}
