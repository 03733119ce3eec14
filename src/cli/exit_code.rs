//! Exit codes, and which error gets which.
//!
//! In: the error of a subcommand. Out: a number for the shell. Called by: every subcommand.

use std::error::Error;

use crate::{
    capture::CaptureError,
    config::ConfigError,
    controller::ControllerError,
    dcnet::error::DcnetError,
    directory::ClientError,
    keys::KeyError,
    node::NodeError,
    peer_run::{PeerError, network::NetworkError},
    telemetry::control::{ControlError, RefusalKind},
};

/// What the process says to its caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ExitCode {
    /// All went well.
    Ok = 0,
    /// It failed.
    Failed = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// The daemon or the controller cannot be reached.
    Unreachable = 3,
    /// The controller does not admit this node.
    NotAdmitted = 4,
    /// Packets are blocked, because letting them out would not be safe.
    Blocked = 5,
    /// A leak was seen.
    Leak = 6,
    /// A privilege is missing.
    MissingPrivilege = 7,
}

impl ExitCode {
    /// The code of an error: that of the first cause that has one.
    pub fn of(error: &anyhow::Error) -> Self {
        error.chain().find_map(code_of).unwrap_or(Self::Failed)
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        (code as u8).into()
    }
}

/// The code of one cause. Each folder's error type that is more than "failed" has a line here.
fn code_of(cause: &(dyn Error + 'static)) -> Option<ExitCode> {
    if let Some(failure) = cause.downcast_ref::<Failure>() {
        return Some(failure.code);
    }
    if cause.is::<ConfigError>() || matches!(cause.downcast_ref(), Some(DcnetError::Config { .. }))
    {
        return Some(ExitCode::Usage);
    }
    if let Some(error) = cause.downcast_ref::<ControlError>() {
        return Some(of_control(error));
    }
    if let Some(error) = cause.downcast_ref::<ClientError>() {
        return Some(of_client(error));
    }
    if cause.downcast_ref().is_some_and(CaptureError::is_missing_privilege) {
        return Some(ExitCode::MissingPrivilege);
    }
    if let Some(PeerError::Network(NetworkError::Unreachable(_))) = cause.downcast_ref() {
        return Some(ExitCode::Unreachable);
    }
    if cause.downcast_ref().is_some_and(KeyError::is_missing_privilege) {
        return Some(ExitCode::MissingPrivilege);
    }
    match cause.downcast_ref::<ControllerError>() {
        Some(ControllerError::Control(error)) => return Some(of_control(error)),
        Some(ControllerError::Setting { .. }) => return Some(ExitCode::Usage),
        Some(error) if error.is_missing_privilege() => return Some(ExitCode::MissingPrivilege),
        _ => {}
    }
    match cause.downcast_ref::<NodeError>() {
        Some(NodeError::Control(error)) => Some(of_control(error)),
        Some(NodeError::Client(error)) => Some(of_client(error)),
        Some(NodeError::Key(error)) if error.is_missing_privilege() => {
            Some(ExitCode::MissingPrivilege)
        }
        Some(NodeError::Capture(error)) if error.is_missing_privilege() => {
            Some(ExitCode::MissingPrivilege)
        }
        _ => None,
    }
}

fn of_client(error: &ClientError) -> ExitCode {
    match error {
        ClientError::Unreachable { .. } => ExitCode::Unreachable,
        ClientError::NotAdmitted { .. } => ExitCode::NotAdmitted,
        _ => ExitCode::Failed,
    }
}

fn of_control(error: &ControlError) -> ExitCode {
    match error {
        ControlError::NoDaemon { .. } | ControlError::Slow { .. } => ExitCode::Unreachable,
        ControlError::Denied { .. } => ExitCode::MissingPrivilege,
        ControlError::Refused(refusal) => match refusal.kind {
            RefusalKind::Failed => ExitCode::Failed,
            RefusalKind::Usage => ExitCode::Usage,
            RefusalKind::Unreachable => ExitCode::Unreachable,
            RefusalKind::NotAdmitted => ExitCode::NotAdmitted,
            RefusalKind::Blocked => ExitCode::Blocked,
            RefusalKind::MissingPrivilege => ExitCode::MissingPrivilege,
        },
        _ => ExitCode::Failed,
    }
}

/// An error of the command line itself, with its code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    code: ExitCode,
    message: String,
    is_answered: bool,
}

impl Failure {
    /// An error that says "expected X, got Y; do Z" and ends the process with `code`.
    pub fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), is_answered: false }
    }

    /// The same, after an answer that says it already: no second JSON object follows.
    pub fn answered(code: ExitCode, message: impl Into<String>) -> Self {
        Self { is_answered: true, ..Self::new(code, message) }
    }

    /// Whether the answer says it already.
    pub const fn is_answered(&self) -> bool {
        self.is_answered
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn the_cause_decides() {
        let bare = anyhow::anyhow!("x");
        assert_eq!(ExitCode::of(&bare), ExitCode::Failed);
        let wrapped = Err::<(), _>(Failure::new(ExitCode::Unreachable, "gone"))
            .context("while asking")
            .unwrap_err();
        assert_eq!(ExitCode::of(&wrapped), ExitCode::Unreachable);
        assert_eq!(format!("{wrapped:#}"), "while asking: gone");
    }
}
