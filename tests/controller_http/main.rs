//! The real controller on loopback, asked with real requests by nodes that answer real probes.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod abuse;
mod admission;
mod cli;
mod commands;
mod directory;
mod restart;
mod stage;
