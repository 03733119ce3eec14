//! The programs of the DC-net: their sockets, processes and clocks.
//!
//! In: configuration directories, TCP links, local connections. Out: the running relay, clients,
//! trustees, exits and their supervisor. Called by: `cepa dcnet`, tests and the bench.

mod alarm;
pub mod bench;
pub mod client;
pub mod dial;
pub mod exits;
mod far;
pub mod hub;
pub mod jammer;
pub mod keeper;
pub mod link;
mod noise;
pub mod page;
pub mod party;
pub mod party_link;
pub mod pipe;
pub mod seed_parties;
pub mod seed_relay;
pub mod status;
pub mod supervisor;
pub mod test_client;
