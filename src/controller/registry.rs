//! Who is known, who is alive, and what the next directory must list: a state machine without I/O.
//!
//! In: registrations, probe answers, time. Out: the nodes to list, the nodes to probe.
//! Called by: registration, the prober, the publisher, the queries.
//!
//! ```text
//! known --renewal--> seen --probe answered--> listed --unseen for `down_after`--> down --renewal--> seen
//! ```

use std::{
    collections::{HashMap, hash_map::Entry},
    net::SocketAddr,
    time::{Duration, Instant},
};

use aws_lc_rs::digest;
use jiff::Timestamp;

use super::store::NodeRecord;
use crate::{
    directory::{Descriptor, SignedDescriptor, SignedEntry},
    keys::PublicIdentity,
    model::{NodeId, Role},
};

/// A hash of what a descriptor says, whenever it was signed.
type Content = [u8; 32];

/// One instant on both clocks: the steady one for liveness, the wall clock for people.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// Never jumps.
    pub(crate) steady: Instant,
    /// What is shown and signed.
    pub(crate) wall: Timestamp,
}

impl Moment {
    pub(crate) fn now() -> Self {
        Self { steady: Instant::now(), wall: Timestamp::now() }
    }
}

/// A node that was let in.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) record: NodeRecord,
    pub(crate) descriptor: Descriptor,
    pub(crate) identity: PublicIdentity,
    /// What the controller vouches for, signed when first asked.
    pub(crate) entry: Option<SignedEntry>,
    content: Content,
    seen: Option<Instant>,
    /// The address that answered a probe.
    reached: Option<SocketAddr>,
    probing: bool,
}

impl Node {
    fn new(record: NodeRecord, descriptor: Descriptor, identity: PublicIdentity) -> Self {
        let content = content(&descriptor);
        Self {
            record,
            descriptor,
            identity,
            entry: None,
            content,
            seen: None,
            reached: None,
            probing: false,
        }
    }

    /// The address that is used: the first one.
    pub(crate) fn addr(&self) -> SocketAddr {
        // A checked descriptor has at least one address.
        self.descriptor.addrs[0]
    }

    /// Whether its port answered a probe.
    pub(crate) fn is_reachable(&self) -> bool {
        self.reached == Some(self.addr())
    }
}

fn content(descriptor: &Descriptor) -> Content {
    let timeless = Descriptor {
        valid_after: Timestamp::UNIX_EPOCH,
        valid_until: Timestamp::UNIX_EPOCH,
        ..descriptor.clone()
    };
    let json = serde_json::to_vec(&timeless).unwrap_or_default();
    let hash = digest::digest(&digest::SHA256, &json);
    std::array::from_fn(|at| hash.as_ref()[at])
}

/// What stands in a directory: enough to see that the next one would be the same.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Listing(Vec<(NodeId, Content)>);

/// How a known node's renewal ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Renewal {
    /// The node says what it said before.
    Same,
    /// The node says something else, which must be remembered before it is taken over.
    Changed,
    /// The very bytes of last time: an answer got lost, or someone replays.
    Again,
    /// Signed before the newest ones.
    Older(Timestamp),
    /// A role that its token did not allow.
    RoleNotAllowed(Role),
    /// Nobody knows this node.
    Unknown,
}

/// All nodes that were let in and not taken out.
#[derive(Debug)]
pub(crate) struct Registry {
    nodes: HashMap<NodeId, Node>,
    down_after: Duration,
}

impl Registry {
    /// A registry without nodes.
    pub(crate) fn new(down_after: Duration) -> Self {
        Self { nodes: HashMap::new(), down_after }
    }

    /// Takes over what is remembered: revoked nodes are removed, unknown ones added. A node that
    /// is not among the records was let in after they were read, and stays.
    pub(crate) fn load(&mut self, records: Vec<NodeRecord>) {
        for record in records {
            if record.revoked.is_some() {
                self.nodes.remove(&record.id);
                continue;
            }
            let Entry::Vacant(place) = self.nodes.entry(record.id) else { continue };
            match record.signed.verify() {
                Ok((descriptor, identity)) => {
                    place.insert(Node::new(record, descriptor, identity));
                }
                Err(error) => {
                    log::warn!(event = "nodes"; "node {} is not used: {error}", record.id.short())
                }
            }
        }
    }

    /// After a restart: those who were listed stay so until they fail to renew.
    pub(crate) fn restore_listed(&mut self, ids: impl Iterator<Item = NodeId>, now: Moment) {
        for id in ids {
            if let Some(node) = self.nodes.get_mut(&id) {
                node.seen = Some(now.steady);
                node.reached = Some(node.addr());
            }
        }
    }

    /// How a descriptor compares with what its node said last; nothing is changed.
    pub(crate) fn compare(
        &self,
        id: NodeId,
        signed: &SignedDescriptor,
        descriptor: &Descriptor,
    ) -> Renewal {
        let Some(node) = self.nodes.get(&id) else { return Renewal::Unknown };
        if node.record.signed.bytes == signed.bytes {
            return Renewal::Again;
        }
        if descriptor.valid_after <= node.descriptor.valid_after {
            return Renewal::Older(node.descriptor.valid_after);
        }
        let allowed = node.record.allowed;
        if let Some(role) = descriptor.roles.iter().find(|role| !allowed.allows(**role)) {
            return Renewal::RoleNotAllowed(*role);
        }
        if content(descriptor) == node.content { Renewal::Same } else { Renewal::Changed }
    }

    /// Adds a node that was let in.
    pub(crate) fn insert(
        &mut self,
        record: NodeRecord,
        descriptor: Descriptor,
        identity: PublicIdentity,
        now: Moment,
    ) {
        let mut node = Node::new(record, descriptor, identity);
        node.seen = Some(now.steady);
        self.nodes.insert(node.record.id, node);
    }

    /// Takes over a renewal, unless a newer one was faster.
    pub(crate) fn renew(
        &mut self,
        id: NodeId,
        signed: SignedDescriptor,
        descriptor: Descriptor,
        now: Moment,
    ) {
        let down_after = self.down_after;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if descriptor.valid_after <= node.descriptor.valid_after {
            return;
        }
        if node.seen.is_none_or(|seen| now.steady.duration_since(seen) > down_after) {
            // It was down: its port must answer again.
            node.reached = None;
        }
        let new_content = content(&descriptor);
        if new_content != node.content {
            node.entry = None;
            node.content = new_content;
        }
        node.seen = Some(now.steady);
        node.record.last_seen = now.wall;
        node.record.name.clone_from(&descriptor.name);
        node.record.signed = signed;
        node.descriptor = descriptor;
    }

    /// The address to probe for a node that renewed and is not known to be reachable; none while
    /// another probe is out.
    pub(crate) fn begin_probe(&mut self, id: NodeId) -> Option<SocketAddr> {
        let node = self.nodes.get_mut(&id)?;
        if node.probing || node.is_reachable() {
            return None;
        }
        node.probing = true;
        Some(node.addr())
    }

    /// The end of a probe. Returns whether the node became reachable by it.
    pub(crate) fn end_probe(&mut self, id: NodeId, addr: SocketAddr, answered: bool) -> bool {
        let Some(node) = self.nodes.get_mut(&id) else { return false };
        node.probing = false;
        if !answered || node.is_reachable() {
            return false;
        }
        node.reached = Some(addr);
        node.is_reachable()
    }

    /// Whether a node belongs in the directory.
    pub(crate) fn is_listed(&self, node: &Node, now: Moment) -> bool {
        node.is_reachable()
            && node.seen.is_some_and(|seen| now.steady.duration_since(seen) <= self.down_after)
    }

    /// The nodes that belong in the directory, by name.
    pub(crate) fn listed(&self, now: Moment) -> Vec<&Node> {
        let mut listed: Vec<&Node> =
            self.nodes.values().filter(|node| self.is_listed(node, now)).collect();
        listed.sort_by(|one, other| one.record.name.cmp(&other.record.name));
        listed
    }

    /// What the next directory would list.
    pub(crate) fn listing(&self, now: Moment) -> Listing {
        Listing(self.listed(now).into_iter().map(|node| (node.record.id, node.content)).collect())
    }

    /// A node, listed or not.
    pub(crate) fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    /// Keeps a signed entry, unless the node said something else in the meantime.
    pub(crate) fn keep_entry(&mut self, id: NodeId, descriptor: &Descriptor, entry: SignedEntry) {
        if let Some(node) = self.nodes.get_mut(&id)
            && node.descriptor.says_the_same(descriptor)
        {
            node.entry = Some(entry);
        }
    }

    /// Forgets all signed entries: the key or the time changed.
    pub(crate) fn forget_entries(&mut self) {
        for node in self.nodes.values_mut() {
            node.entry = None;
        }
    }

    /// The node that a person means: by name, by id, or by the first 8 or more digits of an id.
    pub(crate) fn find(&self, text: &str) -> Option<&Node> {
        if let Some(node) = self.nodes.values().find(|node| node.record.name == text) {
            return Some(node);
        }
        if let Ok(id) = text.parse() {
            return self.nodes.get(&id);
        }
        if text.len() < 8 {
            return None;
        }
        let mut found =
            self.nodes.values().filter(|node| node.record.id.to_string().starts_with(text));
        found.next().filter(|_| found.next().is_none())
    }

    /// The name closest to a text that names no node.
    pub(crate) fn nearest_name(&self, text: &str) -> Option<&str> {
        self.nodes
            .values()
            .map(|node| (strsim::damerau_levenshtein(&node.record.name, text), node))
            .filter(|(distance, _)| *distance <= 2)
            .min_by_key(|(distance, node)| (*distance, node.record.name.clone()))
            .map(|(_, node)| node.record.name.as_str())
    }

    /// How many nodes there are, listed or not.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// What is worth remembering of nodes that were seen.
    pub(crate) fn records(&self) -> Vec<NodeRecord> {
        self.nodes
            .values()
            .filter(|node| node.seen.is_some())
            .map(|node| node.record.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        controller::store::TokenRole,
        directory::test_network::{at, descriptor},
        keys::test_keys::identity,
    };

    const DOWN_AFTER: Duration = Duration::from_secs(30);

    /// A registry, and its clock.
    struct Bench {
        registry: Registry,
        begin: Instant,
        seconds: u64,
    }

    impl Bench {
        fn new() -> Self {
            Self { registry: Registry::new(DOWN_AFTER), begin: Instant::now(), seconds: 0 }
        }

        fn now(&self) -> Moment {
            let seconds = i64::try_from(self.seconds).unwrap();
            Moment { steady: self.begin + Duration::from_secs(self.seconds), wall: at(seconds) }
        }

        fn said(&self, index: usize) -> (SignedDescriptor, Descriptor) {
            let mut said = descriptor(index);
            said.valid_after = self.now().wall;
            (SignedDescriptor::sign(&said, identity(index)).unwrap(), said)
        }

        fn record(&self, index: usize, signed: SignedDescriptor) -> NodeRecord {
            NodeRecord {
                id: identity(index).id(),
                name: format!("n{index}"),
                signed,
                allowed: TokenRole::Node,
                label: None,
                admitted: self.now().wall,
                last_seen: self.now().wall,
                revoked: None,
            }
        }

        fn admit(&mut self, index: usize) {
            let (signed, said) = self.said(index);
            let record = self.record(index, signed);
            let now = self.now();
            self.registry.insert(record, said, identity(index).public().clone(), now);
        }

        fn renew(&mut self, index: usize) -> Renewal {
            let (signed, said) = self.said(index);
            let now = self.now();
            let renewal = self.registry.compare(identity(index).id(), &signed, &said);
            if matches!(renewal, Renewal::Same | Renewal::Changed) {
                self.registry.renew(identity(index).id(), signed, said, now);
            }
            renewal
        }

        fn probe(&mut self, index: usize) -> bool {
            let id = identity(index).id();
            let Some(addr) = self.registry.begin_probe(id) else { return false };
            self.registry.end_probe(id, addr, true)
        }

        fn names(&self) -> Vec<String> {
            let listed = self.registry.listed(self.now());
            listed.iter().map(|node| node.record.name.clone()).collect()
        }
    }

    #[test]
    fn a_node_is_listed_once_its_port_answers_and_while_it_renews() {
        let mut bench = Bench::new();
        bench.admit(1);
        assert!(bench.names().is_empty(), "not before its port answered");
        assert!(bench.probe(1));
        assert_eq!(bench.names(), ["n1"]);
        assert!(!bench.probe(1), "once is enough");
        for _ in 0..5 {
            bench.seconds += 10;
            assert_eq!(bench.renew(1), Renewal::Same);
            assert_eq!(bench.names(), ["n1"]);
        }
        bench.seconds += 30;
        assert_eq!(bench.names(), ["n1"]);
        bench.seconds += 1;
        assert!(bench.names().is_empty(), "unseen for more than 30 s");
        assert_eq!(bench.renew(1), Renewal::Same);
        assert!(bench.names().is_empty(), "back, but its port must answer again");
        assert!(bench.probe(1));
        assert_eq!(bench.names(), ["n1"]);
    }

    #[test]
    fn a_failed_probe_lists_nothing_and_one_is_out_at_a_time() {
        let mut bench = Bench::new();
        bench.admit(1);
        let id = identity(1).id();
        let addr = bench.registry.begin_probe(id).unwrap();
        assert!(bench.registry.begin_probe(id).is_none());
        assert!(!bench.registry.end_probe(id, addr, false));
        assert!(bench.names().is_empty());
        // The answer of an address that the node has left counts for nothing.
        let addr = bench.registry.begin_probe(id).unwrap();
        bench.seconds += 1;
        let mut said = descriptor(1);
        said.addrs = vec!["198.51.100.1:5000".parse().unwrap()];
        said.valid_after = bench.now().wall;
        let signed = SignedDescriptor::sign(&said, identity(1)).unwrap();
        assert_eq!(bench.registry.compare(id, &signed, &said), Renewal::Changed);
        bench.registry.renew(id, signed, said, bench.now());
        assert!(!bench.registry.end_probe(id, addr, true));
        assert!(bench.names().is_empty());
        assert!(bench.probe(1));
        assert_eq!(bench.names(), ["n1"]);
    }

    #[test]
    fn replays_older_descriptors_and_foreign_roles_are_told_apart() {
        let mut bench = Bench::new();
        bench.seconds = 100;
        bench.admit(1);
        let (signed, said) = bench.said(1);
        let id = identity(1).id();
        assert_eq!(bench.registry.compare(id, &signed, &said), Renewal::Again);
        bench.seconds = 50;
        assert_eq!(bench.renew(1), Renewal::Older(at(100)));
        bench.seconds = 150;
        let (_, mut said) = bench.said(1);
        said.roles = vec![Role::Relay, Role::Tracker];
        let signed = SignedDescriptor::sign(&said, identity(1)).unwrap();
        assert_eq!(
            bench.registry.compare(id, &signed, &said),
            Renewal::RoleNotAllowed(Role::Tracker)
        );
        assert_eq!(bench.renew(2), Renewal::Unknown);
    }

    #[test]
    fn a_listing_changes_with_what_is_said_and_not_with_time() {
        let mut bench = Bench::new();
        bench.admit(1);
        bench.probe(1);
        let first = bench.registry.listing(bench.now());
        bench.seconds += 10;
        bench.renew(1);
        assert_eq!(bench.registry.listing(bench.now()), first);
        bench.admit(2);
        assert_eq!(bench.registry.listing(bench.now()), first, "not reachable yet");
        bench.probe(2);
        assert_ne!(bench.registry.listing(bench.now()), first);
    }

    #[test]
    fn commands_remove_and_restarts_restore() {
        let mut bench = Bench::new();
        bench.admit(1);
        bench.admit(2);
        let mut records = bench.registry.records();
        records.sort_by(|one, other| one.name.cmp(&other.name));

        let mut restarted = Bench::new();
        restarted.registry.load(records.clone());
        assert!(restarted.names().is_empty());
        let now = restarted.now();
        restarted.registry.restore_listed([identity(1).id(), identity(5).id()].into_iter(), now);
        assert_eq!(restarted.names(), ["n1"]);
        restarted.seconds += 31;
        assert!(restarted.names().is_empty());

        records[1].revoked = Some(at(0));
        bench.admit(3);
        bench.registry.load(records);
        assert!(bench.registry.get(identity(2).id()).is_none());
        assert!(bench.registry.get(identity(1).id()).is_some());
        assert!(bench.registry.get(identity(3).id()).is_some(), "newer than the records");
    }

    #[test]
    fn people_find_nodes_by_name_id_or_its_beginning() {
        let mut bench = Bench::new();
        bench.admit(1);
        bench.admit(2);
        let id = identity(1).id();
        let found = |text: &str| bench.registry.find(text).map(|node| node.record.id);
        assert_eq!(found("n1"), Some(id));
        assert_eq!(found(&id.to_string()), Some(id));
        assert_eq!(found(&id.to_string()[..8]), Some(id));
        assert_eq!(found(&id.to_string()[..7]), None);
        assert_eq!(found(""), None);
        assert_eq!(bench.registry.nearest_name("m1"), Some("n1"));
        assert_eq!(bench.registry.nearest_name("something"), None);
    }
}
