//! The Internet checksum (RFC 1071) of transport headers.
//!
//! In: bytes. Out: sums. Called by: capture's segmentation and coalescing, the rig's packets.

#![cfg_attr(
    target_arch = "x86_64",
    expect(
        unsafe_code,
        reason = "a function compiled for AVX2 is called where the processor has it"
    )
)]

/// An unfolded one's complement sum, over bytes in network order.
#[derive(Clone, Copy, Default, Debug)]
pub struct Sum(u64);

impl Sum {
    /// Adds bytes that start at an even position.
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2, as was just asked.
            return Self(self.0 + u64::from(fold(unsafe { words_avx2(bytes) })));
        }
        Self(self.0 + u64::from(fold(words(bytes))))
    }

    /// Adds a 16-bit number.
    #[must_use]
    pub fn word(self, word: u16) -> Self {
        Self(self.0 + u64::from(u16::from_ne_bytes(word.to_be_bytes())))
    }

    /// Adds the pseudo header of a transport protocol: addresses, protocol, length.
    #[must_use]
    pub fn pseudo(self, addresses: &[u8], protocol: u8, len: usize) -> Self {
        self.bytes(addresses).word(u16::from(protocol)).bytes(&(len as u32).to_be_bytes())
    }

    /// The sum in 16 bits, as it stands in a header that asks for the rest to be added.
    #[must_use]
    pub fn partial(self) -> u16 {
        u16::from_be_bytes((fold(self.0)).to_ne_bytes())
    }

    /// The checksum.
    #[must_use]
    pub fn finish(self) -> u16 {
        !self.partial()
    }
}

/// Native-endian words: a one's complement sum may be taken in either byte order as long as the
/// result is swapped once, and this form is what the compiler vectorises.
#[inline(always)]
fn words(bytes: &[u8]) -> u64 {
    let mut sum = 0u64;
    let words = bytes.chunks_exact(4);
    let rest = words.remainder();
    for word in words {
        sum = sum.wrapping_add(u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]])));
    }
    let mut last = [0u8; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_ne_bytes(last))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn words_avx2(bytes: &[u8]) -> u64 {
    words(bytes)
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slow(bytes: &[u8]) -> u16 {
        let mut sum = 0u64;
        for pair in bytes.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
        fold(sum)
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().bytes(&bytes).partial(), 0xddf2);
    }

    proptest! {
        #[test]
        fn fast_and_slow_agree(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(Sum::default().bytes(&bytes).partial(), slow(&bytes));
        }

        #[test]
        fn pieces_and_whole_agree(left in proptest::collection::vec(any::<[u8; 2]>(), 0..50), right in proptest::collection::vec(any::<u8>(), 0..99)) {
            let left: Vec<u8> = left.concat();
            let whole = [left.clone(), right.clone()].concat();
            prop_assert_eq!(
                Sum::default().bytes(&left).bytes(&right).partial(),
                Sum::default().bytes(&whole).partial()
            );
        }
    }
}
