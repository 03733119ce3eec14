//! How two exits find each other for a bridge: a join, an acceptance, keys on both sides.
//!
//! In: onion keys, joins of other exits. Out: open links. Called by: the exit's bridges.

use std::{net::SocketAddr, time::Instant};

use rand::Rng;

use super::{
    BridgeEvent, BridgeHop, End, EndLink, ExitBridges, Members, OrderError, OtherNode,
    end::{Joining, OpenLink},
};
use crate::{
    keys::{BridgeKeys, BridgeNames, OnionKey},
    model::{CELL_LEN, CID_LEN, Cid, DropReason, NodeId},
    wire::{
        set_cid,
        share::{JOIN_LEN, JoinPrefix, Order, ShareRole},
    },
};

/// This exit's onion keys, the current one first.
pub type OwnKeys<'a> = &'a [OnionKey];

impl End {
    /// The names of the bridge at the exit that is joined.
    pub(super) fn joined_names(&self, receiver: NodeId) -> BridgeNames {
        let (bridge, session) = (self.bridge, self.session.0);
        BridgeNames { bridge, session, maker: self.other, receiver }
    }
}

/// The keys of a bridge at the exit that is joined, from what the other says; `bad` for a point that
/// is none.
pub(super) fn joined_keys(
    names: &BridgeNames,
    join: &JoinPrefix,
    members: &impl Members,
    own: &OwnKeys<'_>,
    bad: DropReason,
) -> Result<BridgeKeys, DropReason> {
    let other = members.exit(&names.maker).ok_or(DropReason::UnknownOnionKey)?;
    let own = own.iter().find(|key| key.id() == join.receiver_key_id);
    let own = own.ok_or(DropReason::UnknownOnionKey)?;
    if other.onion_key_id != join.sender_key_id {
        // The other exit's key changed; the newer directory comes, and so does the next join.
        return Err(DropReason::UnknownOnionKey);
    }
    BridgeKeys::of_receiver(names, join.suite, own, &join.ephemeral, &other.onion_key)
        .map_err(|_| bad)
}

impl ExitBridges {
    pub(super) fn start_join(
        &self,
        now: Instant,
        order: &Order,
        other: &OtherNode,
        keys: &OwnKeys<'_>,
        rng: &mut impl Rng,
    ) -> Result<EndLink, OrderError> {
        let names = self.names_of(order);
        let suite = self.suite.max(other.suite);
        let own = keys.first().ok_or(OrderError::NoRoom)?;
        let ephemeral = OnionKey::generate(rng).map_err(|_| OrderError::NoRoom)?;
        let keys = BridgeKeys::of_maker(&names, suite, own, &ephemeral, &other.onion_key)
            .map_err(|_| OrderError::UnknownExit)?;
        let mut join = JoinPrefix {
            suite,
            receiver_key_id: other.onion_key_id,
            sender_key_id: own.id(),
            ephemeral: *ephemeral.public(),
            mac: [0; 16],
        };
        join.mac = keys.join_mac(JoinPrefix::before_mac(&join.emit()));
        let joining = Joining { to: other.addr, keys, prefix: join.emit(), attempts: 0, next: now };
        Ok(EndLink::Joining(Box::new(joining)))
    }

    /// The names of a bridge that this exit makes.
    pub(super) fn names_of(&self, order: &Order) -> BridgeNames {
        BridgeNames {
            bridge: order.bridge_cid(),
            session: order.session.0,
            maker: self.id,
            receiver: order.to,
        }
    }

    /// Sends the join, if the end is the one that joins.
    pub(super) fn ask_to_join(&mut self, now: Instant, at: usize, rng: &mut impl Rng) {
        let Some(end) = self.ends[at].as_deref_mut() else { return };
        if let EndLink::Joining(joining) = &mut end.link {
            joining.count_attempt(now);
            let event = greeting(joining.to, end.bridge, &joining.prefix, rng);
            self.events.push_back(event);
        }
    }

    /// Joins two ends of this exit, once both are there.
    pub(super) fn join_locally(&mut self, at: usize) {
        let Some(end) = self.ends[at].as_deref() else { return };
        let (bridge, circuit, role) = (end.bridge, end.circuit, end.role);
        let is_other = |other: &End| {
            other.bridge == bridge && other.role != role && matches!(other.link, EndLink::Waiting)
        };
        let other = self.ends.iter().position(|found| found.as_deref().is_some_and(is_other));
        let Some(other) = other else { return };
        for (one, circuit) in
            [(at, self.ends[other].as_deref().map(|end| end.circuit)), (other, Some(circuit))]
        {
            if let (Some(end), Some(circuit)) = (self.ends[one].as_deref_mut(), circuit) {
                end.link = EndLink::Local(circuit);
            }
            self.opened(one);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what an exit knows of the other, and its keys")]
    pub(super) fn handle_join(
        &mut self,
        now: Instant,
        at: usize,
        from: SocketAddr,
        cell: &[u8; CELL_LEN],
        members: &impl Members,
        keys: &OwnKeys<'_>,
        rng: &mut impl Rng,
    ) -> Result<Option<BridgeHop>, DropReason> {
        let end = self.ends[at].as_deref_mut().ok_or(DropReason::NoBridge)?;
        if end.role != ShareRole::Downloader || end.other == self.id {
            return Err(DropReason::NoBridge);
        }
        let prefix: &[u8; JOIN_LEN] =
            cell[CID_LEN..].first_chunk().ok_or(DropReason::BadControl)?;
        let join = JoinPrefix::parse(prefix).map_err(|_| DropReason::BadControl)?;
        let names = end.joined_names(self.id);
        let keys = joined_keys(&names, &join, members, keys, DropReason::BadControl)?;
        if !keys.proves_join(JoinPrefix::before_mac(prefix), &join.mac) {
            return Err(DropReason::BadTag);
        }
        let accept = keys.accept_mac();
        let link = OpenLink::new(now, from, keys.receiver_layers(), Some((*prefix, accept)));
        end.link = EndLink::Open(Box::new(link));
        let event = greeting(from, end.bridge, &accept, rng);
        self.events.push_back(event);
        self.opened(at);
        Ok(None)
    }

    pub(super) fn handle_accept(
        &mut self,
        now: Instant,
        at: usize,
        from: SocketAddr,
        cell: &[u8; CELL_LEN],
    ) -> Result<Option<BridgeHop>, DropReason> {
        let end = self.ends[at].as_deref_mut().ok_or(DropReason::NoBridge)?;
        let EndLink::Joining(joining) = &end.link else { return Err(DropReason::NoBridge) };
        if !joining.keys.proves_accept(&cell[CID_LEN..CID_LEN + 16]) {
            return Err(DropReason::BadTag);
        }
        if let EndLink::Joining(joining) = std::mem::replace(&mut end.link, EndLink::Waiting) {
            let layers = joining.keys.maker_layers();
            end.link = EndLink::Open(Box::new(OpenLink::new(now, from, layers, None)));
        }
        self.opened(at);
        Ok(None)
    }

    /// Gives the answer to a join once more.
    pub(super) fn accept_again(&mut self, at: usize, from: SocketAddr, rng: &mut impl Rng) {
        let Some(end) = self.ends[at].as_deref() else { return };
        let EndLink::Open(link) = &end.link else { return };
        if let Some((_, accept)) = &link.join {
            let event = greeting(from, end.bridge, accept, rng);
            self.events.push_back(event);
        }
    }

    pub(super) fn opened(&mut self, at: usize) {
        if let Some(end) = self.ends[at].take() {
            self.notice(&end, None);
            self.ends[at] = Some(end);
        }
    }
}

/// A cell that opens with `message`, with random padding behind it.
fn greeting(to: SocketAddr, bridge: Cid, message: &[u8], rng: &mut impl Rng) -> BridgeEvent {
    let mut cell = Box::new([0; CELL_LEN]);
    rng.fill_bytes(cell.as_mut_slice());
    set_cid(&mut cell, bridge);
    cell[CID_LEN..CID_LEN + message.len()].copy_from_slice(message);
    BridgeEvent::Send { to, cell }
}
