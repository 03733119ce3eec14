//! What a node says of itself, signed with its identity key.
//!
//! In: the node's facts, or signed bytes from outside. Out: signed bytes, or a checked descriptor.
//! Called by: node (makes it), controller (admits it), the directory's view (reads it).
//!
//! The signed bytes are compact JSON with the fields in the order below; the signature is over
//! `cepa-descriptor-v1\n` and those bytes. Fields, roles and suites that this program does not
//! know are passed over, so that newer nodes can be used.

use std::net::{IpAddr, SocketAddr};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Deserializer, Serialize, de::Error};

use super::{DirectoryError, base64_text};
use crate::{
    keys::{Identity, PublicIdentity, onion_key_id},
    model::{ExitPolicy, Role, Suite},
};

/// The version of the wire that this program speaks.
pub const WIRE_VERSION: u8 = 1;
/// The longest signed descriptor, in bytes.
pub const MAX_DESCRIPTOR_LEN: usize = 16 * 1024;
/// How far two clocks may be apart.
pub const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(10);
/// How long a node says its descriptor is valid: longer than any directory that carries it.
pub const DESCRIPTOR_VALIDITY: SignedDuration = SignedDuration::from_hours(7 * 24);

const LABEL: &[u8] = b"cepa-descriptor-v1\n";
const MAX_NAME_LEN: usize = 32;
const MAX_OPERATOR_LEN: usize = 64;
const MAX_ADDRS: usize = 4;

/// What a node says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Descriptor {
    /// The name, for people: 1 to 32 of `a-z`, `0-9` and `-`.
    pub name: String,
    /// Where it listens, UDP and TCP; the first one is used.
    pub addrs: Vec<SocketAddr>,
    /// Its RSA public key, SPKI DER.
    #[serde(with = "base64_text")]
    pub spki: Vec<u8>,
    /// Its X25519 onion key.
    #[serde(with = "base64_text")]
    pub onion_key: [u8; 32],
    /// The id of that onion key: the first 8 bytes of its SHA-256.
    #[serde(with = "base64_text")]
    pub onion_key_id: [u8; 8],
    /// What it does.
    #[serde(deserialize_with = "known_only")]
    pub roles: Vec<Role>,
    /// Where it lets packets go, if it is an exit.
    pub exit_policy: ExitPolicy,
    /// The layer suites it can use, the preferred one first.
    #[serde(deserialize_with = "known_only")]
    pub suites: Vec<Suite>,
    /// Who runs it: 1 to 64 printable characters. Two nodes of one operator share no path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<String>,
    /// The Ed25519 key that signs its orders to exits, if it is a tracker.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "base64_text::optional")]
    pub order_key: Option<[u8; 32]>,
    /// The version of the wire it speaks.
    pub wire_version: u8,
    /// When it was signed.
    pub valid_after: Timestamp,
    /// When it ends.
    pub valid_until: Timestamp,
}

/// A list of words of which only the known ones are kept.
fn known_only<'de, D: Deserializer<'de>, T: std::str::FromStr + PartialEq>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    let words = Vec::<String>::deserialize(deserializer)?;
    if words.len() > 16 {
        return Err(D::Error::custom(format!("expected at most 16 words, got {}", words.len())));
    }
    let mut known: Vec<T> = Vec::with_capacity(words.len());
    for value in words.iter().filter_map(|word| word.parse().ok()) {
        if !known.contains(&value) {
            known.push(value);
        }
    }
    Ok(known)
}

impl Descriptor {
    /// Its public identity.
    ///
    /// # Errors
    /// When the public key is none that this program accepts.
    pub fn identity(&self) -> Result<PublicIdentity, DirectoryError> {
        PublicIdentity::from_spki_der(&self.spki)
            .map_err(|cause| DirectoryError::Signature { document: "descriptor", cause })
    }

    /// Whether the node has this role.
    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// Whether it says the same as `other`, whenever each was signed.
    pub fn says_the_same(&self, other: &Self) -> bool {
        let timeless = |descriptor: &Self| Self {
            valid_after: Timestamp::UNIX_EPOCH,
            valid_until: Timestamp::UNIX_EPOCH,
            ..descriptor.clone()
        };
        timeless(self) == timeless(other)
    }

    /// Checks every rule that needs no clock and no key.
    ///
    /// # Errors
    /// [`DirectoryError::Field`] with the first field that breaks a rule.
    pub fn check(&self) -> Result<(), DirectoryError> {
        let wrong = |field, expected: &str, got: String| DirectoryError::Field {
            field,
            expected: expected.to_owned(),
            got,
        };
        check_name(&self.name)?;
        if self.addrs.is_empty() || self.addrs.len() > MAX_ADDRS {
            return Err(wrong("addrs", "1 to 4 addresses", self.addrs.len().to_string()));
        }
        if let Some(addr) = self.addrs.iter().find(|addr| !can_be_reached(addr)) {
            return Err(wrong("addrs", "unicast addresses with a port", addr.to_string()));
        }
        if self.onion_key_id != onion_key_id(&self.onion_key) {
            return Err(wrong(
                "onion_key_id",
                "the start of SHA-256 of onion_key",
                hex(&self.onion_key_id),
            ));
        }
        if self.roles.is_empty() {
            return Err(wrong("roles", "at least one of relay, exit, tracker", "none".into()));
        }
        if self.suites.is_empty() {
            return Err(wrong(
                "suites",
                "at least one of aes128gcm, chacha20poly1305",
                "none".into(),
            ));
        }
        if let Some(operator) = &self.operator
            && !is_label(operator)
        {
            return Err(wrong(
                "operator",
                "1 to 64 printable ASCII characters",
                format!("{operator:?}"),
            ));
        }
        if self.wire_version != WIRE_VERSION {
            return Err(wrong(
                "wire_version",
                &format!("{WIRE_VERSION} (update the older side)"),
                self.wire_version.to_string(),
            ));
        }
        if self.valid_until <= self.valid_after {
            return Err(wrong(
                "valid_until",
                "later than valid_after",
                self.valid_until.to_string(),
            ));
        }
        Ok(())
    }
}

/// Checks the name of a node.
///
/// # Errors
/// [`DirectoryError::Field`] when it is no name.
pub fn check_name(name: &str) -> Result<(), DirectoryError> {
    let fits = (1..=MAX_NAME_LEN).contains(&name.len())
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !name.starts_with('-')
        && !name.ends_with('-');
    if fits {
        return Ok(());
    }
    Err(DirectoryError::Field {
        field: "name",
        expected: "1 to 32 of a-z, 0-9 and - (not first or last)".to_owned(),
        got: format!("{:?}", name.chars().take(80).collect::<String>()),
    })
}

/// Whether `text` is a label for people: printable, short, harmless on a terminal.
pub fn is_label(text: &str) -> bool {
    (1..=MAX_OPERATOR_LEN).contains(&text.len())
        && text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic())
        && text.trim() == text
}

fn can_be_reached(addr: &SocketAddr) -> bool {
    let ip = addr.ip();
    let plain = match ip {
        IpAddr::V4(ip) => !ip.is_broadcast(),
        IpAddr::V6(ip) => ip.to_ipv4_mapped().is_none(),
    };
    plain && addr.port() != 0 && !ip.is_unspecified() && !ip.is_multicast()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A descriptor as it travels: the exact signed bytes and their signature.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SignedDescriptor {
    /// The signed bytes.
    #[serde(rename = "descriptor", with = "base64_text")]
    pub bytes: Vec<u8>,
    /// PSS over the label and the bytes, by the key that the descriptor carries.
    #[serde(with = "base64_text")]
    pub signature: Vec<u8>,
}

impl SignedDescriptor {
    /// Signs a descriptor with the node's identity.
    ///
    /// # Errors
    /// When the descriptor breaks a rule, is another node's, or cannot be signed.
    pub fn sign(descriptor: &Descriptor, identity: &Identity) -> Result<Self, DirectoryError> {
        descriptor.check()?;
        if descriptor.spki != identity.spki_der() {
            return Err(DirectoryError::Field {
                field: "spki",
                expected: "the signer's public key".to_owned(),
                got: "another key".to_owned(),
            });
        }
        let bytes = serde_json::to_vec(descriptor).map_err(|error| DirectoryError::Malformed {
            expected: "a descriptor",
            got: error.to_string(),
        })?;
        let signature = identity
            .sign(&signed_message(&bytes))
            .map_err(|cause| DirectoryError::Signature { document: "descriptor", cause })?;
        Ok(Self { bytes, signature })
    }

    /// Checks everything that needs no clock: shape, rules, signature.
    ///
    /// # Errors
    /// [`DirectoryError::Malformed`], [`DirectoryError::Field`] or [`DirectoryError::Signature`].
    pub fn verify(&self) -> Result<(Descriptor, PublicIdentity), DirectoryError> {
        if self.bytes.len() > MAX_DESCRIPTOR_LEN {
            return Err(DirectoryError::Malformed {
                expected: "a descriptor of at most 16 KiB",
                got: format!("{} bytes", self.bytes.len()),
            });
        }
        let descriptor: Descriptor = serde_json::from_slice(&self.bytes).map_err(|error| {
            DirectoryError::Malformed { expected: "a descriptor", got: error.to_string() }
        })?;
        let identity = descriptor.identity()?;
        identity
            .verify(&signed_message(&self.bytes), &self.signature)
            .map_err(|cause| DirectoryError::Signature { document: "descriptor", cause })?;
        descriptor.check()?;
        Ok((descriptor, identity))
    }
}

fn signed_message(bytes: &[u8]) -> Vec<u8> {
    [LABEL, bytes].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        directory::test_network::{at, descriptor, sign},
        keys::test_keys::identity,
    };

    #[test]
    fn signed_bytes_verify_and_round_trip() {
        let signed = sign(1);
        let (opened, public) = signed.verify().unwrap();
        assert_eq!(opened, descriptor(1));
        assert_eq!(public.id(), identity(1).id());
        let json = serde_json::to_string(&signed).unwrap();
        assert_eq!(serde_json::from_str::<SignedDescriptor>(&json).unwrap(), signed);
    }

    #[test]
    fn a_descriptor_is_signed_by_its_own_key_only() {
        assert!(SignedDescriptor::sign(&descriptor(1), identity(2)).is_err());
        let mut foreign = sign(1);
        foreign.signature = identity(2).sign(&signed_message(&foreign.bytes)).unwrap();
        assert!(matches!(foreign.verify(), Err(DirectoryError::Signature { .. })));
        let mut unlabelled = sign(1);
        unlabelled.signature = identity(1).sign(&unlabelled.bytes).unwrap();
        assert!(matches!(unlabelled.verify(), Err(DirectoryError::Signature { .. })));
    }

    #[test]
    fn every_broken_rule_names_its_field() {
        type Change = fn(&mut Descriptor);
        let cases: &[(&str, Change)] = &[
            ("name", |d| d.name = String::new()),
            ("name", |d| d.name = "N1".into()),
            ("name", |d| d.name = "-n".into()),
            ("name", |d| d.name = "a".repeat(33)),
            ("name", |d| d.name = "n1\u{1b}[2J".into()),
            ("addrs", |d| d.addrs.clear()),
            ("addrs", |d| d.addrs = vec!["192.0.2.1:0".parse().unwrap()]),
            ("addrs", |d| d.addrs = vec!["0.0.0.0:5000".parse().unwrap()]),
            ("addrs", |d| d.addrs = vec!["224.0.0.1:5000".parse().unwrap()]),
            ("addrs", |d| d.addrs = vec!["[::ffff:192.0.2.1]:5000".parse().unwrap()]),
            ("addrs", |d| d.addrs = vec!["192.0.2.1:1".parse().unwrap(); 5]),
            ("onion_key_id", |d| d.onion_key_id[0] ^= 1),
            ("roles", |d| d.roles.clear()),
            ("suites", |d| d.suites.clear()),
            ("operator", |d| d.operator = Some(String::new())),
            ("operator", |d| d.operator = Some(" x".into())),
            ("operator", |d| d.operator = Some("x\n".into())),
            ("wire_version", |d| d.wire_version = 2),
            ("valid_until", |d| d.valid_until = d.valid_after),
            ("spki", |d| d.spki = identity(5).spki_der().to_vec()),
        ];
        for (field, change) in cases {
            let mut changed = descriptor(1);
            change(&mut changed);
            let error = SignedDescriptor::sign(&changed, identity(1)).unwrap_err();
            assert_eq!(error.field(), Some(*field), "{error}");
        }
        let mut changed = descriptor(1);
        changed.name = "N 1".to_owned();
        let bytes = serde_json::to_vec(&changed).unwrap();
        let signature = identity(1).sign(&signed_message(&bytes)).unwrap();
        let error = SignedDescriptor { bytes, signature }.verify().unwrap_err();
        assert_eq!(error.field(), Some("name"), "a signature does not excuse a broken rule");
    }

    #[test]
    fn unknown_roles_suites_and_fields_are_passed_over() {
        let mut json = serde_json::to_value(descriptor(1)).unwrap();
        json["roles"] = serde_json::json!(["relay", "oracle", "exit", "relay"]);
        json["suites"] = serde_json::json!(["aes512", "chacha20poly1305"]);
        json["bandwidth"] = serde_json::json!(12);
        let bytes = serde_json::to_vec(&json).unwrap();
        let signature = identity(1).sign(&signed_message(&bytes)).unwrap();
        let (opened, _) = SignedDescriptor { bytes, signature }.verify().unwrap();
        assert_eq!(opened.roles, [Role::Relay, Role::Exit]);
        assert_eq!(opened.suites, [Suite::ChaCha20Poly1305]);
    }

    #[test]
    fn validity_is_not_what_a_descriptor_says() {
        let mut later = descriptor(1);
        later.valid_after = at(50);
        assert!(later.says_the_same(&descriptor(1)));
        later.addrs[0].set_port(1);
        assert!(!later.says_the_same(&descriptor(1)));
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_refused(
            bytes in prop::collection::vec(any::<u8>(), 0..3000), signature: Vec<u8>,
        ) {
            let refused = SignedDescriptor { bytes, signature }.verify().is_err();
            prop_assert!(refused);
        }

        #[test]
        fn a_flipped_bit_is_refused(index: prop::sample::Index, bit in 0..8u8) {
            let mut signed = sign(1);
            let at_byte = index.index(signed.bytes.len());
            signed.bytes[at_byte] ^= 1 << bit;
            prop_assert!(signed.verify().is_err());
        }

        #[test]
        fn a_cut_descriptor_is_refused(index: prop::sample::Index) {
            let mut signed = sign(1);
            signed.bytes.truncate(index.index(signed.bytes.len()));
            prop_assert!(signed.verify().is_err());
        }

        #[test]
        fn names_are_safe_to_print(text: String) {
            if check_name(&text).is_ok() {
                prop_assert!(text.is_ascii() && !text.contains(char::is_control));
            }
            if is_label(&text) {
                prop_assert!(text.is_ascii() && !text.contains(char::is_control));
            }
        }
    }
}
