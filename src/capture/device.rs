//! One trait for everything that gives and takes batches of IP packets.
//!
//! In: batches. Out: batches. Called by: node's event loop, capture's wrappers.

use std::{io, os::fd::RawFd};

use crate::model::PacketBatch;

/// A device of IP packets that never blocks.
pub trait PacketDevice: Send {
    /// Appends the packets of one read to `batch` and says how many; zero for a read that held
    /// none.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing to read; otherwise what the device reports.
    fn recv(&mut self, batch: &mut PacketBatch) -> io::Result<usize>;

    /// Writes all packets of `batch` and says how many the device took; the rest is lost, as on
    /// any network.
    ///
    /// # Errors
    /// Only when the device as a whole is of no use any more (it is gone or down).
    fn send(&mut self, batch: &PacketBatch) -> io::Result<usize>;

    /// The descriptor to wait on.
    fn raw_fd(&self) -> RawFd;

    /// The interface's name.
    fn name(&self) -> &str;
}
