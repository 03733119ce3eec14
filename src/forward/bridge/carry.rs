//! The data of bridges: cells of circuits and of other exits, changed in place.
//!
//! In: cells. Out: where each goes next. Called by: the node's turn.

use std::{net::SocketAddr, time::Instant};

use rand::Rng;

use super::{
    BridgeHop, EndLink, ExitBridges, Members, OwnKeys,
    code::{CodeStage, SetUp, Step},
};
use crate::{
    model::{BodyKind, CELL_LEN, CircuitKey, DropReason},
    wire::{
        BodyHeader, ControlFragment, body_mut, body_ref, cid_of,
        share::{BridgeDatagram, BridgeNotice, CodeHead},
    },
};

impl ExitBridges {
    /// A datagram of a circuit: its cell is changed in place for the other end.
    ///
    /// # Errors
    /// The reason to drop and count it.
    pub fn forward(
        &mut self,
        now: Instant,
        circuit: CircuitKey,
        cell: &mut [u8; CELL_LEN],
    ) -> Result<BridgeHop, DropReason> {
        let session = BridgeDatagram::session_of(body_ref(cell));
        let at = *self.by_session.get(&(circuit, session)).ok_or(DropReason::NoBridge)?;
        let end = self.ends[at].as_deref_mut().ok_or(DropReason::NoBridge)?;
        if !self.shares.take(&mut end.share) {
            return Err(DropReason::BridgeShare);
        }
        end.last_data = now;
        self.bytes += u64::from(u16::from_be_bytes([body_ref(cell)[10], body_ref(cell)[11]]));
        match &mut end.link {
            EndLink::Open(link) => Ok(BridgeHop::Exit(link.seal(end.bridge, cell)?)),
            EndLink::Local(other) => Ok(BridgeHop::Circuit(*other)),
            EndLink::Code(link) if link.stage == CodeStage::Open => {
                let (to, before) = link.forward(cell)?;
                self.events.extend(before);
                Ok(BridgeHop::Exit(to))
            }
            EndLink::Joining(_) | EndLink::Waiting | EndLink::Code(_) => Err(DropReason::NoBridge),
        }
    }

    /// A datagram of the other exit, opened: whose it is.
    fn handle_opened(
        &mut self,
        now: Instant,
        at: usize,
        cell: &mut [u8; CELL_LEN],
    ) -> Result<Option<BridgeHop>, DropReason> {
        let end = self.ends[at].as_deref_mut().ok_or(DropReason::NoBridge)?;
        let header = BodyHeader::parse(body_ref(cell)).map_err(|_| DropReason::UnknownKind)?;
        match header.kind {
            BodyKind::Bridge => {
                // An exit cannot speak for another session than the bridge's.
                if BridgeDatagram::session_of(body_ref(cell)) != end.session {
                    return Err(DropReason::NoBridge);
                }
                end.last_data = now;
                Ok(Some(BridgeHop::Circuit(end.circuit)))
            }
            BodyKind::Echo => {
                BodyHeader::new(BodyKind::EchoReply).emit(body_mut(cell));
                let EndLink::Open(link) = &mut end.link else { return Ok(None) };
                link.seal(end.bridge, cell).map(|to| Some(BridgeHop::Exit(to)))
            }
            BodyKind::EchoReply => Ok(None),
            BodyKind::Control => {
                let fragment =
                    ControlFragment::parse(body_ref(cell)).map_err(|_| DropReason::BadControl)?;
                let notice =
                    BridgeNotice::parse(fragment.value).map_err(|_| DropReason::BadControl)?;
                if let Some(reason) = notice.end {
                    self.end(at, Some(reason), reason);
                }
                Ok(None)
            }
            BodyKind::Data | BodyKind::Cover => Err(DropReason::UnknownKind),
        }
    }

    /// A cell whose id no circuit has, at a time in seconds since 1970: nothing if it is none of a
    /// bridge or a tracking code either.
    #[expect(clippy::too_many_arguments, reason = "what an exit knows of the other, and its keys")]
    pub fn handle_cell(
        &mut self,
        now: Instant,
        unix: u64,
        from: SocketAddr,
        cell: &mut [u8; CELL_LEN],
        members: &impl Members,
        keys: &OwnKeys<'_>,
        rng: &mut impl Rng,
    ) -> Option<Result<Option<BridgeHop>, DropReason>> {
        let cid = cid_of(cell);
        let Some(at) = self.by_cid.get(&cid).copied() else {
            if !self.codes.has(cid)
                && (CodeHead::parse_setup(cell).is_none() || !members.has_relay_at(from))
            {
                return None;
            }
            return Some(self.handle_code(now, unix, cell, members, keys, rng));
        };
        let end = self.ends[at].as_deref_mut()?;
        Some(match &mut end.link {
            EndLink::Open(link) if link.is_join(cell) => {
                self.accept_again(at, from, rng);
                Ok(None)
            }
            EndLink::Open(link) => {
                link.open(now, from, cell).and_then(|()| self.handle_opened(now, at, cell))
            }
            EndLink::Waiting => self.handle_join(now, at, from, cell, members, keys, rng),
            EndLink::Joining(_) => self.handle_accept(now, at, from, cell),
            EndLink::Local(_) | EndLink::Code(_) => Err(DropReason::NoBridge),
        })
    }

    /// A cell that travels by tracking code.
    fn handle_code(
        &mut self,
        now: Instant,
        unix: u64,
        cell: &mut [u8; CELL_LEN],
        members: &impl Members,
        keys: &OwnKeys<'_>,
        rng: &mut impl Rng,
    ) -> Result<Option<BridgeHop>, DropReason> {
        self.next_tick.get_or_insert(now + super::TICK);
        let next_relay = |relay| members.next_relay(relay);
        if self.codes.has(cid_of(cell)) {
            return match self.codes.handle_message(now, cell, next_relay)? {
                Step::Pass(to) => Ok(Some(BridgeHop::Exit(to))),
                Step::Arrived(bridge) => self.handle_arrived(now, bridge, cell),
            };
        }
        let own = (&self.id, keys);
        match self.codes.handle_setup((now, unix), cell, own, next_relay)? {
            SetUp::Pass(to) => Ok(Some(BridgeHop::Exit(to))),
            SetUp::Arrived { cid, ephemeral, greeting } => self
                .handle_greeting(now, (cid, ephemeral), &greeting, members, keys, rng)
                .map(|()| None),
        }
    }
}
