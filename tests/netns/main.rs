//! Real devices and a real kernel, in network namespaces that vanish with the test.
//!
//! Without the privilege to make namespaces every test here says so and passes; `scripts/test`
//! runs them with it.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test stops at the first surprise")]

mod tun;

use cepa::capture::netns::NetNs;

/// Some namespaces with their loopback up, or a loud word that there are none to be had.
fn namespaces<const N: usize>() -> Option<[NetNs; N]> {
    let mut made = Vec::new();
    for _ in 0..N {
        match NetNs::new() {
            Ok(netns) => made.push(netns),
            Err(error) => {
                eprintln!(
                    "SKIPPED: no network namespace ({error}); run as root or under `unshare -Urnm`"
                );
                return None;
            }
        }
    }
    made.try_into().ok()
}
