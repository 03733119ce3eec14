//! The rows of a node's circuits, and the state of each.
//!
//! In: rows. Out: keys that stay valid while the row lives. Called by: the node's circuits.

use std::{net::SocketAddr, time::Instant};

use crate::{
    keys::PairKeys,
    model::{Cid, CircuitKey},
    wire::{ANSWER_LEN, CREATE_LEN, ControlType},
};

/// How a circuit goes on behind this node.
pub(super) enum Link {
    /// Not at all: this node is the last hop.
    None,
    /// The next node got a CREATE and has not answered.
    Awaiting {
        /// The client's request.
        request: u32,
        /// The id drawn for the new link.
        cid: Cid,
        /// The next node.
        addr: SocketAddr,
        /// What it was sent.
        prefix: Box<[u8; CREATE_LEN]>,
        /// The keys of the new link.
        pair: Box<PairKeys>,
        /// Since when it is awaited.
        since: Instant,
    },
    /// The next node has answered.
    Linked,
}

/// One circuit.
pub(super) struct NodeCircuit {
    pub(super) since: Instant,
    pub(super) link: Link,
    /// What answered the CREATE, to be repeated.
    pub(super) created: [u8; ANSWER_LEN],
    /// The last answered request and its answer, to be repeated.
    pub(super) answered: Option<(u32, ControlType, Box<[u8]>)>,
}

impl NodeCircuit {
    pub(super) fn new(since: Instant, created: [u8; ANSWER_LEN]) -> Self {
        Self { since, link: Link::None, created, answered: None }
    }
}

/// Rows by key; freed keys are used again.
#[derive(Default)]
pub(super) struct Rows {
    rows: Vec<Option<Box<NodeCircuit>>>,
    free: Vec<CircuitKey>,
}

impl Rows {
    pub(super) fn insert(&mut self, row: NodeCircuit) -> CircuitKey {
        let row = Some(Box::new(row));
        match self.free.pop() {
            Some(key) => {
                self.rows[key.index()] = row;
                key
            }
            None => {
                self.rows.push(row);
                CircuitKey(self.rows.len() as u32 - 1)
            }
        }
    }

    pub(super) fn get(&self, key: CircuitKey) -> Option<&NodeCircuit> {
        self.rows.get(key.index())?.as_deref()
    }

    pub(super) fn get_mut(&mut self, key: CircuitKey) -> Option<&mut NodeCircuit> {
        self.rows.get_mut(key.index())?.as_deref_mut()
    }

    pub(super) fn remove(&mut self, key: CircuitKey) -> Option<Box<NodeCircuit>> {
        let row = self.rows.get_mut(key.index())?.take()?;
        self.free.push(key);
        Some(row)
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len() - self.free.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (CircuitKey, &NodeCircuit)> {
        self.rows
            .iter()
            .enumerate()
            .filter_map(|(index, row)| Some((CircuitKey(index as u32), row.as_deref()?)))
    }

    pub(super) fn keys(&self) -> Vec<CircuitKey> {
        self.iter().map(|(key, _)| key).collect()
    }
}
