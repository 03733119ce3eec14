//! What can be wrong with the documents of the directory, said as expected, got and the way out.
//!
//! In: nothing. Out: one error type. Called by: every file of directory, and those who use them.

use std::path::PathBuf;

use jiff::Timestamp;

use crate::{
    keys::KeyError,
    model::{NodeId, ParseNodeIdError},
};

/// A document that is refused.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The text is no such document.
    #[error("expected {expected}, got {got}")]
    Malformed {
        /// What it should be.
        expected: &'static str,
        /// What is wrong with it.
        got: String,
    },
    /// A field of a descriptor that breaks a rule.
    #[error("expected {field} to be {expected}, got {got}")]
    Field {
        /// The field's name in JSON.
        field: &'static str,
        /// The rule.
        expected: String,
        /// What it is.
        got: String,
    },
    /// A signature that does not verify, or a key that is none.
    #[error("the {document} is refused: {cause}")]
    Signature {
        /// What was signed.
        document: &'static str,
        /// What is wrong.
        cause: KeyError,
    },
    /// The directory was signed by a key that the link does not lead to.
    #[error(
        "expected a directory signed by the controller {pinned}, got one signed by {got}: \
         this is another controller, or its key changed too long ago; ask its operator for a new \
         link (cepa controller link)"
    )]
    Signer {
        /// The fingerprint of the link or of the last accepted directory.
        pinned: NodeId,
        /// The fingerprint of the signer.
        got: NodeId,
    },
    /// The directory is older than one that was accepted already.
    #[error(
        "expected directory version {newest} or later, got {got}: the controller or someone on \
         the way shows old state; the cached directory stays in use"
    )]
    RolledBack {
        /// The newest version accepted so far.
        newest: u64,
        /// The version offered.
        got: u64,
    },
    /// The document's time is over.
    #[error(
        "expected a {document} valid at {now} (this machine's clock), got one that expired at \
         {valid_until}; check the clock (timedatectl) and that the controller can be reached"
    )]
    Expired {
        /// What expired.
        document: &'static str,
        /// This machine's clock.
        now: Timestamp,
        /// The end of its validity.
        valid_until: Timestamp,
    },
    /// The document's time has not begun.
    #[error(
        "expected a {document} valid at {now} (this machine's clock), got one that starts at \
         {valid_after}: this clock is behind; set it (timedatectl set-ntp true)"
    )]
    NotYetValid {
        /// What starts later.
        document: &'static str,
        /// This machine's clock.
        now: Timestamp,
        /// The start of its validity.
        valid_after: Timestamp,
    },
    /// No directory has been accepted yet.
    #[error(
        "expected a directory, got none yet: the controller was never reached; check the link \
         and the network"
    )]
    Missing,
    /// A link or token of another form.
    #[error("expected a {kind} such as {example}, got {got:?}")]
    Link {
        /// `controller link` or `join token`.
        kind: &'static str,
        /// What one looks like.
        example: &'static str,
        /// What was found instead; of a token only what is no secret.
        got: String,
    },
    /// A state file of another shape than this program writes.
    #[error(
        "expected {path} to hold {expected}, got {got}: it is damaged and was left as it is; \
         delete it ({loss}) or restore it from a backup"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// What was found instead.
        got: String,
        /// What is lost with the file.
        loss: &'static str,
    },
    /// A state file that cannot be read or written.
    #[error(transparent)]
    File(#[from] KeyError),
    /// A text that is no node id.
    #[error(transparent)]
    NodeId(#[from] ParseNodeIdError),
}

impl DirectoryError {
    /// The field of a descriptor that is wrong, if the error is about one.
    pub const fn field(&self) -> Option<&'static str> {
        match self {
            Self::Field { field, .. } => Some(field),
            _ => None,
        }
    }
}
