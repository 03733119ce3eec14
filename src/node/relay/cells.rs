//! Cells from the socket: relayed from where they lie, or handled here.
//!
//! In: one read's datagrams of one sender. Out: runs of cells to neighbours, bodies for this node.
//! Called by: the node's turn.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::{Onward, Relay};
use crate::{
    capture::udp::Message,
    directory::check_probe,
    forward::{Verdict, ecn},
    model::{BodyKind, CELL_LEN, Cid, CircuitKey, DropReason},
    wire::{BodyHeader, Probe, body_mut, body_ref, cid_of},
};

/// Probes answered a second: each costs a signature check.
const PROBES_PER_SECOND: u32 = 10;

impl Relay {
    /// Handles datagrams of one sender that lie back to back. Cells that go on are sent from where
    /// they lie.
    pub(super) fn handle_message<'a>(
        &mut self,
        now: Instant,
        message: Message<'a>,
        onward: &mut Onward<'a>,
    ) {
        let (from, way) = (message.from, (message.waited, message.ecn == ecn::MET));
        let cells = self.link.cells_of(message);
        self.link.traffic.cells_in += cells.len() as u64;
        let mut verdicts = std::mem::take(&mut self.verdicts);
        self.table.handle_cells(now, from, cells, &mut verdicts, &self.crew);
        // The run at the start of what is left: cells handled, and all for one neighbour or none.
        let (mut left, mut run, mut goes) = (cells, 0, None);
        for verdict in verdicts.drain(..) {
            let next = self.act_on_verdict(now, from, way, verdict, &mut left[run]);
            if next != goes {
                let (done, rest) = std::mem::take(&mut left).split_at_mut(run);
                self.send_on(goes, done, onward);
                (left, run, goes) = (rest, 0, next);
            }
            run += 1;
        }
        self.verdicts = verdicts;
        self.send_on(goes, left, onward);
    }

    fn send_on<'a>(
        &mut self,
        goes: Option<(SocketAddr, bool)>,
        cells: &'a [[u8; CELL_LEN]],
        onward: &mut Onward<'a>,
    ) {
        if let Some((to, marked)) = goes {
            onward.push(&mut self.link, to, marked, cells.as_flattened());
        }
    }

    /// Does with one cell what its verdict says, given how long it waited and whether it came marked;
    /// returns where to send it, if it goes on, and whether marked.
    fn act_on_verdict(
        &mut self,
        now: Instant,
        from: SocketAddr,
        (waited, marked): (Duration, bool),
        verdict: Verdict,
        cell: &mut [u8; CELL_LEN],
    ) -> Option<(SocketAddr, bool)> {
        let result = match verdict {
            Verdict::Relay { circuit, to } => {
                return Some((to, self.inbox.judge(now, waited, circuit) || marked));
            }
            Verdict::Local { circuit, header, .. } if header.kind == BodyKind::Bridge => {
                let marked = self.inbox.judge(now, waited, circuit) || marked;
                match self.bridge_forward(now, circuit, cell) {
                    Ok(to) => return Some((to, marked)),
                    Err(reason) => Err(reason),
                }
            }
            Verdict::Local { circuit, seq, header } => {
                let marked = self.inbox.judge(now, waited, circuit) || marked;
                self.handle_local(now, circuit, (seq, marked), header, cell)
            }
            Verdict::Neighbour { circuit, direction, message } => {
                self.circuits.handle_neighbour(circuit, direction, message);
                Ok(())
            }
            Verdict::RepeatedCreate { circuit } => {
                let cid = cid_of(cell);
                self.circuits.handle_repeated_create(circuit, from, cid, &mut self.rng);
                Ok(())
            }
            Verdict::Unknown if cid_of(cell) == Cid::ZERO => self.handle_probe(from, cell),
            Verdict::Unknown => match self.bridge_cell(now, from, cell) {
                Some(Ok(to)) => return to.map(|to| (to, marked)),
                Some(Err(reason)) => Err(reason),
                None => self.circuits.handle_unknown(now, from, cell, &mut self.rng),
            },
            Verdict::Drop(reason) => Err(reason),
        };
        if let Err(reason) = result {
            self.link.drops.count(reason);
        }
        None
    }

    fn handle_local(
        &mut self,
        now: Instant,
        circuit: CircuitKey,
        (seq, marked): (u32, bool),
        header: BodyHeader,
        cell: &mut [u8; CELL_LEN],
    ) -> Result<(), DropReason> {
        if header.kind != BodyKind::Data {
            self.skip_at_exit(circuit, seq);
        }
        match header.kind {
            BodyKind::Data => self.exit_data(now, circuit, (seq, marked), body_ref(cell)),
            BodyKind::Control => {
                if let Some(result) = self.share_control(now, circuit, body_ref(cell)) {
                    return result;
                }
                let directory = self.directory.as_deref();
                let member = |to: &str| Self::member(directory, to);
                self.circuits.handle_control(now, circuit, body_ref(cell), member, &mut self.rng)
            }
            BodyKind::Echo => {
                BodyHeader::new(BodyKind::EchoReply).emit(body_mut(cell));
                let to = self.table.originate(circuit, cell, &mut self.rng)?;
                // Sent with what else this read brings back, in one run.
                let index = self.outbox.push(to);
                *self.outbox.cell_mut(index) = *cell;
                Ok(())
            }
            BodyKind::Cover => Err(DropReason::Cover),
            BodyKind::EchoReply | BodyKind::Bridge => Err(DropReason::UnknownKind),
        }
    }

    fn handle_probe(
        &mut self,
        from: SocketAddr,
        cell: &mut [u8; CELL_LEN],
    ) -> Result<(), DropReason> {
        if self.probes >= PROBES_PER_SECOND {
            return Err(DropReason::BadProbe);
        }
        let probe = Probe::parse(cell).map_err(|_| DropReason::BadProbe)?;
        let directory = self.directory.as_ref().ok_or(DropReason::BadProbe)?;
        self.probes += 1;
        check_probe(&probe, &self.identity.id(), directory.controller(), Timestamp::now())
            .map_err(|_| DropReason::BadProbe)?;
        probe.answer().emit(cell, &mut self.rng);
        self.link.send(from, cell);
        Ok(())
    }
}
