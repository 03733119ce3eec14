//! Which chunks are there.
//!
//! In: chunk numbers, bytes. Out: a set of chunks. Called by: peer (transfer, store, message).

/// A set of chunk numbers below a limit, one bit each, the lowest bit of a byte first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Bitmap {
    bytes: Vec<u8>,
    limit: u32,
    count: u32,
}

/// Bytes that are no bitmap of so many chunks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected a bitmap of {expected} bytes without bits past the end, got {got} bytes")]
pub struct BadBitmap {
    expected: usize,
    got: usize,
}

impl Bitmap {
    /// The empty set of chunks below `limit`.
    pub fn new(limit: u32) -> Self {
        Self { bytes: vec![0; Self::encoded_len(limit)], limit, count: 0 }
    }

    /// All chunks below `limit`.
    pub fn full(limit: u32) -> Self {
        let mut all = Self { bytes: vec![0xff; Self::encoded_len(limit)], limit, count: limit };
        if let (Some(last), 1..) = (all.bytes.last_mut(), limit % 8) {
            *last = (1 << (limit % 8)) - 1;
        }
        all
    }

    /// How many bytes a bitmap of `limit` chunks has.
    pub const fn encoded_len(limit: u32) -> usize {
        limit.div_ceil(8) as usize
    }

    /// Takes a bitmap from outside.
    ///
    /// # Errors
    /// If it has another length, or bits past the end.
    pub fn parse(bytes: &[u8], limit: u32) -> Result<Self, BadBitmap> {
        let bad = BadBitmap { expected: Self::encoded_len(limit), got: bytes.len() };
        if bytes.len() != bad.expected {
            return Err(bad);
        }
        let past_the_end = match limit % 8 {
            0 => 0,
            used => bytes.last().map_or(0, |last| last >> used),
        };
        if past_the_end != 0 {
            return Err(bad);
        }
        let count = bytes.iter().map(|byte| byte.count_ones()).sum();
        Ok(Self { bytes: bytes.to_vec(), limit, count })
    }

    /// As bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether a chunk is in the set.
    pub fn has(&self, chunk: u32) -> bool {
        self.bytes.get((chunk / 8) as usize).is_some_and(|byte| byte & (1 << (chunk % 8)) != 0)
    }

    /// Adds a chunk; whether it was new and below the limit.
    pub fn insert(&mut self, chunk: u32) -> bool {
        let is_new = chunk < self.limit && !self.has(chunk);
        if is_new {
            self.bytes[(chunk / 8) as usize] |= 1 << (chunk % 8);
            self.count += 1;
        }
        is_new
    }

    /// Takes a chunk out.
    pub fn remove(&mut self, chunk: u32) {
        if self.has(chunk) {
            self.bytes[(chunk / 8) as usize] &= !(1 << (chunk % 8));
            self.count -= 1;
        }
    }

    /// How many chunks are in the set.
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// The number of chunks there can be.
    pub const fn limit(&self) -> u32 {
        self.limit
    }

    /// Whether all chunks are in the set.
    pub const fn is_full(&self) -> bool {
        self.count == self.limit
    }

    /// The chunks of the set, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.limit).filter(|chunk| self.has(*chunk))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_a_set(limit in 0u32..100, steps: Vec<(u32, bool)>) {
            let mut bitmap = Bitmap::new(limit);
            let mut set = BTreeSet::new();
            for (chunk, adds) in steps {
                let chunk = chunk % 110;
                if adds {
                    let is_new = chunk < limit && set.insert(chunk);
                    prop_assert_eq!(bitmap.insert(chunk), is_new);
                } else {
                    set.remove(&chunk);
                    bitmap.remove(chunk);
                }
            }
            prop_assert_eq!(bitmap.count() as usize, set.len());
            prop_assert!(bitmap.iter().eq(set.iter().copied()));
            prop_assert_eq!(Bitmap::parse(bitmap.as_bytes(), limit), Ok(bitmap));
        }

        #[test]
        fn any_bytes(bytes: Vec<u8>, limit in 0u32..200) {
            if let Ok(bitmap) = Bitmap::parse(&bytes, limit) {
                prop_assert_eq!(bitmap.iter().count() as u32, bitmap.count());
            }
        }
    }

    #[test]
    fn full_is_full() {
        for limit in 0..40 {
            let all = Bitmap::full(limit);
            assert!(all.is_full() && all.iter().eq(0..limit));
            assert_eq!(Bitmap::parse(all.as_bytes(), limit), Ok(all));
        }
    }
}
