//! The directory as a client or node uses it: signed, in time, not older than the last one.
//!
//! In: a signed directory and what is known of its controller. Out: members, by id, name or
//! address. Called by: path choice, node (EXTEND, probes), cli.

use std::{collections::HashMap, net::SocketAddr};

use jiff::Timestamp;

use super::{CLOCK_TOLERANCE, Descriptor, DirectoryError, SignedDirectory};
use crate::{
    keys::PublicIdentity,
    model::{Hop, NodeId, Role, Suite},
};

/// A member whose descriptor is checked.
#[derive(Clone, Debug)]
pub struct Member {
    /// SHA-256 of its public key.
    pub id: NodeId,
    /// Its public key.
    pub identity: PublicIdentity,
    /// What it says of itself.
    pub descriptor: Descriptor,
}

impl Member {
    /// The address that is used: the first one.
    pub fn addr(&self) -> SocketAddr {
        // A checked descriptor has at least one address.
        self.descriptor.addrs[0]
    }

    /// Whether it passes cells on.
    pub fn is_relay(&self) -> bool {
        self.descriptor.has(Role::Relay) || self.is_exit()
    }

    /// Whether it lets packets out.
    pub fn is_exit(&self) -> bool {
        self.descriptor.has(Role::Exit)
    }

    /// The member as one hop of a path, with `preferred` as its suite if it has that, and its own
    /// preference otherwise.
    pub fn hop(&self, preferred: Option<Suite>) -> Hop {
        let suites = &self.descriptor.suites;
        let suite = preferred.filter(|suite| suites.contains(suite)).unwrap_or(suites[0]);
        Hop {
            id: self.id,
            name: self.descriptor.name.clone(),
            addr: self.addr(),
            identity_spki: self.descriptor.spki.clone(),
            onion_key: self.descriptor.onion_key,
            onion_key_id: self.descriptor.onion_key_id,
            suite,
            is_exit: self.is_exit(),
        }
    }
}

/// A checked directory.
#[derive(Debug)]
pub struct Directory {
    version: u64,
    valid_after: Timestamp,
    valid_until: Timestamp,
    controller: PublicIdentity,
    members: Vec<Member>,
    by_id: HashMap<NodeId, usize>,
    by_name: HashMap<String, usize>,
    skipped: Vec<DirectoryError>,
}

impl Directory {
    /// Opens a signed directory: the signer is the controller known by `pinned` (or one that its
    /// key signed over to), `now` is within its time, and it is not older than `newest`.
    /// Single members that do not check are left out and kept in [`Self::skipped`].
    ///
    /// # Errors
    /// Why it is refused.
    pub fn open(
        signed: &SignedDirectory,
        pinned: &NodeId,
        now: Timestamp,
        newest: Option<u64>,
    ) -> Result<Self, DirectoryError> {
        let directory = Self::open_at_any_time(signed, pinned, now)?;
        if let Some(newest) = newest
            && directory.version < newest
        {
            return Err(DirectoryError::RolledBack { newest, got: directory.version });
        }
        directory.check_time(now)?;
        Ok(directory)
    }

    /// Opens a signed directory whatever its validity; [`Self::check_time`] tells it.
    pub(crate) fn open_at_any_time(
        signed: &SignedDirectory,
        pinned: &NodeId,
        now: Timestamp,
    ) -> Result<Self, DirectoryError> {
        let (body, controller) = signed.verify(pinned, now)?;
        let mut directory = Self {
            version: body.version,
            valid_after: body.valid_after,
            valid_until: body.valid_until,
            controller,
            members: Vec::with_capacity(body.nodes.len()),
            by_id: HashMap::with_capacity(body.nodes.len()),
            by_name: HashMap::with_capacity(body.nodes.len()),
            skipped: Vec::new(),
        };
        for node in &body.nodes {
            match node.verify() {
                Ok((descriptor, identity)) => {
                    if let Err(error) = directory.add(descriptor, identity) {
                        directory.skipped.push(error);
                    }
                }
                Err(error) => directory.skipped.push(error),
            }
        }
        Ok(directory)
    }

    fn add(
        &mut self,
        descriptor: Descriptor,
        identity: PublicIdentity,
    ) -> Result<(), DirectoryError> {
        let id = identity.id();
        let twice = |field, got: String| DirectoryError::Field {
            field,
            expected: "in the directory once".to_owned(),
            got,
        };
        if descriptor.valid_until < self.valid_until {
            return Err(DirectoryError::Expired {
                document: "descriptor",
                now: self.valid_until,
                valid_until: descriptor.valid_until,
            });
        }
        if self.by_id.contains_key(&id) {
            return Err(twice("spki", format!("the node {} again", id.short())));
        }
        if self.by_name.contains_key(&descriptor.name) {
            return Err(twice("name", format!("{} again", descriptor.name)));
        }
        self.by_id.insert(id, self.members.len());
        self.by_name.insert(descriptor.name.clone(), self.members.len());
        self.members.push(Member { id, identity, descriptor });
        Ok(())
    }

    /// The same directory with other members, unchecked.
    #[cfg(test)]
    pub(crate) fn with_members(mut self, members: impl Iterator<Item = Member>) -> Self {
        self.members = members.collect();
        let ids = self.members.iter().enumerate();
        self.by_id = ids.clone().map(|(index, member)| (member.id, index)).collect();
        self.by_name = ids.map(|(index, member)| (member.descriptor.name.clone(), index)).collect();
        self
    }

    /// Whether it may be used at `now`.
    ///
    /// # Errors
    /// [`DirectoryError::Expired`] or [`DirectoryError::NotYetValid`].
    pub fn check_time(&self, now: Timestamp) -> Result<(), DirectoryError> {
        let document = "directory";
        if now > self.valid_until {
            return Err(DirectoryError::Expired { document, now, valid_until: self.valid_until });
        }
        if now.saturating_add(CLOCK_TOLERANCE).is_ok_and(|late| late < self.valid_after) {
            return Err(DirectoryError::NotYetValid {
                document,
                now,
                valid_after: self.valid_after,
            });
        }
        Ok(())
    }

    /// Its version; later ones are larger.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// When it was signed.
    pub const fn valid_after(&self) -> Timestamp {
        self.valid_after
    }

    /// When it ends.
    pub const fn valid_until(&self) -> Timestamp {
        self.valid_until
    }

    /// The controller that signed it.
    pub const fn controller(&self) -> &PublicIdentity {
        &self.controller
    }

    /// All members whose descriptors check.
    pub fn nodes(&self) -> &[Member] {
        &self.members
    }

    /// What was wrong with the members that were left out.
    pub fn skipped(&self) -> &[DirectoryError] {
        &self.skipped
    }

    /// The member with this id.
    pub fn get(&self, id: &NodeId) -> Option<&Member> {
        self.by_id.get(id).map(|index| &self.members[*index])
    }

    /// The member with this name.
    pub fn by_name(&self, name: &str) -> Option<&Member> {
        self.by_name.get(name).map(|index| &self.members[*index])
    }

    /// The member that listens at this address.
    pub fn by_addr(&self, addr: SocketAddr) -> Option<&Member> {
        self.members.iter().find(|member| member.descriptor.addrs.contains(&addr))
    }

    /// The member that a person means: by name, by id, or by the first 8 or more digits of an id
    /// that only one member has.
    pub fn find(&self, text: &str) -> Option<&Member> {
        if let Some(member) = self.by_name(text) {
            return Some(member);
        }
        if let Ok(id) = text.parse() {
            return self.get(&id);
        }
        if text.len() < 8 {
            return None;
        }
        let mut found =
            self.members.iter().filter(|member| member.id.to_string().starts_with(text));
        found.next().filter(|_| found.next().is_none())
    }

    /// A member as one hop of a path.
    pub fn hop(&self, id: &NodeId, preferred: Option<Suite>) -> Option<Hop> {
        self.get(id).map(|member| member.hop(preferred))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        directory::{
            SignedKeyChange,
            test_network::{DAY, at, descriptor, directory_of, sign, signed_directory},
        },
        keys::test_keys::identity,
    };

    #[test]
    fn a_directory_opens_and_finds_its_members() {
        let directory = directory_of(&[descriptor(1), descriptor(2)]);
        let n1 = directory.by_name("n1").unwrap();
        assert_eq!(n1.id, identity(1).id());
        assert_eq!(directory.get(&identity(2).id()).unwrap().descriptor.name, "n2");
        assert!(directory.get(&identity(3).id()).is_none());
        assert_eq!(directory.by_addr(n1.addr()).unwrap().id, n1.id);
        assert_eq!(directory.find("n2").unwrap().id, identity(2).id());
        assert_eq!(directory.find(&n1.id.to_string()).unwrap().id, n1.id);
        assert_eq!(directory.find(&n1.id.short()).unwrap().id, n1.id);
        assert!(directory.find(&n1.id.short()[..7]).is_none());
        assert!(directory.find("").is_none());
        assert_eq!(directory.controller().id(), identity(0).id());
        let hop = directory.hop(&n1.id, Some(Suite::ChaCha20Poly1305)).unwrap();
        assert_eq!((hop.id, hop.suite, hop.addr), (n1.id, Suite::ChaCha20Poly1305, n1.addr()));
        let hop = directory.hop(&n1.id, None).unwrap();
        assert_eq!(hop.suite, Suite::Aes128Gcm);
    }

    #[test]
    fn rolled_back_expired_and_early_directories_are_refused() {
        let signed = signed_directory(7, &[sign(1)]);
        let pin = identity(0).id();
        let open = |now, newest| Directory::open(&signed, &pin, now, newest);
        assert!(open(at(0), None).is_ok());
        assert!(open(at(0), Some(7)).is_ok());
        assert!(matches!(
            open(at(0), Some(8)),
            Err(DirectoryError::RolledBack { newest: 8, got: 7 })
        ));
        assert!(open(at(DAY), None).is_ok());
        assert!(matches!(open(at(DAY + 1), None), Err(DirectoryError::Expired { .. })));
        assert!(open(at(-600), None).is_ok());
        let error = open(at(-DAY), None).unwrap_err();
        assert!(matches!(error, DirectoryError::NotYetValid { .. }));
        assert!(error.to_string().contains("this clock is behind"), "{error}");
        let error = open(at(2 * DAY), None).unwrap_err();
        assert!(error.to_string().contains("check the clock"), "{error}");
    }

    #[test]
    fn other_signers_are_refused() {
        let signed = signed_directory(1, &[sign(1)]);
        let error = Directory::open(&signed, &identity(3).id(), at(0), None).unwrap_err();
        assert!(matches!(error, DirectoryError::Signer { .. }), "{error}");
        let mut claimed = signed.clone();
        claimed.signer = identity(3).spki_der().to_vec();
        let error = Directory::open(&claimed, &identity(3).id(), at(0), None).unwrap_err();
        assert!(matches!(error, DirectoryError::Signature { .. }), "{error}");
    }

    #[test]
    fn a_changed_key_is_followed_while_the_change_is_valid() {
        let change = |old: usize, new: usize, until| {
            SignedKeyChange::sign(identity(old), identity(new).public(), at(-10), at(until))
                .unwrap()
        };
        let mut signed = signed_directory(1, &[sign(1)]);
        let open = |signed: &SignedDirectory, pin: usize| {
            Directory::open(signed, &identity(pin).id(), at(5), None)
        };
        // 6 -> 7 -> 0: whoever knows any of them gets there.
        signed.key_changes = vec![change(6, 7, 100), change(7, 0, 100)];
        for pin in [6, 7, 0] {
            assert_eq!(open(&signed, pin).unwrap().controller().id(), identity(0).id());
        }
        assert!(matches!(open(&signed, 5), Err(DirectoryError::Signer { .. })));
        signed.key_changes = vec![change(6, 7, 1), change(7, 0, 100)];
        assert!(matches!(open(&signed, 6), Err(DirectoryError::Signer { .. })));
        assert!(open(&signed, 7).is_ok());
        // A change that someone else signed leads nowhere.
        let mut forged = change(7, 0, 100);
        forged.signature = identity(5).sign(&forged.bytes).unwrap();
        signed.key_changes = vec![forged];
        assert!(matches!(open(&signed, 7), Err(DirectoryError::Signature { .. })));
    }

    #[test]
    fn members_that_do_not_check_are_left_out() {
        let mut broken = sign(2);
        broken.signature[9] ^= 1;
        let mut twin = descriptor(3);
        twin.name = "n1".to_owned();
        let mut short = descriptor(4);
        short.valid_until = at(DAY - 1);
        let nodes = [
            sign(1),
            broken,
            crate::directory::SignedDescriptor::sign(&twin, identity(3)).unwrap(),
            crate::directory::SignedDescriptor::sign(&short, identity(4)).unwrap(),
            sign(1),
        ];
        let signed = signed_directory(1, &nodes);
        let directory = Directory::open(&signed, &identity(0).id(), at(0), None).unwrap();
        assert_eq!(directory.nodes().len(), 1);
        assert_eq!(directory.skipped().len(), 4, "{:?}", directory.skipped());
    }

    #[test]
    fn the_envelope_round_trips() {
        let signed = signed_directory(3, &[sign(1), sign(2)]);
        let json = serde_json::to_vec(&signed).unwrap();
        assert_eq!(SignedDirectory::parse(&json).unwrap(), signed);
        for cut in [0, 1, json.len() / 2, json.len() - 1] {
            assert!(SignedDirectory::parse(&json[..cut]).is_err());
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert!(SignedDirectory::parse(&bytes).is_err());
            let signed = SignedDirectory {
                bytes, signature: vec![0; 384],
                signer: identity(0).spki_der().to_vec(), key_changes: Vec::new(),
            };
            prop_assert!(Directory::open(&signed, &identity(0).id(), at(0), None).is_err());
        }

        #[test]
        fn a_flipped_bit_is_refused(index: prop::sample::Index, bit in 0..8u8) {
            static SIGNED: OnceLock<SignedDirectory> = OnceLock::new();
            let mut signed = SIGNED.get_or_init(|| signed_directory(1, &[])).clone();
            let at_byte = index.index(signed.bytes.len());
            signed.bytes[at_byte] ^= 1 << bit;
            let opened = Directory::open(&signed, &identity(0).id(), at(0), None);
            let refused = matches!(opened, Err(DirectoryError::Signature { .. }));
            prop_assert!(refused);
        }
    }
}
