//! The whole network in namespaces on one machine, with real daemons and a real kernel.
//!
//! In: a scenario. Out: a report and captures.
//! Called by: cli.

pub mod agent;
pub mod bench;
pub mod captures;
pub mod clear;
pub mod daemons;
pub mod files;
pub mod flood;
pub mod frame;
pub mod host;
pub mod inspect;
pub mod link;
pub mod memory;
pub mod network;
pub mod options;
pub mod peers;
pub mod plaintext;
pub mod plan;
pub mod promise;
pub mod remote;
pub mod report;
pub mod rootless;
pub mod run;
pub mod scenario;
pub mod session;
pub mod sharers;
pub mod stage;
pub mod suite;
