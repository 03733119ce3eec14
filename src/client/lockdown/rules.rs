//! The text of the lockdown's table.
//!
//! In: a plan. Out: input for `nft -f`. Called by: lockdown.
//!
//! ```text
//! output   lo, inside, TUN        pass
//!          the daemon -> members  pass      the only thing that leaves in the daemon's name
//!          DHCP, NDP              pass      docs/gateway.md has the list
//!          unlocked               pass      until the kernel removes the element
//!          all else               rejected and counted
//! forward  inside <-> TUN         pass      answers only, on the way back; an unlock opens nothing here
//! leaving  counts what passed an outside interface and is none of the above: leaks
//! ```

use std::net::{IpAddr, SocketAddr};

use super::{Counter, Endpoints, Lockdown};
use crate::config::Cidr;

/// The table's name, of the family inet.
pub const TABLE: &str = "cepa_lockdown";

/// Marks the connections that the daemon made, so that the kernel may end them in its place when
/// the socket is closed already.
const MARK: &str = "0x6365_7061";

/// Whether this can be an interface's name, and nothing else.
pub(super) fn is_interface(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:@".contains(c))
}

pub(super) fn table(plan: &Lockdown, leaked: Counter) -> String {
    let daemon = elements(plan.uid);
    let quoted = |name: &String| format!("\"{name}\"");
    let lan = elements(plan.lan.iter().filter(|name| is_interface(name)).map(quoted));
    let tun = elements([&plan.tun].into_iter().filter(|name| is_interface(name)).map(quoted));
    let [members4, members6] = members(&plan.endpoints).map(elements);
    let networks = || plan.ssh_from.iter().filter_map(|text| text.parse::<Cidr>().ok());
    let [ssh4, ssh6] =
        [true, false].map(|v4| elements(networks().filter(|net| net.address.is_ipv4() == v4)));
    let Counter { packets, bytes } = leaked;
    let mark = MARK.replace('_', "");
    format!(
        "table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
  set daemon {{ typeof meta skuid; {daemon} }}
  set lan {{ type ifname; {lan} }}
  set tunnel {{ type ifname; {tun} }}
  set members4 {{ type ipv4_addr . inet_proto . inet_service; {members4} }}
  set members6 {{ type ipv6_addr . inet_proto . inet_service; {members6} }}
  set ssh4 {{ type ipv4_addr; flags interval; {ssh4} }}
  set ssh6 {{ type ipv6_addr; flags interval; {ssh6} }}
  set unlocked {{ typeof meta nfproto; flags timeout; }}
  counter leaked {{ packets {packets} bytes {bytes} }}
  counter blocked_own {{ }}
  counter blocked_lan {{ }}
  counter blocked_in {{ }}
  chain allowed {{
    meta skuid @daemon ip daddr . meta l4proto . th dport @members4 ct mark set {mark} accept
    meta skuid @daemon ip6 daddr . meta l4proto . th dport @members6 ct mark set {mark} accept
    ct mark {mark} ip daddr . meta l4proto . th dport @members4 accept
    ct mark {mark} ip6 daddr . meta l4proto . th dport @members6 accept
    ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept
    ip6 daddr ff02::1:2 udp sport 546 udp dport 547 accept
    ip6 hoplimit 255 icmpv6 type {{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }} accept
    ip6 daddr ff02::16 icmpv6 type mld2-listener-report accept
    ip daddr @ssh4 tcp sport 22 ct state established accept
    ip6 daddr @ssh6 tcp sport 22 ct state established accept
  }}
  chain output {{
    type filter hook output priority filter - 10; policy drop;
    oifname \"lo\" accept
    oifname @lan accept
    oifname @tunnel accept
    jump allowed
    meta nfproto @unlocked accept
    counter name blocked_own reject with icmpx admin-prohibited
  }}
  chain forward {{
    type filter hook forward priority filter - 10; policy drop;
    iifname @lan oifname @tunnel accept
    iifname @lan oifname @lan accept
    iifname @tunnel oifname @lan ct state established,related accept
    counter name blocked_lan reject with icmpx admin-prohibited
  }}
  chain input {{
    type filter hook input priority filter - 10; policy drop;
    iifname \"lo\" accept
    iifname @lan accept
    ct state established,related accept
    iifname @tunnel drop
    ip saddr . meta l4proto . th sport @members4 accept
    ip6 saddr . meta l4proto . th sport @members6 accept
    udp sport 67 udp dport 68 accept
    ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept
    ip6 hoplimit 255 icmpv6 type {{ nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert }} accept
    ip6 saddr fe80::/10 icmpv6 type mld-listener-query accept
    ip saddr @ssh4 tcp dport 22 accept
    ip6 saddr @ssh6 tcp dport 22 accept
    meta nfproto @unlocked accept
    counter name blocked_in drop
  }}
  chain leaving {{
    type filter hook postrouting priority 400; policy accept;
    oifname \"lo\" accept
    oifname @lan accept
    oifname @tunnel accept
    jump allowed
    counter name leaked
  }}
}}
"
    )
}

pub(super) fn update(endpoints: &Endpoints) -> String {
    let mut text = String::new();
    for (name, members) in ["members4", "members6"].into_iter().zip(members(endpoints)) {
        text.push_str(&format!("flush set inet {TABLE} {name}\n"));
        if !members.is_empty() {
            let members = members.join(", ");
            text.push_str(&format!("add element inet {TABLE} {name} {{ {members} }}\n"));
        }
    }
    text
}

pub(super) fn unlock(seconds: u64) -> String {
    format!(
        "flush set inet {TABLE} unlocked
add element inet {TABLE} unlocked {{ ipv4 timeout {seconds}s, ipv6 timeout {seconds}s }}
"
    )
}

/// Elements of the two sets of members.
fn members(endpoints: &Endpoints) -> [Vec<String>; 2] {
    let all = [(&endpoints.controller, "tcp"), (&endpoints.members, "udp")];
    let of = |v4: bool| {
        all.iter()
            .flat_map(|(set, protocol)| set.iter().map(move |addr| (canonical(addr), *protocol)))
            .filter(|((ip, _), _)| ip.is_ipv4() == v4)
            .map(|((ip, port), protocol)| format!("{ip} . {protocol} . {port}"))
            .collect()
    };
    [of(true), of(false)]
}

fn canonical(addr: &SocketAddr) -> (IpAddr, u16) {
    (addr.ip().to_canonical(), addr.port())
}

/// `elements = { a, b };`, or nothing: an empty list is a syntax error.
fn elements(items: impl IntoIterator<Item = impl ToString>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() { String::new() } else { format!("elements = {{ {} }};", items.join(", ")) }
}
