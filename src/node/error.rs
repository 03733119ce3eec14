//! What stops a daemon.
//!
//! In: errors of the layers below. Out: one error type. Called by: the daemons, cli.

use crate::{
    capture::CaptureError,
    client::ProxyError,
    directory::{ClientError, DirectoryError},
    exit::ExitError,
    forward::exit::PoolError,
    keys::KeyError,
    telemetry::control::ControlError,
    tracker::TrackerError,
};

/// Why a daemon could not start, or had to end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// A socket or device.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// A key file or operation.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A directory, descriptor, link or token.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The control socket or the state directory.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The controller does not answer as it must.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The proxies.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// The exit's own service.
    #[error(transparent)]
    Exit(#[from] ExitError),
    /// The exit's pool.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The exit's pools are not one of each family.
    #[error("expected an IPv4 network in exit_pool_v4 and an IPv6 network in exit_pool_v6")]
    PoolFamilies,
    /// There is no interface to let packets out by.
    #[error("expected an interface with a default route, got none; name one with --exit-interface")]
    NoExitInterface,
    /// The HTTP door.
    #[error(
        "expected the port of `listen` to be free, TCP and UDP, got {0}; a controller on the same \
         machine has it, too: give one of them another, such as --listen 0.0.0.0:5001"
    )]
    Door(std::io::Error),
    /// The tracker's state.
    #[error(transparent)]
    Tracker(#[from] TrackerError),
    /// The data path ended unexpectedly.
    #[error("the data path ended unexpectedly; the log says more")]
    DataPath,
    /// The port of the metrics.
    #[error("expected {addr} to be free for metrics, got {source}; choose another port")]
    Metrics {
        /// Where they were to be.
        addr: std::net::SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A thread could not be started.
    #[error("expected to start a thread, got {0}; check the limits of this service")]
    Thread(std::io::Error),
    /// The system's readiness notification failed.
    #[error("expected the system to wait for events, got {0}")]
    Wait(std::io::Error),
}
