//! Writes packets into the bodies of data cells, back to back.
//!
//! In: IP packets. Out: bodies, filled in order.
//! Called by: the client for what its device read, the exit for what comes back.

use super::{Body, NO_PACKET_START, OFFSET};
use crate::{
    forward::ip::{Declared, declared_len},
    model::{BODY_HEADER_LEN, BODY_LEN, DropReason, INNER_MTU},
};

/// Where bodies come from: the cells under construction of one circuit.
pub trait BodySink {
    /// A fresh body, in order. What it held before does not matter.
    fn next_body(&mut self) -> &mut Body;

    /// The body that [`BodySink::next_body`] returned last.
    fn body(&mut self) -> &mut Body;
}

/// Packs the packets of one circuit and direction.
///
/// Between [`Packer::push`] and [`Packer::flush`] the last body of the sink is open: its bytes
/// behind the packer's position are not written yet.
#[derive(Debug)]
pub struct Packer {
    /// Where the next byte goes; [`BODY_LEN`] when no body is open.
    at: u16,
    /// Whether a packet starts in the open body.
    starts: bool,
}

impl Default for Packer {
    fn default() -> Self {
        Self { at: BODY_LEN as u16, starts: false }
    }
}

impl Packer {
    /// A packer without an open body.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the last body still has room and waits for more packets or for [`Packer::flush`].
    pub fn is_open(&self) -> bool {
        usize::from(self.at) < BODY_LEN
    }

    /// Appends one packet, asking for as many fresh bodies as it needs (three at most). Bytes
    /// behind the packet's declared length are left out.
    ///
    /// # Errors
    ///
    /// `TooLarge` for a packet longer than the inner MTU, `BadInnerPacket` for bytes that are no
    /// IP packet; the stream is then unchanged.
    pub fn push(&mut self, packet: &[u8], bodies: &mut impl BodySink) -> Result<(), DropReason> {
        let mut rest = match declared_len(packet) {
            Declared::Len(len) => packet.get(..len).ok_or(DropReason::BadInnerPacket)?,
            _ if packet.len() > INNER_MTU => return Err(DropReason::TooLarge),
            _ => return Err(DropReason::BadInnerPacket),
        };
        let body = if self.is_open() {
            let body = bodies.body();
            if !self.starts {
                body[OFFSET].copy_from_slice(&self.at.to_be_bytes());
                self.starts = true;
            }
            body
        } else {
            self.open(bodies, BODY_HEADER_LEN as u16)
        };
        self.fill(body, &mut rest);
        while !rest.is_empty() {
            let body = self.open(bodies, NO_PACKET_START);
            self.fill(body, &mut rest);
        }
        Ok(())
    }

    /// Pads the open body, if there is one, so that it can be sent.
    pub fn flush(&mut self, bodies: &mut impl BodySink) {
        if self.is_open() {
            bodies.body()[usize::from(self.at)..].fill(0);
            *self = Self::default();
        }
    }

    fn open<'a>(&mut self, bodies: &'a mut impl BodySink, offset: u16) -> &'a mut Body {
        let body = bodies.next_body();
        body[..BODY_HEADER_LEN].fill(0);
        body[OFFSET].copy_from_slice(&offset.to_be_bytes());
        self.at = BODY_HEADER_LEN as u16;
        self.starts = offset != NO_PACKET_START;
        body
    }

    fn fill(&mut self, body: &mut Body, rest: &mut &[u8]) {
        let room = &mut body[usize::from(self.at)..];
        let (part, later) = rest.split_at(rest.len().min(room.len()));
        room[..part.len()].copy_from_slice(part);
        self.at += part.len() as u16;
        *rest = later;
    }
}
