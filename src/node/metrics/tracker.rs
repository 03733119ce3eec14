//! The metrics of a tracker.
//!
//! In: its status. Out: text. Called by: the tracker's service.

use super::PREFIX;
use crate::telemetry::{
    NodeState, TrackerStatus,
    metrics::{Families, text},
};

/// The text of everything, as of this status.
pub(in crate::node) fn page(status: TrackerStatus) -> Option<String> {
    text(PREFIX, move |families| families_of(&status, families)).ok()
}

fn families_of(status: &TrackerStatus, families: &mut Families<'_>) -> std::fmt::Result {
    families.daemon("tracker", status.uptime_s)?;
    let listed = i64::from(status.state == NodeState::Registered);
    families.gauge("listed", "1 while the controller lists this tracker", listed)?;
    let circuits = [([("state", "open")], status.circuits as i64)];
    families.gauges("circuits", "Circuits with an open channel", &circuits)?;
    families.gauge("files", "Files that they share", status.files as i64)?;
    families.gauge("sessions", "Sessions whose exits were ordered", status.sessions as i64)?;
    families.directory(&status.controller, &status.directory)
}
