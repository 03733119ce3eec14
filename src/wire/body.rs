//! The header of a body: is it for this hop, and what is it.
//!
//! In: the 1312 bytes of an opened body. Out: its kind and flags. Called by: forward, circuit.
//!
//! ```text
//! 0 recognised 8 (all zero) | 8 kind 1 | 9 flags 1 | 10 offset 2 | 12 stream 1300
//! ```

use crate::model::{BODY_AT, BODY_HEADER_LEN, BODY_LEN, BodyKind, CELL_LEN};

/// The offset of a data body in which no inner packet starts.
pub const NO_PACKET_START: u16 = 0xffff;

const RECOGNISED_LEN: usize = 8;

/// What a recognised body says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BodyHeader {
    /// What the body is for.
    pub kind: BodyKind,
    /// Meaning depends on the kind; zero where it has none.
    pub flags: u8,
    /// Data: where the first inner packet starts, counted from the start of the body.
    pub offset: u16,
}

/// A recognised body of a kind that this program does not know.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected a body kind of 0 to 5, got {0}")]
pub struct UnknownKind(pub u8);

impl BodyHeader {
    /// A header of `kind` without flags and without a packet start.
    pub const fn new(kind: BodyKind) -> Self {
        Self { kind, flags: 0, offset: 0 }
    }

    /// Whether an opened body is for the hop that opened it.
    pub fn is_recognised(body: &[u8; BODY_LEN]) -> bool {
        body[..RECOGNISED_LEN] == [0; RECOGNISED_LEN]
    }

    /// Reads the header of a recognised body.
    ///
    /// # Errors
    /// When the kind is not known; such bodies are dropped and counted.
    pub fn parse(body: &[u8; BODY_LEN]) -> Result<Self, UnknownKind> {
        let kind = BodyKind::from_wire(body[8]).ok_or(UnknownKind(body[8]))?;
        Ok(Self { kind, flags: body[9], offset: u16::from_be_bytes([body[10], body[11]]) })
    }

    /// Writes the header, recognised zeros included.
    pub fn emit(&self, body: &mut [u8; BODY_LEN]) {
        body[..RECOGNISED_LEN].fill(0);
        body[8] = self.kind as u8;
        body[9] = self.flags;
        body[10..BODY_HEADER_LEN].copy_from_slice(&self.offset.to_be_bytes());
    }
}

/// The body of a cell.
pub fn body_ref(cell: &[u8; CELL_LEN]) -> &[u8; BODY_LEN] {
    cell.last_chunk()
        .unwrap_or_else(|| unreachable!("a cell is {BODY_AT} bytes longer than a body"))
}

/// The body of a cell, to change in place.
pub fn body_mut(cell: &mut [u8; CELL_LEN]) -> &mut [u8; BODY_LEN] {
    cell.last_chunk_mut()
        .unwrap_or_else(|| unreachable!("a cell is {BODY_AT} bytes longer than a body"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn header_round_trips(kind in 0u8..6, flags: u8, offset: u16) {
            let header = BodyHeader { kind: BodyKind::from_wire(kind).unwrap(), flags, offset };
            let mut body = [0xff; BODY_LEN];
            header.emit(&mut body);
            prop_assert!(BodyHeader::is_recognised(&body));
            prop_assert_eq!(BodyHeader::parse(&body), Ok(header));
        }

        #[test]
        fn unknown_kinds_are_named(kind in 6u8..) {
            let mut body = [0; BODY_LEN];
            body[8] = kind;
            prop_assert_eq!(BodyHeader::parse(&body), Err(UnknownKind(kind)));
        }
    }
}
