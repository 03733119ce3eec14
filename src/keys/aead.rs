//! One AEAD key whose nonces are counters.
//!
//! In: key bytes, a sequence number, a buffer. Out: the buffer sealed or opened, a tag.
//! Called by: the layers and the handshake of this folder.
//!
//! Two libraries, each where it is the faster: ring seals and opens, aws-lc-rs makes tags of bytes
//! that are not encrypted (docs/decisions/0021-ring-seals-cells.md).

use std::hint::black_box;

use aws_lc_rs::aead as aws;
use ring::aead::{AES_128_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, Tag, UnboundKey};

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

    /// Adds the keystream that [`Self::seal`] encrypts with; doing it twice undoes it.
    pub(super) fn apply_keystream(&self, seq: u32, bytes: &mut [u8]) {
        self.seal(seq, &[], bytes);
    }

    /// Opens `bytes` in place; on an error their content is undefined.
    pub(super) fn open(
        &self,
        seq: u32,
        aad: &[u8],
        tag: &[u8; TAG_LEN],
        bytes: &mut [u8],
    ) -> Result<(), BadTag> {
        let (nonce, tag) = (self.nonce(seq), Tag::from(*tag));
        self.key
            .open_in_place_separate_tag(nonce, Aad::from(aad), tag, bytes, 0..)
            .map(|_| ())
            .map_err(|_| BadTag)
    }

    fn nonce(&self, seq: u32) -> Nonce {
        Nonce::assume_unique_for_key(counter_nonce(&self.salt, seq))
    }
}

impl Drop for CounterAead {
    /// The key lies in this value and its library leaves it there, so another is written over it.
    fn drop(&mut self) {
        let algorithm = self.key.algorithm();
        if let Ok(none) = UnboundKey::new(algorithm, &[0; 32][..algorithm.key_len()]) {
            self.key = LessSafeKey::new(none);
        }
        black_box(&self.key);
    }
}

/// A key for tags alone, of bytes that stay readable; the nonce is the sequence number.
pub(super) struct CounterTag(aws::LessSafeKey);

impl CounterTag {
    /// Expands `key`; AES-128 takes its first 16 bytes.
    pub(super) fn new(suite: Suite, key: &[u8; 32]) -> Self {
        let (algorithm, length) = match suite {
            Suite::Aes128Gcm => (&aws::AES_128_GCM, 16),
            Suite::ChaCha20Poly1305 => (&aws::CHACHA20_POLY1305, 32),
        };
        let Ok(key) = aws::UnboundKey::new(algorithm, &key[..length]) else {
            unreachable!("the key has the length of its algorithm")
        };
        Self(aws::LessSafeKey::new(key))
    }

    /// The tag of `bytes`.
    pub(super) fn tag(&self, seq: u32, bytes: &[u8]) -> [u8; TAG_LEN] {
        let nonce = aws::Nonce::assume_unique_for_key(counter_nonce(&[0; 12], seq));
        let Ok(tag) = self.0.seal_in_place_separate_tag(nonce, aws::Aad::from(bytes), &mut [])
        else {
            unreachable!("a cell is far below the AEAD's limit")
        };
        let mut out = [0u8; TAG_LEN];
        out.copy_from_slice(tag.as_ref());
        out
    }

    /// Whether `tag` is the tag of `bytes`.
    pub(super) fn verify(&self, seq: u32, bytes: &[u8], tag: &[u8; TAG_LEN]) -> Result<(), BadTag> {
        let nonce = aws::Nonce::assume_unique_for_key(counter_nonce(&[0; 12], seq));
        self.0
            .open_in_place_separate_tag(nonce, aws::Aad::from(bytes), tag, &mut [])
            .map(|_| ())
            .map_err(|_| BadTag)
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
