//! What the kernel says of the lockdown.
//!
//! In: the table as JSON of `nft`. Out: a status. Called by: node::lock.

use serde_json::Value;

use crate::telemetry::LockdownStatus;

/// A counter of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The chains that hold by their policy.
const CHAINS: [&str; 3] = ["input", "forward", "output"];

/// The counter of this name.
pub fn counters(items: &[Value], name: &str) -> Counter {
    items
        .iter()
        .map(|item| &item["counter"])
        .find(|counter| counter["name"] == name)
        .map(|counter| Counter {
            packets: counter["packets"].as_u64().unwrap_or(0),
            bytes: counter["bytes"].as_u64().unwrap_or(0),
        })
        .unwrap_or_default()
}

/// The status of a table that is there, or not.
pub fn read(items: Option<&[Value]>) -> LockdownStatus {
    let Some(items) = items else { return LockdownStatus::default() };
    let set = |name: &str| {
        items.iter().map(|item| &item["set"]).find(|set| set["name"] == name).and_then(elements)
    };
    let holds = |name: &str| {
        items
            .iter()
            .map(|item| &item["chain"])
            .any(|chain| chain["name"] == name && chain["policy"] == "drop")
    };
    let members = ["members4", "members6"].map(|name| set(name).map_or(0, Vec::len));
    let names = |name| {
        set(name)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    LockdownStatus {
        on: CHAINS.into_iter().all(holds),
        unlocked_for_s: remaining(set("unlocked")),
        uid: set("daemon")
            .and_then(|set| set.first())
            .and_then(Value::as_u64)
            .map(|uid| uid as u32),
        lan: names("lan"),
        endpoints: members.iter().sum(),
        leaked_packets: counters(items, "leaked").packets,
        blocked_own: counters(items, "blocked_own").packets,
        blocked_lan: counters(items, "blocked_lan").packets,
        blocked_in: counters(items, "blocked_in").packets,
    }
}

fn elements(set: &Value) -> Option<&Vec<Value>> {
    set["elem"].as_array()
}

/// Seconds until the kernel removes the last element.
fn remaining(elements: Option<&Vec<Value>>) -> Option<u64> {
    elements.into_iter().flatten().filter_map(|element| element["elem"]["expires"].as_u64()).max()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_is_on_if_every_chain_drops() {
        let chain = |name: &str, policy: &str| json!({"chain": {"name": name, "policy": policy}});
        let mut items = vec![
            chain("input", "drop"),
            chain("forward", "drop"),
            chain("output", "drop"),
            json!({"counter": {"name": "leaked", "packets": 3, "bytes": 180}}),
            json!({"set": {"name": "daemon", "elem": [990]}}),
            json!({"set": {"name": "unlocked", "elem": [
                {"elem": {"val": "ipv4", "timeout": 600, "expires": 599}},
                {"elem": {"val": "ipv6", "timeout": 600, "expires": 598}},
            ]}}),
            json!({"set": {"name": "lan", "elem": ["eth1"]}}),
        ];
        let status = read(Some(&items));
        assert!(status.on);
        assert_eq!((status.leaked_packets, status.uid), (3, Some(990)));
        assert_eq!(status.unlocked_for_s, Some(599));
        assert_eq!(status.lan, ["eth1"]);
        items[2] = chain("output", "accept");
        assert!(!read(Some(&items)).on);
        assert!(!read(None).on);
    }
}
