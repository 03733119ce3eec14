//! The files of a group: who is in it, with which keys, under which settings.
//!
//! In: the JSON of `system.json`, `session.json`, `pseudonym.json`, `interval.json` and of the
//! private files. Out: the same, checked against each other: every id, key, proof and signature.
//! Called by: every party at its start, through [`crate::dcnet::store`].
//!
//! ```text
//! system.json     relay, clients, trustees, settings      group id   = hash of it
//! session.json    a key, a pseudonym key and a nonce each session id = hash of it and the nonces
//! pseudonym.json  the trustees' shuffles, the slots       every step proven
//! interval.json   who is online, signed by all trustees
//! {id}.json       a party's identity secret
//! {id}-{session}.json   its secrets of the session
//! ```

use std::collections::HashSet;

use curve25519_dalek::{RistrettoPoint, Scalar};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::dcnet::{
    error::DcnetError,
    hash,
    hex::Hex,
    identity::{Identity, PartyId, PublicKey},
    proof::{self, Schnorr},
    shuffle::{KeyList, ShuffleStep},
};

/// Clients and trustees fit the 7 bits of the hello.
pub const PARTIES_MAX: usize = 127;
/// The smallest cell: an AEAD tag, a header and some payload.
pub const CELL_MIN: usize = 64;
/// The largest cell.
pub const CELL_MAX: usize = 16 * 1024;

/// What all parties of a group do alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Settings {
    /// Bytes of a cell.
    pub cell_size: usize,
    /// Rounds the relay keeps in flight at most; the source's wire keeps 2.
    pub client_window: usize,
    /// Rounds the trustees may run ahead; the source's wire: 10.
    pub trustee_window: usize,
    /// Clients refuse to speak in a smaller set.
    pub min_anonymity_set: usize,
    /// Members that may be left out of an interval against the one before, per hour.
    pub removals_per_hour: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cell_size: 256,
            client_window: 32,
            trustee_window: 64,
            min_anonymity_set: 2,
            removals_per_hour: 1000,
        }
    }
}

/// Where the relay is, and its identity key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelayEntry {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Ed25519.
    pub key: Hex<32>,
}

/// A party of the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartyEntry {
    /// Hash of the key.
    pub id: PartyId,
    /// Ed25519.
    pub key: Hex<32>,
}

/// `system.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct System {
    /// 1.
    pub version: u32,
    /// The hub.
    pub relay: RelayEntry,
    /// The members.
    pub clients: Vec<PartyEntry>,
    /// The trustees.
    pub trustees: Vec<PartyEntry>,
    /// What all do alike.
    #[serde(default)]
    pub settings: Settings,
}

/// A client's keys of one session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SessionClient {
    /// The member.
    pub id: PartyId,
    /// Its Diffie-Hellman key.
    pub key: Hex<32>,
    /// What goes into the shuffle.
    pub pseudonym_key: Hex<32>,
    /// Possession of `key` and of `pseudonym-key`.
    pub proofs: [Hex<64>; 2],
    /// By its identity.
    pub signature: Hex<64>,
}

/// A trustee's key of one session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SessionTrustee {
    /// The trustee.
    pub id: PartyId,
    /// Its Diffie-Hellman key.
    pub key: Hex<32>,
    /// Its share of the session id.
    pub nonce: Hex<32>,
    /// Possession of `key`.
    pub proof: Hex<64>,
    /// By its identity.
    pub signature: Hex<64>,
}

/// `session.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Session {
    /// Hash of `system.json`.
    pub group_id: Hex<32>,
    /// Hash of the rest.
    pub session_id: Hex<32>,
    /// In the order of `system.json`.
    pub clients: Vec<SessionClient>,
    /// In the order of `system.json`.
    pub trustees: Vec<SessionTrustee>,
}

/// `pseudonym.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Pseudonyms {
    /// Hash of `system.json`.
    pub group_id: Hex<32>,
    /// Hash of `session.json`.
    pub session_id: Hex<32>,
    /// One per trustee, in order.
    pub steps: Vec<ShuffleStep>,
    /// The base of the slot keys.
    pub base: Hex<32>,
    /// The slot keys; NextSlot is an index into them.
    pub slots: Vec<Hex<32>>,
}

/// `{id}.json`.
#[derive(Clone, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
pub struct PrivateFile {
    /// The party.
    #[zeroize(skip)]
    pub id: PartyId,
    /// Its Ed25519 secret.
    pub secret: Hex<32>,
}

/// `{id}-{session}.json`, where the session stands with its first 16 digits.
#[derive(Clone, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SessionPrivate {
    /// The party.
    #[zeroize(skip)]
    pub id: PartyId,
    /// The session.
    #[zeroize(skip)]
    pub session_id: Hex<32>,
    /// The secret of its Diffie-Hellman key.
    pub secret: Hex<32>,
    /// The secret of its pseudonym key; trustees have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pseudonym_secret: Option<Hex<32>>,
}

/// A group whose files agree, with its keys parsed.
#[derive(Debug, Clone)]
pub struct Group {
    /// As in the file.
    pub system: System,
    /// As in the file.
    pub session: Session,
    /// Hash of `system.json`.
    pub group_id: [u8; 32],
    /// The relay's identity.
    pub relay: PublicKey,
    /// The clients' identities.
    pub clients: Vec<PublicKey>,
    /// The trustees' identities.
    pub trustees: Vec<PublicKey>,
    /// The clients' Diffie-Hellman keys.
    pub client_keys: Vec<RistrettoPoint>,
    /// The trustees' Diffie-Hellman keys.
    pub trustee_keys: Vec<RistrettoPoint>,
    /// The base and the slot keys.
    pub slots: KeyList,
}

impl System {
    /// Hash of the file's content, whatever its spacing.
    pub fn group_id(&self) -> [u8; 32] {
        hash::hash("group", &[&serde_json::to_vec(self).unwrap_or_default()])
    }

    /// The parsed identity keys of clients and trustees.
    ///
    /// # Errors
    /// Names the field of the first entry that is wrong or there twice.
    pub fn keys(&self) -> Result<(PublicKey, Vec<PublicKey>, Vec<PublicKey>), DcnetError> {
        let wrong =
            |field: String, problem: String| DcnetError::config("system.json", field, problem);
        if self.version != 1 {
            return Err(wrong("version".into(), format!("expected 1, got {}", self.version)));
        }
        self.settings.check()?;
        let relay = PublicKey::from_bytes(&self.relay.key.0)
            .ok_or_else(|| wrong("relay.key".into(), "is not an Ed25519 key".into()))?;
        let mut seen = HashSet::new();
        let mut parse = |name: &str, entries: &[PartyEntry]| {
            if entries.is_empty() || entries.len() > PARTIES_MAX {
                return Err(wrong(
                    name.into(),
                    format!("expected 1 to {PARTIES_MAX} entries, got {}", entries.len()),
                ));
            }
            let mut keys = Vec::new();
            for (at, entry) in entries.iter().enumerate() {
                let key = PublicKey::from_bytes(&entry.key.0).ok_or_else(|| {
                    wrong(format!("{name}[{at}].key"), "is not an Ed25519 key".into())
                })?;
                if key.id() != entry.id {
                    return Err(wrong(
                        format!("{name}[{at}].id"),
                        format!("expected the hash of its key, {}, got {}", key.id(), entry.id),
                    ));
                }
                if !seen.insert(entry.id) {
                    return Err(wrong(
                        format!("{name}[{at}].id"),
                        format!("{} is there twice; every party has its own", entry.id),
                    ));
                }
                keys.push(key);
            }
            Ok(keys)
        };
        let clients = parse("clients", &self.clients)?;
        let trustees = parse("trustees", &self.trustees)?;
        Ok((relay, clients, trustees))
    }
}

impl Settings {
    pub(super) fn check(&self) -> Result<(), DcnetError> {
        let range = |field: &str, got: usize, least: usize, most: usize| {
            if (least..=most).contains(&got) {
                return Ok(());
            }
            Err(DcnetError::config(
                "system.json",
                format!("settings.{field}"),
                format!("expected {least} to {most}, got {got}"),
            ))
        };
        range("cell-size", self.cell_size, CELL_MIN, CELL_MAX)?;
        range("client-window", self.client_window, 1, 64)?;
        range("trustee-window", self.trustee_window, self.client_window, 4096)?;
        range("min-anonymity-set", self.min_anonymity_set, 1, PARTIES_MAX)
    }
}

impl SessionClient {
    /// What its proofs and signature are bound to.
    pub fn context(group: &[u8; 32], id: &PartyId) -> Vec<u8> {
        [b"client", group.as_slice(), &id.0].concat()
    }

    pub(super) fn signed(&self, group: &[u8; 32]) -> Vec<u8> {
        [
            Self::context(group, &self.id).as_slice(),
            &self.key.0,
            &self.pseudonym_key.0,
            &self.proofs[0].0,
            &self.proofs[1].0,
        ]
        .concat()
    }

    /// Fresh keys for a member; the secrets are those of key and pseudonym key.
    pub fn generate(
        group: &[u8; 32],
        identity: &Identity,
        rng: &mut impl rand::Rng,
    ) -> (Self, [Zeroizing<Scalar>; 2]) {
        let secrets = [(); 2].map(|()| Zeroizing::new(hash::random_scalar(rng)));
        let context = Self::context(group, &identity.id());
        let base = RistrettoPoint::mul_base(&Scalar::ONE);
        let proofs = secrets
            .each_ref()
            .map(|secret| Hex(Schnorr::sign(secret, &base, &context, rng).to_bytes()));
        let mut entry = Self {
            id: identity.id(),
            key: Hex(proof::bytes(&RistrettoPoint::mul_base(&secrets[0]))),
            pseudonym_key: Hex(proof::bytes(&RistrettoPoint::mul_base(&secrets[1]))),
            proofs,
            signature: Hex([0; 64]),
        };
        entry.signature = identity.sign("session", &entry.signed(group));
        (entry, secrets)
    }
}

impl SessionTrustee {
    pub(super) fn context(group: &[u8; 32], id: &PartyId, nonce: &Hex<32>) -> Vec<u8> {
        [b"trustee", group.as_slice(), &id.0, &nonce.0].concat()
    }

    pub(super) fn signed(&self, group: &[u8; 32]) -> Vec<u8> {
        [Self::context(group, &self.id, &self.nonce).as_slice(), &self.key.0, &self.proof.0]
            .concat()
    }

    /// A fresh key for a trustee.
    pub fn generate(
        group: &[u8; 32],
        identity: &Identity,
        rng: &mut impl rand::Rng,
    ) -> (Self, Zeroizing<Scalar>) {
        let secret = Zeroizing::new(hash::random_scalar(rng));
        let mut nonce = Hex([0; 32]);
        rng.fill_bytes(&mut nonce.0);
        let context = Self::context(group, &identity.id(), &nonce);
        let base = RistrettoPoint::mul_base(&Scalar::ONE);
        let mut entry = Self {
            id: identity.id(),
            key: Hex(proof::bytes(&RistrettoPoint::mul_base(&secret))),
            nonce,
            proof: Hex(Schnorr::sign(&secret, &base, &context, rng).to_bytes()),
            signature: Hex([0; 64]),
        };
        entry.signature = identity.sign("session", &entry.signed(group));
        (entry, secret)
    }
}

impl Session {
    /// Hash of the group, the entries and the trustees' nonces.
    pub fn compute_id(
        group: &[u8; 32],
        clients: &[SessionClient],
        trustees: &[SessionTrustee],
    ) -> Hex<32> {
        let body = serde_json::to_vec(&(Hex(*group), clients, trustees)).unwrap_or_default();
        Hex(hash::hash("session", &[&body]))
    }
}
