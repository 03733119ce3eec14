//! Drops in the log: one record per reason and half a minute, however many there are.
//!
//! In: counters. Out: log records with the fields `event`, `drop_reason` and `count`.
//! Called by: the services of nodes and clients.
//!
//! A record per packet would be a gift to whoever sends them. No address and no circuit: the
//! counters have none.

use std::time::Duration;

use crate::{model::DropReason, telemetry::Drops};

/// Between two looks at the counters.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// What was told already.
#[derive(Debug, Default)]
pub(super) struct DropLog {
    told: Drops,
}

impl DropLog {
    /// Logs each reason that was counted since the last time.
    pub(super) fn tell(&mut self, drops: &Drops) {
        for (reason, count) in self.news(drops) {
            log::info!(
                event = "drop", drop_reason = reason.as_str(), count = count;
                "{count} dropped: {}", reason.replace('_', " ")
            );
        }
    }

    /// Each reason that was counted since the last time, and how often.
    fn news(&mut self, drops: &Drops) -> Vec<(String, u64)> {
        let told = std::mem::replace(&mut self.told, drops.clone());
        drops
            .0
            .iter()
            // Cover is dropped as meant.
            .filter(|(reason, _)| *reason != DropReason::Cover.name())
            .map(|(reason, count)| {
                let before = told.0.get(reason).copied().unwrap_or_default();
                (reason.clone(), count.saturating_sub(before))
            })
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}

/// Waits until the next look.
pub(super) async fn pause() {
    tokio::time::sleep(LOOK_EVERY).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_told_once_with_what_is_new() {
        let drops = |replay, cover| {
            Drops([("replay".to_owned(), replay), ("cover".to_owned(), cover)].into())
        };
        let mut log = DropLog::default();
        assert_eq!(log.news(&Drops::default()), []);
        assert_eq!(log.news(&drops(3, 5)), [("replay".to_owned(), 3)]);
        assert_eq!(log.news(&drops(3, 9)), []);
        assert_eq!(log.news(&drops(10, 9)), [("replay".to_owned(), 7)]);
    }
}
