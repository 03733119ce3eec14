//! The event loops of the daemons: one turn reads, decides, acts and sleeps.
//!
//! In: device and socket readiness, timers. Out: packets and cells.
//! Called by: cli.
