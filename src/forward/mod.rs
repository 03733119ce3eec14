//! The data path: tables, replay windows, layering, stream packing, exit rewriting, without I/O.
//!
//! In: cells and IP packets in batches. Out: verdicts, cells and packets.
//! Called by: node.

pub mod ip;
pub mod stream;
