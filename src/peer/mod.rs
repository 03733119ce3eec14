//! File sharing between peers, without a socket: contents, links, proofs, sessions, transfers.
//!
//! In: bytes of messages, links, names, time. Out: checked values, what to ask whom, files on disk
//! (`store.rs`). Called by: peer_run, web, cli.
//!
//! ```text
//! link ──► content ──► transfer: whom to ask for which chunk, who lies, who stalls
//! name     tree        agreement: the keys between two peers
//! manifest layout      message: what they say       store: shares and downloads on disk
//! ```

pub mod agreement;
pub mod bitmap;
pub mod geometry;
pub mod layout;
pub mod link;
pub mod manifest;
pub mod message;
pub mod name;
pub mod transfer;
pub mod tree;
pub mod view;
