//! The stream cipher of the backward layers, and single ChaCha20 blocks.
//!
//! In: key bytes, a nonce, a buffer. Out: the buffer, xored with the keystream.
//! Called by: the layers of this folder.

use aws_lc_rs::{
    cipher::{AES_128, EncryptingKey, EncryptionContext, UnboundCipherKey},
    iv::FixedLength,
};
use chacha20::{
    ChaCha20,
    cipher::{KeyIvInit, StreamCipher, StreamCipherSeek},
};
use zeroize::Zeroizing;

use crate::model::Suite;

/// An expanded stream key; the counter block is a 96-bit nonce and a 32-bit block number from 0.
pub(super) enum StreamKey {
    Aes(AesCtr),
    ChaCha(Box<Zeroizing<[u8; 32]>>),
}

impl StreamKey {
    /// Expands `key`; AES-128 takes its first 16 bytes.
    pub(super) fn new(suite: Suite, key: &[u8; 32]) -> Self {
        match suite {
            Suite::Aes128Gcm => {
                let (key, _) = key.split_at(16);
                Self::Aes(AesCtr::new(key))
            }
            Suite::ChaCha20Poly1305 => Self::ChaCha(Box::new(Zeroizing::new(*key))),
        }
    }

    /// Adds the keystream of `nonce` to `bytes`; doing it twice undoes it.
    pub(super) fn apply(&self, nonce: &[u8; 12], bytes: &mut [u8]) {
        match self {
            Self::Aes(key) => {
                let mut block = [0u8; 16];
                block[..12].copy_from_slice(nonce);
                key.apply(block, bytes);
            }
            Self::ChaCha(key) => chacha(key, nonce).apply_keystream(bytes),
        }
    }
}

/// An expanded AES-128 key in counter mode.
pub(super) struct AesCtr(Box<EncryptingKey>);

impl AesCtr {
    /// Expands a key of 16 bytes.
    pub(super) fn new(key: &[u8]) -> Self {
        let key = UnboundCipherKey::new(&AES_128, key).and_then(EncryptingKey::ctr);
        let Ok(key) = key else { unreachable!("an AES-128 key has 16 bytes") };
        Self(Box::new(key))
    }

    /// Adds the keystream from this counter block on to `bytes`.
    pub(super) fn apply(&self, block: [u8; 16], bytes: &mut [u8]) {
        let context = EncryptionContext::Iv128(FixedLength::from(block));
        let done = self.0.less_safe_encrypt(bytes, context);
        assert!(done.is_ok(), "AES-CTR takes any length");
    }
}

/// One 64-byte block of the ChaCha20 keystream (RFC 8439).
pub(super) fn chacha_block(key: &[u8; 32], nonce: &[u8; 12], number: u32) -> [u8; 64] {
    let mut cipher = chacha(key, nonce);
    cipher.seek(u64::from(number) * 64);
    let mut block = [0u8; 64];
    cipher.apply_keystream(&mut block);
    block
}

fn chacha(key: &[u8; 32], nonce: &[u8; 12]) -> ChaCha20 {
    ChaCha20::new(key.into(), nonce.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NIST SP 800-38A, F.5.1, with its initial counter block: 96 bits and a 32-bit number apart.
    #[test]
    fn aes_ctr_is_the_standard_mode() {
        use aes::{
            Aes128Enc,
            cipher::{BlockCipherEncrypt, KeyInit},
        };
        let key = [0x42u8; 32];
        let stream = StreamKey::new(Suite::Aes128Gcm, &key);
        let mut bytes = [0u8; 40];
        stream.apply(&[7; 12], &mut bytes);
        let aes = Aes128Enc::new_from_slice(&key[..16]).unwrap();
        let mut expected = Vec::new();
        for number in 0u32..3 {
            let mut block = [7u8; 16];
            block[12..].copy_from_slice(&number.to_be_bytes());
            aes.encrypt_block((&mut block).into());
            expected.extend_from_slice(&block);
        }
        assert_eq!(bytes[..], expected[..40]);
    }

    /// RFC 8439, 2.3.2.
    #[test]
    fn chacha_block_is_the_standard_one() {
        let key: [u8; 32] = core::array::from_fn(|index| index as u8);
        let nonce = [0, 0, 0, 9, 0, 0, 0, 0x4a, 0, 0, 0, 0];
        assert_eq!(
            hex::encode(&chacha_block(&key, &nonce, 1)[..16]),
            "10f1e7e4d13b5915500fdd1fa32071c4"
        );
    }
}
