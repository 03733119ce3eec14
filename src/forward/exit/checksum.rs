//! The Internet checksum (RFC 1071) and its change when parts of what it covers change (RFC 1624).
//!
//! In: 16-bit words. Out: checksums. Called by: the exit's rewriting and its ICMP messages.

/// A ones' complement sum, or the difference between two.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::forward) struct Sum(u16);

impl Sum {
    /// The sum of bytes as big-endian words, an odd last byte padded with zero.
    pub(in crate::forward) fn of(bytes: &[u8]) -> Self {
        let words = bytes
            .chunks(2)
            .map(|word| u64::from(word[0]) << 8 | u64::from(*word.get(1).unwrap_or(&0)));
        Self(fold(words.sum()))
    }

    /// The sum of one number.
    pub(in crate::forward) fn of_number(number: u32) -> Self {
        Self(fold(u64::from(number)))
    }

    pub(in crate::forward) fn plus(self, other: Self) -> Self {
        Self(fold(u64::from(self.0) + u64::from(other.0)))
    }

    pub(in crate::forward) fn minus(self, other: Self) -> Self {
        self.plus(Self(!other.0))
    }

    /// The checksum over data of this sum.
    pub(in crate::forward) fn checksum(self) -> u16 {
        !self.0
    }

    /// What `checksum` becomes when the sum of the data it covers changes by this.
    pub(in crate::forward) fn apply(self, checksum: u16) -> u16 {
        Self(!checksum).plus(self).checksum()
    }
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_change_gives_the_checksum_of_the_changed(
            mut data in prop::collection::vec(any::<u8>(), 8..100),
            new: [u8; 4],
            at in 0..2usize,
        ) {
            data[0] |= 1;
            let before = Sum::of(&data).checksum();
            let at = at * 2 + 2;
            let change = Sum::of(&new).minus(Sum::of(&data[at..at + 4]));
            data[at..at + 4].copy_from_slice(&new);
            prop_assert_eq!(change.apply(before), Sum::of(&data).checksum());
        }
    }

    #[test]
    fn the_example_of_rfc_1071() {
        assert_eq!(Sum::of(&[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7]), Sum(0xddf2));
        assert_eq!(Sum::of(&[1]), Sum(0x100));
    }
}
