//! What is there is checked, and becomes the file once it is whole.
//!
//! In: a download on disk. Out: damaged chunks forgotten; a file under its name. Called by: part's
//! callers.

use std::{fs, io, os::unix::fs::FileExt, path::PathBuf, sync::PoisonError};

use blake3::hazmat::ChainingValue;

use super::{Part, free_name};
use crate::{
    peer::{
        layout::Place,
        tree::{HASH_LEN, Tree, chunk_hash},
    },
    peer_run::error::PeerError,
};

impl Part {
    fn hash(&self, chunk: u32) -> io::Result<ChainingValue> {
        let mut hash = [0; HASH_LEN];
        self.hashes.read_exact_at(&mut hash, u64::from(chunk) * HASH_LEN as u64)?;
        Ok(hash)
    }

    /// Whether the bytes of a chunk are what was written once.
    fn is_intact(&self, chunk: u32, bytes: &mut Vec<u8>) -> bool {
        let size = self.content.size;
        bytes.resize(size.chunk_len(chunk), 0);
        let read = match &self.front {
            Some(front) if chunk < front.chunks => {
                front.file.read_exact_at(bytes, size.offset_of(chunk)).is_ok()
            }
            _ => self.pieces(chunk).is_ok_and(|pieces| {
                let mut at = 0;
                !pieces.is_empty()
                    && pieces.iter().all(|piece| {
                        let into = &mut bytes[at..at + piece.len];
                        at += piece.len;
                        let Place::File(index) = piece.place else { return false };
                        self.file(index)
                            .is_ok_and(|file| file.read_exact_at(into, piece.offset).is_ok())
                    })
            }),
        };
        read && self.hash(chunk).is_ok_and(|hash| hash == chunk_hash(size, chunk, bytes))
    }

    /// Reads everything that is there again, and forgets what is damaged. `progress` is told the
    /// chunks checked and says whether to go on.
    ///
    /// # Errors
    /// If the bitmap cannot be written.
    pub(in crate::peer_run) fn check(
        &self,
        mut progress: impl FnMut(u32) -> bool,
    ) -> Result<(), PeerError> {
        let there: Vec<u32> = self.bits().iter().collect();
        let mut bytes = Vec::new();
        for (count, chunk) in (1..).zip(there) {
            if !self.is_intact(chunk, &mut bytes) {
                log::warn!("chunk {chunk} of a download is damaged and is fetched again");
                self.note(chunk, false)?;
            }
            if !progress(count) {
                break;
            }
        }
        Ok(())
    }

    /// Checks the root over everything and gives the file its name; the path.
    ///
    /// # Errors
    /// [`PeerError::WrongRoot`], or if it cannot be renamed.
    pub(in crate::peer_run) fn finish(&self) -> Result<PathBuf, PeerError> {
        let hashes = (0..self.content.size.chunks())
            .map(|chunk| self.hash(chunk))
            .collect::<io::Result<Vec<_>>>()
            .map_err(PeerError::system("reading", &self.part))?;
        if Tree::from_chunks(self.content.size, hashes).root() != self.content.root {
            return Err(PeerError::WrongRoot);
        }
        // Makes what only has a name: empty files and directories.
        self.known()?;
        self.open.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let path = free_name(&self.dest, self.name.as_str());
        fs::rename(&self.part, &path).map_err(PeerError::system("naming", &path))?;
        Ok(path)
    }

    /// Throws away what is there.
    pub(in crate::peer_run) fn discard(&self) {
        let gone = if self.front.is_some() {
            fs::remove_dir_all(&self.part)
        } else {
            fs::remove_file(&self.part)
        };
        if let Err(error) = gone {
            log::debug!("an unfinished download stays: {error}");
        }
    }
}
