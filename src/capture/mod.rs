//! Devices and sockets: TUN, UDP batches, raw capture, kernel NAT; the only unsafe code.
//!
//! In: packets of the kernel. Out: batches.
//! Called by: node, rig.

mod bridge_socket;
pub mod checksum;
mod coalesce;
pub mod conntrack;
mod device;
mod error;
pub mod fault;
pub mod nat;
mod netlink;
pub mod netns;
pub mod nft;
mod offload;
pub mod pcap;
#[cfg(feature = "tun-tap")]
pub mod plain_tun;
pub mod policy;
pub mod process;
pub mod raw;
pub mod raw_inside;
pub mod route;
mod segment;
pub mod sysctl;
pub mod tap;
pub mod tun;
pub mod udp;

pub use bridge_socket::{BridgeSocket, DatagramRun, MOST_RUN};
pub use device::PacketDevice;
pub use error::{CaptureError, Result};

/// Makes a TUN interface with the backend this program was built for: tun-rs, or tun-tap with the
/// feature of that name.
///
/// # Errors
/// When `/dev/net/tun` cannot be opened, the privilege is missing or the name is in use.
pub fn open_tun(options: &tun::TunOptions) -> Result<Box<dyn PacketDevice>> {
    #[cfg(feature = "tun-tap")]
    return Ok(Box::new(plain_tun::PlainTun::create(options)?));
    #[cfg(not(feature = "tun-tap"))]
    return Ok(Box::new(tun::Tun::create(options)?));
}
