//! The whole network in namespaces on one machine, with real daemons and a real kernel.
//!
//! In: a scenario. Out: a report and captures.
//! Called by: cli.

pub mod agent;
pub mod daemons;
pub mod frame;
pub mod host;
pub mod link;
pub mod network;
pub mod options;
pub mod plaintext;
pub mod plan;
pub mod rootless;
pub mod run;
pub mod session;
