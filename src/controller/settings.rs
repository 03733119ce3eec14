//! What the controller is told, with its limits.
//!
//! In: the configuration. Out: plain values. Called by: every file of controller.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use crate::config::{Admission, ControllerConfig};

/// Everything the controller is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to answer requests, TCP.
    pub listen: SocketAddr,
    /// The `HOST:PORT` of links and tokens, if it is not the listening address.
    pub public: Option<String>,
    /// The directory of keys and state.
    pub state: PathBuf,
    /// Who may register.
    pub admission: Admission,
    /// A loopback address for `/metrics` alone, besides the main listener.
    pub metrics: Option<SocketAddr>,
    /// A node unseen for so long is not listed.
    pub down_after: Duration,
    /// How often the directory is signed anew.
    pub sign_every: Duration,
    /// How long a signed directory is valid.
    pub valid_for: Duration,
    /// What one caller, and all of them, may use.
    pub limits: Limits,
}

/// What one caller, and all of them, may use.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Requests a second of one source, in the long run. A source is an IPv4 address or an IPv6
    /// /64.
    pub requests_per_s: f64,
    /// Requests that a source may send at once.
    pub request_burst: f64,
    /// Connections of one source.
    pub connections_per_source: usize,
    /// Connections of all sources.
    pub connections: usize,
    /// How long the head of a request may take.
    pub head_timeout: Duration,
    /// How long the body of a request may take.
    pub body_timeout: Duration,
    /// How long a connection lives, whatever happens on it.
    pub connection_life: Duration,
    /// Nodes that may be known at once.
    pub nodes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests_per_s: 10.0,
            request_burst: 60.0,
            connections_per_source: 128,
            connections: 2048,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            connection_life: Duration::from_secs(300),
            nodes: 4096,
        }
    }
}

impl From<&ControllerConfig> for Settings {
    fn from(config: &ControllerConfig) -> Self {
        Self {
            listen: config.listen,
            public: config.public.clone(),
            state: config.state.clone(),
            admission: config.admission,
            metrics: config.metrics,
            down_after: config.down_after.get(),
            sign_every: config.sign_every.get(),
            valid_for: config.valid_for.get(),
            limits: Limits::default(),
        }
    }
}
