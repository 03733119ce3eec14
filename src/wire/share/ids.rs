//! The names of file sharing: sessions, files, the two sides, consent.
//!
//! In: bytes, hex. Out: typed ids. Called by: every folder that shares files.

use std::fmt;

use rand::Rng;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::hex_text;

/// Names one upload from one peer to another (source 000): random, drawn by the tracker.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Session(#[serde(with = "hex_text")] pub [u8; 16]);

impl Session {
    /// Draws a fresh one.
    pub fn random(rng: &mut impl Rng) -> Self {
        let mut bytes = [0; 16];
        rng.fill_bytes(&mut bytes);
        Self(bytes)
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex_text::encode(&self.0))
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Enough to tell them apart in a log, not enough to use.
        write!(f, "Session({}..)", hex_text::encode(&self.0[..4]))
    }
}

/// What the tracker knows a file by: a hash, from which neither content nor link can be had.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FileId(#[serde(with = "hex_text")] pub [u8; 32]);

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex_text::encode(&self.0))
    }
}

impl fmt::Debug for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileId({}..)", hex_text::encode(&self.0[..4]))
    }
}

/// The two sides of a session.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShareRole {
    /// Has the file.
    Uploader,
    /// Wants the file.
    Downloader,
}

impl ShareRole {
    /// The byte that stands for it in what is signed.
    pub const fn byte(self) -> u8 {
        match self {
            Self::Uploader => 1,
            Self::Downloader => 2,
        }
    }

    /// The role of a byte.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Uploader),
            2 => Some(Self::Downloader),
            _ => None,
        }
    }
}

/// How the two exits of a session are joined.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// Directly.
    #[default]
    Bridge,
    /// Through further relays, by tracking codes (source 000).
    Code,
}

/// A client's consent to one bridge on one of its circuits: a MAC that only it and the exit can
/// make.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Consent(#[serde(with = "hex_text")] pub [u8; 16]);

impl PartialEq for Consent {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Consent {}

impl fmt::Debug for Consent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Consent(redacted)")
    }
}
