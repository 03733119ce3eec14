//! The settings of `cepa client`.
//!
//! In: defaults and layers. Out: [`ClientConfig`]. Called by: node, cli.

use std::{net::SocketAddr, path::PathBuf};

use super::{Cidr, Key, Period, Settings, Wrong, setting, settings};
use crate::{
    directory::ControllerLink,
    model::{MIN_HOPS, SLOTS, Suite},
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
        /// The name of the TUN device.
        tun: String = "cepa0".to_owned(), "NAME";
        /// Which destinations go through the circuit; may repeat.
        route: Vec<Cidr> = Vec::new(), "CIDR";
        /// New flows move to a new circuit after so long (give or take a fifth).
        rotate_every: Period = Period::from_mins(10), "DURATION";
        /// The suites a hop may use, in order of preference; empty: what each node prefers.
        suites: Vec<Suite> = Vec::new(), "SUITE";
        /// The local address of the UDP socket; unset: any.
        listen: Option<SocketAddr> = None, "IP:PORT";
        /// Interfaces of the inside, whose devices go through the circuit; may repeat.
        lan: Vec<String> = Vec::new(), "IF";
        /// The user the client runs as, by name or number; the lockdown lets nobody else out.
        user: String = "cepa".to_owned(), "USER";
        /// Networks that may reach this machine's SSH (TCP port 22) during a lockdown; may repeat.
        ssh_from: Vec<Cidr> = Vec::new(), "CIDR";
        /// What to log: error, warn, info, debug, trace or off.
        log: String = "info".to_owned(), "LEVEL";
        /// Take frames from this interface, where routing is not wanted.
        capture_interface: Option<String> = None, "IF", planned;
        /// A SOCKS5 proxy on this address.
        socks: Option<SocketAddr> = None, "IP:PORT", planned;
        /// An HTTP proxy on this address.
        http: Option<SocketAddr> = None, "IP:PORT", planned;
        /// A resolver on this address.
        dns: Option<SocketAddr> = None, "IP:PORT", planned;
    }
}

impl Settings for ClientConfig {
    const ROLE: &'static str = Self::ROLE_NAME;
    const KEYS: &'static [Key] = Self::KEY_LIST;

    fn check(&self) -> Result<(), Wrong> {
        setting::check_log(&self.log)?;
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
        for name in &self.lan {
            setting::check_interface("lan", name)?;
            if *name == self.tun {
                return Err(Wrong::new(
                    "lan",
                    format!("expected an interface of the inside, got {name:?}, which is the tun"),
                ));
            }
        }
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
