//! A leak test: a packet of each kind, sent so that it would leave in clear, and counters where the
//! kernel hands packets to the interface.
//!
//! In: outside interfaces. Out: rules that only count; what they counted. Called by: node::leaktest.
//!
//! The counters stand behind everything that could hold a packet back, and in a table of their own:
//! they do not know the lockdown. One more packet goes to this machine itself through the same kind
//! of counter; if that is not counted, neither would a leak be.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::Value;

use super::probe::{KINDS, Kind, NOWHERE, RAW_PROTOCOL};
use crate::telemetry::LeakProbe;

/// The table's name, of the family netdev.
pub const TABLE: &str = "cepa_leaktest";

/// The kinds of a leak test.
pub const PROBES: [Kind; 9] = {
    let [a, b, c, d, e, f, g, h] = KINDS;
    [a, b, c, d, e, f, Kind::Udp(853), g, h]
};

/// Where the packet goes that has to be counted.
pub const CONTROL: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(127, 77, 67, 1)), IpAddr::V6(Ipv6Addr::LOCALHOST)];
/// What it is.
pub const CONTROL_KIND: Kind = Kind::Udp(5353);

/// Counts probes on these interfaces, and the control on the loopback.
pub fn rules(interfaces: &[String]) -> String {
    let mut counters = String::new();
    let mut matches = String::new();
    for to in NOWHERE {
        for kind in PROBES {
            let name = name(kind, to);
            counters.push_str(&format!("  counter {name} {{ }}\n"));
            matches.push_str(&format!("    {} counter name {name}\n", condition(kind, to)));
        }
    }
    let chains: String = interfaces
        .iter()
        .enumerate()
        .map(|(number, interface)| chain(number, interface, &matches))
        .collect();
    let control: String = CONTROL
        .iter()
        .map(|to| format!("    {} counter name control\n", condition(CONTROL_KIND, *to)))
        .collect();
    format!(
        "table netdev {TABLE}\ndelete table netdev {TABLE}\ntable netdev {TABLE} {{\n{counters}  \
         counter control {{ }}\n{chains}{}}}\n",
        chain(interfaces.len(), "lo", &control)
    )
}

fn chain(number: usize, interface: &str, matches: &str) -> String {
    format!(
        "  chain out{number} {{\n    type filter hook egress device \"{interface}\" priority 0; \
         policy accept;\n{matches}  }}\n"
    )
}

/// Takes the counters away.
pub fn removal() -> String {
    format!("delete table netdev {TABLE}\n")
}

/// What was counted: whether the control was, and each probe.
pub fn read(items: &[Value]) -> (bool, Vec<LeakProbe>) {
    let packets = |name: &str| {
        items
            .iter()
            .map(|item| &item["counter"])
            .find(|counter| counter["name"] == *name)
            .and_then(|counter| counter["packets"].as_u64())
            .unwrap_or(0)
    };
    let probes = NOWHERE
        .iter()
        .flat_map(|to| PROBES.map(|kind| (*to, kind)))
        .map(|(to, kind)| LeakProbe {
            kind: kind.words(),
            family: if to.is_ipv4() { 4 } else { 6 },
            leaked: packets(&name(kind, to)),
        })
        .collect();
    (packets("control") >= CONTROL.len() as u64, probes)
}

fn name(kind: Kind, to: IpAddr) -> String {
    let family = if to.is_ipv4() { "v4" } else { "v6" };
    match kind {
        Kind::Tcp(port) => format!("{family}_tcp_{port}"),
        Kind::Udp(port) => format!("{family}_udp_{port}"),
        Kind::Echo => format!("{family}_echo"),
        Kind::Raw => format!("{family}_raw"),
    }
}

fn condition(kind: Kind, to: IpAddr) -> String {
    let (family, icmp) = if to.is_ipv4() { ("ip", "icmp") } else { ("ip6", "icmpv6") };
    let what = match kind {
        Kind::Tcp(port) => format!("tcp dport {port}"),
        Kind::Udp(port) => format!("udp dport {port}"),
        Kind::Echo => format!("{icmp} type echo-request"),
        Kind::Raw => format!("meta l4proto {RAW_PROTOCOL}"),
    };
    format!("{family} daddr {to} {what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_probe_has_a_counter() {
        let text = rules(&["eth0".to_owned()]);
        assert_eq!(text.matches("  counter v").count(), 2 * PROBES.len());
        assert_eq!(text.matches("device \"eth0\"").count(), 1);
        let (control, probes) = read(&[]);
        assert!(!control);
        assert_eq!(probes.len(), 2 * PROBES.len());
    }
}
