//! Where the bytes of a content lie: in one file, or in the list and files of a directory.
//!
//! In: a range of the content. Out: pieces of files. Called by: peer (store).

use std::ops::Range;

use super::manifest::{EntryKind, Manifest};

/// A part of a content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Where it lies.
    pub place: Place,
    /// Where it starts there, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub len: usize,
}

/// Where a part of a content lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// In the list of a directory's files.
    List,
    /// In the file of this index; the only file of a plain content is number 0.
    File(usize),
}

/// The map of a content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    list: u64,
    /// Where each file starts and its index, without empty ones.
    files: Vec<(Range<u64>, usize)>,
}

impl Layout {
    /// One file of `size` bytes.
    pub fn single(size: u64) -> Self {
        Self { list: 0, files: vec![(0..size, 0)] }
    }

    /// A directory whose list has `list` bytes and is not known yet: only the list has a place.
    pub fn unread(list: u64) -> Self {
        Self { list, files: Vec::new() }
    }

    /// A directory with its list; files have the index of their entry.
    pub fn directory(manifest: &Manifest) -> Self {
        let list = manifest.encoded_len() as u64;
        let mut at = list;
        let mut files = Vec::new();
        for (index, entry) in manifest.entries().iter().enumerate() {
            if entry.kind != EntryKind::Directory && entry.size > 0 {
                files.push((at..at + entry.size, index));
                at += entry.size;
            }
        }
        Self { list, files }
    }

    /// The pieces of `range`, in order; what has no place is left out.
    pub fn pieces(&self, range: Range<u64>) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut push = |place, span: &Range<u64>| {
            let (start, end) = (range.start.max(span.start), range.end.min(span.end));
            if start < end {
                pieces.push(Piece {
                    place,
                    offset: start - span.start,
                    len: (end - start) as usize,
                });
            }
        };
        push(Place::List, &(0..self.list));
        let first = self.files.partition_point(|(span, _)| span.end <= range.start);
        for (span, index) in &self.files[first..] {
            if span.start >= range.end {
                break;
            }
            push(Place::File(*index), span);
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::peer::{manifest::Entry, name::InnerPath};

    proptest! {
        #[test]
        fn pieces_join_to_the_range(
            sizes in prop::collection::vec(0u64..50, 0..20),
            start in 0u64..600,
            len in 0u64..200,
        ) {
            let entries = sizes
                .iter()
                .enumerate()
                .map(|(number, &size)| Entry {
                    kind: EntryKind::File,
                    size,
                    path: InnerPath::new(format!("f{number:03}")).unwrap(),
                })
                .collect();
            let manifest = Manifest::new(entries).unwrap();
            let mut content = manifest.emit();
            for (number, &size) in sizes.iter().enumerate() {
                content.extend((0..size).map(|at| (number as u64 * 50 + at) as u8));
            }
            let end = (start + len).min(content.len() as u64);
            let start = start.min(end);
            let list = manifest.emit();
            let joined: Vec<u8> = Layout::directory(&manifest)
                .pieces(start..end)
                .into_iter()
                .flat_map(|piece| {
                    let bytes: Vec<u8> = match piece.place {
                        Place::List => list.clone(),
                        Place::File(number) => {
                            (0..sizes[number]).map(|at| (number as u64 * 50 + at) as u8).collect()
                        }
                    };
                    bytes[piece.offset as usize..piece.offset as usize + piece.len].to_vec()
                })
                .collect();
            prop_assert_eq!(&joined[..], &content[start as usize..end as usize]);
        }
    }
}
