//! The DC-net: relay, clients and trustees.
//!
//! In: frames. Out: rounds.
//! Called by: cli.
