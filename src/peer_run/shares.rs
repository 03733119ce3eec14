//! The shares of this peer: read once, kept in an index, read again chunk by chunk for others.
//!
//! In: paths. Out: links; checked chunks with their proofs. Called by: engine, upload.
//!
//! ```text
//! DIR/shares/<id>.json   name, path, root, size, secret, whether it is listed
//! DIR/shares/<id>.tree   32 bytes for each chunk
//! DIR/shares/<id>.list   the list of a directory
//! ```

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use blake3::hazmat::ChainingValue;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{error::PeerError, network::FileId, state_file, walk};
use crate::peer::{
    geometry::{CHUNK_LEN, Size},
    layout::{Layout, Place},
    link::{Content, LinkSecret, ShareLink},
    manifest::Manifest,
    name::FileName,
    tree::{Root, Tree, chunk_hash, group_hashes, hash_of_groups, hex32},
    view::ShareView,
};

/// What is kept of a share.
#[derive(Serialize, Deserialize)]
struct Record {
    name: FileName,
    path: PathBuf,
    content: Content,
    secret: Option<String>,
    listed: bool,
}

/// One share.
#[derive(Debug)]
pub struct Share {
    link: ShareLink,
    id: FileId,
    path: PathBuf,
    is_listed: bool,
    tree: Tree,
    layout: Layout,
    list: Vec<u8>,
    files: Vec<PathBuf>,
    single: Mutex<Option<Arc<File>>>,
    is_changed: AtomicBool,
    /// Bytes sent in this run.
    pub(super) sent: AtomicU64,
    /// Peers it is being sent to.
    pub(super) readers: AtomicUsize,
}

impl Share {
    /// What the tracker knows it as.
    pub const fn id(&self) -> FileId {
        self.id
    }

    /// The link to it.
    pub const fn link(&self) -> &ShareLink {
        &self.link
    }

    /// Whether it is in the catalogue.
    pub const fn is_listed(&self) -> bool {
        self.is_listed
    }

    /// Its tree.
    pub const fn tree(&self) -> &Tree {
        &self.tree
    }

    fn file(&self, index: usize) -> io::Result<Arc<File>> {
        let mut single = self.single.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if self.files.len() == 1
            && let Some(file) = &*single
        {
            return Ok(Arc::clone(file));
        }
        let path = self.files.get(index).ok_or(io::ErrorKind::NotFound)?;
        let file = Arc::new(File::open(path)?);
        if self.files.len() == 1 {
            *single = Some(Arc::clone(&file));
        }
        Ok(file)
    }

    /// Reads a chunk and checks that it is still what was shared: its bytes and group hashes.
    ///
    /// # Errors
    /// If a file changed, or cannot be read.
    pub fn read_chunk(&self, chunk: u32) -> Result<(Vec<u8>, Vec<ChainingValue>), PeerError> {
        let size = self.tree.size();
        let start = size.offset_of(chunk);
        let mut bytes = vec![0; size.chunk_len(chunk)];
        let mut at = 0;
        for piece in self.layout.pieces(start..start + bytes.len() as u64) {
            let into = &mut bytes[at..at + piece.len];
            at += piece.len;
            match piece.place {
                Place::List => {
                    let from = piece.offset as usize;
                    into.copy_from_slice(&self.list[from..from + piece.len]);
                }
                Place::File(index) => {
                    let read =
                        self.file(index).and_then(|file| file.read_exact_at(into, piece.offset));
                    if let Err(error) = read {
                        let path = self.files.get(index).unwrap_or(&self.path);
                        return Err(self.failed(path, error));
                    }
                }
            }
        }
        let groups = group_hashes(size, chunk, &bytes);
        if self.tree.chunks().get(chunk as usize) != Some(&hash_of_groups(size, &groups)) {
            self.is_changed.store(true, Ordering::Relaxed);
            return Err(PeerError::Changed(self.path.clone()));
        }
        Ok((bytes, groups))
    }

    fn failed(&self, path: &Path, error: io::Error) -> PeerError {
        let is_gone =
            matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof);
        if is_gone {
            self.is_changed.store(true, Ordering::Relaxed);
            return PeerError::Changed(self.path.clone());
        }
        PeerError::system("reading", path)(error)
    }

    /// What the page shows of it.
    pub fn view(&self) -> ShareView {
        let problem = self
            .is_changed
            .load(Ordering::Relaxed)
            .then(|| "the file changed or is gone; share it again, or stop sharing it".to_owned());
        ShareView {
            id: Root(self.id).to_string(),
            name: self.link.name.as_str().to_owned(),
            is_dir: self.link.content.dir.is_some(),
            size: self.link.content.size.bytes(),
            link: self.link.to_string(),
            is_listed: self.is_listed,
            path: self.path.display().to_string(),
            sent: self.sent.load(Ordering::Relaxed),
            readers: self.readers.load(Ordering::Relaxed),
            problem,
        }
    }
}

/// How a path is shared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Visibility {
    /// Only who has the link can ask for it; the tracker cannot read its name.
    Link,
    /// In the catalogue, for everybody.
    Catalogue,
}

/// The index of all shares.
pub(super) struct ShareIndex {
    dir: PathBuf,
    seed: Zeroizing<[u8; 32]>,
}

impl ShareIndex {
    /// The index in a state directory. The secrets of links come from `seed`.
    ///
    /// # Errors
    /// If the directory cannot be made.
    pub(super) fn open(state: &Path, seed: &[u8; 32]) -> Result<Self, PeerError> {
        let dir = state.join("shares");
        state_file::make_dir(&dir)?;
        let seed = blake3::derive_key("cepa link secrets v1", seed);
        Ok(Self { dir, seed: Zeroizing::new(seed) })
    }

    fn place(&self, id: &FileId, extension: &str) -> PathBuf {
        self.dir.join(format!("{}.{extension}", Root(*id)))
    }

    /// Every share; what is broken is left out and said in the log.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub(super) fn load(&self) -> Result<Vec<Arc<Share>>, PeerError> {
        let mut shares = Vec::new();
        let read = fs::read_dir(&self.dir).map_err(PeerError::system("reading", &self.dir))?;
        for entry in read.filter_map(Result::ok) {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                match self.load_one(&path) {
                    Ok(share) => shares.push(Arc::new(share)),
                    Err(error) => log::warn!("a share is left out: {error}"),
                }
            }
        }
        shares.sort_by(|a, b| a.link.name.cmp(&b.link.name));
        Ok(shares)
    }

    fn load_one(&self, path: &Path) -> Result<Share, PeerError> {
        let record: Record = state_file::load(path)?;
        let broken = |why: &str| PeerError::State { path: path.to_owned(), why: why.to_owned() };
        let secret = record
            .secret
            .map(|text| hex32(&text).map(LinkSecret))
            .transpose()
            .map_err(|_| broken("its secret is broken"))?;
        let id = record.content.id(secret.as_ref());
        let tree_path = self.place(&id, "tree");
        let tree = fs::read(&tree_path).map_err(PeerError::system("reading", &tree_path))?;
        let hashes = tree.as_chunks().0.to_vec();
        let tree = Tree::from_chunks(record.content.size, hashes);
        if tree.root() != record.content.root {
            return Err(broken("its tree does not lead to its root"));
        }
        let list = match record.content.dir {
            None => Vec::new(),
            Some(_) => {
                let list = self.place(&id, "list");
                fs::read(&list).map_err(PeerError::system("reading", list))?
            }
        };
        let manifest =
            record.content.dir.map(|_| Manifest::parse(&list, record.content.size)).transpose()?;
        let link = ShareLink { content: record.content, name: record.name, secret };
        Ok(share_of(link, record.path, record.listed, tree, manifest.as_ref(), list))
    }

    /// Reads a path and adds it. `progress` is told the bytes read and the bytes in all, and says
    /// whether to go on.
    ///
    /// # Errors
    /// If it cannot be read, changes meanwhile, or the index cannot be written.
    pub(super) fn add(
        &self,
        path: &Path,
        visibility: Visibility,
        mut progress: impl FnMut(u64, u64) -> bool,
    ) -> Result<(Arc<Share>, Vec<PathBuf>), PeerError> {
        let found = walk::look(path)?;
        let list = found.manifest.as_ref().map(Manifest::emit).unwrap_or_default();
        let layout = walk::layout_of(found.size, found.manifest.as_ref());
        let files = walk::files_of(&found.path, found.manifest.as_ref());
        let tree = read_tree(found.size, &layout, &files, &list, &mut progress)
            .map_err(PeerError::system("reading", &found.path))?;
        let dir = found.manifest.as_ref().map(|_| list.len() as u32);
        let content = Content { root: tree.root(), size: found.size, dir };
        let secret = (visibility == Visibility::Link).then(|| self.secret_for(&content));
        let link = ShareLink { content, name: found.name, secret };
        let is_listed = visibility == Visibility::Catalogue;
        let id = link.id();
        state_file::write(&self.place(&id, "tree"), tree.chunks().as_flattened())?;
        if dir.is_some() {
            state_file::write(&self.place(&id, "list"), &list)?;
        }
        let record = Record {
            name: link.name.clone(),
            path: found.path.clone(),
            content,
            secret: link.secret.as_ref().map(|secret| Root(secret.0).to_string()),
            listed: is_listed,
        };
        state_file::save(&self.place(&id, "json"), &record)?;
        let share = share_of(link, found.path, is_listed, tree, found.manifest.as_ref(), list);
        Ok((Arc::new(share), found.skipped))
    }

    /// The secret of a content: the same whenever this peer shares it, so that old links still
    /// lead to it.
    fn secret_for(&self, content: &Content) -> LinkSecret {
        LinkSecret(*blake3::keyed_hash(&self.seed, &content.emit()).as_bytes())
    }

    /// Takes a share out of the index; its file stays.
    ///
    /// # Errors
    /// If the index cannot be written.
    pub(super) fn remove(&self, id: &FileId) -> Result<(), PeerError> {
        let record = self.place(id, "json");
        fs::remove_file(&record).map_err(PeerError::system("removing", record))?;
        for extension in ["tree", "list"] {
            // A single file has no list.
            let _ = fs::remove_file(self.place(id, extension));
        }
        Ok(())
    }
}

fn share_of(
    link: ShareLink,
    path: PathBuf,
    is_listed: bool,
    tree: Tree,
    manifest: Option<&Manifest>,
    list: Vec<u8>,
) -> Share {
    Share {
        id: link.id(),
        layout: walk::layout_of(tree.size(), manifest),
        files: walk::files_of(&path, manifest),
        link,
        path,
        is_listed,
        tree,
        list,
        single: Mutex::new(None),
        is_changed: AtomicBool::new(false),
        sent: AtomicU64::new(0),
        readers: AtomicUsize::new(0),
    }
}

/// Reads a whole content once.
fn read_tree(
    size: Size,
    layout: &Layout,
    files: &[PathBuf],
    list: &[u8],
    progress: &mut impl FnMut(u64, u64) -> bool,
) -> io::Result<Tree> {
    let mut hashes = Vec::with_capacity(size.chunks() as usize);
    let mut bytes = vec![0; CHUNK_LEN as usize];
    let mut open: Option<(usize, File)> = None;
    for chunk in 0..size.chunks() {
        let start = size.offset_of(chunk);
        let len = size.chunk_len(chunk);
        let mut at = 0;
        for piece in layout.pieces(start..start + len as u64) {
            let into = &mut bytes[at..at + piece.len];
            at += piece.len;
            match piece.place {
                Place::List => {
                    let from = piece.offset as usize;
                    into.copy_from_slice(&list[from..from + piece.len]);
                }
                Place::File(index) => {
                    if open.as_ref().is_none_or(|(number, _)| *number != index) {
                        open = Some((index, File::open(&files[index])?));
                    }
                    if let Some((_, file)) = &open {
                        file.read_exact_at(into, piece.offset)?;
                    }
                }
            }
        }
        hashes.push(chunk_hash(size, chunk, &bytes[..len]));
        if !progress(start + len as u64, size.bytes()) {
            return Err(io::ErrorKind::Interrupted.into());
        }
    }
    Ok(Tree::from_chunks(size, hashes))
}
