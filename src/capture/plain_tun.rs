//! The TUN interface of the `tun-tap` crate: one packet a call, no offload. A fallback to compare
//! with and to fall back on.
//!
//! In: packets that the kernel routes to the interface; batches to deliver.
//! Out: batches; packets for the kernel. Called by: node's event loop, with the feature `tun-tap`.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
};

use tun_tap::{Iface, Mode};

use super::{PacketDevice, Result, tun::TunOptions};
use crate::model::PacketBatch;

/// A TUN interface without offload; it vanishes when dropped.
#[derive(Debug)]
pub struct PlainTun {
    device: Iface,
    name: String,
    packet: Box<[u8]>,
}

impl PlainTun {
    /// Makes the interface, gives it its addresses and brings it up.
    ///
    /// # Errors
    /// When `/dev/net/tun` cannot be opened, the privilege is missing or the name is in use.
    pub fn create(options: &TunOptions) -> Result<Self> {
        let failed = |source| super::tun::creation_error(&options.name, source);
        let device = Iface::without_packet_info(&options.name, Mode::Tun).map_err(failed)?;
        device.set_non_blocking().map_err(failed)?;
        super::tun::configure(options)?;
        let len = usize::from(options.mtu) + 64;
        Ok(Self { device, name: options.name.clone(), packet: vec![0; len].into_boxed_slice() })
    }
}

impl PacketDevice for PlainTun {
    fn recv(&mut self, batch: &mut PacketBatch) -> io::Result<usize> {
        let len = self.device.recv(&mut self.packet)?;
        batch.push(&[&self.packet[..len]]);
        Ok(1)
    }

    fn send(&mut self, batch: &PacketBatch) -> io::Result<usize> {
        let mut taken = 0;
        for packet in batch.iter() {
            match self.device.send(packet) {
                Ok(_) => taken += 1,
                Err(error) if super::tun::is_fatal(&error) => return Err(error),
                Err(_) => {}
            }
        }
        Ok(taken)
    }

    fn raw_fd(&self) -> RawFd {
        self.device.as_raw_fd()
    }

    fn name(&self) -> &str {
        &self.name
    }
}
