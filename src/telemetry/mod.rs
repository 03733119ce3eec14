//! Logs, counters and the control socket's protocol.
//!
//! In: events of the daemons. Out: journal or terminal lines, snapshots.
//! Called by: node, controller, cli.
