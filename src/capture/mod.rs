//! Devices and sockets: TUN, UDP batches, raw capture, kernel NAT; the only unsafe code.
//!
//! In: packets of the kernel. Out: batches.
//! Called by: node, rig.

pub mod checksum;
mod coalesce;
mod device;
mod error;
pub mod netns;
mod offload;
mod segment;
pub mod tun;
pub mod udp;

pub use device::PacketDevice;
pub use error::{CaptureError, Result};
