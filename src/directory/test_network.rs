//! Descriptors and directories for the unit tests of this folder and of the controller.
//!
//! In: indices of the test identities. Out: signed documents. Called by: unit tests.
//!
//! Identity 0 is the controller, 1 to 7 are the nodes `n1` to `n7`. Time counts from one instant.

use std::sync::OnceLock;

use jiff::{SignedDuration, Timestamp};

use super::{
    Descriptor, Directory, DirectoryBody, Member, SignedDescriptor, SignedDirectory, WIRE_VERSION,
};
use crate::{
    keys::{onion_key_id, test_keys::identity},
    model::{ExitPolicy, NodeId, Role, Suite},
};

/// Seconds of a day.
pub(crate) const DAY: i64 = 86_400;

/// An instant, in seconds from the tests' beginning of time.
pub(crate) fn at(seconds: i64) -> Timestamp {
    let begin: Timestamp = "2025-06-01T12:00:00Z".parse().unwrap();
    begin + SignedDuration::from_secs(seconds)
}

/// What node `index` says of itself: `n<index>` at `10.<index>.0.1:5000`, a relay and an exit.
pub(crate) fn descriptor(index: usize) -> Descriptor {
    let onion_key = [index as u8; 32];
    Descriptor {
        name: format!("n{index}"),
        addrs: vec![([10, index as u8, 0, 1], 5000).into()],
        spki: identity(index).spki_der().to_vec(),
        onion_key,
        onion_key_id: onion_key_id(&onion_key),
        roles: vec![Role::Relay, Role::Exit],
        exit_policy: ExitPolicy::default(),
        suites: vec![Suite::Aes128Gcm, Suite::ChaCha20Poly1305],
        operator: None,
        order_key: None,
        wire_version: WIRE_VERSION,
        valid_after: at(0),
        valid_until: at(7 * DAY),
    }
}

/// The same, signed once per process.
pub(crate) fn sign(index: usize) -> SignedDescriptor {
    static SIGNED: [OnceLock<SignedDescriptor>; 8] = [const { OnceLock::new() }; 8];
    let signed = || SignedDescriptor::sign(&descriptor(index), identity(index)).unwrap();
    SIGNED[index].get_or_init(signed).clone()
}

/// A directory of a day from the beginning of time.
pub(crate) fn signed_directory(version: u64, nodes: &[SignedDescriptor]) -> SignedDirectory {
    let body = DirectoryBody::new(version, at(0), at(DAY), nodes.to_vec());
    SignedDirectory::sign(&body, identity(0), Vec::new()).unwrap()
}

/// A checked directory of version 1; descriptor and identity go by the index in the name.
pub(crate) fn directory_of(descriptors: &[Descriptor]) -> Directory {
    let nodes: Vec<SignedDescriptor> = descriptors
        .iter()
        .map(|descriptor| {
            let index = descriptor.name[1..].parse().unwrap();
            SignedDescriptor::sign(descriptor, identity(index)).unwrap()
        })
        .collect();
    Directory::open(&signed_directory(1, &nodes), &identity(0).id(), at(0), None).unwrap()
}

/// The id of a node of [`fake_directory`].
pub(crate) fn fake_id(index: usize) -> NodeId {
    let mut bytes = [0; 32];
    bytes[0] = (index % 256) as u8;
    bytes[1] = (index / 256) as u8;
    NodeId::from_bytes(bytes)
}

/// A directory of any size whose members have ids without keys.
pub(crate) fn fake_directory(count: usize, change: impl Fn(usize, &mut Descriptor)) -> Directory {
    let members = (0..count).map(|index| {
        let mut descriptor = descriptor(1);
        descriptor.name = format!("f{index}");
        change(index, &mut descriptor);
        Member { id: fake_id(index), identity: identity(1).public().clone(), descriptor }
    });
    directory_of(&[]).with_members(members)
}
