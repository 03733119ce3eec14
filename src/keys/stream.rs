//! The stream cipher of the backward layers, and AES blocks computed ahead.
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
use zeroize::Zeroize;

use super::aead::{CounterAead, counter_nonce};
use crate::model::{Suite, prefetch, prefetch_start};

/// An expanded stream key; the nonce is `salt` xor the sequence number in its last four bytes.
pub(super) enum StreamKey {
    /// Blocks count from 0.
    Aes { key: AesCtr, salt: [u8; 12] },
    /// Blocks count from 1: the stream is what the AEAD encrypts with, and its tag is left out. No
    /// library here has ChaCha20 alone as quick as that (docs/decisions/0024-chacha-streams.md).
    ChaCha(Box<CounterAead>),
}

impl StreamKey {
    /// Expands `key`; AES-128 takes its first 16 bytes.
    pub(super) fn new(suite: Suite, key: &[u8; 32], salt: [u8; 12]) -> Self {
        match suite {
            Suite::Aes128Gcm => {
                let (key, _) = key.split_at(16);
                Self::Aes { key: AesCtr::new(key), salt }
            }
            Suite::ChaCha20Poly1305 => Self::ChaCha(Box::new(CounterAead::new(suite, key, salt))),
        }
    }

    /// Adds the keystream of `seq` to `bytes`; doing it twice undoes it.
    pub(super) fn apply(&self, seq: u32, bytes: &mut [u8]) {
        match self {
            Self::Aes { key, salt } => {
                let mut block = [0u8; 16];
                block[..12].copy_from_slice(&counter_nonce(salt, seq));
                key.apply(block, bytes);
            }
            Self::ChaCha(key) => key.apply_keystream(seq, bytes),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// NIST SP 800-38A, F.5.1, with its initial counter block: 96 bits and a 32-bit number apart.
    #[test]
    fn aes_ctr_is_the_standard_mode() {
        let key = [0x42u8; 32];
        let stream = StreamKey::new(Suite::Aes128Gcm, &key, [7; 12]);
        let mut bytes = [0u8; 40];
        stream.apply(0, &mut bytes);
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

    /// RFC 8439, 2.4.2: the keystream from block 1 on.
    #[test]
    fn chacha_streams_are_the_standard_cipher_from_block_1() {
        let key: [u8; 32] = core::array::from_fn(|index| index as u8);
        let salt = [0, 0, 0, 0, 0, 0, 0, 0x4a, 0, 0, 0, 0];
        let stream = StreamKey::new(Suite::ChaCha20Poly1305, &key, salt);
        let mut bytes = [0u8; 114];
        stream.apply(0, &mut bytes);
        assert_eq!(
            hex::encode(bytes),
            "224f51f3401bd9e12fde276fb8631ded8c131f823d2c06e27e4fcaec9ef3cf788a3b0aa372600a92b57974cd\
             ed2b9334794cba40c63e34cdea212c4cf07d41b769a6749f3f630f4122cafe28ec4dc47e26d4346d70b98c73\
             f3e9c53ac40c5945398b6eda1a832c89c167eacd901d7e2bf363"
        );
        stream.apply(0, &mut bytes);
        assert_eq!(bytes, [0; 114]);
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
}
