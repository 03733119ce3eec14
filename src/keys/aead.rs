//! One AEAD key whose nonces are counters.
//!
//! In: key bytes, a sequence number, a buffer. Out: the buffer sealed or opened, a tag.
//! Called by: the layers and the handshake of this folder.

use aws_lc_rs::aead::{AES_128_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use crate::model::{Suite, TAG_LEN};

/// A tag does not verify: the bytes were changed, or belong to another key or counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected a valid tag, got one that does not verify")]
pub struct BadTag;

/// An expanded AEAD key; the nonce is `salt` xor the sequence number in its last four bytes.
pub(super) struct CounterAead {
    key: LessSafeKey,
    salt: [u8; 12],
}

impl CounterAead {
    /// Expands `key`; AES-128 takes its first 16 bytes.
    pub(super) fn new(suite: Suite, key: &[u8; 32], salt: [u8; 12]) -> Self {
        let (algorithm, length) = match suite {
            Suite::Aes128Gcm => (&AES_128_GCM, 16),
            Suite::ChaCha20Poly1305 => (&CHACHA20_POLY1305, 32),
        };
        let Ok(key) = UnboundKey::new(algorithm, &key[..length]) else {
            unreachable!("the key has the length of its algorithm")
        };
        Self { key: LessSafeKey::new(key), salt }
    }

    /// Seals `bytes` in place.
    pub(super) fn seal(&self, seq: u32, aad: &[u8], bytes: &mut [u8]) -> [u8; TAG_LEN] {
        let Ok(tag) = self.key.seal_in_place_separate_tag(self.nonce(seq), Aad::from(aad), bytes)
        else {
            unreachable!("a cell is far below the AEAD's limit")
        };
        let mut out = [0u8; TAG_LEN];
        out.copy_from_slice(tag.as_ref());
        out
    }

    /// Opens `bytes` in place; on an error their content is undefined.
    pub(super) fn open(
        &self,
        seq: u32,
        aad: &[u8],
        tag: &[u8; TAG_LEN],
        bytes: &mut [u8],
    ) -> Result<(), BadTag> {
        self.key
            .open_in_place_separate_tag(self.nonce(seq), Aad::from(aad), tag, bytes)
            .map(|_| ())
            .map_err(|_| BadTag)
    }

    /// Opens `sealed` into `out` of the same length.
    pub(super) fn open_into(
        &self,
        seq: u32,
        aad: &[u8],
        tag: &[u8; TAG_LEN],
        sealed: &[u8],
        out: &mut [u8],
    ) -> Result<(), BadTag> {
        self.key
            .open_separate_gather(self.nonce(seq), Aad::from(aad), sealed, tag, out)
            .map_err(|_| BadTag)
    }

    fn nonce(&self, seq: u32) -> Nonce {
        Nonce::assume_unique_for_key(counter_nonce(&self.salt, seq))
    }
}

/// The 96-bit nonce of a counter.
pub(super) fn counter_nonce(salt: &[u8; 12], seq: u32) -> [u8; 12] {
    let mut nonce = *salt;
    for (byte, value) in nonce[8..].iter_mut().zip(seq.to_be_bytes()) {
        *byte ^= value;
    }
    nonce
}
