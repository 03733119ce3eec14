//! The bytes that the rig's tools send, so that both ends can check them and captures can be
//! searched for them.
//!
//! In: positions. Out: bytes. Called by: rig::agent, rig::inspect.

use std::sync::OnceLock;

/// The bytes repeat after so many; a prime, so that they fall differently into every packet.
pub const PERIOD: usize = 8191;
/// The name that the tools ask the rig's DNS server for.
pub const DNS_NAME: &str = "a-name-that-nobody-else-may-read.example";
/// Stands in every HTTP answer.
pub const HTTP_SERVER: &str = "Server: cepa-rig, in the clear behind the exit";

fn block() -> &'static [u8; PERIOD] {
    static BLOCK: OnceLock<[u8; PERIOD]> = OnceLock::new();
    BLOCK.get_or_init(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        std::array::from_fn(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
    })
}

/// Fills a buffer with the bytes from a position on.
pub fn fill(buffer: &mut [u8], position: u64) {
    let mut at = (position % PERIOD as u64) as usize;
    let mut rest = buffer;
    while !rest.is_empty() {
        let len = rest.len().min(PERIOD - at);
        let (head, tail) = rest.split_at_mut(len);
        head.copy_from_slice(&block()[at..at + len]);
        rest = tail;
        at = 0;
    }
}

/// Whether these are the bytes from a position on.
pub fn is_right(bytes: &[u8], position: u64) -> bool {
    let mut at = (position % PERIOD as u64) as usize;
    let mut rest = bytes;
    while !rest.is_empty() {
        let len = rest.len().min(PERIOD - at);
        if rest[..len] != block()[at..at + len] {
            return false;
        }
        rest = &rest[len..];
        at = 0;
    }
    true
}

/// The bytes of one period, and the first of the next, so that every run of `len` is in there.
pub fn runs_of(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; PERIOD + len - 1];
    fill(&mut bytes, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_piece_is_recognised_at_its_position_only() {
        let mut bytes = vec![0; 3 * PERIOD];
        fill(&mut bytes, 0);
        for (start, len) in [(0, 10), (PERIOD - 5, 10), (7, 2 * PERIOD)] {
            assert!(is_right(&bytes[start..start + len], start as u64));
            assert!(!is_right(&bytes[start..start + len], start as u64 + 1));
        }
        let mut piece = [0; 100];
        fill(&mut piece, 5_000_000_000);
        assert!(is_right(&piece, 5_000_000_000));
    }
}
