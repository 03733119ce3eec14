//! The socket of a data path, with what goes through it counted.
//!
//! In: cells back to back, messages. Out: datagrams, cells, counters. Called by: the event loops.

use std::net::SocketAddr;

use super::http_carrier::HttpRuns;
use crate::{
    capture::udp::{Message, UdpSocket},
    forward::{Outbox, ecn},
    model::{CELL_LEN, DropCounters, DropReason, HttpPeer},
    telemetry::Traffic,
};

/// A socket and the counters of its daemon.
pub(super) struct Link {
    pub(super) socket: UdpSocket,
    pub(super) traffic: Traffic,
    pub(super) drops: DropCounters,
    /// Where cells for neighbours over HTTP go.
    pub(super) http: Option<HttpRuns>,
}

impl Link {
    pub(super) fn new(socket: UdpSocket) -> Self {
        Self { socket, traffic: Traffic::default(), drops: DropCounters::default(), http: None }
    }

    /// The cells of a message, which lie back to back. What has not the length of a cell is dropped and
    /// counted.
    pub(super) fn cells_of<'a>(&mut self, message: Message<'a>) -> &'a mut [[u8; CELL_LEN]] {
        let Message { stride, bytes, .. } = message;
        if stride != CELL_LEN {
            let count = bytes.len().div_ceil(stride.max(1));
            (0..count).for_each(|_| self.drops.count(DropReason::BadLength));
            return &mut [];
        }
        let (cells, odd) = bytes.as_chunks_mut();
        if !odd.is_empty() {
            self.drops.count(DropReason::BadLength);
        }
        cells
    }

    /// Sends cells that stand back to back. What the kernel does not take is dropped and counted:
    /// the packets inside belong to senders that adapt.
    pub(super) fn send(&mut self, to: SocketAddr, cells: &[u8]) {
        self.send_pieces(to, &[cells], false);
    }

    /// As [`Self::send`], of cells that stand in several places; one call sends them if they are one
    /// train. `marked` cells tell that they met congestion.
    pub(super) fn send_pieces(&mut self, to: SocketAddr, pieces: &[&[u8]], marked: bool) {
        if let Some(peer) = HttpPeer::of(&to) {
            pieces.iter().for_each(|cells| self.send_http(peer, cells));
            return;
        }
        let ecn = if marked { ecn::MET } else { ecn::CAPABLE };
        let count = pieces.iter().map(|cells| cells.len()).sum::<usize>() / CELL_LEN;
        let sent = match self.socket.send_pieces(to, pieces, CELL_LEN, ecn) {
            Ok(()) => count,
            Err(error) => {
                let sent = error.sent / CELL_LEN;
                let reason = if error.would_block() {
                    DropReason::QueueFull
                } else {
                    DropReason::DeviceError
                };
                log::trace!("{} cells were not sent: {error}", count - sent);
                (sent..count).for_each(|_| self.drops.count(reason));
                sent
            }
        };
        self.traffic.cells_out += sent as u64;
    }

    /// Hands cells to the HTTP carrier; what finds no room is dropped and counted.
    fn send_http(&mut self, peer: HttpPeer, cells: &[u8]) {
        let count = cells.len() / CELL_LEN;
        let http = self.http.as_ref();
        if http.is_some_and(|http| http.try_send((peer, cells.to_vec())).is_ok()) {
            self.traffic.cells_out += count as u64;
        } else {
            (0..count).for_each(|_| self.drops.count(DropReason::QueueFull));
        }
    }

    /// Sends and empties an outbox.
    pub(super) fn flush(&mut self, outbox: &mut Outbox) {
        for (to, cells) in outbox.runs() {
            self.send(to, cells);
        }
        outbox.clear();
    }
}
