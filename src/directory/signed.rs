//! The directory as the controller signs it, and the changes of the controller's own key.
//!
//! In: descriptors and the controller's key, or bytes from outside. Out: signed bytes, or their
//! checked contents. Called by: controller (signs), the directory's view (opens).
//!
//! ```text
//! GET /directory = { "directory": base64 of the signed bytes, "signature": base64,
//!                    "signer": base64 SPKI, "key_changes": [ {"change": base64, "signature"} ] }
//! signed bytes   = { "schema": "cepa.directory/1", "version", "valid_after", "valid_until",
//!                    "nodes": [ {"descriptor", "signature"} ] }
//! signature over = "cepa-directory-v1\n" | signed bytes
//! ```
//! A client knows the controller by the hash of its key. When that key changes, the old one signs
//! the new one, and the client follows those signatures for as long as the change is valid.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{CLOCK_TOLERANCE, DirectoryError, SignedDescriptor, base64_text};
use crate::{
    keys::{Identity, PublicIdentity},
    model::NodeId,
};

/// The longest directory that is read, in bytes.
pub const MAX_DIRECTORY_LEN: usize = 8 * 1024 * 1024;
/// The most changes of the controller's key that are followed.
pub const MAX_KEY_CHANGES: usize = 16;

const LABEL: &[u8] = b"cepa-directory-v1\n";
const SCHEMA: &str = "cepa.directory/1";
const CHANGE_LABEL: &[u8] = b"cepa-controller-key-v1\n";

/// What the controller signs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DirectoryBody {
    schema: String,
    /// Grows with every change.
    pub version: u64,
    /// When it was signed.
    pub valid_after: Timestamp,
    /// When it ends.
    pub valid_until: Timestamp,
    /// The descriptors of all live nodes.
    pub nodes: Vec<SignedDescriptor>,
}

impl DirectoryBody {
    /// A directory of `nodes`.
    pub fn new(
        version: u64,
        valid_after: Timestamp,
        valid_until: Timestamp,
        nodes: Vec<SignedDescriptor>,
    ) -> Self {
        Self { schema: SCHEMA.to_owned(), version, valid_after, valid_until, nodes }
    }
}

/// The signed directory as it travels and as it is cached.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SignedDirectory {
    /// The signed bytes.
    #[serde(rename = "directory", with = "base64_text")]
    pub bytes: Vec<u8>,
    /// PSS over the label and the bytes.
    #[serde(with = "base64_text")]
    pub signature: Vec<u8>,
    /// The controller's public key, SPKI DER.
    #[serde(with = "base64_text")]
    pub signer: Vec<u8>,
    /// How the controller's key came to be this one, the oldest change first.
    #[serde(default)]
    pub key_changes: Vec<SignedKeyChange>,
}

impl SignedDirectory {
    /// Signs a directory with the controller's key.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn sign(
        body: &DirectoryBody,
        identity: &Identity,
        key_changes: Vec<SignedKeyChange>,
    ) -> Result<Self, DirectoryError> {
        let bytes = to_json(body, "a directory")?;
        let signature = identity
            .sign(&[LABEL, &bytes].concat())
            .map_err(|cause| DirectoryError::Signature { document: "directory", cause })?;
        Ok(Self { bytes, signature, signer: identity.spki_der().to_vec(), key_changes })
    }

    /// Parses the envelope; nothing in it is checked yet.
    ///
    /// # Errors
    /// [`DirectoryError::Malformed`].
    pub fn parse(json: &[u8]) -> Result<Self, DirectoryError> {
        from_json(json, "a signed directory")
    }

    /// The nodes of a directory that its own signer remembered; nothing is checked.
    pub(crate) fn remembered_nodes(&self) -> Result<Vec<SignedDescriptor>, DirectoryError> {
        let body: DirectoryBody = from_json(&self.bytes, "a directory")?;
        Ok(body.nodes)
    }

    /// Checks that the signer is the controller known by `pinned` and that the signature is its.
    /// Validity and version are for the caller to check: [`super::Directory::open`] does.
    ///
    /// # Errors
    /// [`DirectoryError::Malformed`], [`DirectoryError::Signer`] or [`DirectoryError::Signature`].
    pub fn verify(
        &self,
        pinned: &NodeId,
        now: Timestamp,
    ) -> Result<(DirectoryBody, PublicIdentity), DirectoryError> {
        let refused = |cause| DirectoryError::Signature { document: "directory", cause };
        let signer = PublicIdentity::from_spki_der(&self.signer).map_err(refused)?;
        follow_key_changes(*pinned, signer.id(), &self.key_changes, now)?;
        signer.verify(&[LABEL, &self.bytes].concat(), &self.signature).map_err(refused)?;
        let body: DirectoryBody = from_json(&self.bytes, "a directory")?;
        if body.schema != SCHEMA {
            return Err(DirectoryError::Malformed {
                expected: "a directory of schema cepa.directory/1",
                got: format!("{:?}", body.schema.chars().take(80).collect::<String>()),
            });
        }
        Ok((body, signer))
    }
}

/// One change of the controller's key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KeyChange {
    /// The key that signs the change, SPKI DER.
    #[serde(with = "base64_text")]
    pub old: Vec<u8>,
    /// The key to use from then on, SPKI DER.
    #[serde(with = "base64_text")]
    pub new: Vec<u8>,
    /// When it was signed.
    pub valid_after: Timestamp,
    /// Until when those who know the old key may follow it.
    pub valid_until: Timestamp,
}

/// A change of the controller's key, signed by the old key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SignedKeyChange {
    /// The signed bytes.
    #[serde(rename = "change", with = "base64_text")]
    pub bytes: Vec<u8>,
    /// PSS over the label and the bytes.
    #[serde(with = "base64_text")]
    pub signature: Vec<u8>,
}

impl SignedKeyChange {
    /// Signs the change from `old` to `new`.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn sign(
        old: &Identity,
        new: &PublicIdentity,
        valid_after: Timestamp,
        valid_until: Timestamp,
    ) -> Result<Self, DirectoryError> {
        let change = KeyChange {
            old: old.spki_der().to_vec(),
            new: new.spki_der().to_vec(),
            valid_after,
            valid_until,
        };
        let bytes = to_json(&change, "a key change")?;
        let signature = old
            .sign(&[CHANGE_LABEL, &bytes].concat())
            .map_err(|cause| DirectoryError::Signature { document: "key change", cause })?;
        Ok(Self { bytes, signature })
    }

    /// Checks the signature of the old key.
    ///
    /// # Errors
    /// [`DirectoryError::Malformed`] or [`DirectoryError::Signature`].
    pub fn verify(&self) -> Result<(PublicIdentity, PublicIdentity, KeyChange), DirectoryError> {
        let refused = |cause| DirectoryError::Signature { document: "key change", cause };
        let change: KeyChange = from_json(&self.bytes, "a key change")?;
        let old = PublicIdentity::from_spki_der(&change.old).map_err(refused)?;
        let new = PublicIdentity::from_spki_der(&change.new).map_err(refused)?;
        old.verify(&[CHANGE_LABEL, &self.bytes].concat(), &self.signature).map_err(refused)?;
        Ok((old, new, change))
    }
}

/// Walks from the pinned key to the signer's along changes that are valid at `now`.
fn follow_key_changes(
    pinned: NodeId,
    signer: NodeId,
    changes: &[SignedKeyChange],
    now: Timestamp,
) -> Result<(), DirectoryError> {
    let mut current = pinned;
    for signed in changes.iter().take(MAX_KEY_CHANGES) {
        if current == signer {
            break;
        }
        let (old, new, change) = signed.verify()?;
        let in_time =
            now.saturating_add(CLOCK_TOLERANCE).is_ok_and(|late| late >= change.valid_after)
                && now <= change.valid_until;
        if old.id() == current && in_time {
            current = new.id();
        }
    }
    if current == signer { Ok(()) } else { Err(DirectoryError::Signer { pinned, got: signer }) }
}

fn to_json(value: &impl Serialize, expected: &'static str) -> Result<Vec<u8>, DirectoryError> {
    serde_json::to_vec(value)
        .map_err(|error| DirectoryError::Malformed { expected, got: error.to_string() })
}

fn from_json<'a, T: Deserialize<'a>>(
    bytes: &'a [u8],
    expected: &'static str,
) -> Result<T, DirectoryError> {
    if bytes.len() > MAX_DIRECTORY_LEN {
        return Err(DirectoryError::Malformed { expected, got: format!("{} bytes", bytes.len()) });
    }
    serde_json::from_slice(bytes)
        .map_err(|error| DirectoryError::Malformed { expected, got: error.to_string() })
}
