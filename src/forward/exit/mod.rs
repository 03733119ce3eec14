//! The exit: inner packets of many circuits out into one network, and the answers back.
//!
//! In: bodies of data cells by circuit; packets of the exit's device. Out: packets for the device;
//! packets for a circuit. Called by: the node's data path.
//!
//! ```text
//! cell -> reassemble -> headers -> source? -> pool? policy? -> rate, connections -> rewrite -> device
//!                                  drop       drop + ICMP      drop (+ ICMP)
//! device -> headers -> whose pool address? -> rewrite -> circuit
//! ```
//!
//! Each circuit has one IPv4 and one IPv6 address of the pool while it lives. The kernel's NAT
//! turns that into the exit's own address, so two circuits can use the same ports.

pub(super) mod checksum;
mod icmp;
mod limits;
mod policy;
mod pool;
mod rewrite;
mod table;

pub use icmp::unreachable;
pub use limits::ExitLimits;
pub use pool::{AddressPool, PoolError};
pub use rewrite::{PoolAddress, Rewrite};
pub use table::{ExitCircuit, ExitTable};
