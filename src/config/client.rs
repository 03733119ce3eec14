//! The settings of `cepa client`.
//!
//! In: defaults and layers. Out: [`ClientConfig`]. Called by: node, cli.

use std::{net::SocketAddr, path::PathBuf};

use super::{CableAddress, Cidr, Key, Period, Settings, Wrong, setting, settings};
use crate::{
    directory::ControllerLink,
    model::{Carrier, MIN_HOPS, SLOTS, Suite},
};

settings! {
    /// Everything `cepa client` can be told.
    ClientConfig for "client" {
        /// The controller's link, as `cepa controller link` prints it.
        controller: Option<ControllerLink> = None, "LINK";
        /// The directory of keys and state (mode 0700).
        state: PathBuf = PathBuf::from("/var/lib/cepa/client"), "DIR", global;
        /// Nodes of a path: 3 or 4; in a lab also 1 or 2.
        hops: u8 = 3, "N";
        /// The nodes of every path, by name or id, in order; empty: random.
        path: Vec<String> = Vec::new(), "A,B,C";
        /// A lab: 1 to 4 hops, nodes of one subnet; shown as such in status.
        lab: bool = false, "";
        /// The name of the TUN device; a client that only has proxies makes none.
        tun: String = "cepa0".to_owned(), "NAME";
        /// Which destinations go through the circuit; may repeat.
        route: Vec<Cidr> = Vec::new(), "CIDR";
        /// A SOCKS5 proxy on this address; needs no privilege.
        socks: Option<SocketAddr> = None, "IP:PORT";
        /// An HTTP proxy on this address; needs no privilege.
        http: Option<SocketAddr> = None, "IP:PORT";
        /// A resolver on this address, UDP and TCP; the exit answers.
        dns: Option<SocketAddr> = None, "IP:PORT";
        /// Connections that the proxies serve at once.
        proxy_connections: u32 = 2048, "N";
        /// Connections that the proxies serve at once of one source address.
        proxy_connections_per_source: u32 = 1024, "N";
        /// New flows move to a new circuit after so long (give or take a fifth).
        rotate_every: Period = Period::from_mins(10), "DURATION";
        /// How cells travel: udp, or http where UDP is blocked.
        carrier: Carrier = Carrier::Udp, "udp|http";
        /// The suites a hop may use, in order of preference; empty: what each node prefers.
        suites: Vec<Suite> = Vec::new(), "SUITE";
        /// Threads that work on cells; 0: one, or one per core and at most four where the CPU has no AES
        /// instructions.
        workers: u8 = 0, "N";
        /// The local address of the UDP socket; unset: any.
        listen: Option<SocketAddr> = None, "IP:PORT";
        /// Interfaces of the inside, whose devices go through the circuit; may repeat.
        lan: Vec<String> = Vec::new(), "IF";
        /// An interface of the inside that is captured raw: it has no address in the kernel, and
        /// ARP and neighbour discovery are answered here.
        capture_interface: Option<String> = None, "IF";
        /// The gateway's addresses on that interface, one of each family at most.
        capture_address: Vec<CableAddress> = Vec::new(), "ADDRESS/PREFIX";
        /// Devices of the inside share this machine's circuits, instead of having some of their own.
        lan_shared: bool = false, "";
        /// The user the client runs as, by name or number; the lockdown lets nobody else out.
        user: String = "cepa".to_owned(), "USER";
        /// Networks that may reach this machine's SSH (TCP port 22) during a lockdown; may repeat.
        ssh_from: Vec<Cidr> = Vec::new(), "CIDR";
        /// Metrics for Prometheus on this address, which has to be of the loopback.
        metrics: Option<SocketAddr> = None, "IP:PORT";
        /// What to log: error, warn, info, debug, trace or off.
        log: String = "info".to_owned(), "LEVEL";
    }
}

impl ClientConfig {
    /// Whether a proxy or the resolver is wanted.
    pub fn has_proxies(&self) -> bool {
        self.socks.is_some() || self.http.is_some() || self.dns.is_some()
    }

    /// The name of the TUN device, if one is wanted: a client that only has proxies makes none.
    pub fn tun_name(&self) -> Option<&str> {
        let is_gateway = !self.lan.is_empty() || self.capture_interface.is_some();
        let wanted = !self.has_proxies() || !self.route.is_empty() || is_gateway;
        wanted.then_some(self.tun.as_str())
    }
}

impl ClientConfig {
    /// The TUN interface that stands for the captured one.
    pub const CAPTURE_TUN: &'static str = "cepain0";

    /// The interfaces of the inside, as the kernel's routes and rules know them.
    pub fn inside(&self) -> Vec<String> {
        let captured = self.capture_interface.as_ref().map(|_| Self::CAPTURE_TUN.to_owned());
        self.lan.iter().cloned().chain(captured).collect()
    }
}

impl Settings for ClientConfig {
    const ROLE: &'static str = Self::ROLE_NAME;
    const KEYS: &'static [Key] = Self::KEY_LIST;

    fn check(&self) -> Result<(), Wrong> {
        setting::check_log(&self.log)?;
        setting::check_workers(self.workers)?;
        let (key, hops) = if self.path.is_empty() {
            ("hops", usize::from(self.hops))
        } else {
            ("path", self.path.len())
        };
        if !(1..=SLOTS).contains(&hops) {
            return Err(Wrong::new(key, format!("expected 1 to {SLOTS} hops, got {hops}")));
        }
        if hops < MIN_HOPS && !self.lab {
            return Err(Wrong::new(
                key,
                format!(
                    "expected at least {MIN_HOPS} hops, got {hops}; fewer hide nothing and are \
                     allowed in a lab only (lab = true, --lab)"
                ),
            ));
        }
        for (index, node) in self.path.iter().enumerate() {
            if self.path[..index].contains(node) {
                return Err(Wrong::new(
                    "path",
                    format!("expected distinct nodes, got {node:?} twice"),
                ));
            }
        }
        setting::check_interface("tun", &self.tun)?;
        setting::check_at_least("proxy_connections", self.proxy_connections.into(), 1)?;
        let per_source = self.proxy_connections_per_source.into();
        setting::check_at_least("proxy_connections_per_source", per_source, 1)?;
        for name in &self.lan {
            setting::check_interface("lan", name)?;
            if *name == self.tun {
                return Err(Wrong::new(
                    "lan",
                    format!("expected an interface of the inside, got {name:?}, which is the tun"),
                ));
            }
        }
        if let Some(name) = &self.capture_interface {
            setting::check_interface("capture_interface", name)?;
            if self.lan.contains(name) {
                return Err(Wrong::new(
                    "capture_interface",
                    format!(
                        "expected an interface that is not in lan, got {name:?}: it is either captured or routed"
                    ),
                ));
            }
            let v4 = self.capture_address.iter().filter(|found| found.address.is_ipv4()).count();
            if v4 != 1 || self.capture_address.len() > 2 {
                return Err(Wrong::new(
                    "capture_address",
                    "expected the gateway's IPv4 address on the captured interface, and at most one \
                     IPv6 address: capture_address = [\"192.168.77.1/24\", \"fd78::1/64\"]",
                ));
            }
        }
        setting::check_metrics(self.metrics)?;
        if self.rotate_every < Period::from_secs(10) {
            return Err(Wrong::new(
                "rotate_every",
                format!("expected at least 10s, got {}", self.rotate_every),
            ));
        }
        Ok(())
    }

    fn log_level(&self) -> &str {
        &self.log
    }
}
