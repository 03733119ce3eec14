//! What can go wrong with keys, said as expected, got and the way out.
//!
//! In: nothing. Out: one error type. Called by: every file of keys, and those who use them.

use std::{io::ErrorKind, path::PathBuf};

/// A key that cannot be used, or an operation that a key refuses.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not a public key of the one accepted form.
    #[error(
        "expected a public key as SPKI DER: RSA of 3072 bits with e = 65537 (422 bytes), got {got}"
    )]
    PublicKey {
        /// What was found instead.
        got: String,
    },
    /// Not a private key of the one accepted form.
    #[error("expected a private key as PKCS#8 DER: RSA of 3072 bits with e = 65537, got {got}")]
    PrivateKey {
        /// What was found instead.
        got: String,
    },
    /// The cryptographic library refused to make a key.
    #[error("expected to generate a key, got a failure of the cryptographic library")]
    Generate,
    /// The cryptographic library refused to sign.
    #[error("expected to sign, got a failure of the cryptographic library")]
    Sign,
    /// A signature that does not verify.
    #[error("expected a valid signature of {signer}, got one that does not verify")]
    Signature {
        /// Whose signature was expected: the short node id.
        signer: String,
    },
    /// The plaintext does not fit, or the library refused.
    #[error("expected at most 318 bytes to encrypt, got {got}")]
    Encrypt {
        /// The length of the plaintext.
        got: usize,
    },
    /// Nothing that was encrypted for this key under this label.
    #[error("expected a ciphertext for this key and label, got one that does not open")]
    Decrypt,
    /// The other side's X25519 key yields no secret.
    #[error("expected an X25519 public key, got one of low order: the peer must draw another")]
    Agreement,
    /// A key file that others can read.
    #[error(
        "expected {path} to have mode {wanted:04o}, got {mode:04o}: others can read it; \
         run: chmod {wanted:o} {path}"
    )]
    Permissions {
        /// The file or directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The widest mode that is accepted.
        wanted: u32,
    },
    /// A key file of another shape than this program writes.
    #[error(
        "expected {path} to hold {expected}, got {got}: it is damaged and was left as it is; \
         restore it from a backup, or move it away to start with a new key"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// What was found instead.
        got: String,
    },
    /// The file system refused.
    #[error("expected to {action} {path}, got: {cause}{}", way_out(cause))]
    File {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it failed.
        cause: std::io::Error,
    },
}

impl KeyError {
    /// Whether another user could have done it.
    pub fn is_missing_privilege(&self) -> bool {
        matches!(self, Self::File { cause, .. } if cause.kind() == ErrorKind::PermissionDenied)
    }
}

fn way_out(cause: &std::io::Error) -> &'static str {
    match cause.kind() {
        ErrorKind::PermissionDenied => {
            "; run as root or as the user the daemon runs as, or name another directory with --state"
        }
        _ => "",
    }
}
