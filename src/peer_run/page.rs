//! The engine as the page's backend.
//!
//! In: what the page asks. Out: the engine's answers, errors in words. Called by: web.

use std::{fs, path::PathBuf, sync::Arc};

use tokio::sync::watch;

use super::{Engine, PeerError, Visibility};
use crate::{
    peer::{
        name::FileName,
        view::{CatalogueView, PeerView},
    },
    web::{Backend, Later},
};

/// The page's way to the engine.
pub struct PageBackend(pub Arc<Engine>);

fn words<T>(result: Result<T, PeerError>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

impl Backend for PageBackend {
    fn view(&self) -> PeerView {
        self.0.view()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes()
    }

    fn catalogue(&self, filter: String) -> Later<Vec<CatalogueView>> {
        let engine = Arc::clone(&self.0);
        Box::pin(async move { words(engine.catalogue(&filter).await) })
    }

    fn get(&self, what: String) -> Later<String> {
        let engine = Arc::clone(&self.0);
        Box::pin(async move { words(engine.get(&what, None, false).await) })
    }

    fn share(&self, path: PathBuf, is_listed: bool) -> Later<usize> {
        let engine = Arc::clone(&self.0);
        let visibility = if is_listed { Visibility::Catalogue } else { Visibility::Link };
        Box::pin(async move {
            words(engine.share(&path, visibility).await.map(|(_, skipped)| skipped.len()))
        })
    }

    fn room_for(&self, name: String) -> Result<PathBuf, String> {
        let name = FileName::new(name).map_err(|error| error.to_string())?;
        // Each file gets a directory of its own, so that two of one name do not meet.
        let number: u64 = rand::random();
        let dir = self.0.dropped_dir().join(format!("{number:016x}"));
        fs::create_dir_all(&dir).map_err(|error| format!("making a directory: {error}"))?;
        Ok(dir.join(name.as_str()))
    }

    fn unshare(&self, id: &str) -> Result<(), String> {
        words(self.0.unshare(id))
    }

    fn pause(&self, id: &str) -> Result<(), String> {
        words(self.0.pause(id))
    }

    fn resume(&self, id: &str) -> Result<(), String> {
        words(self.0.resume(id))
    }

    fn remove(&self, id: &str) -> Result<(), String> {
        words(self.0.remove(id))
    }
}
