//! How a content is cut: chunks that are asked for, groups that are verified.
//!
//! In: a size in bytes. Out: counts, offsets and lengths. Called by: every file of `peer/`, peer_run.

use serde::{Deserialize, Serialize};

/// What one request asks for, in bytes; only the last chunk of a content is shorter.
pub const CHUNK_LEN: u64 = 256 << 10;
/// What is verified at once, in bytes: a source that lies is cut off within one group.
pub const GROUP_LEN: u64 = 16 << 10;
/// Groups of a whole chunk.
pub const GROUPS: usize = (CHUNK_LEN / GROUP_LEN) as usize;
/// The largest content, in bytes: its chunk numbers fit 32 bits with room to spare (64 TiB).
pub const LARGEST: u64 = 64 << 40;

/// The size of a content, at most [`LARGEST`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Size(u64);

/// A size nobody can share.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected a size of at most {LARGEST} bytes, got {0}")]
pub struct TooLarge(pub u64);

impl TryFrom<u64> for Size {
    type Error = TooLarge;

    fn try_from(bytes: u64) -> Result<Self, TooLarge> {
        if bytes <= LARGEST { Ok(Self(bytes)) } else { Err(TooLarge(bytes)) }
    }
}

impl From<Size> for u64 {
    fn from(size: Size) -> Self {
        size.0
    }
}

impl Size {
    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// How many chunks; none if the content is empty.
    pub const fn chunks(self) -> u32 {
        // LARGEST / CHUNK_LEN is 2^28.
        self.0.div_ceil(CHUNK_LEN) as u32
    }

    /// Where a chunk starts.
    pub const fn offset_of(self, chunk: u32) -> u64 {
        chunk as u64 * CHUNK_LEN
    }

    /// The length of a chunk, in bytes; 0 past the end.
    pub fn chunk_len(self, chunk: u32) -> usize {
        self.0.saturating_sub(self.offset_of(chunk)).min(CHUNK_LEN) as usize
    }

    /// How many groups a chunk has.
    pub fn groups_of(self, chunk: u32) -> usize {
        self.chunk_len(chunk).div_ceil(GROUP_LEN as usize)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn chunks_cover_the_content(bytes in 0u64..(8 << 20)) {
            let size = Size::try_from(bytes).unwrap();
            let sum: u64 = (0..size.chunks()).map(|chunk| size.chunk_len(chunk) as u64).sum();
            prop_assert_eq!(sum, bytes);
            prop_assert_eq!(size.chunk_len(size.chunks()), 0);
            for chunk in 0..size.chunks() {
                prop_assert!((1..=GROUPS).contains(&size.groups_of(chunk)));
            }
        }
    }

    #[test]
    fn too_large_is_refused() {
        assert!(Size::try_from(LARGEST).is_ok());
        assert_eq!(Size::try_from(LARGEST + 1), Err(TooLarge(LARGEST + 1)));
    }
}
