//! The words every layer shares: ids, sizes, directions, reasons.
//!
//! In: nothing. Out: small value types. Called by: every other folder.

mod carrier;
mod cid;
mod circuit_key;
mod crew;
mod drop_reason;
mod exit_policy;
mod geometry;
mod hop;
mod kind;
mod node_id;
mod packet_batch;
mod prefetch;
mod role;
mod suite;

pub use carrier::{Carrier, HttpPeer};
pub use cid::Cid;
pub use circuit_key::CircuitKey;
pub use crew::{Alone, Crew};
pub use drop_reason::{DropCounters, DropReason};
pub use exit_policy::{ExitPolicy, ParseExitPolicyError};
pub use geometry::*;
pub use hop::Hop;
pub use kind::{BodyKind, DestroyReason, Direction};
pub use node_id::{NodeId, ParseNodeIdError};
pub use packet_batch::PacketBatch;
pub use prefetch::{prefetch, prefetch_start};
pub use role::Role;
pub use suite::Suite;
