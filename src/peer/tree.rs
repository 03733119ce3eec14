//! The BLAKE3 tree of a content, kept down to its chunks, and the proofs that chunks belong to it.
//!
//! In: chunks, or their hashes. Out: the root, which is the plain BLAKE3 hash of the content;
//! proofs, and checks of proofs. Called by: peer (store, message), peer_run.
//!
//! A proof of one chunk is the hashes of its groups and those of the subtrees beside its way to the
//! root (as bao has it), so each group can be checked the moment it is there:
//!
//! ```text
//!            root                proof of chunk 2: group hashes of 2, then [3], [01]
//!          /      \
//!       [01]      [23]           checked: groups -> [2]; [2]+[3] -> [23]; [01]+[23] -> root
//!      /    \    /    \
//!     [0]  [1]  [2]  [3]         chunks of 256 KiB, each a tree of up to 16 groups of 16 KiB
//! ```

use std::fmt;

use blake3::{
    Hasher,
    hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root},
};
use serde::{Deserialize, Serialize};

use super::geometry::{CHUNK_LEN, GROUP_LEN, Size};

/// A hash, in bytes.
pub const HASH_LEN: usize = 32;

/// The BLAKE3 hash of a whole content: its name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Root(pub [u8; HASH_LEN]);

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Root> for String {
    fn from(root: Root) -> Self {
        root.to_string()
    }
}

/// A text that is no hash.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected 64 hexadecimal digits")]
pub struct NoHash;

impl std::str::FromStr for Root {
    type Err = NoHash;

    fn from_str(text: &str) -> Result<Self, NoHash> {
        hex32(text).map(Self)
    }
}

impl TryFrom<String> for Root {
    type Error = NoHash;

    fn try_from(text: String) -> Result<Self, NoHash> {
        text.parse()
    }
}

/// 32 bytes from 64 hexadecimal digits.
///
/// # Errors
/// If the text is anything else.
pub fn hex32(text: &str) -> Result<[u8; HASH_LEN], NoHash> {
    if !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(NoHash);
    }
    blake3::Hash::from_hex(text).map(Into::into).map_err(|_| NoHash)
}

/// A proof or a group that does not belong to the root.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Forged {
    /// The hashes in front of a chunk do not lead to the root.
    #[error("the proof of chunk {chunk} does not lead to the content's root")]
    Proof {
        /// Which chunk.
        chunk: u32,
    },
    /// The bytes of a group are not those that the proof names.
    #[error("group {group} of chunk {chunk} is not what its hash says")]
    Group {
        /// Which chunk.
        chunk: u32,
        /// Which of its groups.
        group: usize,
    },
}

/// The hash of `bytes`, a subtree at `offset`; `whole`: they are all there is, so it is the root.
fn subtree_hash(bytes: &[u8], offset: u64, whole: bool) -> ChainingValue {
    let mut hasher = Hasher::new();
    if whole {
        return hasher.update(bytes).finalize().into();
    }
    hasher.set_input_offset(offset);
    hasher.update(bytes).finalize_non_root()
}

fn merged(left: &ChainingValue, right: &ChainingValue, is_root: bool) -> ChainingValue {
    if is_root {
        merge_subtrees_root(left, right, Mode::Hash).into()
    } else {
        merge_subtrees_non_root(left, right, Mode::Hash)
    }
}

/// How many of `count` units are in the left subtree: the largest power of two below.
fn left_units(count: usize) -> usize {
    count.next_power_of_two() / 2
}

/// The hash of neighbouring subtrees, `is_root` if they are all there is.
fn fold(hashes: &[ChainingValue], is_root: bool) -> ChainingValue {
    match hashes {
        [] => *blake3::hash(b"").as_bytes(),
        [only] => *only,
        _ => {
            let (left, right) = hashes.split_at(left_units(hashes.len()));
            merged(&fold(left, false), &fold(right, false), is_root)
        }
    }
}

/// The hashes of a chunk's groups, in order.
pub fn group_hashes(size: Size, chunk: u32, bytes: &[u8]) -> Vec<ChainingValue> {
    let whole = size.bytes() <= GROUP_LEN;
    let start = size.offset_of(chunk);
    bytes
        .chunks(GROUP_LEN as usize)
        .zip((start..).step_by(GROUP_LEN as usize))
        .map(|(group, offset)| subtree_hash(group, offset, whole))
        .collect()
}

/// The hash of one chunk, for [`Tree::from_chunks`].
pub fn chunk_hash(size: Size, chunk: u32, bytes: &[u8]) -> ChainingValue {
    subtree_hash(bytes, size.offset_of(chunk), size.bytes() <= CHUNK_LEN)
}

/// The hash of a chunk from those of its groups.
pub fn hash_of_groups(size: Size, groups: &[ChainingValue]) -> ChainingValue {
    fold(groups, size.chunks() == 1)
}

/// The tree of a content, above its groups.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tree {
    size: Size,
    chunks: Vec<ChainingValue>,
    root: Root,
}

impl Tree {
    /// The tree over a content that is in memory.
    pub fn of(size: Size, bytes: &[u8]) -> Self {
        let chunks = bytes.chunks(CHUNK_LEN as usize).zip(0..);
        Self::from_chunks(
            size,
            chunks.map(|(chunk, number)| chunk_hash(size, number, chunk)).collect(),
        )
    }

    /// The tree over the hashes of all chunks, as [`chunk_hash`] makes them; missing ones are zero.
    pub fn from_chunks(size: Size, mut chunks: Vec<ChainingValue>) -> Self {
        chunks.resize(size.chunks() as usize, [0; HASH_LEN]);
        let root = Root(fold(&chunks, true));
        Self { size, chunks, root }
    }

    /// The hash of the content.
    pub const fn root(&self) -> Root {
        self.root
    }

    /// The size of the content.
    pub const fn size(&self) -> Size {
        self.size
    }

    /// The hashes of the chunks, in order.
    pub fn chunks(&self) -> &[ChainingValue] {
        &self.chunks
    }

    /// The hashes beside the way of `chunk` to the root, the nearest first.
    pub fn siblings(&self, chunk: u32) -> Vec<ChainingValue> {
        let mut beside = Vec::new();
        let (mut all, mut at) = (&self.chunks[..], chunk as usize);
        while all.len() > 1 {
            let (left, right) = all.split_at(left_units(all.len()));
            if at < left.len() {
                beside.push(fold(right, false));
                all = left;
            } else {
                beside.push(fold(left, false));
                at -= left.len();
                all = right;
            }
        }
        beside.reverse();
        beside
    }
}

/// For each hash beside the way of a chunk, nearest first: whether it is on the right.
fn sides(size: Size, chunk: u32) -> Vec<bool> {
    let mut on_the_right = Vec::new();
    let (mut count, mut at) = (size.chunks() as usize, chunk as usize);
    while count > 1 {
        let left = left_units(count);
        let goes_left = at < left;
        on_the_right.push(goes_left);
        if goes_left {
            count = left;
        } else {
            at -= left;
            count -= left;
        }
    }
    on_the_right.reverse();
    on_the_right
}

/// How many hashes a chunk's proof has: those of its groups, and those beside its way.
pub fn proof_hashes(size: Size, chunk: u32) -> (usize, usize) {
    (size.groups_of(chunk), sides(size, chunk).len())
}

/// A checked proof: what each group of one chunk must hash to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChunkCheck {
    size: Size,
    chunk: u32,
    groups: Vec<ChainingValue>,
    hash: ChainingValue,
}

impl ChunkCheck {
    /// Checks a proof against the root.
    ///
    /// # Errors
    /// [`Forged::Proof`] if it does not lead there.
    pub fn new(
        root: Root,
        size: Size,
        chunk: u32,
        groups: Vec<ChainingValue>,
        siblings: &[ChainingValue],
    ) -> Result<Self, Forged> {
        let forged = Forged::Proof { chunk };
        let sides = sides(size, chunk);
        if chunk >= size.chunks()
            || groups.len() != size.groups_of(chunk)
            || siblings.len() != sides.len()
        {
            return Err(forged);
        }
        let hash = fold(&groups, sides.is_empty());
        let last = sides.len().saturating_sub(1);
        let top = siblings.iter().zip(&sides).enumerate().fold(
            hash,
            |below, (level, (sibling, on_the_right))| {
                let (left, right) =
                    if *on_the_right { (&below, sibling) } else { (sibling, &below) };
                merged(left, right, level == last)
            },
        );
        if top == root.0 { Ok(Self { size, chunk, groups, hash }) } else { Err(forged) }
    }

    /// The chunk's own hash.
    pub const fn hash(&self) -> ChainingValue {
        self.hash
    }

    /// Checks the bytes of one group.
    ///
    /// # Errors
    /// [`Forged::Group`] if they are not what the proof says.
    pub fn check(&self, group: usize, bytes: &[u8]) -> Result<(), Forged> {
        let offset = self.size.offset_of(self.chunk) + group as u64 * GROUP_LEN;
        let hash = subtree_hash(bytes, offset, self.size.bytes() <= GROUP_LEN);
        if self.groups.get(group) == Some(&hash) {
            Ok(())
        } else {
            Err(Forged::Group { chunk: self.chunk, group })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn content(len: usize, seed: u64) -> Vec<u8> {
        let mut bytes = vec![0; len];
        Hasher::new().update(&seed.to_be_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn tree(bytes: &[u8]) -> Tree {
        Tree::of(Size::try_from(bytes.len() as u64).unwrap(), bytes)
    }

    fn chunk_of(bytes: &[u8], chunk: u32) -> &[u8] {
        bytes.chunks(CHUNK_LEN as usize).nth(chunk as usize).unwrap()
    }

    const SIZES: &[usize] = &[
        1,
        1023,
        1024,
        1025,
        16 << 10,
        (16 << 10) + 1,
        (256 << 10) - 1,
        256 << 10,
        (256 << 10) + 1,
        (1 << 20) + 77,
        5 * (256 << 10),
    ];

    #[test]
    fn the_root_is_the_plain_hash() {
        assert_eq!(tree(b"").root().0, *blake3::hash(b"").as_bytes());
        for &len in SIZES {
            let bytes = content(len, 1);
            assert_eq!(tree(&bytes).root().0, *blake3::hash(&bytes).as_bytes(), "{len}");
        }
    }

    #[test]
    fn every_chunk_proves_itself_and_no_other() {
        for &len in SIZES {
            let bytes = content(len, 2);
            let tree = tree(&bytes);
            for chunk in 0..tree.size().chunks() {
                let data = chunk_of(&bytes, chunk);
                let groups = group_hashes(tree.size(), chunk, data);
                let siblings = tree.siblings(chunk);
                assert_eq!((groups.len(), siblings.len()), proof_hashes(tree.size(), chunk));
                let check =
                    ChunkCheck::new(tree.root(), tree.size(), chunk, groups.clone(), &siblings)
                        .unwrap();
                assert_eq!(check.hash(), tree.chunks()[chunk as usize]);
                for (number, group) in data.chunks(GROUP_LEN as usize).enumerate() {
                    check.check(number, group).unwrap();
                    let mut lie = group.to_vec();
                    lie[0] ^= 1;
                    assert_eq!(
                        check.check(number, &lie),
                        Err(Forged::Group { chunk, group: number })
                    );
                }
                let other = Root([7; 32]);
                assert!(
                    ChunkCheck::new(other, tree.size(), chunk, groups.clone(), &siblings).is_err()
                );
                let next = chunk + 1;
                assert!(
                    ChunkCheck::new(tree.root(), tree.size(), next, groups, &siblings).is_err()
                );
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn a_changed_proof_is_refused(len in 1usize..(1 << 20), seed: u64, at: prop::sample::Index) {
            let bytes = content(len, seed);
            let tree = tree(&bytes);
            let chunk = at.index(tree.size().chunks() as usize) as u32;
            let mut groups = group_hashes(tree.size(), chunk, chunk_of(&bytes, chunk));
            let mut siblings = tree.siblings(chunk);
            let count = groups.len() + siblings.len();
            let bent = at.index(count);
            match groups.get_mut(bent) {
                Some(hash) => hash[0] ^= 1,
                None => siblings[bent - groups.len()][0] ^= 1,
            }
            prop_assert!(
                ChunkCheck::new(tree.root(), tree.size(), chunk, groups, &siblings).is_err()
            );
        }

        #[test]
        fn roots_are_hex(bytes: [u8; 32], text: String) {
            prop_assert_eq!(Root(bytes).to_string().parse(), Ok(Root(bytes)));
            let _ = text.parse::<Root>();
        }
    }
}
