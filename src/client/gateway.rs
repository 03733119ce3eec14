//! A gateway's table: addresses of the inside behind the circuit's, DNS redirected, devices counted.
//!
//! In: settings, refused devices. Out: rules for nftables, devices read from its sets.
//! Called by: node::gateway.
//!
//! The table also holds when there is no lockdown: what arrives from the inside leaves by the TUN or
//! not at all. It stays when the client ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    forward::inside::{SLOTS, Slot},
    telemetry::Device,
};

/// The table's name, of the family inet.
pub const TABLE: &str = "cepa_gateway";
/// Devices remembered at once, and for how long after their last packet.
const MOST_DEVICES: u32 = 4096;
const REMEMBERED_S: u64 = 86_400;

/// What the rules are made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gateway {
    /// The client's TUN interface.
    pub tun: String,
    /// The interfaces of the inside.
    pub lan: Vec<String>,
    /// The interface that is captured raw, if one is: the kernel's stack must not hear it, or it
    /// would answer and forward what the capture carries already.
    pub captured: Option<String>,
    /// The port of the resolver on this machine; none: queries go through the circuit as they are.
    pub resolver: Option<u16>,
    /// Devices that may not send.
    pub denied: BTreeSet<Mac>,
    /// Each device gets an address of its own in the TUN, and so circuits of its own.
    pub apart: bool,
}

impl Gateway {
    /// Replaces the table, in one transaction.
    pub fn rules(&self) -> String {
        let quoted = |name: &String| format!("\"{name}\"");
        let lan = self.lan.iter().map(quoted).collect::<Vec<_>>().join(", ");
        let tun = quoted(&self.tun);
        let denied = if self.denied.is_empty() {
            String::new()
        } else {
            let list: Vec<_> = self.denied.iter().map(Mac::to_string).collect();
            format!("elements = {{ {} }};", list.join(", "))
        };
        let resolver = self.resolver.map_or_else(String::new, |port| {
            format!(
                "    iifname @lan meta l4proto {{ tcp, udp }} th dport 53 redirect to :{port}\n"
            )
        });
        let captured = self
            .captured
            .as_ref()
            .map_or_else(String::new, |name| format!("    iifname \"{name}\" drop\n"));
        let apart = if self.apart { Apart::new(&tun) } else { Apart::default() };
        let memory =
            format!("flags dynamic,timeout; timeout {REMEMBERED_S}s; size {MOST_DEVICES};");
        format!(
            "table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
  set lan {{ type ifname; elements = {{ {lan} }} }}
  set denied {{ type ether_addr; {denied} }}
  set sent4 {{ typeof ether saddr . ip saddr; {memory} counter; }}
  set sent6 {{ typeof ether saddr . ip6 saddr; {memory} counter; }}
  set received4 {{ type ipv4_addr; {memory} counter; }}
  set received6 {{ type ipv6_addr; {memory} counter; }}
  counter refused {{ }}
{sets}  chain arriving {{
    type filter hook prerouting priority raw; policy accept;
{captured}    iifname @lan ether saddr @denied counter name refused drop
    iifname @lan ip saddr != 0.0.0.0 update @sent4 {{ ether saddr . ip saddr }}
    iifname @lan ip6 saddr != :: update @sent6 {{ ether saddr . ip6 saddr }}
  }}
{marking}  chain questions {{
    type nat hook prerouting priority dstnat; policy accept;
{resolver}  }}
  chain passing {{
    type filter hook forward priority filter; policy accept;
    iifname {tun} oifname @lan ip daddr != 0.0.0.0 update @received4 {{ ip daddr }}
    iifname {tun} oifname @lan ip6 daddr != :: update @received6 {{ ip6 daddr }}
    iifname @lan oifname != {tun} oifname != @lan reject with icmpx admin-prohibited
    iifname {tun} oifname != @lan drop
  }}
  chain leaving {{
    type nat hook postrouting priority srcnat; policy accept;
{addresses}    iifname @lan oifname {tun} masquerade
  }}
}}
",
            sets = apart.sets,
            marking = apart.marking,
            addresses = apart.addresses,
        )
    }
}

/// The parts of the rules that keep devices apart. The kernel numbers devices as they come, round and
/// round: nothing has to watch for them, and a new one is apart from its first packet on.
#[derive(Default)]
struct Apart {
    sets: String,
    marking: String,
    addresses: String,
}

impl Apart {
    fn new(tun: &str) -> Self {
        let memory = format!("flags dynamic; size {MOST_DEVICES};");
        let sets = format!(
            "  set known {{ type ether_addr; {memory} }}
  map slots {{ type ether_addr : mark; {memory} }}
"
        );
        let marking = format!(
            "  chain numbering {{
    type filter hook prerouting priority mangle; policy accept;
    iifname @lan ether saddr != @known add @slots {{ ether saddr : numgen inc mod {SLOTS} offset 1 }}
    iifname @lan ether saddr != @known add @known {{ ether saddr }}
    iifname @lan ct state new ct mark set ether saddr map @slots
  }}
"
        );
        let list = |address: fn(Slot) -> String| {
            let pairs =
                Slot::devices().map(|slot| format!("{} : {}", slot.number(), address(slot)));
            pairs.collect::<Vec<_>>().join(", ")
        };
        let addresses = format!(
            "    iifname @lan oifname {tun} snat ip to ct mark map {{ {} }}
    iifname @lan oifname {tun} snat ip6 to ct mark map {{ {} }}
",
            list(|slot| slot.address().v4.to_string()),
            list(|slot| slot.address().v6.to_string()),
        );
        Self { sets, marking, addresses }
    }
}

/// Lets a device send, or refuses it, in the running table.
pub fn change(device: Mac, denied: bool) -> String {
    let verb = if denied { "add" } else { "delete" };
    format!("{verb} element inet {TABLE} denied {{ {device} }}\n")
}

/// Takes the table away.
pub fn removal() -> String {
    format!("delete table inet {TABLE}\n")
}

/// A device's hardware address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Mac([u8; 6]);

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Text that is no hardware address.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected a hardware address such as 02:00:5e:10:00:01, got {0:?}; `cepa lan` lists them")]
pub struct ParseMacError(String);

impl std::str::FromStr for Mac {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseMacError(text.to_owned());
        let bytes: Vec<u8> = text
            .split([':', '-'])
            .map(|part| match part.len() {
                1 | 2 => u8::from_str_radix(part, 16).map_err(|_| wrong()),
                _ => Err(wrong()),
            })
            .collect::<Result<_, _>>()?;
        bytes.try_into().map(Self).map_err(|_| wrong())
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl TryFrom<String> for Mac {
    type Error = ParseMacError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// Devices that may not send, kept beside the client's state directory.
#[derive(Debug)]
pub struct Denied {
    file: PathBuf,
    /// The devices.
    pub devices: BTreeSet<Mac>,
}

impl Denied {
    /// Reads the list; a missing file is an empty one.
    ///
    /// # Errors
    /// When it cannot be read or is damaged: a refused device must not be let in by an accident.
    pub fn load(state: &Path) -> io::Result<Self> {
        let file = state.parent().unwrap_or(state).join("lan.json");
        let devices = match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { file, devices })
    }

    /// Writes it.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn save(&self) -> io::Result<()> {
        let new = self.file.with_extension("new");
        fs::write(&new, serde_json::to_vec_pretty(&self.devices)?)?;
        // Written by root, read by the client's user, whatever root's umask is.
        fs::set_permissions(&new, fs::Permissions::from_mode(0o644))?;
        fs::rename(new, &self.file)
    }
}

/// The devices that the table has seen, by hardware address.
pub fn devices(items: &[Value]) -> Vec<Device> {
    let mut found: BTreeMap<String, Device> = BTreeMap::new();
    let elements = |name: &str| {
        let set = items.iter().map(|item| &item["set"]).find(|set| set["name"] == *name);
        set.and_then(|set| set["elem"].as_array()).into_iter().flatten()
    };
    let bytes = |element: &Value| element["elem"]["counter"]["bytes"].as_u64().unwrap_or(0);
    for element in ["sent4", "sent6"].into_iter().flat_map(elements) {
        let value = &element["elem"];
        let Some([Value::String(mac), Value::String(address)]) =
            value["val"]["concat"].as_array().map(Vec::as_slice)
        else {
            continue;
        };
        let device = found.entry(mac.clone()).or_default();
        device.mac.clone_from(mac);
        device.addresses.push(address.clone());
        device.bytes_up += bytes(element);
        // What is left of the time after which it is forgotten says when it was seen.
        let timeout = value["timeout"].as_u64().unwrap_or(REMEMBERED_S);
        let quiet = value["expires"].as_u64().map(|left| timeout.saturating_sub(left));
        device.quiet_s = [device.quiet_s, quiet].into_iter().flatten().min();
    }
    for element in ["received4", "received6"].into_iter().flat_map(elements) {
        let Some(address) = element["elem"]["val"].as_str() else { continue };
        let owner =
            found.values_mut().find(|device| device.addresses.iter().any(|known| known == address));
        if let Some(device) = owner {
            device.bytes_down += bytes(element);
        }
    }
    for element in elements("denied") {
        if let Some(mac) = element.as_str() {
            let device = found.entry(mac.to_owned()).or_default();
            mac.clone_into(&mut device.mac);
            device.denied = true;
        }
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn devices_are_put_together_from_the_sets() {
        let sent = |mac: &str, address: &str, bytes: u64| {
            json!({"elem": {"val": {"concat": [mac, address]}, "timeout": 86400, "expires": 86390,
                            "counter": {"packets": 1, "bytes": bytes}}})
        };
        let items = [
            json!({"set": {"name": "sent4", "elem": [sent("02:00:00:00:00:01", "192.168.77.2", 100)]}}),
            json!({"set": {"name": "sent6", "elem": [sent("02:00:00:00:00:01", "fd78::2", 50)]}}),
            json!({"set": {"name": "received4", "elem": [
                {"elem": {"val": "192.168.77.2", "counter": {"packets": 1, "bytes": 900}}}]}}),
            json!({"set": {"name": "denied", "elem": ["02:00:00:00:00:09"]}}),
        ];
        let found = devices(&items);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].bytes_up, found[0].bytes_down), (150, 900));
        assert_eq!(found[0].addresses, ["192.168.77.2", "fd78::2"]);
        assert_eq!(found[0].quiet_s, Some(10));
        assert!(found[1].denied && !found[0].denied);
    }

    proptest! {
        #[test]
        fn hardware_addresses_survive_text(bytes: [u8; 6]) {
            let mac = Mac(bytes);
            prop_assert_eq!(mac.to_string().parse::<Mac>(), Ok(mac));
        }

        #[test]
        fn other_text_is_refused(text: String) {
            if let Ok(mac) = text.parse::<Mac>() {
                prop_assert_eq!(mac.to_string().len(), 17);
            }
        }
    }
}
