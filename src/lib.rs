//! cepa: an onion-routing network for any IP packet.
//!
//! In: packets and datagrams, through [`capture`]. Out: the same, one layer lighter or heavier.
//! Called by: the `cepa` binary, the tests, the benches, the fuzz targets.
//!
//! # Layers
//!
//! Dependencies point down only; folders of one layer do not name each other
//! (`tests/layers.rs` reads every `use crate::` and checks it).
//!
//! ```text
//! L7  cli          one file per subcommand
//! L6  peer_run     the running peer
//! L5  node  rig  dcnet_run    event loops and roles; the network in namespaces
//! L4  capture  controller  client  exit  web   devices, sockets; directory; proxies, lockdown; pages
//! L3  config  telemetry  stack      files and flags; logs, counters; user-space TCP/IP
//! L2  circuit  forward  directory  dcnet  tracker  peer   state machines without I/O
//! L1  wire  keys   formats; cryptography
//! L0  model        ids, sizes, directions, reasons
//! ```

pub mod capture;
pub mod circuit;
pub mod cli;
pub mod client;
pub mod config;
pub mod controller;
pub mod dcnet;
pub mod dcnet_run;
pub mod directory;
pub mod exit;
pub mod forward;
pub mod keys;
pub mod model;
pub mod node;
pub mod peer;
pub mod peer_run;
pub mod rig;
pub mod stack;
pub mod telemetry;
pub mod tracker;
pub mod web;
pub mod wire;
