//! The page of a peer: what it shares and downloads, in a browser on the same machine.
//!
//! In: HTTP requests from the loopback address, a backend. Out: HTML, JSON, a stream of states.
//! Called by: cli (starts it); `peer_run` is the backend.

mod api;
mod door;
mod events;
mod server;

use std::{future::Future, path::PathBuf, pin::Pin};

use tokio::sync::watch;

pub use door::Door;
pub use server::serve;

use crate::peer::view::{CatalogueView, PeerView};

/// An answer that comes later, or words for the person who asked.
pub type Later<T> = Pin<Box<dyn Future<Output = Result<T, String>> + Send>>;

/// What the page shows and does.
pub trait Backend: Send + Sync + 'static {
    /// Everything at this moment.
    fn view(&self) -> PeerView;
    /// Changes whenever the view may have.
    fn changes(&self) -> watch::Receiver<u64>;
    /// The catalogue's entries whose name contains the filter.
    fn catalogue(&self, filter: String) -> Later<Vec<CatalogueView>>;
    /// Starts a download of a name, id or link; its id.
    fn get(&self, what: String) -> Later<String>;
    /// Shares a path; how many links and devices in it were left out.
    fn share(&self, path: PathBuf, is_listed: bool) -> Later<usize>;
    /// A fresh file for bytes that were dropped on the page, to be shared as `name`.
    fn room_for(&self, name: String) -> Result<PathBuf, String>;
    /// Stops sharing.
    fn unshare(&self, id: &str) -> Result<(), String>;
    /// Pauses a download.
    fn pause(&self, id: &str) -> Result<(), String>;
    /// Goes on with a download.
    fn resume(&self, id: &str) -> Result<(), String>;
    /// Forgets a download.
    fn remove(&self, id: &str) -> Result<(), String>;
}
