//! Real devices and a real kernel, in network namespaces that vanish with the test.
//!
//! Without the privilege to make namespaces every test here says so and passes; `scripts/test`
//! runs them with it.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test stops at the first surprise")]

mod lockdown;
mod nat;
mod raw;
mod raw_inside;
mod route;
mod tun;
mod wire;

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

/// Runs `ip` with these words inside a namespace.
fn ip(netns: &NetNs, words: &str) {
    let output = netns
        .run(|| std::process::Command::new("ip").args(words.split(' ')).output().unwrap())
        .unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Joins two namespaces by a cable with an address and a prefix length at each end.
fn cable(left: (&NetNs, &str, &[&str]), right: (&NetNs, &str, &[&str])) {
    ip(
        left.0,
        &format!(
            "link add name {} type veth peer name {} netns {}",
            left.1,
            right.1,
            right.0.path()
        ),
    );
    for (netns, name, addresses) in [left, right] {
        for address in addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            ip(netns, &format!("address add {address} dev {name}{nodad}"));
        }
        ip(netns, &format!("link set dev {name} up"));
    }
}
