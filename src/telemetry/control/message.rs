//! Requests and answers of the control socket.
//!
//! In: JSON lines. Out: typed messages. Called by: serve, ask, and the handlers of the daemons.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The names of the commands.
pub mod command {
    /// No arguments; answers [`Status`](crate::telemetry::Status).
    pub const STATUS: &str = "status";
    /// No arguments; answers [`CircuitsStatus`](crate::telemetry::CircuitsStatus).
    pub const CIRCUITS: &str = "circuits";
    /// No arguments; builds a circuit for new flows and answers it, as
    /// [`CircuitInfo`](crate::telemetry::CircuitInfo).
    pub const CIRCUIT_NEW: &str = "circuit_new";
    /// [`CloseArgs`](super::CloseArgs); ends a circuit and answers null.
    pub const CIRCUIT_CLOSE: &str = "circuit_close";
    /// [`PingArgs`](super::PingArgs); answers [`PingAnswer`](crate::telemetry::PingAnswer).
    pub const PING: &str = "ping";
    /// [`TraceArgs`](super::TraceArgs); answers [`TraceAnswer`](crate::telemetry::TraceAnswer).
    pub const TRACE: &str = "trace";
    /// No arguments; ends the daemon and answers null.
    pub const STOP: &str = "stop";
    /// [`BenchArgs`](super::BenchArgs); answers [`BenchAnswer`](crate::telemetry::BenchAnswer).
    pub const BENCH: &str = "bench";
    /// No arguments; draws a new onion key and answers null.
    pub const KEYS_ROTATE: &str = "keys_rotate";
}

/// One question to a daemon.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Request {
    /// One of [`command`]'s names, or one of the role's own.
    pub command: String,
    /// What the command takes; null if nothing.
    #[serde(default)]
    pub args: serde_json::Value,
}

impl Request {
    /// A request without arguments.
    pub fn plain(command: &str) -> Self {
        Self { command: command.to_owned(), args: serde_json::Value::Null }
    }

    /// A request with arguments.
    pub fn with(command: &str, args: &impl Serialize) -> Self {
        let args = serde_json::to_value(args).unwrap_or_default();
        Self { command: command.to_owned(), args }
    }

    /// The arguments as `T`.
    ///
    /// # Errors
    /// A refusal that says what is wrong with them.
    pub fn parse_args<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        T::deserialize(&self.args).map_err(|error| {
            Refusal::new(
                RefusalKind::Usage,
                format!("expected the arguments of {:?}, got: {error}", self.command),
            )
        })
    }

    /// The refusal of a command this daemon does not know.
    pub fn unknown(&self, role: &str) -> Refusal {
        Refusal::new(
            RefusalKind::Usage,
            format!("expected a command of a {role}, got {:?}", self.command),
        )
    }
}

/// Arguments of [`command::PING`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PingArgs {
    /// A node of a circuit, by name or id.
    pub node: String,
    /// How long to wait for the answer, in milliseconds.
    pub timeout_ms: u64,
}

/// Arguments of [`command::TRACE`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TraceArgs {
    /// Which circuit; none: the active one.
    pub circuit: Option<u32>,
    /// Echoes per hop.
    pub count: u32,
    /// Milliseconds between two echoes to one hop.
    pub interval_ms: u64,
}

/// Arguments of [`command::BENCH`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BenchArgs {
    /// Which circuit; none: the active one.
    pub circuit: Option<u32>,
    /// For how many milliseconds; 10,000 at most.
    pub millis: u64,
    /// Cells that are out at the beginning.
    pub window: u32,
}

/// Arguments of [`command::CIRCUIT_CLOSE`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CloseArgs {
    /// The circuit's number.
    pub number: u32,
}

/// What a refusal means for the exit code.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// It failed.
    #[default]
    Failed,
    /// The request is wrong.
    Usage,
    /// The controller cannot be reached.
    Unreachable,
    /// The controller does not admit this member.
    NotAdmitted,
    /// Packets are blocked.
    Blocked,
    /// A privilege is missing.
    MissingPrivilege,
}

/// A daemon's "no".
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What it means for the exit code.
    #[serde(default)]
    pub kind: RefusalKind,
    /// "expected X, got Y; do Z".
    pub message: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// One answer line.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Ok(serde_json::Value),
    Error(Refusal),
}

impl From<Result<serde_json::Value, Refusal>> for Answer {
    fn from(result: Result<serde_json::Value, Refusal>) -> Self {
        match result {
            Ok(value) => Self::Ok(value),
            Err(refusal) => Self::Error(refusal),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_as_documented() {
        let args = PingArgs { node: "n2".to_owned(), timeout_ms: 2000 };
        let request = Request::with(command::PING, &args);
        let line = serde_json::to_string(&request).unwrap();
        assert_eq!(line, r#"{"command":"ping","args":{"node":"n2","timeout_ms":2000}}"#);
        assert_eq!(request.parse_args::<PingArgs>(), Ok(args));
        let refusal = Refusal::new(RefusalKind::Blocked, "no");
        assert_eq!(
            serde_json::to_string(&Answer::Error(refusal)).unwrap(),
            r#"{"error":{"kind":"blocked","message":"no"}}"#
        );
        assert!(Request::plain("ping").parse_args::<PingArgs>().is_err());
    }

    proptest! {
        #[test]
        fn any_line_is_a_request_or_an_error(line: String) {
            let _ = serde_json::from_str::<Request>(&line);
            let _ = serde_json::from_str::<Answer>(&line);
        }
    }
}
