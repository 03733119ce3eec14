//! The running peer: shares, downloads, and QUIC between peers over the bridges of the network.
//!
//! In: a network that makes bridges. Out: served shares, files on disk, a view.
//! Called by: cli.
//!
//! ```text
//! engine ─┬─ shares ── upload ──┐
//!         ├─ download ─ source ─┴─ quic ── bridge (network)
//!         └─ part (disk)
//! ```

mod download;
mod engine;
mod error;
pub mod network;
mod onion;
mod page;
mod part;
pub mod quic;
mod rogue;
mod shares;
mod source;
mod state_file;
mod upload;
mod walk;
mod wire_stream;
mod wish;

pub use engine::{Engine, EngineSettings};
pub use error::PeerError;
pub use onion::OnionNetwork;
pub use page::PageBackend;
pub use rogue::{Manner, misbehave};
pub use shares::{Share, Visibility};
