//! Logs, counters, metrics and the control socket's protocol.
//!
//! In: events of the daemons. Out: journal or terminal lines, snapshots, metrics.
//! Called by: node, controller, cli.

pub mod control;
mod lockdown;
pub mod logs;
pub mod metrics;
pub mod progress;
pub mod redact;
pub mod service_manager;
mod snapshot;

pub use lockdown::{Device, LeakProbe, LeakReport, LockdownStatus};
pub use snapshot::{
    BenchAnswer, CircuitInfo, CircuitState, CircuitsStatus, ClientState, ClientStatus,
    ControllerContact, ControllerStatus, DirectoryStatus, Drops, ExitStatus, HopInfo, NodeState,
    NodeStatus, PingAnswer, ProxyStatus, Status, TraceAnswer, TraceHop, TrackerStatus, Traffic,
};
