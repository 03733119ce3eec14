//! The real daemons on loopback, without any privilege: what they refuse, what they keep, what of
//! it a person can take away and bring back.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod backup;
mod bad_input;
mod metrics;
mod stage;
