//! The wire of the source, byte for byte.
//!
//! In: bytes of a link, pads. Out: its four messages and the arithmetic of its cells.
//! Called by: `cepa dcnet relay|client|trustee --wire seed`.
//!
//! ```text
//! hello             0x80 | id for a trustee, id for a client (1 byte)
//! relay -> trustee  [NextSlot 2]
//! relay -> client   [Conn# 4 | Len 2 | NextSlot 2 | Payload]
//! client cell       [Conn# 4 | Len 2 | Payload | zeros] XOR pads; pads alone when idle
//! ```
//!
//! It has no authentication, no protection against jamming, and its pads are one running stream
//! per pair: one lost cell ends the session. The modern wire exists for that.

use aes::cipher::{KeyIvInit, StreamCipher};
use aws_lc_rs::digest;
use curve25519_dalek::{RistrettoPoint, Scalar};

use crate::dcnet::{error::DcnetError, proof};

/// Bytes before a downstream payload.
pub const DOWN_HEADER: usize = 8;
/// Bytes before a cell's payload.
pub const CELL_HEADER: usize = 6;
/// The bit of a trustee's hello.
pub const TRUSTEE: u8 = 0x80;
/// Rounds a client may have in flight.
pub const CLIENT_WINDOW: usize = 2;
/// Rounds a trustee may have in flight.
pub const TRUSTEE_WINDOW: usize = 10;

/// Who opened a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hello {
    /// A client, by its place in `system.json`.
    Client(u8),
    /// A trustee, by its place.
    Trustee(u8),
}

impl Hello {
    /// From the one byte.
    pub fn parse(byte: u8) -> Self {
        if byte & TRUSTEE != 0 { Self::Trustee(byte & !TRUSTEE) } else { Self::Client(byte) }
    }

    /// The one byte.
    pub fn byte(self) -> u8 {
        match self {
            Self::Client(id) => id,
            Self::Trustee(id) => id | TRUSTEE,
        }
    }
}

/// The head of a message from relay to client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DownHeader {
    /// The connection, 0 for none.
    pub conn: u32,
    /// Bytes that follow.
    pub len: u16,
    /// Whose turn it is.
    pub next_slot: u16,
}

impl DownHeader {
    /// From its 8 bytes.
    pub fn parse(bytes: &[u8; DOWN_HEADER]) -> Self {
        Self {
            conn: u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            len: u16::from_be_bytes([bytes[4], bytes[5]]),
            next_slot: u16::from_be_bytes([bytes[6], bytes[7]]),
        }
    }

    /// The whole message with its payload.
    pub fn emit(conn: u32, next_slot: u16, payload: &[u8]) -> Vec<u8> {
        let len = u16::try_from(payload.len()).unwrap_or(u16::MAX);
        let mut out = Vec::with_capacity(DOWN_HEADER + payload.len());
        out.extend_from_slice(&conn.to_be_bytes());
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(&next_slot.to_be_bytes());
        out.extend_from_slice(&payload[..usize::from(len)]);
        out
    }
}

/// What a decoded cell says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CellContent<'a> {
    /// All zeros: nobody spoke.
    Empty,
    /// Bytes of a connection.
    Data(u32, &'a [u8]),
    /// The connection's end.
    Close(u32),
}

/// Writes `[conn | len | payload]` over pads.
pub fn speak(cell: &mut [u8], conn: u32, payload: &[u8]) {
    let len = u16::try_from(payload.len()).unwrap_or(u16::MAX);
    let header: Vec<u8> = [conn.to_be_bytes().as_slice(), &len.to_be_bytes()].concat();
    for (byte, plain) in cell.iter_mut().zip(header.iter().chain(payload)) {
        *byte ^= plain;
    }
}

/// Reads a cell from which all pads have cancelled.
///
/// # Errors
/// When it is not empty and has no cell's form: somebody jammed it.
pub fn read_cell(cell: &[u8]) -> Result<CellContent<'_>, DcnetError> {
    let Some((header, rest)) = cell.split_at_checked(CELL_HEADER) else {
        return Err(DcnetError::malformed("cell", "6 bytes at least", cell.len().to_string()));
    };
    let conn = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
    let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    if conn == 0 && len == 0 && rest.iter().all(|byte| *byte == 0) {
        return Ok(CellContent::Empty);
    }
    if conn == 0 || len > rest.len() || rest[len..].iter().any(|byte| *byte != 0) {
        return Err(DcnetError::malformed(
            "cell",
            format!("a connection, at most {} bytes and zeros behind", rest.len()),
            format!("connection {conn}, {len} bytes"),
        ));
    }
    Ok(if len == 0 { CellContent::Close(conn) } else { CellContent::Data(conn, &rest[..len]) })
}

/// The running pad of one pair: AES-128-CTR from counter 1.
pub struct Pad(ctr::Ctr128BE<aes::Aes128>);

impl Pad {
    /// Of the pair whose secrets are `own` and that of `other`.
    pub fn new(own: &Scalar, other: &RistrettoPoint) -> Self {
        let shared = proof::bytes(&(own * other));
        let digest = digest::digest(&digest::SHA256, &shared);
        let mut key = [0; 16];
        key.copy_from_slice(&digest.as_ref()[..16]);
        let mut counter = [0; 16];
        counter[15] = 1;
        Self(ctr::Ctr128BE::new(&key.into(), &counter.into()))
    }

    /// XORs the next bytes of the pad.
    pub fn apply(&mut self, cell: &mut [u8]) {
        self.0.apply_keystream(cell);
    }
}

/// The Conn# space of a slot: `slot * (65536 / slots) + k`, k from 1.
pub fn conn_number(slot: usize, slots: usize, k: u32) -> u32 {
    let space = 65536 / u32::try_from(slots.max(1)).unwrap_or(u32::MAX).max(1);
    let slot = u32::try_from(slot).unwrap_or(0);
    slot * space + 1 + (k % space.saturating_sub(1).max(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::dcnet::hash;

    #[test]
    fn hello_is_one_byte() {
        assert_eq!(Hello::Trustee(2).byte(), 0x82);
        assert_eq!(Hello::Client(5).byte(), 5);
        for byte in 0..=255 {
            assert_eq!(Hello::parse(byte).byte(), byte);
        }
    }

    #[test]
    fn downstream_vector() {
        let bytes = DownHeader::emit(0x0102_0304, 7, b"hi");
        assert_eq!(hex::encode(&bytes), "01020304000200076869");
        let header = DownHeader::parse(bytes[..8].try_into().unwrap());
        assert_eq!(header, DownHeader { conn: 0x0102_0304, len: 2, next_slot: 7 });
    }

    #[test]
    fn pads_cancel_and_only_together() {
        let mut rng = StdRng::seed_from_u64(1);
        let clients: Vec<Scalar> = (0..4).map(|_| hash::random_scalar(&mut rng)).collect();
        let trustees: Vec<Scalar> = (0..3).map(|_| hash::random_scalar(&mut rng)).collect();
        let public = RistrettoPoint::mul_base;
        let mut all: Vec<Vec<Pad>> = clients
            .iter()
            .map(|own| trustees.iter().map(|other| Pad::new(own, &public(other))).collect())
            .chain(
                trustees
                    .iter()
                    .map(|own| clients.iter().map(|other| Pad::new(own, &public(other))).collect()),
            )
            .collect();
        for round in 0..5 {
            let mut sum = vec![0; 256];
            let mut partial = vec![0; 256];
            for (party, pads) in all.iter_mut().enumerate() {
                let mut cell = vec![0; 256];
                for pad in pads {
                    pad.apply(&mut cell);
                }
                if party == 2 {
                    speak(&mut cell, 9, b"anonymous");
                }
                for (total, byte) in sum.iter_mut().zip(&cell) {
                    *total ^= byte;
                }
                if party != 0 {
                    for (total, byte) in partial.iter_mut().zip(&cell) {
                        *total ^= byte;
                    }
                }
            }
            assert_eq!(read_cell(&sum).unwrap(), CellContent::Data(9, b"anonymous"), "{round}");
            assert!(read_cell(&partial).is_err());
        }
    }

    #[test]
    fn conn_spaces_do_not_meet() {
        assert_eq!(conn_number(0, 10, 0), 1);
        assert_eq!(conn_number(1, 10, 0), 6553 + 1);
        assert!(conn_number(0, 10, 6551) < conn_number(1, 10, 0));
        assert_eq!(conn_number(0, 10, 6552), 1);
    }

    proptest! {
        #[test]
        fn any_cell_is_read_or_refused(cell in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read_cell(&cell);
        }

        #[test]
        fn spoken_is_read(conn in 1_u32.., payload in proptest::collection::vec(any::<u8>(), 1..250)) {
            let mut cell = vec![0; 256];
            speak(&mut cell, conn, &payload);
            prop_assert_eq!(read_cell(&cell).unwrap(), CellContent::Data(conn, &payload));
        }
    }
}
