//! The data path: tables, replay windows, layering, stream packing, exit rewriting, without I/O.
//!
//! In: cells and IP packets in batches. Out: verdicts, cells and packets.
//! Called by: node.

pub mod bridge;
mod client;
mod codel;
pub mod ecn;
pub mod exit;
mod fair_queue;
pub mod flow;
pub mod inside;
pub mod ip;
pub mod neighbours;
mod outbox;
mod packing;
mod relay;
mod replay;
#[cfg(test)]
mod sample;
pub mod stream;

pub use client::{ClientTable, ClientVerdict, Opened};
pub use codel::SharedQueue;
pub use fair_queue::FairQueue;
pub use outbox::Outbox;
pub use relay::{RelayTable, Verdict};
pub use replay::ReplayWindow;
