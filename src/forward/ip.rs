//! What the data path reads of an inner IP packet before it trusts a byte of it.
//!
//! In: the first bytes of a packet. Out: its declared length, or why it is none.
//! Called by: stream, flow, exit.

use crate::model::INNER_MTU;

/// The shortest IPv4 header.
pub const V4_HEADER_LEN: usize = 20;
/// The IPv6 header.
pub const V6_HEADER_LEN: usize = 40;
/// With this many bytes of any packet its length is known.
pub const LEN_KNOWN_AT: usize = 6;

/// What the first bytes of a packet say about its length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Declared {
    /// The whole packet has this many bytes, header included, at most [`INNER_MTU`].
    Len(usize),
    /// More bytes are needed to tell.
    Unknown,
    /// No packet starts like this, or it is longer than the inner MTU.
    Malformed,
}

/// The length that a packet starting with `start` declares.
pub fn declared_len(start: &[u8]) -> Declared {
    let Some(first) = start.first() else { return Declared::Unknown };
    let (shortest, len) = match first >> 4 {
        4 => {
            let header = usize::from(first & 0x0f) * 4;
            if header < V4_HEADER_LEN {
                return Declared::Malformed;
            }
            let Some(len) = start.get(2..4) else { return Declared::Unknown };
            (header, usize::from(u16::from_be_bytes([len[0], len[1]])))
        }
        6 => {
            let Some(len) = start.get(4..6) else { return Declared::Unknown };
            (V6_HEADER_LEN, usize::from(u16::from_be_bytes([len[0], len[1]])) + V6_HEADER_LEN)
        }
        _ => return Declared::Malformed,
    };
    if (shortest..=INNER_MTU).contains(&len) { Declared::Len(len) } else { Declared::Malformed }
}
