//! The control socket: one JSON request line, one JSON answer line.
//!
//! In: requests of the command line. Out: snapshots of the daemon.
//! Called by: node, controller (serve), cli and rig (ask).
//!
//! ```text
//! {"command": "ping", "args": {"node": "n2", "timeout_ms": 2000}}
//! {"ok": {"node": "n2", "circuit": 1, "hop": 2, "rtt_ms": 0.41}}
//! {"error": {"kind": "failed", "message": "expected a node of a circuit, got \"n9\"; ..."}}
//! ```
//!
//! The socket is `DIR/control.sock` in the state directory; a daemon whose state directory is the
//! default one, `/var/lib/cepa/<role>`, also answers on `/run/cepa/<role>.sock`.

mod ask;
mod error;
mod message;
mod serve;

pub use ask::{Place, ask};
pub use error::ControlError;
pub use message::{
    BenchArgs, CloseArgs, PingArgs, Refusal, RefusalKind, Request, TraceArgs, command,
};
pub use serve::{ControlServer, StateLock};
