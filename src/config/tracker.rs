//! The settings of `cepa tracker`.
//!
//! In: defaults and layers. Out: [`TrackerConfig`]. Called by: node, cli.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use super::{Key, Period, Secret, Settings, Wrong, setting, settings};
use crate::directory::ControllerLink;

settings! {
    /// Everything `cepa tracker` can be told.
    TrackerConfig for "tracker" {
        /// The controller's link, as `cepa controller link` prints it.
        controller: Option<ControllerLink> = None, "LINK";
        /// The tracker's name in the directory.
        name: Option<String> = None, "NAME";
        /// Where to answer, TCP for messages and UDP for the controller's probes.
        listen: SocketAddr = SocketAddr::from(([0, 0, 0, 0], 5000)), "IP:PORT";
        /// The public IP address, if the one the controller sees is not it.
        address: Option<IpAddr> = None, "IP";
        /// The directory of keys and state (mode 0700).
        state: PathBuf = PathBuf::from("/var/lib/cepa/tracker"), "DIR", global;
        /// The single-use token of `cepa controller token new`, for the first registration.
        join: Option<Secret> = None, "TOKEN", secret;
        /// Who runs this tracker.
        operator: Option<String> = None, "LABEL";
        /// Files that one circuit may announce; what is above is refused, and said so.
        files_per_circuit: u32 = 4096, "N";
        /// What a circuit shares is forgotten after so long without a word.
        expire_after: Period = Period::from_mins(3), "DURATION";
        /// Metrics for Prometheus on this address, which has to be of the loopback.
        metrics: Option<SocketAddr> = None, "IP:PORT";
        /// What to log: error, warn, info, debug, trace or off.
        log: String = "info".to_owned(), "LEVEL";
    }
}

impl Settings for TrackerConfig {
    const ROLE: &'static str = Self::ROLE_NAME;
    const KEYS: &'static [Key] = Self::KEY_LIST;

    fn check(&self) -> Result<(), Wrong> {
        setting::check_log(&self.log)?;
        setting::check_member(self.name.as_deref(), self.operator.as_deref(), self.join.as_ref())?;
        setting::check_metrics(self.metrics)?;
        setting::check_at_least("files_per_circuit", u64::from(self.files_per_circuit), 1)?;
        if self.expire_after < Period::from_secs(15) {
            return Err(Wrong::new(
                "expire_after",
                format!("expected at least 15s, got {}", self.expire_after),
            ));
        }
        Ok(())
    }

    fn log_level(&self) -> &str {
        &self.log
    }
}
