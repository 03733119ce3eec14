//! The settings of `cepa node`.
//!
//! In: defaults and layers. Out: [`NodeConfig`]. Called by: node, cli.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use super::{Cidr, Key, Period, Secret, Settings, Wrong, setting, settings};
use crate::{
    directory::ControllerLink,
    model::{ExitPolicy, Suite},
};

settings! {
    /// Everything `cepa node` can be told.
    NodeConfig for "node" {
        /// The controller's link, as `cepa controller link` prints it.
        controller: Option<ControllerLink> = None, "LINK";
        /// The node's name in the directory.
        name: Option<String> = None, "NAME";
        /// Where to take cells, UDP.
        listen: SocketAddr = SocketAddr::from(([0, 0, 0, 0], 5000)), "IP:PORT";
        /// The public IP address, if the one the controller sees is not it.
        address: Option<IpAddr> = None, "IP";
        /// The directory of keys and state (mode 0700).
        state: PathBuf = PathBuf::from("/var/lib/cepa/node"), "DIR", global;
        /// The single-use token of `cepa controller token new`, for the first registration.
        join: Option<Secret> = None, "TOKEN", secret;
        /// Who runs this node; clients avoid two nodes of one operator in a path.
        operator: Option<String> = None, "LABEL";
        /// Let packets out here: needs CAP_NET_ADMIN, or --userspace.
        exit: bool = false, "";
        /// Let packets out through sockets of this program, without any privilege.
        userspace: bool = false, "";
        /// The name server that circuits' names are resolved with; unset: that of /etc/resolv.conf.
        exit_resolver: Option<SocketAddr> = None, "IP:PORT";
        /// The interface packets leave by, of an exit; unset: the one of the default route.
        exit_interface: Option<String> = None, "IF";
        /// Which destinations the exit lets through: comma-separated accept:NET or
        /// accept:NET:PORTS, reject likewise, IPv6 in brackets, the first match decides. What no rule matches is
        /// let through, but for private and local networks.
        exit_policy: ExitPolicy = ExitPolicy::default(), "RULES";
        /// The name of the exit's TUN device.
        exit_tun: String = "cepaexit0".to_owned(), "NAME";
        /// The exit's pool of inner IPv4 addresses, one per circuit.
        exit_pool_v4: Cidr = setting::network([100, 65, 0, 0].into(), 16), "CIDR";
        /// The exit's pool of inner IPv6 addresses, one per circuit.
        exit_pool_v6: Cidr = setting::network([0xfd63, 0x6570, 0x6101, 0, 0, 0, 0, 0].into(), 64), "CIDR";
        /// Packets per second that one circuit may send out at the exit; 0: no limit.
        circuit_packet_rate: u64 = 0, "N";
        /// Bytes per second that one circuit may send out at the exit; 0: no limit.
        circuit_byte_rate: u64 = 0, "N";
        /// Connections that one circuit may hold at the exit.
        circuit_connections: u32 = 1024, "N";
        /// Circuits held at once; a further CREATE is refused with the reason.
        max_circuits: u32 = 16_384, "N";
        /// A circuit idle for so long is closed.
        circuit_idle: Period = Period::from_mins(10), "DURATION";
        /// CREATE cells per second that one source may send.
        create_rate: u32 = 64, "N";
        /// Layer suites in order of preference; empty: chosen by what the CPU can do.
        suites: Vec<Suite> = Vec::new(), "SUITE";
        /// Threads that work on cells; 0: one, or one per core and at most four where the CPU has no AES
        /// instructions.
        workers: u8 = 0, "N";
        /// A lab: private destinations are let through, and shown as such in status.
        lab: bool = false, "";
        /// Metrics for Prometheus on this address, which has to be of the loopback.
        metrics: Option<SocketAddr> = None, "IP:PORT";
        /// What to log: error, warn, info, debug, trace or off.
        log: String = "info".to_owned(), "LEVEL";
        /// Further roles of this daemon on the same port: tracker.
        also: Vec<String> = Vec::new(), "ROLE", planned;
    }
}

impl Settings for NodeConfig {
    const ROLE: &'static str = Self::ROLE_NAME;
    const KEYS: &'static [Key] = Self::KEY_LIST;

    fn check(&self) -> Result<(), Wrong> {
        setting::check_log(&self.log)?;
        setting::check_workers(self.workers)?;
        setting::check_member(self.name.as_deref(), self.operator.as_deref(), self.join.as_ref())?;
        if self.userspace && !self.exit {
            return Err(Wrong::new(
                "userspace",
                "expected exit = true (--exit) beside it: it says how an exit lets packets out",
            ));
        }
        if self.userspace && self.exit_interface.is_some() {
            return Err(Wrong::new(
                "exit_interface",
                "expected none with userspace = true (--userspace): the kernel chooses for sockets",
            ));
        }
        setting::check_metrics(self.metrics)?;
        setting::check_interface("exit_tun", &self.exit_tun)?;
        if let Some(interface) = &self.exit_interface {
            setting::check_interface("exit_interface", interface)?;
        }
        if !self.exit_pool_v4.address.is_ipv4() || !(8..=24).contains(&self.exit_pool_v4.prefix) {
            return Err(Wrong::new(
                "exit_pool_v4",
                format!("expected an IPv4 network of /8 to /24, got {}", self.exit_pool_v4),
            ));
        }
        if !self.exit_pool_v6.address.is_ipv6() || !(32..=112).contains(&self.exit_pool_v6.prefix) {
            return Err(Wrong::new(
                "exit_pool_v6",
                format!("expected an IPv6 network of /32 to /112, got {}", self.exit_pool_v6),
            ));
        }
        setting::check_at_least("max_circuits", u64::from(self.max_circuits), 1)?;
        setting::check_at_least("circuit_connections", u64::from(self.circuit_connections), 1)?;
        setting::check_at_least("create_rate", u64::from(self.create_rate), 1)?;
        if self.circuit_idle < Period::from_secs(1) {
            return Err(Wrong::new(
                "circuit_idle",
                format!("expected at least 1s, got {}", self.circuit_idle),
            ));
        }
        Ok(())
    }

    fn log_level(&self) -> &str {
        &self.log
    }
}
