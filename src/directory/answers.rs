//! The JSON that the controller and its callers exchange.
//!
//! In: nothing. Out: types. Called by: controller (answers), the HTTP client (asks).

use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{DirectoryError, SignedDescriptor, base64_text};
use crate::{
    keys::{Identity, PublicIdentity},
    model::{ExitPolicy, NodeId, Role, Suite},
};

/// The longest body of a request, in bytes.
pub const MAX_REQUEST_LEN: usize = 64 * 1024;

const ENTRY_LABEL: &[u8] = b"cepa-entry-v1\n";

/// `GET /whoami`: the caller as the controller sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Whoami {
    /// The address that the request came from.
    pub ip: IpAddr,
    /// The port that the request came from.
    pub port: u16,
}

/// `POST /nodes`: registers or renews.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Registration {
    /// What the node says of itself.
    #[serde(flatten)]
    pub signed: SignedDescriptor,
    /// The first time: the proof of a join token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<JoinProof>,
}

/// The proof that a node has a join token.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct JoinProof {
    /// The token's public name.
    pub token: String,
    /// HMAC-SHA-256 of the descriptor under the token's secret.
    #[serde(with = "base64_text")]
    pub mac: Vec<u8>,
}

/// The answer to a registration.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Registered {
    /// The node's id.
    pub id: NodeId,
    /// Whether its UDP port answered the controller's probe; until then it is not listed.
    pub reachable: bool,
    /// When to renew, in seconds.
    pub renew_in_s: u64,
    /// The directory's version.
    pub directory_version: u64,
    /// The controller's clock.
    pub now: Timestamp,
}

/// `GET /nodes`: one live node in short.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeSummary {
    /// SHA-256 of its public key.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Its first address.
    pub public_ip: IpAddr,
    /// Its port there.
    pub port: u16,
    /// What it does.
    pub roles: Vec<Role>,
    /// Who runs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<String>,
    /// When it renewed last.
    pub last_seen: Timestamp,
}

/// `GET /nodes`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeList {
    /// The live nodes, by name.
    pub nodes: Vec<NodeSummary>,
    /// The directory's version.
    pub directory_version: u64,
}

/// `GET /nodes/{id or name}`: all about one live node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeAnswer {
    /// SHA-256 of its public key.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Its first address.
    pub public_ip: IpAddr,
    /// Its port there, UDP and TCP.
    pub port: u16,
    /// Its RSA public key, PEM.
    pub public_key: String,
    /// Its X25519 onion key, base64.
    #[serde(with = "base64_text")]
    pub onion_key: [u8; 32],
    /// What it does.
    pub roles: Vec<Role>,
    /// Where it lets packets go, if it is an exit.
    pub exit_policy: ExitPolicy,
    /// The layer suites it can use, the preferred one first.
    pub suites: Vec<Suite>,
    /// Who runs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<String>,
    /// When it renewed last.
    pub last_seen: Timestamp,
    /// What the node signed, base64.
    #[serde(with = "base64_text")]
    pub descriptor: Vec<u8>,
    /// The node's signature, base64.
    #[serde(with = "base64_text")]
    pub descriptor_signature: Vec<u8>,
    /// What the controller signed of this.
    pub entry: SignedEntry,
}

/// What the controller vouches for about one node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// SHA-256 of the node's public key.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub addrs: Vec<SocketAddr>,
    /// Its RSA public key, SPKI DER.
    #[serde(with = "base64_text")]
    pub spki: Vec<u8>,
    /// Its X25519 onion key.
    #[serde(with = "base64_text")]
    pub onion_key: [u8; 32],
    /// When the controller signed this.
    pub signed_at: Timestamp,
}

/// An [`Entry`], signed by the controller.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SignedEntry {
    /// The signed bytes: JSON, base64.
    #[serde(with = "base64_text")]
    pub bytes: Vec<u8>,
    /// PSS over `cepa-entry-v1\n` and the bytes.
    #[serde(with = "base64_text")]
    pub signature: Vec<u8>,
    /// The controller's public key, SPKI DER.
    #[serde(with = "base64_text")]
    pub signer: Vec<u8>,
}

impl SignedEntry {
    /// Signs an entry with the controller's key.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn sign(entry: &Entry, controller: &Identity) -> Result<Self, DirectoryError> {
        let bytes = serde_json::to_vec(entry).map_err(|error| DirectoryError::Malformed {
            expected: "an entry",
            got: error.to_string(),
        })?;
        let signature = controller
            .sign(&[ENTRY_LABEL, &bytes].concat())
            .map_err(|cause| DirectoryError::Signature { document: "entry", cause })?;
        Ok(Self { bytes, signature, signer: controller.spki_der().to_vec() })
    }

    /// Checks the controller's signature, and that the controller is the one with this
    /// fingerprint.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn verify(&self, pinned: &NodeId) -> Result<Entry, DirectoryError> {
        let refused = |cause| DirectoryError::Signature { document: "entry", cause };
        let signer = PublicIdentity::from_spki_der(&self.signer).map_err(refused)?;
        if signer.id() != *pinned {
            return Err(DirectoryError::Signer { pinned: *pinned, got: signer.id() });
        }
        signer.verify(&[ENTRY_LABEL, &self.bytes].concat(), &self.signature).map_err(refused)?;
        serde_json::from_slice(&self.bytes).map_err(|error| DirectoryError::Malformed {
            expected: "an entry",
            got: error.to_string(),
        })
    }
}

/// An error as the controller answers it (RFC 9457, `application/problem+json`).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Problem {
    /// A URN that names the kind of error.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind of error, for people.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What was expected, what came, what to do.
    pub detail: String,
    /// The field that is wrong, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}
