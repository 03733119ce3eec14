//! Which hosts there are, where they are plugged in and what their addresses are.
//!
//! In: nothing. Out: four plans. Called by: rig::network, the scenarios.
//!
//! ```text
//!  full      sender  controller  n1 n2 n3   stranger
//!               |        |        |  |  |      |
//!           ----+--------+--------+--+--+--+---+--+--+----  switch   10.77.0.0/24  fd77::/64
//!                                          |      |  |
//!                                          n4     n5 n6     (exits)
//!                                          |      |  |
//!                                  --------+------+--+-+--  outside  203.0.113.0/24  2001:db8:1::/64
//!                                                      |
//!                                                  receiver
//!
//!  gateway   the same without sender and stranger, and
//!    laptop, tablet ---- home 192.168.77.0/24 fd78::/64 ---- gateway ---- switch ---- router
//!
//!  share     the full one without sender and stranger, with a tracker and p1 to p5 on the switch
//!
//!  one node  sender, controller ---- near ---- node ---- outside ---- receiver
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A cable from a host to a segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Port {
    /// The interface's name in the host.
    pub interface: &'static str,
    /// The segment it is plugged into.
    pub segment: &'static str,
    /// The IPv4 address, of a /24.
    pub v4: Ipv4Addr,
    /// The IPv6 address, of a /64.
    pub v6: Ipv6Addr,
}

/// A host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostPlan {
    /// Its name.
    pub name: &'static str,
    /// Its cables.
    pub ports: Vec<Port>,
}

impl HostPlan {
    /// Its addresses, the first port's first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.ports.iter().flat_map(|port| [IpAddr::V4(port.v4), IpAddr::V6(port.v6)])
    }

    /// The IPv4 address of its first port.
    pub fn v4(&self) -> Ipv4Addr {
        self.ports.first().map_or(Ipv4Addr::UNSPECIFIED, |port| port.v4)
    }

    /// The port on a segment.
    pub fn on(&self, segment: &str) -> Option<&Port> {
        self.ports.iter().find(|port| port.segment == segment)
    }

    /// The name of a port's other end, at the switch.
    pub fn plug(&self, port: &Port) -> String {
        if self.ports.len() == 1 {
            self.name.to_owned()
        } else {
            format!("{}-{}", self.name, port.segment)
        }
    }
}

/// A network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Its hosts.
    pub hosts: Vec<HostPlan>,
}

/// The interface of every host on the first segment.
pub const INSIDE: &str = "eth0";
/// The gateway's interface towards the laptop.
pub const LAN: &str = "lan0";
/// The interface of exits towards the receiver.
pub const OUTSIDE: &str = "wan0";
/// The network behind the exits.
pub const OUTSIDE_V4: &str = "203.0.113.0/24";
/// The network behind the exits.
pub const OUTSIDE_V6: &str = "2001:db8:1::/64";
/// The receiver.
pub const RECEIVER_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// The receiver.
pub const RECEIVER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);
/// A second address of the receiver, for the path without cepa.
pub const BARE_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// The nodes of the full plan.
pub const NODES: [&str; 6] = ["n1", "n2", "n3", "n4", "n5", "n6"];
/// Those that are exits.
pub const EXITS: [&str; 3] = ["n4", "n5", "n6"];

/// The hosts of peers that share files.
pub const PEERS: [&str; 5] = ["p1", "p2", "p3", "p4", "p5"];

impl Plan {
    /// The whole network.
    pub fn full() -> Self {
        let mut hosts = vec![
            HostPlan { name: "sender", ports: vec![inside("switch", 0, 201)] },
            HostPlan { name: "controller", ports: vec![inside("switch", 0, 2)] },
        ];
        for (number, name) in (11..).zip(NODES) {
            let mut ports = vec![inside("switch", 0, number)];
            if EXITS.contains(&name) {
                ports.push(outside(number));
            }
            hosts.push(HostPlan { name, ports });
        }
        hosts.push(HostPlan { name: "stranger", ports: vec![inside("switch", 0, 66)] });
        hosts.push(receiver());
        Self { hosts }
    }

    /// A laptop behind a gateway, whose default route leads to a router that goes nowhere.
    pub fn gateway() -> Self {
        let home = |interface, host: u8| Port {
            interface,
            segment: "home",
            v4: Ipv4Addr::new(192, 168, 77, host),
            v6: Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, u16::from(host)),
        };
        let mut plan = Self::full();
        plan.hosts.retain(|host| host.name != "sender" && host.name != "stranger");
        let gateway = vec![inside("switch", 0, 78), home(LAN, 1)];
        plan.hosts.extend([
            HostPlan { name: "gateway", ports: gateway },
            HostPlan { name: "laptop", ports: vec![home(INSIDE, 2)] },
            HostPlan { name: "tablet", ports: vec![home(INSIDE, 3)] },
            HostPlan { name: "router", ports: vec![inside("switch", 0, 1)] },
        ]);
        plan
    }

    /// A tracker and five peers around the nodes.
    pub fn share() -> Self {
        let mut plan = Self::full();
        plan.hosts.retain(|host| host.name != "sender" && host.name != "stranger");
        plan.hosts.push(HostPlan { name: "tracker", ports: vec![inside("switch", 0, 66)] });
        let peers = PEERS.into_iter().zip(101..);
        plan.hosts.extend(
            peers.map(|(name, host)| HostPlan { name, ports: vec![inside("switch", 0, host)] }),
        );
        plan
    }

    /// The source's own picture: one node with two interfaces between sender and receiver.
    pub fn one_node() -> Self {
        Self {
            hosts: vec![
                HostPlan { name: "sender", ports: vec![inside("near", 1, 201)] },
                HostPlan { name: "controller", ports: vec![inside("near", 1, 2)] },
                HostPlan { name: "node", ports: vec![inside("near", 1, 11), outside(11)] },
                receiver(),
            ],
        }
    }

    /// The host of this name.
    pub fn host(&self, name: &str) -> Option<&HostPlan> {
        self.hosts.iter().find(|host| host.name == name)
    }

    /// The host with this address.
    pub fn host_of(&self, address: IpAddr) -> Option<&HostPlan> {
        self.hosts.iter().find(|host| host.addresses().any(|own| own == address))
    }

    /// The segments, in order of first use.
    pub fn segments(&self) -> Vec<&'static str> {
        let mut segments = Vec::new();
        for port in self.hosts.iter().flat_map(|host| &host.ports) {
            if !segments.contains(&port.segment) {
                segments.push(port.segment);
            }
        }
        segments
    }
}

fn inside(segment: &'static str, network: u8, host: u8) -> Port {
    Port {
        interface: INSIDE,
        segment,
        v4: Ipv4Addr::new(10, 77, network, host),
        v6: Ipv6Addr::new(0xfd77, 0, 0, u16::from(network), 0, 0, 0, u16::from(host)),
    }
}

fn outside(host: u8) -> Port {
    Port {
        interface: OUTSIDE,
        segment: "outside",
        v4: Ipv4Addr::new(203, 0, 113, host),
        v6: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, u16::from(host)),
    }
}

fn receiver() -> HostPlan {
    let port = Port { interface: INSIDE, segment: "outside", v4: RECEIVER_V4, v6: RECEIVER_V6 };
    HostPlan { name: "receiver", ports: vec![port] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exits_reach_the_receivers_segment() {
        let plan = Plan::full();
        let outside: Vec<_> = plan
            .hosts
            .iter()
            .filter(|host| host.on("outside").is_some())
            .map(|host| host.name)
            .collect();
        assert_eq!(outside, ["n4", "n5", "n6", "receiver"]);
        assert_eq!(plan.segments(), ["switch", "outside"]);
    }

    #[test]
    fn names_fit_and_addresses_differ() {
        for plan in [Plan::full(), Plan::gateway(), Plan::share(), Plan::one_node()] {
            let mut seen = Vec::new();
            for host in &plan.hosts {
                for port in &host.ports {
                    assert!(host.plug(port).len() <= 15);
                }
                for address in host.addresses() {
                    assert!(!seen.contains(&address), "{address} twice");
                    assert_eq!(plan.host_of(address).map(|host| host.name), Some(host.name));
                    seen.push(address);
                }
            }
        }
    }
}
