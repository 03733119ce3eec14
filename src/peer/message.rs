//! The messages of two peers, inside the encrypted transport between them.
//!
//! In: bytes of the control stream and the head of a chunk. Out: typed messages, and back.
//! Called by: peer_run.
//!
//! ```text
//! control stream, both ways     u32 length | u8 type | fields
//! data stream, to the downloader, for each Want in order:
//!   u32 chunk | u8 0 | group hashes 32 each | hashes beside the way 32 each | bytes of the chunk
//!   u32 chunk | u8 1                        (not sent: cancelled, or not there any more)
//! ```

use blake3::hazmat::ChainingValue;

use super::{
    bitmap::{BadBitmap, Bitmap},
    geometry::Size,
    link::Content,
    tree::{ChunkCheck, Forged, HASH_LEN, Root, proof_hashes},
};

/// The longest control message, in bytes; a bitmap of 2 TiB fits.
pub const LONGEST_MESSAGE: usize = (1 << 20) + 64;
/// The head of a chunk in front of its hashes, in bytes.
pub const CHUNK_HEAD_LEN: usize = 5;

/// A message on the control stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// Downloader: send this chunk, after those asked for before.
    Want(u32),
    /// Downloader: no need to send this chunk any more, if it was not begun.
    Cancel(u32),
    /// Uploader, first: what the content is, and which chunks there are; `None`: all.
    Offer(Content, Option<Vec<u8>>),
    /// Uploader: this chunk is there now.
    Gained(u32),
    /// Uploader: this content can no longer be sent.
    Withdrawn,
}

const WANT: u8 = 1;
const CANCEL: u8 = 2;
const OFFER: u8 = 16;
const GAINED: u8 = 17;
const WITHDRAWN: u8 = 18;

/// Why bytes are no message.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadMessage {
    /// The type is not known.
    #[error("expected a message of type 1, 2, 16, 17 or 18, got {0}")]
    Type(u8),
    /// The fields are not those of its type.
    #[error("a message of type {kind} does not have {len} bytes")]
    Length {
        /// Its type.
        kind: u8,
        /// Its length, without the type.
        len: usize,
    },
    /// It is longer than any message.
    #[error("expected a message of 1 to {LONGEST_MESSAGE} bytes, got {0}")]
    TooLong(usize),
    /// The content is impossible.
    #[error("the offered content is impossible")]
    Content,
    /// The bitmap is not one of the content.
    #[error(transparent)]
    Bitmap(#[from] BadBitmap),
}

impl Message {
    /// The message with its length in front.
    pub fn emit(&self) -> Vec<u8> {
        let mut bytes = vec![0; 4];
        match self {
            Self::Want(chunk) => push_chunk(&mut bytes, WANT, *chunk),
            Self::Cancel(chunk) => push_chunk(&mut bytes, CANCEL, *chunk),
            Self::Gained(chunk) => push_chunk(&mut bytes, GAINED, *chunk),
            Self::Withdrawn => bytes.push(WITHDRAWN),
            Self::Offer(content, bitmap) => {
                bytes.push(OFFER);
                bytes.extend_from_slice(&content.emit());
                bytes.extend_from_slice(bitmap.as_deref().unwrap_or_default());
            }
        }
        // No message is longer than LONGEST_MESSAGE.
        let length = (bytes.len() - 4) as u32;
        bytes[..4].copy_from_slice(&length.to_be_bytes());
        bytes
    }

    /// Checks the length in front of a message.
    ///
    /// # Errors
    /// If no message is so long.
    pub fn parse_length(bytes: [u8; 4]) -> Result<usize, BadMessage> {
        let length = u32::from_be_bytes(bytes) as usize;
        if (1..=LONGEST_MESSAGE).contains(&length) {
            Ok(length)
        } else {
            Err(BadMessage::TooLong(length))
        }
    }

    /// Reads a message, without its length.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadMessage> {
        let (&kind, rest) = bytes.split_first().ok_or(BadMessage::TooLong(0))?;
        let length = BadMessage::Length { kind, len: rest.len() };
        let chunk = || rest.try_into().map(u32::from_be_bytes).map_err(|_| length.clone());
        match kind {
            WANT => chunk().map(Self::Want),
            CANCEL => chunk().map(Self::Cancel),
            GAINED => chunk().map(Self::Gained),
            WITHDRAWN if rest.is_empty() => Ok(Self::Withdrawn),
            WITHDRAWN => Err(length),
            OFFER => {
                let (content, bitmap) = rest.split_first_chunk().ok_or(length)?;
                let content = Content::parse(content).ok_or(BadMessage::Content)?;
                if bitmap.is_empty() {
                    return Ok(Self::Offer(content, None));
                }
                Bitmap::parse(bitmap, content.size.chunks())?;
                Ok(Self::Offer(content, Some(bitmap.to_vec())))
            }
            other => Err(BadMessage::Type(other)),
        }
    }
}

fn push_chunk(bytes: &mut Vec<u8>, kind: u8, chunk: u32) {
    bytes.push(kind);
    bytes.extend_from_slice(&chunk.to_be_bytes());
}

/// The head of an answer on the data stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkHead {
    /// Which chunk.
    pub chunk: u32,
    /// Whether its proof and bytes follow.
    pub is_sent: bool,
}

impl ChunkHead {
    /// As bytes.
    pub fn emit(self) -> [u8; CHUNK_HEAD_LEN] {
        let [a, b, c, d] = self.chunk.to_be_bytes();
        [a, b, c, d, u8::from(!self.is_sent)]
    }

    /// Reads a head; none if its last byte is neither 0 nor 1.
    pub fn parse(bytes: [u8; CHUNK_HEAD_LEN]) -> Option<Self> {
        let [chunk @ .., skipped] = bytes;
        (skipped <= 1).then_some(Self { chunk: u32::from_be_bytes(chunk), is_sent: skipped == 0 })
    }
}

/// The length of the proof of a chunk, in bytes.
pub fn proof_len(size: Size, chunk: u32) -> usize {
    let (groups, siblings) = proof_hashes(size, chunk);
    (groups + siblings) * HASH_LEN
}

/// Appends the proof of a chunk.
pub fn emit_proof(groups: &[ChainingValue], siblings: &[ChainingValue], into: &mut Vec<u8>) {
    for hash in groups.iter().chain(siblings) {
        into.extend_from_slice(hash);
    }
}

/// Reads and checks the proof of a chunk: [`proof_len`] bytes.
///
/// # Errors
/// If it does not lead to the root.
pub fn parse_proof(root: Root, size: Size, chunk: u32, bytes: &[u8]) -> Result<ChunkCheck, Forged> {
    let (hashes, rest) = bytes.as_chunks::<HASH_LEN>();
    let (groups, _) = proof_hashes(size, chunk);
    if !rest.is_empty() || hashes.len() < groups {
        return Err(Forged::Proof { chunk });
    }
    let (groups, siblings) = hashes.split_at(groups);
    ChunkCheck::new(root, size, chunk, groups.to_vec(), siblings)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn messages() -> impl Strategy<Value = Message> {
        let content = (any::<[u8; 32]>(), 0u64..(1 << 30)).prop_map(|(root, size)| Content {
            root: Root(root),
            size: Size::try_from(size).unwrap(),
            dir: None,
        });
        prop_oneof![
            any::<u32>().prop_map(Message::Want),
            any::<u32>().prop_map(Message::Cancel),
            any::<u32>().prop_map(Message::Gained),
            Just(Message::Withdrawn),
            (content, any::<bool>()).prop_map(|(content, whole)| {
                let bitmap = Bitmap::full(content.size.chunks()).as_bytes().to_vec();
                Message::Offer(content, (!whole && !bitmap.is_empty()).then_some(bitmap))
            }),
        ]
    }

    proptest! {
        #[test]
        fn messages_round_trip(message in messages()) {
            let bytes = message.emit();
            let (length, rest) = bytes.split_first_chunk().unwrap();
            prop_assert_eq!(Message::parse_length(*length), Ok(rest.len()));
            prop_assert_eq!(Message::parse(rest), Ok(message));
        }

        #[test]
        fn any_bytes_are_a_message_or_an_error(kind in 0u8..20, rest: Vec<u8>) {
            let bytes = [&[kind], &rest[..]].concat();
            if let Ok(message) = Message::parse(&bytes) {
                prop_assert_eq!(&message.emit()[4..], &bytes[..]);
            }
        }

        #[test]
        fn heads_round_trip(chunk: u32, is_sent: bool) {
            let head = ChunkHead { chunk, is_sent };
            prop_assert_eq!(ChunkHead::parse(head.emit()), Some(head));
        }

        #[test]
        fn any_proof_is_checked(bytes: Vec<u8>, chunk in 0u32..9) {
            let size = Size::try_from(2_000_000).unwrap();
            prop_assert!(parse_proof(Root([1; 32]), size, chunk, &bytes).is_err());
        }
    }

    #[test]
    fn bytes_as_documented() {
        assert_eq!(Message::Want(7).emit(), [0, 0, 0, 5, 1, 0, 0, 0, 7]);
        assert_eq!(Message::Withdrawn.emit(), [0, 0, 0, 1, 18]);
        assert_eq!(ChunkHead { chunk: 1, is_sent: false }.emit(), [0, 0, 0, 1, 1]);
        assert!(Message::parse_length([0xff; 4]).is_err());
        assert!(Message::parse_length([0; 4]).is_err());
    }
}
