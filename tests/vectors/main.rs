//! Known answers for every message of the wire, from two implementations: the program, and one
//! written out from the specification with other libraries (`spec.rs`). Both must give what the
//! committed files hold, so that somebody else's node can be checked against the same files.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod cells;
mod codes;
mod handshake;
mod messages;
mod record;
mod spec;

/// Draws the same byte for ever, so that what is random on the wire is known in a vector.
struct Fill(u8);

impl rand::TryRng for Fill {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        Ok(u32::from_ne_bytes([self.0; 4]))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        Ok(u64::from_ne_bytes([self.0; 8]))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        bytes.fill(self.0);
        Ok(())
    }
}

/// The PKCS#8 DER of a committed test identity.
fn identity_file(index: usize) -> Vec<u8> {
    let root = env!("CARGO_MANIFEST_DIR");
    std::fs::read(format!("{root}/tests/keys/test-only-{index}.pk8")).unwrap()
}
