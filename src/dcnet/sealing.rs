//! What is sealed: a slot under its round's key, a downstream frame for its pseudonym.
//!
//! In: a key scalar or a shared point, bytes. Out: AES-256-GCM ciphertext, or nothing when it was
//! touched. Called by: client and relay.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use curve25519_dalek::{RistrettoPoint, Scalar};

use crate::dcnet::{hash, pads};

/// Bytes a seal adds.
pub const TAG: usize = 16;

fn key(bytes: &[u8; 32]) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, bytes).ok().map(LessSafeKey::new)
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn slot_key(k: &Scalar) -> Option<LessSafeKey> {
    // Each k seals one cell, so the nonce may be constant.
    key(&hash::hash("slot key", &[k.as_bytes()]))
}

/// Seals a cell's plaintext, `TAG` bytes shorter than the cell, under the fresh key `k`.
pub fn seal_slot(k: &Scalar, mut plain: Vec<u8>) -> Vec<u8> {
    if let Some(key) = slot_key(k) {
        let _ = key.seal_in_place_append_tag(nonce(0), Aad::empty(), &mut plain);
    }
    plain
}

/// Opens a cell under the key its round gave.
pub fn open_slot(k: &Scalar, cell: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = cell.to_vec();
    let len = slot_key(k)?.open_in_place(nonce(0), Aad::empty(), &mut bytes).ok()?.len();
    bytes.truncate(len);
    Some(bytes)
}

/// The downstream seal of one pseudonym for one interval.
pub struct DownSeal {
    key: Option<LessSafeKey>,
    counter: u64,
}

impl DownSeal {
    /// From the point the relay's ephemeral key and the pseudonym key share.
    pub fn new(shared: &RistrettoPoint, interval: &[u8; 32]) -> Self {
        Self { key: key(&pads::derive(shared, interval, "downstream")), counter: 0 }
    }

    /// Seals the next frame.
    pub fn seal(&mut self, plain: &mut Vec<u8>) {
        if let Some(key) = &self.key {
            let _ = key.seal_in_place_append_tag(nonce(self.counter), Aad::empty(), plain);
        }
        self.counter += 1;
    }

    /// Opens the next frame.
    pub fn open(&mut self, sealed: &[u8]) -> Option<Vec<u8>> {
        let mut bytes = sealed.to_vec();
        let key = self.key.as_ref()?;
        let len = key.open_in_place(nonce(self.counter), Aad::empty(), &mut bytes).ok()?.len();
        bytes.truncate(len);
        self.counter += 1;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_of_key_or_cell_closes_it() {
        let k = Scalar::from(77_u8);
        let cell = seal_slot(&k, b"secret".to_vec());
        assert_eq!(cell.len(), 6 + TAG);
        assert_eq!(open_slot(&k, &cell).unwrap(), b"secret");
        assert!(open_slot(&(k + Scalar::ONE), &cell).is_none());
        let mut bent = cell;
        bent[3] ^= 1;
        assert!(open_slot(&k, &bent).is_none());
    }

    #[test]
    fn downstream_frames_open_in_their_order_only() {
        let shared = RistrettoPoint::mul_base(&Scalar::from(5_u8));
        let (mut relay, mut client) =
            (DownSeal::new(&shared, &[0; 32]), DownSeal::new(&shared, &[0; 32]));
        let (mut first, mut second) = (b"1".to_vec(), b"2".to_vec());
        relay.seal(&mut first);
        relay.seal(&mut second);
        assert!(client.open(&second).is_none());
        assert_eq!(client.open(&first).unwrap(), b"1");
        assert_eq!(client.open(&second).unwrap(), b"2");
    }
}
