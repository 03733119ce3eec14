//! Why the control socket does not work, and what to do.
//!
//! In: findings of serve and ask. Out: messages that name the way out. Called by: serve, ask, cli.

use std::{io, path::PathBuf};

use super::Refusal;

/// A failure on either side of the control socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// Nobody answers.
    #[error("no {role} runs here ({} is not there or nobody listens); {start}", socket.display())]
    NoDaemon {
        /// The role that was asked for.
        role: String,
        /// The socket that was tried last.
        socket: PathBuf,
        /// How to start it.
        start: String,
    },
    /// The socket belongs to someone else.
    #[error(
        "{}: permission denied; run this as root or as the user the daemon runs as",
        socket.display()
    )]
    Denied {
        /// The socket.
        socket: PathBuf,
    },
    /// The daemon said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The answer is no answer.
    #[error("{}: expected one JSON line, got {got}; are daemon and command of one version?", socket.display())]
    Garbled {
        /// The socket.
        socket: PathBuf,
        /// What came instead.
        got: String,
    },
    /// No answer in time.
    #[error("{}: expected an answer within {seconds} s, got none; is the daemon overloaded?", socket.display())]
    Slow {
        /// The socket.
        socket: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
    /// Another process has this state directory.
    #[error(
        "{}: another cepa process has this state directory; stop it, or give --state another one",
        dir.display()
    )]
    AlreadyRuns {
        /// The state directory.
        dir: PathBuf,
    },
    /// The state directory is open to others.
    #[error(
        "{}: expected mode 0700, got {mode:04o}; close it with: chmod 700 {}",
        dir.display(), dir.display()
    )]
    OpenDir {
        /// The state directory.
        dir: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The system said no.
    #[error("{}: {doing}: {source}", path.display())]
    System {
        /// What it was about.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}
