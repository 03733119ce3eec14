//! Eight committed identities for unit tests, because drawing RSA keys is slow.
//!
//! In: an index. Out: a shared identity, never used outside tests. Called by: unit tests.

use std::sync::OnceLock;

use super::Identity;

const FILES: [&[u8]; 8] = [
    include_bytes!("../../tests/keys/test-only-0.pk8"),
    include_bytes!("../../tests/keys/test-only-1.pk8"),
    include_bytes!("../../tests/keys/test-only-2.pk8"),
    include_bytes!("../../tests/keys/test-only-3.pk8"),
    include_bytes!("../../tests/keys/test-only-4.pk8"),
    include_bytes!("../../tests/keys/test-only-5.pk8"),
    include_bytes!("../../tests/keys/test-only-6.pk8"),
    include_bytes!("../../tests/keys/test-only-7.pk8"),
];

/// The PKCS#8 DER of a test identity, 0 to 7.
pub(crate) fn pkcs8(index: usize) -> &'static [u8] {
    FILES[index]
}

/// A test identity, 0 to 7.
pub(crate) fn identity(index: usize) -> &'static Identity {
    static PARSED: [OnceLock<Identity>; FILES.len()] = [const { OnceLock::new() }; FILES.len()];
    PARSED[index].get_or_init(|| Identity::from_pkcs8(FILES[index]).unwrap())
}
