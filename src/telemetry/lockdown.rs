//! What the lockdown is doing, for people and programs.
//!
//! In: the kernel's table, read by client. Out: a serializable value. Called by: node, cli.

use serde::{Deserialize, Serialize};

/// The lockdown at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LockdownStatus {
    /// Whether its rules are in force.
    pub on: bool,
    /// Seconds for which this machine may still send in clear.
    pub unlocked_for_s: Option<u64>,
    /// The user whose packets to endpoints may leave.
    pub uid: Option<u32>,
    /// The interfaces of the inside.
    pub lan: Vec<String>,
    /// Addresses and ports the daemon may talk to.
    pub endpoints: usize,
    /// Packets that left by an outside interface and were neither cells nor allowed.
    pub leaked_packets: u64,
    /// Packets of this machine that were held back.
    pub blocked_own: u64,
    /// Packets of the inside that were held back.
    pub blocked_lan: u64,
    /// Packets to this machine that were dropped.
    pub blocked_in: u64,
}

impl LockdownStatus {
    /// A few words for people.
    pub const fn words(&self) -> &'static str {
        match (self.on, self.unlocked_for_s.is_some()) {
            (true, false) => "on",
            (true, true) => "unlocked for a while",
            (false, _) => "off",
        }
    }
}

/// A device of the inside.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// Its hardware address.
    pub mac: String,
    /// The name it gave when it asked for an address.
    pub name: Option<String>,
    /// The addresses it sent from.
    pub addresses: Vec<String>,
    /// Bytes it sent.
    pub bytes_up: u64,
    /// Bytes it received.
    pub bytes_down: u64,
    /// Seconds since its last packet.
    pub quiet_s: Option<u64>,
    /// Whether it may not send.
    pub denied: bool,
}

/// One kind of packet of a leak test.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LeakProbe {
    /// What was sent.
    pub kind: String,
    /// 4 or 6.
    pub family: u8,
    /// How many of them an outside interface took.
    pub leaked: u64,
}

/// The answer of `leaktest`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LeakReport {
    /// The outside interfaces that were watched.
    pub interfaces: Vec<String>,
    /// Packets that were tried.
    pub tried: u64,
    /// Packets that left in clear.
    pub leaked: u64,
    /// Each kind.
    pub probes: Vec<LeakProbe>,
}
