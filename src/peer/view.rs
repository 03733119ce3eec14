//! What a peer shows of itself: to the page, to the command line, to programs.
//!
//! In: nothing. Out: plain values that serialize. Called by: peer_run (fills), web and cli (show).

use serde::{Deserialize, Serialize};

use super::transfer::{Stage, Stall};

/// Everything at one moment.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct PeerView {
    /// What the network half does.
    pub network: Stage,
    /// The circuits, the oldest first.
    pub circuits: Vec<CircuitView>,
    /// Downloads, the newest first.
    pub downloads: Vec<DownloadView>,
    /// Shares, by name.
    pub shares: Vec<ShareView>,
    /// Shares that are being read for the first time.
    pub reading: Vec<ReadingView>,
}

/// One circuit as a picture: this peer, hops, and what it carries.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct CircuitView {
    /// Its number.
    pub number: u32,
    /// The names of its hops, the guard first.
    pub hops: Vec<String>,
    /// How many of them are built.
    pub built: usize,
    /// Its age, in seconds.
    pub age_s: u64,
    /// Round trip to its exit, in milliseconds.
    pub rtt_ms: Option<f64>,
    /// Sessions it carries.
    pub sessions: usize,
    /// Whether new sessions use it.
    pub is_active: bool,
}

/// Where a download is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DownloadState {
    /// What is on disk is being checked.
    #[default]
    Checking,
    /// It runs, or waits for a source.
    Running,
    /// A person paused it.
    Paused,
    /// It cannot go on by itself.
    Failed,
    /// Everything is there.
    Done,
}

/// One download.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct DownloadView {
    /// 64 hexadecimal digits.
    pub id: String,
    /// What it is called.
    pub name: String,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// In bytes; unknown until the first source said it, for some catalogue entries.
    pub size: u64,
    /// Verified and on disk, in bytes.
    pub have: u64,
    /// Verified bytes a second, over the last seconds.
    pub rate: f64,
    /// Seconds left at this rate.
    pub eta_s: Option<u64>,
    /// Where it is.
    pub state: DownloadState,
    /// Why nothing arrives.
    pub stall: Option<Stall>,
    /// The same, or why it failed, in words.
    pub reason: Option<String>,
    /// Sources that send, and the rate of each.
    pub sources: Vec<SourceView>,
    /// Verified bytes that came from the network, in this run.
    pub fetched: u64,
    /// Of them, bytes that were there already.
    pub fetched_again: u64,
    /// Milliseconds from the start of this run to the first verified byte.
    pub first_byte_ms: Option<u64>,
    /// Sources that were left because they lied.
    pub liars: u32,
    /// Sources that were replaced because they were silent or went away.
    pub replaced: u32,
    /// The BLAKE3 hash of the content, if it is known.
    pub root: Option<String>,
    /// Where the file is, or will be.
    pub path: String,
}

/// One source of a download.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct SourceView {
    /// Its number within the download.
    pub number: u64,
    /// The circuit it comes through.
    pub circuit: u32,
    /// Verified bytes a second.
    pub rate: f64,
}

/// One share.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ShareView {
    /// 64 hexadecimal digits.
    pub id: String,
    /// What it is called.
    pub name: String,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// In bytes.
    pub size: u64,
    /// The link to give to others.
    pub link: String,
    /// Whether it is in the catalogue, for everybody to see.
    pub is_listed: bool,
    /// Where it is on disk.
    pub path: String,
    /// Bytes sent to others, in this run.
    pub sent: u64,
    /// Peers that it is being sent to.
    pub readers: usize,
    /// Why it cannot be sent any more.
    pub problem: Option<String>,
}

/// A share that is being read.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ReadingView {
    /// What it is called.
    pub name: String,
    /// Bytes read.
    pub done: u64,
    /// Bytes in all.
    pub size: u64,
}

/// One entry of the catalogue.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct CatalogueView {
    /// 64 hexadecimal digits.
    pub id: String,
    /// What it is called.
    pub name: String,
    /// In bytes.
    pub size: u64,
    /// How many peers share it.
    pub sources: u32,
    /// Whether this peer shares it itself.
    pub is_mine: bool,
}
