//! The DC-net: a group speaks with one voice, and nobody can tell whose it was.
//!
//! In: messages of relay, clients and trustees as bytes, time and randomness as arguments.
//! Out: messages to send, bytes for local connections and for the exit, verdicts over whoever
//! disturbs. Called by: the programs in `dcnet_run/`, tests in virtual time.

pub mod ceremony;
pub mod error;
pub mod group;
mod group_check;
pub mod hash;
pub mod hex;
pub mod identity;
pub mod interval;
pub mod proof;
pub mod seed;
pub mod shuffle;
pub mod store;
