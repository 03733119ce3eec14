//! File sharing over the whole network: real daemons in namespaces, peers of this process.
//!
//! Without the privilege to make namespaces every test here says so and passes; `scripts/test`
//! runs them with it.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test stops at the first surprise")]

mod bridge;
mod carrier;
mod hostile;
mod peer;
mod stage;
#[path = "../rig/up.rs"]
mod up;
