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
    tree::{HASH_LEN, Tree, chunk_hash},
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
    pub(super) fn check(&self, mut progress: impl FnMut(u32) -> bool) -> Result<(), PeerError> {
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
    pub(super) fn finish(&self) -> Result<PathBuf, PeerError> {
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
    pub(super) fn discard(&self) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::{
        geometry::Size,
        manifest::Entry,
        name::InnerPath,
        tree::{Root, group_hashes, hash_of_groups},
    };

    fn tree_of(bytes: &[u8]) -> Tree {
        let size = Size::try_from(bytes.len() as u64).unwrap();
        let hashes = bytes
            .chunks(CHUNK_LEN as usize)
            .zip(0..)
            .map(|(chunk, number)| chunk_hash(size, number, chunk))
            .collect();
        Tree::from_chunks(size, hashes)
    }

    fn part(folder: &Path, bytes: &[u8], dir: Option<u32>) -> Part {
        let tree = tree_of(bytes);
        let content = Content { root: tree.root(), size: tree.size(), dir };
        let name = FileName::new("ä name").unwrap();
        Part::open(&folder.join("s"), &folder.join("d"), &"ab".repeat(32), name, content).unwrap()
    }

    fn write(part: &Part, bytes: &[u8], chunk: u32) {
        let data = bytes.chunks(CHUNK_LEN as usize).nth(chunk as usize).unwrap();
        let size = part.content().size;
        let hash = hash_of_groups(size, &group_hashes(size, chunk, data));
        part.write_chunk(chunk, data, hash).unwrap();
    }

    #[test]
    fn what_was_written_survives_and_damage_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..700_000u32).map(|n| (n % 251) as u8).collect();
        let first = part(folder.path(), &bytes, None);
        write(&first, &bytes, 2);
        write(&first, &bytes, 0);
        drop(first);
        let second = part(folder.path(), &bytes, None);
        second.check(|_| true).unwrap();
        assert!(second.have().iter().eq([0, 2]));
        assert_eq!(second.have_bytes(), 262_144 + 700_000 - 2 * 262_144);
        open(second.path()).unwrap().write_all_at(b"x", 5).unwrap();
        let third = part(folder.path(), &bytes, None);
        third.check(|_| true).unwrap();
        assert!(third.have().iter().eq([2]));
        assert!(third.finish().is_err(), "not whole");
        write(&third, &bytes, 0);
        write(&third, &bytes, 1);
        let path = third.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), bytes);
        assert_eq!(path.file_name().unwrap(), "ä name");
        assert_eq!(
            free_name(&folder.path().join("d"), "ä name").file_name().unwrap(),
            "ä name (2)"
        );
    }

    #[test]
    fn a_directory_comes_back_whole() {
        let folder = tempfile::tempdir().unwrap();
        let entry =
            |path: &str, size, kind| Entry { kind, size, path: InnerPath::new(path).unwrap() };
        let manifest = Manifest::new(vec![
            entry("a/first", 300_000, EntryKind::File),
            entry("a/empty", 0, EntryKind::File),
            entry("run", 12, EntryKind::Runnable),
            entry("nothing", 0, EntryKind::Directory),
        ])
        .unwrap();
        let mut bytes = manifest.emit();
        let list = bytes.len() as u32;
        bytes.extend((0..300_012u32).map(|n| (n % 249) as u8));
        let part = part(folder.path(), &bytes, Some(list));
        assert_eq!(part.front(), 1);
        write(&part, &bytes, 0);
        write(&part, &bytes, 1);
        part.check(|_| true).unwrap();
        assert!(part.have().is_full());
        let path = part.finish().unwrap();
        let list = list as usize;
        assert_eq!(fs::read(path.join("a/first")).unwrap(), &bytes[list..list + 300_000]);
        assert_eq!(fs::read(path.join("run")).unwrap(), &bytes[list + 300_000..]);
        assert_eq!(fs::read(path.join("a/empty")).unwrap(), b"");
        assert!(path.join("nothing").is_dir());
        let mode = fs::metadata(path.join("run")).unwrap().permissions().mode();
        assert_eq!(mode & 0o111, 0o111);
    }

    #[test]
    fn nothing_is_written_through_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let dest = folder.path().join("d");
        fs::create_dir(&dest).unwrap();
        let victim = folder.path().join("victim");
        fs::write(&victim, "mine").unwrap();
        std::os::unix::fs::symlink(&victim, dest.join("ä name.abababab.cepa-part")).unwrap();
        let content = Content {
            root: Root(*blake3::hash(b"x").as_bytes()),
            size: Size::try_from(1).unwrap(),
            dir: None,
        };
        let name = FileName::new("ä name").unwrap();
        let opened = Part::open(&folder.path().join("s"), &dest, &"ab".repeat(32), name, content);
        assert!(opened.is_err());
        assert_eq!(fs::read(&victim).unwrap(), b"mine");
    }
}
