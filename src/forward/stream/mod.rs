//! Inner packets as a stream through cells: many small ones share a cell, a large one spans some.
//!
//! In: IP packets, or bodies of data cells. Out: the other one of the two.
//! Called by: the client's and the exit's data path, one of each per circuit and direction.
//!
//! Aggregation and fragmentation follow RFC 9347. The stream area of a body is its bytes 12..1312.
//! Whole packets, each telling its own length, stand in it back to back; the last one may go on in
//! the next data cell. The offset (bytes 10..12) counts from the start of the body:
//!
//! ```text
//!  body n    | header, offset 12   | packet A | packet B | first part of C |
//!  body n+1  | header, offset ffff | more of C ..........................  |
//!  body n+2  | header, offset 640  | rest of C | packet D | 0 0 0 0 0 0 0  |
//!                                              ^ byte 640
//! ```
//!
//! At a packet boundary a zero version nibble means padding up to the end. Where the offset is
//! 0xffff no packet starts, and what the continued packet does not need is padding.

mod packer;
mod reassembler;
#[cfg(test)]
mod tests;

pub use packer::{BodySink, Packer};
pub use reassembler::Reassembler;

use crate::{
    model::{BODY_HEADER_LEN, BODY_LEN},
    wire::NO_PACKET_START,
};

/// Where the offset stands in a body.
const OFFSET: std::ops::Range<usize> = 10..BODY_HEADER_LEN;

type Body = [u8; BODY_LEN];
