//! The settings of `cepa controller`.
//!
//! In: defaults and layers. Out: [`ControllerConfig`]. Called by: controller, cli.

use std::{net::SocketAddr, path::PathBuf};

use super::{Key, Period, Settings, Wrong, settings};

/// Who may register.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Admission {
    /// Who shows a single-use token.
    #[default]
    Token,
    /// Anyone; for labs.
    Open,
}

settings! {
    /// Everything `cepa controller` can be told.
    ControllerConfig for "controller" {
        /// Where to answer, TCP for requests and UDP for probes.
        listen: SocketAddr = SocketAddr::from(([0, 0, 0, 0], 5000)), "IP:PORT";
        /// The HOST:PORT that links and tokens carry, if it is not the listening address.
        public: Option<String> = None, "HOST:PORT";
        /// The directory of keys and state (mode 0700).
        state: PathBuf = PathBuf::from("/var/lib/cepa/controller"), "DIR", global;
        /// Who may register: token (single-use tokens) or open (anyone; for labs).
        admission: Admission = Admission::Token, "token|open";
        /// One more address for /metrics, on loopback; the main one answers it to this machine only.
        metrics: Option<SocketAddr> = None, "IP:PORT";
        /// A node unseen for so long is not listed.
        down_after: Period = Period::from_secs(30), "DURATION";
        /// How often the directory is signed anew.
        sign_every: Period = Period::from_mins(10), "DURATION";
        /// How long a signed directory is valid.
        valid_for: Period = Period::from_hours(24), "DURATION";
        /// What to log: error, warn, info, debug, trace or off.
        log: String = "info".to_owned(), "LEVEL";
    }
}

impl Settings for ControllerConfig {
    const ROLE: &'static str = Self::ROLE_NAME;
    const KEYS: &'static [Key] = Self::KEY_LIST;

    fn check(&self) -> Result<(), Wrong> {
        super::setting::check_log(&self.log)?;
        if let Some(public) = &self.public {
            super::setting::check_host_port("public", public)?;
        }
        super::setting::check_metrics(self.metrics)?;
        if self.down_after < Period::from_secs(1) {
            return Err(Wrong::new(
                "down_after",
                format!("expected at least 1s, got {}", self.down_after),
            ));
        }
        if self.sign_every < Period::from_secs(1) {
            return Err(Wrong::new(
                "sign_every",
                format!("expected at least 1s, got {}", self.sign_every),
            ));
        }
        if self.valid_for < self.sign_every {
            return Err(Wrong::new(
                "valid_for",
                format!(
                    "expected at least sign_every ({}), got {}; otherwise clients are left with \
                     an expired directory",
                    self.sign_every, self.valid_for
                ),
            ));
        }
        Ok(())
    }

    fn log_level(&self) -> &str {
        &self.log
    }
}
