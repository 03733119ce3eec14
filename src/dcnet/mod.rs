//! The DC-net: a group speaks with one voice, and nobody can tell whose it was.
//!
//! In: messages of relay, clients and trustees as bytes, time and randomness as arguments.
//! Out: messages to send, bytes for local connections and for the exit, verdicts over whoever
//! disturbs. Called by: the programs in `dcnet_run/`, tests in virtual time.

pub mod arq;
pub mod blame;
pub mod ceremony;
pub mod client;
pub mod error;
pub mod group;
mod group_check;
pub mod hash;
pub mod hex;
pub mod history;
pub mod identity;
pub mod interval;
pub mod member;
pub mod memory;
pub mod message;
pub mod mux;
pub mod pads;
pub mod part;
pub mod proof;
pub mod relay;
pub mod sealing;
pub mod seed;
pub mod shuffle;
pub mod store;
pub mod trustee;
