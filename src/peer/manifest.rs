//! A directory as one content: the list of its files, then their bytes, one after the other.
//!
//! In: paths and sizes; bytes of a list from outside. Out: the list, and where each file lies.
//! Called by: peer (layout, link), peer_run.
//!
//! ```text
//! "cepa-dir/1\n" | entries: u8 kind (0 file, 1 runnable file, 2 directory) | u64 size | u16 length | path
//! ```
//!
//! Paths are in strictly ascending order, so one directory has one list, and no path comes twice.

use super::{
    geometry::Size,
    name::{BadName, InnerPath},
};

const MAGIC: &[u8] = b"cepa-dir/1\n";
const ENTRY_HEADER: usize = 11;
/// The longest list, in bytes: some 500,000 files.
pub const LONGEST_LIST: u32 = 64 << 20;

/// Whether a content of `size` can begin with a list of `list` bytes.
pub fn can_have_list(size: Size, list: u32) -> bool {
    list as usize >= MAGIC.len() && list <= LONGEST_LIST && u64::from(list) <= size.bytes()
}

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum EntryKind {
    /// A file.
    File = 0,
    /// A file that its owner may run.
    Runnable = 1,
    /// A directory; listed if it is empty.
    Directory = 2,
}

/// One entry of the list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// What it is.
    pub kind: EntryKind,
    /// Its size in bytes; 0 for a directory.
    pub size: u64,
    /// Where it is in the directory.
    pub path: InnerPath,
}

/// The list of a directory's files.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Manifest {
    entries: Vec<Entry>,
}

/// Why bytes are no list.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadManifest {
    /// It does not have its form.
    #[error("the list of files is broken at byte {0}")]
    Form(usize),
    /// A path would leave the directory.
    #[error("the list of files: {0}")]
    Path(#[from] BadName),
    /// Paths that come twice, or are not in order, or stand below a file.
    #[error("the list of files is not in order at {0:?}")]
    Order(InnerPath),
    /// The sizes do not add up to the content.
    #[error("the list of files adds up to {got} bytes, expected {expected}")]
    Sum {
        /// The size of the content.
        expected: u64,
        /// List and files.
        got: u64,
    },
}

/// Whether `path` lies below `file`.
fn is_below(path: &str, file: &str) -> bool {
    path.strip_prefix(file).is_some_and(|rest| rest.starts_with('/'))
}

impl Manifest {
    /// The list of `entries`, which are brought in order.
    ///
    /// # Errors
    /// [`BadManifest::Order`] if a path comes twice or lies below a file.
    pub fn new(mut entries: Vec<Entry>) -> Result<Self, BadManifest> {
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        Self::in_order(entries)
    }

    fn in_order(entries: Vec<Entry>) -> Result<Self, BadManifest> {
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].path >= pair[1].path) {
            return Err(BadManifest::Order(pair[1].path.clone()));
        }
        // Between a file and what lies "below" it may stand others ("a", "a-b", "a/c").
        let files: std::collections::HashSet<&str> = entries
            .iter()
            .filter(|entry| entry.kind != EntryKind::Directory)
            .map(|entry| entry.path.as_str())
            .collect();
        let below_a_file = entries.iter().find(|entry| {
            let path = entry.path.as_str();
            path.match_indices('/').any(|(end, _)| {
                debug_assert!(is_below(path, &path[..end]));
                files.contains(&path[..end])
            })
        });
        match below_a_file {
            Some(entry) => Err(BadManifest::Order(entry.path.clone())),
            None => Ok(Self { entries }),
        }
    }

    /// The entries, in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The bytes of all files, without the list.
    pub fn files_len(&self) -> u64 {
        self.entries.iter().fold(0, |sum, entry| sum.saturating_add(entry.size))
    }

    /// The length of the list, in bytes.
    pub fn encoded_len(&self) -> usize {
        let entries: usize =
            self.entries.iter().map(|entry| ENTRY_HEADER + entry.path.as_str().len()).sum();
        MAGIC.len() + entries
    }

    /// The list as bytes.
    pub fn emit(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.encoded_len());
        bytes.extend_from_slice(MAGIC);
        for entry in &self.entries {
            let path = entry.path.as_str().as_bytes();
            bytes.push(entry.kind as u8);
            bytes.extend_from_slice(&entry.size.to_be_bytes());
            // Paths are at most 4000 bytes.
            bytes.extend_from_slice(&(path.len() as u16).to_be_bytes());
            bytes.extend_from_slice(path);
        }
        bytes
    }

    /// Reads the list of a content of `size` bytes.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8], size: Size) -> Result<Self, BadManifest> {
        let mut rest = bytes.strip_prefix(MAGIC).ok_or(BadManifest::Form(0))?;
        let mut entries = Vec::new();
        while !rest.is_empty() {
            let broken = BadManifest::Form(bytes.len() - rest.len());
            let (entry, left) = parse_entry(rest)?.ok_or(broken)?;
            entries.push(entry);
            rest = left;
        }
        let manifest = Self::in_order(entries)?;
        let got = manifest.files_len().saturating_add(bytes.len() as u64);
        if got == size.bytes() {
            Ok(manifest)
        } else {
            Err(BadManifest::Sum { expected: size.bytes(), got })
        }
    }
}

fn parse_entry(bytes: &[u8]) -> Result<Option<(Entry, &[u8])>, BadName> {
    let Some((header, rest)) = bytes.split_first_chunk::<ENTRY_HEADER>() else { return Ok(None) };
    let [kind, size @ .., high, low] = *header;
    let kind = match kind {
        0 => EntryKind::File,
        1 => EntryKind::Runnable,
        2 => EntryKind::Directory,
        _ => return Ok(None),
    };
    let size = u64::from_be_bytes(size);
    let length = usize::from(u16::from_be_bytes([high, low]));
    let Some((path, rest)) = rest.split_at_checked(length) else { return Ok(None) };
    let Ok(path) = std::str::from_utf8(path) else { return Ok(None) };
    if kind == EntryKind::Directory && size != 0 {
        return Ok(None);
    }
    Ok(Some((Entry { kind, size, path: InnerPath::new(path)? }, rest)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(path: &str, size: u64) -> Entry {
        Entry { kind: EntryKind::File, size, path: InnerPath::new(path).unwrap() }
    }

    fn size_of(manifest: &Manifest) -> Size {
        Size::try_from(manifest.files_len() + manifest.encoded_len() as u64).unwrap()
    }

    #[test]
    fn paths_in_order_and_below_directories_only() {
        let manifest =
            Manifest::new(vec![entry("b", 1), entry("a/c", 2), entry("a-b", 0)]).unwrap();
        let paths: Vec<_> = manifest.entries().iter().map(|entry| entry.path.as_str()).collect();
        assert_eq!(paths, ["a-b", "a/c", "b"]);
        assert!(Manifest::new(vec![entry("a", 1), entry("a", 1)]).is_err());
        assert!(Manifest::new(vec![entry("a", 1), entry("a-b", 1), entry("a/c", 1)]).is_err());
        let backwards = [&b"cepa-dir/1\n"[..], &manifest.emit()[11..]].concat();
        assert!(Manifest::parse(&backwards, size_of(&manifest)).is_ok());
    }

    #[test]
    fn a_path_out_of_the_directory_is_refused() {
        for path in ["../x", "/etc/passwd", "a/../../b", "."] {
            let mut bytes = MAGIC.to_vec();
            bytes.push(0);
            bytes.extend_from_slice(&0u64.to_be_bytes());
            bytes.extend_from_slice(&(path.len() as u16).to_be_bytes());
            bytes.extend_from_slice(path.as_bytes());
            let size = Size::try_from(bytes.len() as u64).unwrap();
            assert!(matches!(Manifest::parse(&bytes, size), Err(BadManifest::Path(_))), "{path}");
        }
    }

    proptest! {
        #[test]
        fn lists_round_trip(paths in prop::collection::btree_set("[a-zé./]{1,8}", 0..12), size in 0u64..9999) {
            let entries: Vec<_> = paths
                .iter()
                .filter_map(|path| Some(Entry {
                    kind: EntryKind::Runnable, size, path: InnerPath::new(path.as_str()).ok()?,
                }))
                .collect();
            if let Ok(manifest) = Manifest::new(entries) {
                let bytes = manifest.emit();
                prop_assert_eq!(bytes.len(), manifest.encoded_len());
                prop_assert_eq!(Manifest::parse(&bytes, size_of(&manifest)), Ok(manifest));
            }
        }

        #[test]
        fn any_bytes_are_a_list_or_an_error(tail: Vec<u8>, size in 0u64..9999) {
            let bytes = [MAGIC, &tail].concat();
            let _ = Manifest::parse(&bytes, Size::try_from(size).unwrap());
            let _ = Manifest::parse(&tail, Size::try_from(size).unwrap());
        }
    }
}
