//! What a device gave and the circuits have not taken yet: fair between flows, and kept short.
//!
//! In: a device, whose a packet is and of which flow. Out: batches of one flow, in fair turn.
//! Called by: the event loops of clients and exits.

use std::{
    hash::{BuildHasher, Hash, RandomState},
    io,
    time::Instant,
};

use crate::{
    capture::PacketDevice,
    forward::{FairQueue, ecn},
    model::{DropCounters, DropReason, PacketBatch},
};

/// Reads of one turn; the others then get theirs.
const READS_PER_TURN: usize = 16;
/// What may wait: some milliseconds at full speed.
const MOST_BYTES: usize = 4 << 20;
const MOST_BATCHES: usize = 4096;
/// Empty batches that are kept for reuse.
const MOST_SPARE: usize = 64;

/// Batches between a device and the circuits.
pub(super) struct DeviceQueue {
    queue: FairQueue<PacketBatch>,
    spare: Vec<PacketBatch>,
    hasher: RandomState,
}

impl Default for DeviceQueue {
    fn default() -> Self {
        Self {
            queue: FairQueue::new(MOST_BYTES, MOST_BATCHES),
            spare: Vec::new(),
            hasher: RandomState::new(),
        }
    }
}

impl DeviceQueue {
    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Reads what the device has. `ready` becomes false when that is all. One read is of one flow;
    /// `owner_and_flow` names both by the first packet.
    pub(super) fn fill<O: Hash, F: Hash>(
        &mut self,
        now: Instant,
        device: &mut dyn PacketDevice,
        ready: &mut bool,
        drops: &mut DropCounters,
        owner_and_flow: impl Fn(&[u8]) -> (O, F),
    ) {
        for _ in 0..READS_PER_TURN {
            if !*ready {
                return;
            }
            let mut batch = self.spare.pop().unwrap_or_default();
            match device.recv(&mut batch) {
                Ok(_) => {
                    let Some(first) = batch.get(0) else {
                        self.give_back(batch);
                        continue;
                    };
                    let (owner, flow) = owner_and_flow(first);
                    let hashes = (self.hasher.hash_one(owner), self.hasher.hash_one(flow));
                    let bytes = batch.byte_len();
                    if let Some(pushed_out) = self.queue.push(now, hashes, bytes, batch) {
                        (0..pushed_out.len()).for_each(|_| drops.count(DropReason::QueueFull));
                        self.give_back(pushed_out);
                    }
                }
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        log::warn!(event = "device"; "{} cannot be read: {error}", device.name());
                    }
                    *ready = false;
                    self.give_back(batch);
                }
            }
        }
    }

    /// The next batch; [`Self::give_back`] takes it again. A flow that keeps its queue long finds
    /// one of its packets marked or, if its sender does not know marks, dropped.
    pub(super) fn pop(&mut self, now: Instant, drops: &mut DropCounters) -> Option<PacketBatch> {
        let tell = |batch: &mut PacketBatch| tell(batch, 0, drops);
        self.queue.pop(now, tell).map(|(batch, _)| batch)
    }

    /// Keeps the buffers of a batch that is done.
    pub(super) fn give_back(&mut self, mut batch: PacketBatch) {
        batch.clear();
        if self.spare.len() < MOST_SPARE {
            self.spare.push(batch);
        }
    }
}

/// Tells the sender of the first packet from `start` on that there is congestion: by a mark, or by
/// its loss.
pub(super) fn tell(batch: &mut PacketBatch, start: usize, drops: &mut DropCounters) {
    let mut told = false;
    batch.retain_from(start, |packet| {
        if std::mem::replace(&mut told, true) || ecn::mark(packet) {
            return true;
        }
        drops.count(DropReason::Congestion);
        false
    });
}
