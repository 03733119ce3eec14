//! Which circuit announces what to the tracker.
//!
//! In: the files of a peer, its circuits, the time. Out: messages. Called by: the engine.

use std::time::{Duration, Instant};

use super::engine::Engine;
use crate::wire::share::{ListedFile, ToTracker};

/// How often to announce until the tracker says.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(60);
/// JSON of one part of an announcement.
const PART_LEN: usize = 12 * 1024;

impl Engine {
    /// The active circuit announces the files, the others that they share none any more.
    pub(super) fn announce_where_due(&mut self, now: Instant) {
        let active = self.active;
        let is_announced = active
            .and_then(|key| self.circuits.get(&key))
            .is_some_and(|row| row.announced == self.generation);
        for (key, row) in &mut self.circuits {
            if row.channel.conversation().is_none() || !row.outgoing.is_empty() {
                continue;
            }
            let is_due = now >= row.announce_at;
            if active == Some(*key) && (row.announced != self.generation || is_due) {
                row.outgoing.extend(parts(&self.files).iter().map(ToTracker::emit));
                row.announced = self.generation;
            } else if active != Some(*key) && is_announced && (row.announced != 0 || is_due) {
                let none = ToTracker::Ls { files: Vec::new(), more: false };
                row.outgoing.push_back(none.emit());
                row.announced = 0;
            } else {
                continue;
            }
            row.announce_at = now + ANNOUNCE_EVERY;
        }
    }
}

/// An announcement in parts that each fit a message.
fn parts(files: &[ListedFile]) -> Vec<ToTracker> {
    let mut parts = vec![Vec::new()];
    let mut room = PART_LEN;
    for file in files {
        let length = serde_json::to_vec(file).map_or(0, |json| json.len() + 1);
        if length > room {
            parts.push(Vec::new());
            room = PART_LEN;
        }
        room = room.saturating_sub(length);
        if let Some(part) = parts.last_mut() {
            part.push(file.clone());
        }
    }
    let number = |(at, files)| ToTracker::Ls { files, more: at > 0 };
    parts.into_iter().enumerate().map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::share::MAX_MESSAGE_LEN;

    #[test]
    fn long_lists_go_in_parts_of_which_the_first_replaces() {
        let files: Vec<_> = (0..1000).map(|at| ListedFile::named(&format!("file {at}"))).collect();
        let parts = parts(&files);
        assert!(parts.len() > 5);
        let mut seen = Vec::new();
        for (at, part) in parts.into_iter().enumerate() {
            assert!(part.emit().len() <= MAX_MESSAGE_LEN);
            let ToTracker::Ls { files, more } = part else { panic!() };
            assert_eq!(more, at > 0);
            seen.extend(files);
        }
        assert_eq!(seen, files);
        let none = ToTracker::Ls { files: Vec::new(), more: false };
        assert_eq!(super::parts(&[]), [none], "an empty list is announced, too");
    }
}
