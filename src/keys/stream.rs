//! The stream cipher of the backward layers, and single ChaCha20 blocks.
//!
//! In: key bytes, a nonce, a buffer. Out: the buffer, xored with the keystream.
//! Called by: the layers of this folder.

use aes::{
    Aes128Enc, Block,
    cipher::{BlockCipherEncrypt, KeyInit},
};
use aws_lc_rs::{
    cipher::{AES_128, EncryptingKey, EncryptionContext, UnboundCipherKey},
    iv::FixedLength,
};
use chacha20::{
    ChaCha20,
    cipher::{KeyIvInit, StreamCipher, StreamCipherSeek},
};
use zeroize::{Zeroize, Zeroizing};

use crate::model::{Suite, prefetch, prefetch_start};

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

/// Counters whose keystream is computed in one go.
const AHEAD: u32 = 8;

/// The first `BLOCKS` keystream blocks of each counter, for counters that mostly follow each other.
///
/// Behind a counter that follows the one before, those of eight are computed together: the processor
/// works on several blocks at once, and a call for one or two of them is mostly set-up. A counter that
/// follows none may be alone, as on a circuit with a cell now and then.
pub(super) struct BlocksAhead<const BLOCKS: usize> {
    key: Aes128Enc,
    /// The counter of the first blocks that are ready.
    first: u32,
    /// Of how many counters they are ready.
    count: u32,
    ready: [[Block; BLOCKS]; AHEAD as usize],
}

impl<const BLOCKS: usize> BlocksAhead<BLOCKS> {
    /// Expands a key of 16 bytes.
    pub(super) fn new(key: &[u8]) -> Self {
        let Ok(key) = Aes128Enc::new_from_slice(key) else {
            unreachable!("an AES-128 key has 16 bytes")
        };
        let ready = [[Block::default(); BLOCKS]; AHEAD as usize];
        Self { key, first: 0, count: 0, ready }
    }

    /// Has what the next call reads fetched.
    pub(super) fn prefetch(&self) {
        prefetch(&self.key);
        prefetch(&self.first);
        prefetch_start(&self.ready);
    }

    /// The blocks of `seq`; `input(seq, number)` is what AES makes the block `number` of.
    pub(super) fn of(
        &mut self,
        seq: u32,
        input: impl Fn(u32, u32) -> [u8; 16],
    ) -> &[Block; BLOCKS] {
        let ahead = seq.wrapping_sub(self.first);
        if ahead < self.count {
            return &self.ready[ahead as usize];
        }
        self.count = if ahead == self.count { AHEAD } else { 1 };
        self.first = seq;
        let fresh = &mut self.ready[..self.count as usize];
        for (next, blocks) in (0u32..).zip(&mut *fresh) {
            for (number, block) in (0u32..).zip(blocks) {
                *block = input(seq.wrapping_add(next), number).into();
            }
        }
        self.key.encrypt_blocks(fresh.as_flattened_mut());
        &self.ready[0]
    }
}

impl<const BLOCKS: usize> Drop for BlocksAhead<BLOCKS> {
    fn drop(&mut self) {
        for block in self.ready.as_flattened_mut() {
            block.as_mut_slice().zeroize();
        }
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

    /// Whatever the order of the counters, each has the blocks that AES makes of its inputs.
    #[test]
    fn blocks_ahead_are_those_of_their_counter() {
        let aes = Aes128Enc::new_from_slice(&[3; 16]).unwrap();
        let input = |seq: u32, number: u32| {
            let mut block = [0u8; 16];
            block[..4].copy_from_slice(&seq.to_be_bytes());
            block[12..].copy_from_slice(&number.to_be_bytes());
            block
        };
        let mut ahead = BlocksAhead::<2>::new(&[3; 16]);
        for seq in [5, 6, 7, 12, 13, 12, 5, 0, u32::MAX, 0, 1, u32::MAX - 3] {
            let mut expected = [input(seq, 0).into(), input(seq, 1).into()];
            aes.encrypt_blocks(&mut expected);
            assert_eq!(*ahead.of(seq, input), expected, "counter {seq}");
        }
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
