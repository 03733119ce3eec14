//! The proxies, as the programs that use them see them: real daemons, a real kernel, real curl,
//! git and Chromium; what happens through the proxy is compared with what happens without it.
//!
//! Without the privilege to make namespaces every test here says so and passes; `scripts/test`
//! runs them with it.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test stops at the first surprise")]

mod behaviour;
mod dcnet;
mod names;
mod outcome;
mod programs;
mod refusals;
mod servers;
mod stage;
#[path = "../rig/up.rs"]
mod up;
