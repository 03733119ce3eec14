//! The settings of `cepa peer`.
//!
//! In: defaults and layers. Out: [`PeerConfig`]. Called by: cli.

use std::{net::SocketAddr, path::PathBuf};

use super::{Key, Period, Settings, Wrong, setting, settings};
use crate::{
    directory::ControllerLink,
    model::{Carrier, MIN_HOPS, SLOTS, Suite},
};

settings! {
    /// Everything `cepa peer` can be told.
    PeerConfig for "peer" {
        /// The controller's link, as `cepa controller link` prints it.
        controller: Option<ControllerLink> = None, "LINK", global;
        /// The directory of keys and state (mode 0700).
        state: PathBuf = PathBuf::from("/var/lib/cepa/peer"), "DIR", global;
        /// Where downloads go; unset: STATE/files when it serves, else the current directory.
        downloads: Option<PathBuf> = None, "DIR", global;
        /// The tracker's name; unset: the only one of the network.
        tracker: Option<String> = None, "NAME", global;
        /// Uploaders at once for one download: 1 to 4.
        sources: u8 = 4, "N", global;
        /// Where `cepa peer serve` shows its page: a loopback address.
        web: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 8086)), "IP:PORT", global;
        /// Nodes of a path: 3 or 4; in a lab also 1 or 2.
        hops: u8 = 3, "N", global;
        /// The nodes of every path, by name or id, in order; empty: random.
        path: Vec<String> = Vec::new(), "A,B,C", global;
        /// A lab: 1 to 4 hops, nodes of one subnet.
        lab: bool = false, "", global;
        /// Transfers move to new circuits after so long (give or take a fifth).
        rotate_every: Period = Period::from_mins(10), "DURATION", global;
        /// How cells reach the first node: udp, or http where UDP is blocked.
        carrier: Carrier = Carrier::Udp, "udp|http", global;
        /// The suites a hop may use, in order of preference; empty: what each node prefers.
        suites: Vec<Suite> = Vec::new(), "SUITE", global;
        /// Threads that work on cells; 0: one, or one per core and at most four where the CPU has no AES
        /// instructions.
        workers: u8 = 0, "N", global;
        /// The local address of the UDP socket; unset: any.
        listen: Option<SocketAddr> = None, "IP:PORT", global;
        /// What to log: error, warn, info, debug, trace or off.
        log: String = "warn".to_owned(), "LEVEL", global;
    }
}

impl Settings for PeerConfig {
    const ROLE: &'static str = Self::ROLE_NAME;
    const KEYS: &'static [Key] = Self::KEY_LIST;

    fn check(&self) -> Result<(), Wrong> {
        setting::check_log(&self.log)?;
        setting::check_workers(self.workers)?;
        if !(1..=4).contains(&self.sources) {
            return Err(Wrong::new("sources", format!("expected 1 to 4, got {}", self.sources)));
        }
        if !self.web.ip().is_loopback() {
            return Err(Wrong::new(
                "web",
                format!(
                    "expected a loopback address such as 127.0.0.1:8086, got {}; reach it from \
                     elsewhere through ssh -L",
                    self.web
                ),
            ));
        }
        let (key, hops) = if self.path.is_empty() {
            ("hops", usize::from(self.hops))
        } else {
            ("path", self.path.len())
        };
        let least = if self.lab { 1 } else { MIN_HOPS };
        if !(least..=SLOTS).contains(&hops) {
            return Err(Wrong::new(
                key,
                format!(
                    "expected {least} to {SLOTS} hops, got {hops}; fewer than {MIN_HOPS} hide \
                     nothing and are allowed in a lab only (lab = true, --lab)"
                ),
            ));
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
