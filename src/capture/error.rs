//! What can go wrong in setting up devices, sockets, routes and NAT.
//!
//! In: errors of the kernel. Out: what was expected, what came, what to do.
//! Called by: capture; read by node, rig and cli (which maps a missing privilege to its exit code).

use std::{io, net::SocketAddr};

/// The result of this folder's functions.
pub type Result<T, E = CaptureError> = std::result::Result<T, E>;

/// A set-up step that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// The process may not do this.
    #[error(
        "expected the privilege to {what}, got {source}; run as root or grant {capability} \
         (systemd: AmbientCapabilities={capability}; by hand: setcap {capability}=ep on the binary)"
    )]
    Privilege {
        /// The step.
        what: String,
        /// The capability that allows it.
        capability: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The TUN driver's file is missing or closed to us.
    #[error(
        "expected to open /dev/net/tun, got {source}; load the driver (modprobe tun) and give this \
         user access to the file (a udev rule, or chmod 0666 /dev/net/tun: creating interfaces \
         still needs CAP_NET_ADMIN in the network namespace)"
    )]
    TunFile {
        /// What the kernel said.
        source: io::Error,
    },
    /// Another process holds the interface.
    #[error(
        "expected the interface {name} to be free, got one in use; stop the other daemon or choose another name"
    )]
    InterfaceBusy {
        /// Its name.
        name: String,
    },
    /// There is no such interface.
    #[error("expected an interface {name}, got none; `ip link` lists those there are")]
    NoInterface {
        /// Its name.
        name: String,
    },
    /// Another process holds the address and port.
    #[error(
        "expected UDP {addr} to be free, got it in use; stop what listens there (ss -ulpn) or choose another port"
    )]
    PortTaken {
        /// Where we wanted to listen.
        addr: SocketAddr,
    },
    /// The address is none of this machine's.
    #[error(
        "expected {addr} to be an address of this machine, got {source}; use one that `ip address` lists, or 0.0.0.0 or [::] for all"
    )]
    NotOurAddress {
        /// Where we wanted to listen.
        addr: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// A program that is needed is not installed.
    #[error("expected the program {program}, got none; install it (Debian: apt install {package})")]
    NoProgram {
        /// Its name.
        program: &'static str,
        /// The package that brings it.
        package: &'static str,
    },
    /// Anything else.
    #[error("{what}: {source}")]
    Io {
        /// The step.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl CaptureError {
    /// Wraps an error of a step that needs a capability.
    pub(crate) fn step(
        what: impl Into<String>,
        capability: &'static str,
        source: io::Error,
    ) -> Self {
        let what = what.into();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::Privilege { what, capability, source },
            _ => Self::Io { what, source },
        }
    }

    /// Whether a privilege is what is missing.
    pub fn is_missing_privilege(&self) -> bool {
        match self {
            Self::Privilege { .. } => true,
            Self::TunFile { source } => {
                matches!(source.raw_os_error(), Some(libc::EPERM | libc::EACCES))
            }
            _ => false,
        }
    }
}
