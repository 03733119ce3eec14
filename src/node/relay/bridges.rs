//! Bridges and tracker legs of an exit, in its data path.
//!
//! In: bodies of circuits, cells of other exits, messages of the HTTP door. Out: cells, posts.
//! Called by: the node's turn.

use std::{
    net::SocketAddr,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::sync::{mpsc, oneshot};

use super::{Onward, Relay};
use crate::{
    capture::udp::Message,
    directory::{Directory, Member},
    forward::bridge::{BridgeEvent, BridgeHop, Members, OrderError, OtherNode},
    model::{BODY_LEN, CELL_LEN, Cid, CircuitKey, DropReason, NodeId, Role},
    node::{
        http_carrier::cells_of,
        poster::{About, PostJob},
    },
    wire::{
        ControlFragment, ControlType, body_mut,
        share::{Envelope, NextRelayId, Order},
    },
};

/// Where posts to trackers go.
pub(crate) type Posts = mpsc::Sender<PostJob>;

/// Why a message of the HTTP door is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DoorRefusal {
    /// An order was not obeyed.
    #[error(transparent)]
    Order(#[from] OrderError),
    /// Neither a frame for a leg of this node nor cells.
    #[error(
        "expected a frame for a known CID, or 1 to 32 cells of 1392 bytes by a member or by somebody \
         who polls"
    )]
    NoCells,
}

/// A message of the HTTP door, and where its answer goes.
pub(crate) struct DoorMessage {
    /// The stand-in of who sent it, if cells may come from there.
    pub(crate) from: Option<SocketAddr>,
    pub(crate) envelope: Envelope,
    pub(crate) reply: oneshot::Sender<Result<(), DoorRefusal>>,
}

impl Relay {
    /// A datagram of a circuit: it goes on from where it lies.
    pub(super) fn bridge_forward(
        &mut self,
        now: Instant,
        circuit: CircuitKey,
        cell: &mut [u8; CELL_LEN],
    ) -> Result<SocketAddr, DropReason> {
        let hop = self.bridges.forward(now, circuit, cell)?;
        self.bridge_hop(hop, cell)
    }

    /// A cell whose id no circuit has: nothing if it is none of a bridge either.
    pub(super) fn bridge_cell(
        &mut self,
        now: Instant,
        from: SocketAddr,
        cell: &mut [u8; CELL_LEN],
    ) -> Option<Result<Option<SocketAddr>, DropReason>> {
        let members = Listed(self.directory.as_deref());
        let (keys, rng) = (&self.onion_keys.as_slice(), &mut self.rng);
        let handled = self.bridges.handle_cell(now, unix_now(), from, cell, &members, keys, rng)?;
        Some(match handled {
            Ok(Some(hop)) => self.bridge_hop(hop, cell).map(Some),
            Ok(None) => Ok(None),
            Err(reason) => Err(reason),
        })
    }

    fn bridge_hop(
        &mut self,
        hop: BridgeHop,
        cell: &mut [u8; CELL_LEN],
    ) -> Result<SocketAddr, DropReason> {
        match hop {
            BridgeHop::Exit(to) => Ok(to),
            BridgeHop::Circuit(circuit) => self.table.originate(circuit, cell, &mut self.rng),
        }
    }

    /// A control body that is for file sharing; nothing if it is not.
    pub(super) fn share_control(
        &mut self,
        now: Instant,
        circuit: CircuitKey,
        body: &[u8; BODY_LEN],
    ) -> Option<Result<(), DropReason>> {
        let fragment = ControlFragment::parse(body).ok()?;
        match fragment.kind {
            ControlType::TrackerUp => Some(if self.exit.is_some() {
                self.bridges.handle_tracker_up(now, circuit, fragment.value, &mut self.rng)
            } else {
                Err(DropReason::NotAnExit)
            }),
            ControlType::Bridge => Some(self.bridges.handle_notice(circuit, fragment.value)),
            _ => None,
        }
    }

    /// A message of the HTTP door.
    pub(super) fn handle_door(&mut self, now: Instant, message: DoorMessage) {
        let answer = match message.envelope {
            Envelope::Order(order) => self.handle_order(now, &order).map_err(DoorRefusal::Order),
            Envelope::Bytes { cid, payload } => {
                if self.bridges.handle_tracker_down(cid, &payload) {
                    Ok(())
                } else {
                    self.handle_http_cells(now, message.from, cid, &payload)
                }
            }
        };
        // Whoever asked may have gone.
        let _ = message.reply.send(answer);
    }

    /// Cells that came over HTTP.
    fn handle_http_cells(
        &mut self,
        now: Instant,
        from: Option<SocketAddr>,
        cid: Cid,
        payload: &[u8],
    ) -> Result<(), DoorRefusal> {
        let from = from.ok_or(DoorRefusal::NoCells)?;
        let mut cells = cells_of(cid, payload).ok_or(DoorRefusal::NoCells)?;
        let bytes = cells.as_mut_slice();
        let (stride, ecn, waited) = (CELL_LEN, 0, Duration::ZERO);
        let mut onward = Onward::default();
        let message = Message { from, stride, ecn, waited, bytes };
        self.handle_message(now, message, &mut onward);
        onward.flush(&mut self.link);
        self.write_device();
        Ok(())
    }

    fn handle_order(&mut self, now: Instant, order: &Order) -> Result<(), OrderError> {
        let directory = self.directory.as_deref();
        let tracker_key = directory
            .and_then(|directory| directory.get(&order.tracker))
            .filter(|member| member.descriptor.has(Role::Tracker))
            .and_then(|member| member.descriptor.order_key);
        let result = self.bridges.handle_order(
            now,
            unix_now(),
            order,
            tracker_key.as_ref(),
            &Listed(directory),
            &self.onion_keys.as_slice(),
            &mut self.rng,
        );
        match &result {
            Ok(()) => log::debug!(event = "order"; "{:?} for {:?}", order.kind, order.session),
            Err(error) => log::info!(event = "order_refused"; "an order was refused: {error}"),
        }
        result
    }

    /// Carries out what bridges ask for.
    pub(super) fn act_on_bridges(&mut self) {
        while let Some(event) = self.bridges.poll_event() {
            match event {
                BridgeEvent::Post { tracker, leg, frame } => {
                    let body = Envelope::emit_bytes(leg, &frame);
                    let job = PostJob { to: tracker, body, about: About::Frame };
                    if self.posts.try_send(job).is_err() {
                        self.link.drops.count(DropReason::QueueFull);
                    }
                }
                BridgeEvent::Control { circuit, kind, value } => {
                    let fragment =
                        ControlFragment { kind, request: 0, index: 0, count: 1, value: &value };
                    let mut cell = [0; CELL_LEN];
                    let sent = fragment
                        .emit(body_mut(&mut cell))
                        .map_err(|_| DropReason::BadControl)
                        .and_then(|()| self.table.originate(circuit, &mut cell, &mut self.rng));
                    match sent {
                        Ok(to) => self.link.send(to, &cell),
                        Err(reason) => self.link.drops.count(reason),
                    }
                }
                BridgeEvent::Send { to, cell } => self.link.send(to, cell.as_slice()),
            }
        }
    }

    /// Timers of bridges.
    pub(super) fn tick_bridges(&mut self, now: Instant) {
        if self.bridges.poll_timeout().is_some_and(|at| now >= at) {
            let full = self.link.drops.get(DropReason::QueueFull);
            let refused = full - std::mem::replace(&mut self.full_before, full);
            self.bridges.handle_timeout(now, unix_now(), refused, &mut self.rng);
        }
    }
}

/// The directory, for bridges.
struct Listed<'a>(Option<&'a Directory>);

impl Listed<'_> {
    fn node(&self, id: &NodeId, fits: fn(&Member) -> bool) -> Option<OtherNode> {
        let member = self.0?.get(id).filter(|member| fits(member))?;
        let descriptor = &member.descriptor;
        Some(OtherNode {
            addr: member.addr(),
            onion_key: descriptor.onion_key,
            onion_key_id: descriptor.onion_key_id,
            suite: *descriptor.suites.first()?,
        })
    }
}

impl Members for Listed<'_> {
    fn exit(&self, id: &NodeId) -> Option<OtherNode> {
        self.node(id, Member::is_exit)
    }

    fn relay(&self, id: &NodeId) -> Option<OtherNode> {
        self.node(id, Member::is_relay)
    }

    fn next_relay(&self, relay: NextRelayId) -> Option<SocketAddr> {
        let mut members = self.0?.nodes().iter();
        let found = members.find(|member| relay.names(&member.id) && member.is_relay())?;
        Some(found.addr())
    }

    fn has_relay_at(&self, addr: SocketAddr) -> bool {
        self.0.and_then(|directory| directory.by_addr(addr)).is_some_and(Member::is_relay)
    }
}

/// Seconds since 1970.
fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
