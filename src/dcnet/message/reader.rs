//! Reads a message's body from its front.
//!
//! In: bytes. Out: numbers, arrays, scalars, or what is missing. Called by: every parser of the
//! modern wire.

use curve25519_dalek::Scalar;

use crate::dcnet::error::DcnetError;

/// Reads a body from its front.
pub struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Of a body.
    pub fn new(what: &'static str, body: &'a [u8]) -> Self {
        Self { what, rest: body }
    }

    /// The next bytes.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], DcnetError> {
        let (head, tail) = self.rest.split_at_checked(count).ok_or_else(|| {
            DcnetError::malformed(
                self.what,
                format!("{count} more bytes"),
                self.rest.len().to_string(),
            )
        })?;
        self.rest = tail;
        Ok(head)
    }

    /// The next bytes, as an array.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DcnetError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// A byte.
    ///
    /// # Errors
    /// At the end.
    pub fn u8(&mut self) -> Result<u8, DcnetError> {
        Ok(self.array::<1>()?[0])
    }

    /// A number.
    ///
    /// # Errors
    /// At the end.
    pub fn u16(&mut self) -> Result<u16, DcnetError> {
        self.array().map(u16::from_be_bytes)
    }

    /// A number.
    ///
    /// # Errors
    /// At the end.
    pub fn u32(&mut self) -> Result<u32, DcnetError> {
        self.array().map(u32::from_be_bytes)
    }

    /// A number.
    ///
    /// # Errors
    /// At the end.
    pub fn u64(&mut self) -> Result<u64, DcnetError> {
        self.array().map(u64::from_be_bytes)
    }

    /// A canonical scalar.
    ///
    /// # Errors
    /// At the end, or when it is not reduced.
    pub fn scalar(&mut self) -> Result<Scalar, DcnetError> {
        let what = self.what;
        Scalar::from_canonical_bytes(self.array()?)
            .into_option()
            .ok_or_else(|| DcnetError::malformed(what, "a canonical scalar", "a larger number"))
    }

    /// What is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Whether all is read.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Nothing may be left.
    ///
    /// # Errors
    /// When something is.
    pub fn end(self) -> Result<(), DcnetError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(DcnetError::malformed(self.what, "its end", format!("{} more bytes", self.rest.len())))
    }
}
