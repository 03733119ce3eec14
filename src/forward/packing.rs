//! Inner packets into the open cells of a circuit, cells being closed once per batch.
//!
//! In: packets. Out: cells in an [`Outbox`] with their bodies written, and which they are.
//! Called by: the tables of this folder, which then add the layers.

use std::net::SocketAddr;

use super::{
    Outbox,
    stream::{BodySink, Packer},
};
use crate::{
    model::{BODY_LEN, CircuitKey, DropReason},
    wire::body_mut,
};

/// The packer of one circuit and the outbox index of the cell that it has open.
#[derive(Default)]
pub(super) struct CircuitPacker {
    packer: Packer,
    open: usize,
}

/// Cells whose bodies are written and whose layers are not, in order.
#[derive(Default)]
pub(super) struct Written(Vec<(CircuitKey, usize)>);

impl Written {
    /// Appends `packet` to the cells of a circuit that go to `to`.
    pub(super) fn push(
        &mut self,
        key: CircuitKey,
        circuit: &mut CircuitPacker,
        to: SocketAddr,
        packet: &[u8],
        outbox: &mut Outbox,
    ) -> Result<(), DropReason> {
        let CircuitPacker { packer, open } = circuit;
        packer.push(packet, &mut Sink { outbox, to, key, open, written: &mut self.0 })
    }

    /// Takes the cells in order; [`Self::reuse`] gives the buffer back.
    pub(super) fn take(&mut self) -> Vec<(CircuitKey, usize)> {
        std::mem::take(&mut self.0)
    }

    /// Keeps the buffer of [`Self::take`].
    pub(super) fn reuse(&mut self, mut written: Vec<(CircuitKey, usize)>) {
        written.clear();
        self.0 = written;
    }
}

impl CircuitPacker {
    /// Pads the cell if it is the open one.
    pub(super) fn close(&mut self, index: usize, outbox: &mut Outbox) {
        if self.packer.is_open() && self.open == index {
            self.packer.flush(&mut OpenCell { outbox, index });
        }
    }
}

/// Gives the packer the cells of one circuit.
struct Sink<'a> {
    outbox: &'a mut Outbox,
    to: SocketAddr,
    key: CircuitKey,
    open: &'a mut usize,
    written: &'a mut Vec<(CircuitKey, usize)>,
}

impl BodySink for Sink<'_> {
    fn next_body(&mut self) -> &mut [u8; BODY_LEN] {
        *self.open = self.outbox.push(self.to);
        self.written.push((self.key, *self.open));
        self.body()
    }

    fn body(&mut self) -> &mut [u8; BODY_LEN] {
        body_mut(self.outbox.cell_mut(*self.open))
    }
}

/// The one open cell, to be padded.
struct OpenCell<'a> {
    outbox: &'a mut Outbox,
    index: usize,
}

impl BodySink for OpenCell<'_> {
    fn next_body(&mut self) -> &mut [u8; BODY_LEN] {
        self.body()
    }

    fn body(&mut self) -> &mut [u8; BODY_LEN] {
        body_mut(self.outbox.cell_mut(self.index))
    }
}
