//! What stops the controller, said as expected, got and the way out.
//!
//! In: nothing. Out: one error type. Called by: every file of controller, cli.

use std::{io::ErrorKind, net::SocketAddr, path::PathBuf};

use crate::{directory::DirectoryError, keys::KeyError, telemetry::control::ControlError};

/// Why the controller cannot start, go on, or do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// The address is taken or not this machine's.
    #[error("expected to listen on {addr}, got: {cause}; {hint}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why not.
        cause: std::io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// A setting that makes no sense with the others.
    #[error("expected {setting} {expected}, got {got}")]
    Setting {
        /// Its key.
        setting: &'static str,
        /// The rule.
        expected: &'static str,
        /// What it is.
        got: String,
    },
    /// The database is of another shape than this program writes.
    #[error(
        "expected {path} to be the controller's database, got {got}: it is damaged and was left \
         as it is; restore it from a backup, or move it away and run \
         `cepa controller key adopt` to keep the key and start without nodes and tokens"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        got: String,
    },
    /// There is a key, but no database.
    #[error(
        "expected {path} beside the controller's key, got none: it was lost; restore it from a \
         backup, or run `cepa controller key adopt` to keep the key and start without nodes and \
         tokens"
    )]
    DatabaseMissing {
        /// The file that should be there.
        path: PathBuf,
    },
    /// The database is there, but the key that it names is not.
    #[error(
        "expected the controller's key in {path}, got none: it was lost; restore it from a \
         backup, or move the whole state directory away to start a new network with new links"
    )]
    KeyMissing {
        /// The file that should be there.
        path: PathBuf,
    },
    /// `key adopt` cannot tell which key is meant.
    #[error("expected exactly one controller-*.pem and no controller.db in {path}, got {got}")]
    CannotAdopt {
        /// The state directory.
        path: PathBuf,
        /// What was found.
        got: String,
    },
    /// Nothing was ever set up there.
    #[error(
        "expected a controller's state in {path}, got none; start the controller once, or name \
         its directory with --state"
    )]
    NoState {
        /// The state directory.
        path: PathBuf,
    },
    /// The files would belong to someone the daemon is not.
    #[error(
        "expected to run as the owner of {path} (uid {owner}), got uid {own}; \
         run: sudo -u '#{owner}' cepa controller ..."
    )]
    NotOwner {
        /// The state directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who runs this.
        own: u32,
    },
    /// No such node or token.
    #[error("expected {what}, got {got:?}; list them: cepa controller {list} list")]
    Unknown {
        /// What was asked for.
        what: &'static str,
        /// What was given.
        got: String,
        /// The subcommand that lists them.
        list: &'static str,
    },
    /// The database refuses.
    #[error("the database {path} failed to {action}: {cause}")]
    Database {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        cause: rusqlite::Error,
    },
    /// The thread of the database is gone or behind.
    #[error("expected the database to take a request, got a {state}")]
    Busy {
        /// `full queue` or `stopped thread`.
        state: &'static str,
    },
    /// A key or key file.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The state directory, or the control socket in it.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A document.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The machine refuses something that has no better name.
    #[error("expected to {action}, got: {cause}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why not.
        cause: std::io::Error,
    },
}

impl ControllerError {
    /// Whether another user, or one with more rights, could do it.
    pub fn is_missing_privilege(&self) -> bool {
        let denied = |cause: &std::io::Error| cause.kind() == ErrorKind::PermissionDenied;
        match self {
            Self::NotOwner { .. } => true,
            Self::Listen { cause, .. } | Self::Io { cause, .. } => denied(cause),
            Self::Key(KeyError::File { cause, .. }) => denied(cause),
            _ => false,
        }
    }
}
