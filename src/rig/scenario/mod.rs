//! The scenarios: one per file, each a few promises.
//!
//! In: a stage. Out: promises. Called by: rig::suite.

pub mod cleanup;
pub mod controller_gone;
pub mod failover;
pub mod gateway;
pub mod hostile;
pub mod kills;
pub mod knowledge;
pub mod limits;
pub mod one_node;
pub mod ports;
pub mod proxies;
pub mod refusals;
pub mod roaming;
pub mod share;
mod share_view;
pub mod speed;
pub mod traffic;
pub mod wire_image;
pub mod workers;
