//! The metrics of a node.
//!
//! In: its status. Out: text. Called by: the node's service.

use super::PREFIX;
use crate::telemetry::{
    NodeState, NodeStatus,
    metrics::{Families, text},
};

/// The text of everything, as of this status.
pub(in crate::node) fn page(status: NodeStatus) -> Option<String> {
    text(PREFIX, move |families| families_of(&status, families)).ok()
}

fn families_of(status: &NodeStatus, families: &mut Families<'_>) -> std::fmt::Result {
    families.daemon("node", status.uptime_s)?;
    let listed = i64::from(status.state == NodeState::Registered);
    families.gauge("listed", "1 while the controller lists this node", listed)?;
    families.traffic(&status.traffic)?;
    families.drops(&status.drops)?;
    let circuits = [([("state", "open")], status.circuits as i64)];
    families.gauges("circuits", "Circuits by state", &circuits)?;
    families.gauge("circuits_max", "Circuits it may hold", status.max_circuits as i64)?;
    families.gauge(
        "creates_waiting",
        "CREATEs whose handshake is being computed",
        status.creates_waiting as i64,
    )?;
    families.gauge(
        "creates_waiting_max",
        "CREATEs that may wait; from a quarter of it on, sources must prove their address",
        status.max_creates_waiting as i64,
    )?;
    families.counter(
        "creates_refused",
        "CREATEs that were refused because the node is full",
        status.refused,
    )?;
    families.expiry(
        "onion_key_expiry_timestamp_seconds",
        "When the onion key of this node is replaced",
        status.onion_key_expires_in_s,
    )?;
    families.directory(&status.controller, &status.directory)?;
    let Some(exit) = &status.exit else { return Ok(()) };
    families.gauge("exit_circuits", "Circuits that end here", exit.circuits as i64)?;
    families.gauge("exit_connections", "Connections of all circuits", exit.connections as i64)?;
    let limits = [
        ([("limit", "connections")], i64::from(exit.circuit_connections)),
        ([("limit", "packets_per_second")], exit.circuit_packet_rate as i64),
        ([("limit", "bytes_per_second")], exit.circuit_byte_rate as i64),
    ];
    families.gauges("exit_circuit_limit", "What one circuit may use; 0: no limit", &limits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::ExitStatus;

    #[test]
    fn everything_that_was_promised_is_there_and_no_address() {
        let status = NodeStatus {
            name: "otter".to_owned(),
            listen: "203.0.113.20:5000".to_owned(),
            public_address: Some("203.0.113.20:5000".to_owned()),
            circuits: 3,
            creates_waiting: 2,
            refused: 9,
            exit: Some(ExitStatus {
                interface: "eth7".to_owned(),
                connections: 12,
                circuit_connections: 1024,
                ..ExitStatus::default()
            }),
            ..NodeStatus::default()
        };
        let text = page(status).unwrap();
        for line in [
            "cepa_cells_total{direction=\"in\"} 0",
            "cepa_drops_total{reason=\"exit_connections\"} 0",
            "cepa_circuits{state=\"open\"} 3",
            "cepa_creates_waiting 2",
            "cepa_creates_refused_total 9",
            "cepa_onion_key_expiry_timestamp_seconds 0",
            "cepa_exit_connections 12",
            "cepa_exit_circuit_limit{limit=\"connections\"} 1024",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}:\n{text}");
        }
        for secret in ["203.0.113.20", "otter", "eth7"] {
            assert!(!text.contains(secret), "{secret}:\n{text}");
        }
    }
}
