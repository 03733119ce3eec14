//! The whole network in namespaces on one machine, with real daemons and a real kernel.
//!
//! In: a scenario. Out: a report and captures.
//! Called by: cli.
