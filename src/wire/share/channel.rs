//! The channel between a peer and the tracker: frames that exits carry, segments inside them.
//!
//! In: the value of a control body, or the payload of a leg. Out: typed frames and segments.
//! Called by: tracker (its channel), node.
//!
//! ```text
//! frame    type 1 | rest            1 hello: Noise_NK first message, payload = exit's node id
//!                                   2 welcome: Noise_NK second message
//!                                   3 data: nonce 8 | sealed segment
//!                                   4 reset: the tracker does not know this channel
//! segment  next 4 | more 4 | seq 4 | flags 1 | bytes    (the plaintext of a data frame)
//! ```
//! `next` is the first segment that the sender lacks, `more` has a bit for each of the 32 after it
//! that are already there. Segment 0 carries no bytes: it only acknowledges. Flag 1 ends a message.

use super::ShareWireError;
use crate::wire::CONTROL_VALUE_LEN;

/// The longest frame: one control body, of which 32 bytes name the tracker.
pub const MAX_FRAME_LEN: usize = CONTROL_VALUE_LEN - 32;
/// What a segment carries of a message, at most.
pub const MAX_SEGMENT_LEN: usize = MAX_FRAME_LEN - 9 - TAG_LEN - SEGMENT_HEADER_LEN;

const TAG_LEN: usize = 16;
const SEGMENT_HEADER_LEN: usize = 13;

/// A frame of a channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChannelFrame<'a> {
    /// A peer opens a channel.
    Hello(&'a [u8]),
    /// The tracker accepts it.
    Welcome(&'a [u8]),
    /// A sealed segment.
    Data {
        /// Its number, never used twice.
        nonce: u64,
        /// The segment, sealed.
        sealed: &'a [u8],
    },
    /// The tracker does not know the channel: open it again.
    Reset,
}

impl<'a> ChannelFrame<'a> {
    /// Reads a frame.
    ///
    /// # Errors
    /// When it is too long, too short or of an unknown type.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ShareWireError> {
        if bytes.len() > MAX_FRAME_LEN {
            return Err(ShareWireError::TooLong {
                what: "frame",
                most: MAX_FRAME_LEN,
                got: bytes.len(),
            });
        }
        match bytes {
            [1, message @ ..] => Ok(Self::Hello(message)),
            [2, message @ ..] => Ok(Self::Welcome(message)),
            [3, rest @ ..] => {
                let (nonce, sealed) = rest.split_first_chunk().ok_or_else(|| {
                    ShareWireError::malformed("a data frame", format!("{} bytes", bytes.len()))
                })?;
                Ok(Self::Data { nonce: u64::from_be_bytes(*nonce), sealed })
            }
            [4] => Ok(Self::Reset),
            [kind, ..] => Err(ShareWireError::malformed("a frame of type 1 to 4", kind)),
            [] => Err(ShareWireError::malformed("a frame", "nothing")),
        }
    }

    /// The frame's bytes.
    pub fn emit(&self) -> Vec<u8> {
        match self {
            Self::Hello(message) => [&[1], *message].concat(),
            Self::Welcome(message) => [&[2], *message].concat(),
            Self::Data { nonce, sealed } => [&[3], &nonce.to_be_bytes()[..], sealed].concat(),
            Self::Reset => vec![4],
        }
    }
}

/// A piece of a message, with what its sender has received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment<'a> {
    /// The first segment that the sender lacks.
    pub next: u32,
    /// Segments after that one that are there: bit 0 for `next + 1`.
    pub more: u32,
    /// This segment's number, from 1; 0 carries nothing.
    pub seq: u32,
    /// Whether it ends a message.
    pub last: bool,
    /// Its part of the message.
    pub bytes: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Reads an opened data frame.
    ///
    /// # Errors
    /// When it is too short or too long.
    pub fn parse(plain: &'a [u8]) -> Result<Self, ShareWireError> {
        let short = || ShareWireError::malformed("a segment", format!("{} bytes", plain.len()));
        let (head, bytes) = plain.split_first_chunk::<SEGMENT_HEADER_LEN>().ok_or_else(short)?;
        if bytes.len() > MAX_SEGMENT_LEN {
            return Err(ShareWireError::TooLong {
                what: "segment",
                most: MAX_SEGMENT_LEN,
                got: bytes.len(),
            });
        }
        let number =
            |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        Ok(Self {
            next: number(0),
            more: number(4),
            seq: number(8),
            last: head[12] & 1 != 0,
            bytes,
        })
    }

    /// The plaintext of a data frame.
    pub fn emit(&self) -> Vec<u8> {
        let mut plain = Vec::with_capacity(SEGMENT_HEADER_LEN + self.bytes.len());
        plain.extend(self.next.to_be_bytes());
        plain.extend(self.more.to_be_bytes());
        plain.extend(self.seq.to_be_bytes());
        plain.push(u8::from(self.last));
        plain.extend(self.bytes);
        plain
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_round_trip(nonce: u64, bytes in prop::collection::vec(any::<u8>(), 0..1200)) {
            for frame in [
                ChannelFrame::Hello(&bytes),
                ChannelFrame::Welcome(&bytes),
                ChannelFrame::Data { nonce, sealed: &bytes },
                ChannelFrame::Reset,
            ] {
                let bytes = frame.emit();
                prop_assert_eq!(ChannelFrame::parse(&bytes), Ok(frame));
            }
        }

        #[test]
        fn segments_round_trip(next: u32, more: u32, seq: u32, last: bool,
            bytes in prop::collection::vec(any::<u8>(), 0..=MAX_SEGMENT_LEN)) {
            let segment = Segment { next, more, seq, last, bytes: &bytes };
            let plain = segment.emit();
            prop_assert_eq!(Segment::parse(&plain), Ok(segment));
            let sealed = vec![0; plain.len() + TAG_LEN];
            let frame = ChannelFrame::Data { nonce: 1, sealed: &sealed }.emit();
            prop_assert!(frame.len() <= MAX_FRAME_LEN);
        }

        #[test]
        fn any_bytes_parse_or_err(bytes: Vec<u8>) {
            let _ = ChannelFrame::parse(&bytes);
            let _ = Segment::parse(&bytes);
        }
    }
}
