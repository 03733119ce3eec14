//! A download on disk: what is there already survives any end of the process.
//!
//! In: verified chunks. Out: the file or directory, under its name once it is whole.
//! Called by: engine, download, source.
//!
//! ```text
//! DEST/<name>.<id>.cepa-part      the file, or the directory, while it is not whole
//! STATE/downloads/<id>/bitmap     a bit for each chunk: set after its bytes were written
//! STATE/downloads/<id>/hashes     32 bytes for each chunk, to check it again at the next start
//! STATE/downloads/<id>/front      of a directory: the chunks that hold its list
//! ```

#[cfg(test)]
mod tests;
mod whole;

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock, PoisonError},
};

use blake3::hazmat::ChainingValue;

use super::{error::PeerError, state_file};
use crate::peer::{
    bitmap::Bitmap,
    geometry::CHUNK_LEN,
    layout::{Layout, Place},
    link::Content,
    manifest::{EntryKind, Manifest},
    name::FileName,
    tree::HASH_LEN,
};

/// Room that the name of an unfinished file leaves for its ending.
const NAME_ROOM: usize = 200;
/// Files of a directory that are kept open.
const OPEN_FILES: usize = 32;

/// One download on disk.
#[derive(Debug)]
pub(super) struct Part {
    content: Content,
    name: FileName,
    dest: PathBuf,
    part: PathBuf,
    bits: File,
    bitmap: Mutex<Bitmap>,
    hashes: File,
    front: Option<Front>,
    open: Mutex<Vec<(usize, std::sync::Arc<File>)>>,
}

/// The first chunks of a directory, and what they say.
#[derive(Debug)]
struct Front {
    file: File,
    chunks: u32,
    known: OnceLock<(Manifest, Layout)>,
}

/// A name in `dest` that is free: `name`, or `name (2)`, and so on.
fn free_name(dest: &Path, name: &str) -> PathBuf {
    let first = dest.join(name);
    let (stem, ending) = match name.rsplit_once('.') {
        Some((stem, ending)) if !stem.is_empty() => (stem, format!(".{ending}")),
        _ => (name, String::new()),
    };
    // A name of 255 bytes has no room for a number.
    let stem: String = stem.chars().take(NAME_ROOM / 4).collect();
    let mut numbered = (2..).map(|number| dest.join(format!("{stem} ({number}){ending}")));
    if first.symlink_metadata().is_err() {
        return first;
    }
    numbered.find(|path| path.symlink_metadata().is_err()).unwrap_or(first)
}

/// The longest start of `name` that has at most `NAME_ROOM` bytes.
fn shortened(name: &str) -> &str {
    let mut end = name.len().min(NAME_ROOM);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

/// Opens a file of a download: never through a link that somebody put there.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

impl Part {
    /// Opens or begins the download of `content` under `state`, to be called `name` in `dest`.
    ///
    /// # Errors
    /// If a file cannot be made.
    pub(super) fn open(
        state: &Path,
        dest: &Path,
        id: &str,
        name: FileName,
        content: Content,
    ) -> Result<Self, PeerError> {
        state_file::make_dir(state)?;
        fs::create_dir_all(dest).map_err(PeerError::system("making", dest))?;
        let own = |name: &str| {
            let path = state.join(name);
            open(&path).map_err(PeerError::system("opening", path))
        };
        let (bits, hashes) = (own("bitmap")?, own("hashes")?);
        let chunks = content.size.chunks();
        let mut bytes = vec![0; Bitmap::encoded_len(chunks)];
        bits.set_len(bytes.len() as u64).map_err(PeerError::system("making", state))?;
        // A bitmap that is broken is as good as none.
        let bitmap = bits
            .read_exact_at(&mut bytes, 0)
            .ok()
            .and_then(|()| Bitmap::parse(&bytes, chunks).ok())
            .unwrap_or_else(|| Bitmap::new(chunks));
        let short: String = id.chars().take(8).collect();
        let part = dest.join(format!("{}.{short}.cepa-part", shortened(name.as_str())));
        let front = match content.dir {
            None => None,
            Some(list) => {
                fs::create_dir_all(&part).map_err(PeerError::system("making", &part))?;
                // A list is at most 64 MiB, so its chunks are few.
                let chunks = u64::from(list).div_ceil(CHUNK_LEN) as u32;
                Some(Front { file: own("front")?, chunks, known: OnceLock::new() })
            }
        };
        if front.is_none() {
            open(&part).map_err(PeerError::system("making", &part))?;
        }
        let own = Self {
            content,
            name,
            dest: dest.to_owned(),
            part,
            bits,
            bitmap: Mutex::new(bitmap),
            hashes,
            front,
            open: Mutex::new(Vec::new()),
        };
        Ok(own)
    }

    /// What is downloaded.
    pub(super) const fn content(&self) -> Content {
        self.content
    }

    /// The length of a chunk, in bytes.
    pub(super) fn len_of(&self, chunk: u32) -> u64 {
        self.content.size.chunk_len(chunk) as u64
    }

    /// How many chunks at the start must be there before all others.
    pub(super) fn front(&self) -> u32 {
        self.front.as_ref().map_or(0, |front| front.chunks)
    }

    /// The file or directory while it is not whole.
    pub(super) fn path(&self) -> &Path {
        &self.part
    }

    /// Which chunks are there.
    pub(super) fn have(&self) -> Bitmap {
        self.bits().clone()
    }

    /// Whether a chunk is there.
    pub(super) fn has(&self, chunk: u32) -> bool {
        self.bits().has(chunk)
    }

    fn bits(&self) -> std::sync::MutexGuard<'_, Bitmap> {
        self.bitmap.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes that are there.
    pub(super) fn have_bytes(&self) -> u64 {
        let (bits, size) = (self.bits(), self.content.size);
        let last = size.chunks().saturating_sub(1);
        let whole = u64::from(bits.count()) * CHUNK_LEN;
        if bits.has(last) { whole - CHUNK_LEN + size.chunk_len(last) as u64 } else { whole }
    }

    /// The list of a directory and its layout, once its front is there.
    fn known(&self) -> Result<Option<&(Manifest, Layout)>, PeerError> {
        let Some(front) = &self.front else { return Ok(None) };
        if let Some(known) = front.known.get() {
            return Ok(Some(known));
        }
        let is_there = {
            let bits = self.bits();
            (0..front.chunks).all(|chunk| bits.has(chunk))
        };
        if !is_there {
            return Ok(None);
        }
        let mut list = vec![0; self.content.dir.unwrap_or(0) as usize];
        front.file.read_exact_at(&mut list, 0).map_err(PeerError::system("reading", &self.part))?;
        let manifest = Manifest::parse(&list, self.content.size)?;
        for entry in manifest.entries() {
            let path = self.part.join(entry.path.as_str());
            let made = match entry.kind {
                EntryKind::Directory => fs::create_dir_all(&path),
                EntryKind::File | EntryKind::Runnable => {
                    path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| {
                        let file = open(&path)?;
                        if entry.kind == EntryKind::Runnable {
                            file.set_permissions(fs::Permissions::from_mode(0o755))?;
                        }
                        Ok(())
                    })
                }
            };
            made.map_err(PeerError::system("making", path))?;
        }
        let layout = Layout::directory(&manifest);
        Ok(Some(front.known.get_or_init(|| (manifest, layout))))
    }

    fn file(&self, index: usize) -> Result<std::sync::Arc<File>, PeerError> {
        let mut files = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, file)) = files.iter().find(|(number, _)| *number == index) {
            return Ok(std::sync::Arc::clone(file));
        }
        let path = match self.front.as_ref().and_then(|front| front.known.get()) {
            Some((manifest, _)) => self.part.join(manifest.entries()[index].path.as_str()),
            None => self.part.clone(),
        };
        let file = std::sync::Arc::new(open(&path).map_err(PeerError::system("opening", path))?);
        if files.len() >= OPEN_FILES {
            files.remove(0);
        }
        files.push((index, std::sync::Arc::clone(&file)));
        Ok(file)
    }

    /// Where the bytes of a chunk lie outside the front.
    fn pieces(&self, chunk: u32) -> Result<Vec<crate::peer::layout::Piece>, PeerError> {
        let size = self.content.size;
        let start = size.offset_of(chunk);
        let range = start..start + size.chunk_len(chunk) as u64;
        Ok(match (&self.front, self.known()?) {
            (None, _) => Layout::single(size.bytes()).pieces(range),
            (Some(_), Some((_, layout))) => layout.pieces(range),
            (Some(_), None) => Vec::new(),
        })
    }

    fn write_pieces(&self, chunk: u32, bytes: &[u8]) -> Result<(), PeerError> {
        let mut at = 0;
        for piece in self.pieces(chunk)? {
            let from = &bytes[at..at + piece.len];
            at += piece.len;
            if let Place::File(index) = piece.place {
                let written = self.file(index)?.write_all_at(from, piece.offset);
                written.map_err(|error| self.failed(error))?;
            }
        }
        Ok(())
    }

    fn failed(&self, error: io::Error) -> PeerError {
        let is_full = matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
        );
        if is_full {
            return PeerError::DiskFull {
                path: self.dest.join(self.name.as_str()),
                have: self.have_bytes(),
                size: self.content.size.bytes(),
            };
        }
        PeerError::system("writing", &self.part)(error)
    }

    /// Writes a verified chunk, then notes that it is there.
    ///
    /// # Errors
    /// If the disk is full or refuses, or a directory's list is not one.
    pub(super) fn write_chunk(
        &self,
        chunk: u32,
        bytes: &[u8],
        hash: ChainingValue,
    ) -> Result<(), PeerError> {
        match &self.front {
            Some(front) if chunk < front.chunks => front
                .file
                .write_all_at(bytes, self.content.size.offset_of(chunk))
                .map_err(|error| self.failed(error))?,
            _ => self.write_pieces(chunk, bytes)?,
        }
        self.hashes
            .write_all_at(&hash, u64::from(chunk) * HASH_LEN as u64)
            .map_err(|error| self.failed(error))?;
        self.note(chunk, true)?;
        // The last chunk of the front also holds the start of the first files.
        if let Some(front) = &self.front
            && chunk < front.chunks
            && self.known()?.is_some()
        {
            let last = front.chunks - 1;
            let mut bytes = vec![0; self.content.size.chunk_len(last)];
            front
                .file
                .read_exact_at(&mut bytes, self.content.size.offset_of(last))
                .map_err(PeerError::system("reading", &self.part))?;
            self.write_pieces(last, &bytes)?;
        }
        Ok(())
    }

    fn note(&self, chunk: u32, is_there: bool) -> Result<(), PeerError> {
        let mut bits = self.bits();
        if is_there {
            bits.insert(chunk);
        } else {
            bits.remove(chunk);
        }
        let at = (chunk / 8) as usize;
        let byte = bits.as_bytes().get(at..=at).unwrap_or_default();
        self.bits.write_all_at(byte, at as u64).map_err(|error| self.failed(error))
    }
}
