//! Why nothing arrives, in words for people.
//!
//! In: what the network and the transfer do. Out: [`Stall`]. Called by: transfer, peer_run, web, cli.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What the network half of the peer is doing.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "stage")]
pub enum Stage {
    /// Nothing was tried yet.
    #[default]
    Starting,
    /// A circuit is being built.
    BuildingHop {
        /// The hop that is next, from 1.
        hop: u8,
        /// Of how many.
        of: u8,
    },
    /// Circuits stand and the tracker answers.
    Ready,
    /// The tracker, or the way to it, does not answer.
    TrackerUnreachable {
        /// What is known of it.
        why: String,
    },
}

/// Why a transfer does not move.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reason")]
pub enum Stall {
    /// A circuit is being built.
    BuildingHop {
        /// The hop that is next, from 1.
        hop: u8,
        /// Of how many.
        of: u8,
    },
    /// Circuits are about to be built.
    Starting,
    /// The tracker does not answer.
    TrackerUnreachable {
        /// What is known of it.
        why: String,
    },
    /// The tracker was asked and has not found anybody yet.
    WaitingForTracker,
    /// Nobody who is there shares it.
    NoSource,
    /// A source was found and is being connected to.
    Connecting,
    /// The exit, or another node of the way, went away.
    ExitLost,
    /// A source sent something else, and was left.
    SourceRejected,
    /// Sources are there and send nothing.
    SourceSilent,
    /// The disk is full, or refuses to be written.
    Disk {
        /// The system's reason.
        why: String,
    },
    /// A person asked for a pause.
    Paused,
}

impl Stall {
    /// Why there is no source, by what the network does; `is_asked`: the tracker is looking.
    pub fn without_sources(stage: &Stage, is_asked: bool) -> Self {
        match stage {
            Stage::Starting => Self::Starting,
            Stage::BuildingHop { hop, of } => Self::BuildingHop { hop: *hop, of: *of },
            Stage::TrackerUnreachable { why } => Self::TrackerUnreachable { why: why.clone() },
            Stage::Ready if is_asked => Self::WaitingForTracker,
            Stage::Ready => Self::NoSource,
        }
    }
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("starting"),
            Self::BuildingHop { hop, of } => write!(f, "building hop {hop} of {of}"),
            Self::TrackerUnreachable { why } if why.is_empty() => {
                f.write_str("the tracker does not answer; trying again")
            }
            Self::TrackerUnreachable { why } => {
                write!(f, "the tracker does not answer ({why}); trying again")
            }
            Self::WaitingForTracker => f.write_str("waiting for the tracker to find a source"),
            Self::NoSource => {
                f.write_str("no source: nobody who is online shares it; still looking")
            }
            Self::Connecting => f.write_str("source found, connecting"),
            Self::ExitLost => f.write_str("exit lost; looking for another way"),
            Self::SourceRejected => {
                f.write_str("source rejected: it sent something else; looking for another")
            }
            Self::SourceSilent => f.write_str("the source sends nothing; looking for another"),
            Self::Disk { why } => write!(f, "cannot write: {why}"),
            Self::Paused => f.write_str("paused"),
        }
    }
}
