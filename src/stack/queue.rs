//! Two bounded lanes of packets between a data path and a user-space stack on another thread.
//!
//! In: batches of either side. Out: the same, in order. Called by: the data paths, the stack.
//!
//! One lock per batch, no allocation once both batches have buffers, and one wake-up of a sleeper
//! per batch at most. Towards the circuit a full lane keeps the packets with the stack, which
//! sends them later; towards the stack a full lane loses them, as a network does.

use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use mio::Waker;
use tokio::sync::Notify;

use crate::model::PacketBatch;

/// Packets that a lane holds at most.
const MOST_PACKETS: usize = 2048;

/// Packets with what the stack says about each: the isolation group of its flow.
#[derive(Debug, Default)]
pub struct GroupedPackets {
    /// The packets.
    pub packets: PacketBatch,
    /// One group for each of them.
    pub groups: Vec<u32>,
}

impl GroupedPackets {
    /// Forgets the packets and keeps their buffers.
    pub fn clear(&mut self) {
        self.packets.clear();
        self.groups.clear();
    }
}

#[derive(Default)]
struct Shared {
    up: Mutex<GroupedPackets>,
    down: Mutex<PacketBatch>,
    /// The stack holds packets back until `up` has room.
    is_held_up: AtomicBool,
    data_path: OnceLock<Arc<Waker>>,
    stack: Notify,
}

/// The data path's side.
pub struct DataSide(Arc<Shared>);

/// The stack's side; clones are the same side.
#[derive(Clone)]
pub struct StackSide(Arc<Shared>);

/// Two lanes and their ends.
pub fn lanes() -> (DataSide, StackSide) {
    let shared = Arc::new(Shared::default());
    (DataSide(Arc::clone(&shared)), StackSide(shared))
}

/// Nothing panics while it holds one of these locks; a poisoned batch is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DataSide {
    /// Names the waker that interrupts the data path's sleep.
    pub fn set_waker(&self, waker: Arc<Waker>) {
        // A second call would come from a second data path, of which there is none.
        let _ = self.0.data_path.set(waker);
    }

    /// Takes everything that the stack sent; `into` must be empty.
    pub fn take(&self, into: &mut GroupedPackets) {
        std::mem::swap(&mut *lock(&self.0.up), into);
        if self.0.is_held_up.swap(false, Ordering::AcqRel) {
            self.0.stack.notify_one();
        }
    }

    /// Gives packets to the stack and says how many it took.
    pub fn give(&self, batch: &PacketBatch) -> usize {
        if batch.is_empty() {
            return 0;
        }
        let mut down = lock(&self.0.down);
        let was_empty = down.is_empty();
        let room = MOST_PACKETS.saturating_sub(down.len());
        let taken = room.min(batch.len());
        for packet in batch.iter().take(taken) {
            down.push(&[packet]);
        }
        drop(down);
        if was_empty && taken > 0 {
            self.0.stack.notify_one();
        }
        taken
    }
}

impl StackSide {
    /// Takes everything that came; `into` must be empty.
    pub(super) fn take(&self, into: &mut PacketBatch) {
        std::mem::swap(&mut *lock(&self.0.down), into);
    }

    /// Sends packets and forgets those that were taken. Says whether some stay for later; the
    /// stack is woken when there is room for them.
    pub(super) fn give(&self, out: &mut GroupedPackets) -> bool {
        if out.packets.is_empty() {
            return false;
        }
        let mut up = lock(&self.0.up);
        let was_empty = up.packets.is_empty();
        if was_empty {
            std::mem::swap(&mut *up, out);
        } else {
            let room = MOST_PACKETS.saturating_sub(up.packets.len());
            if out.packets.len() > room {
                self.0.is_held_up.store(true, Ordering::Release);
                return true;
            }
            for (packet, group) in out.packets.iter().zip(&out.groups) {
                up.packets.push(&[packet]);
                up.groups.push(*group);
            }
            out.clear();
        }
        drop(up);
        if was_empty && let Some(waker) = self.0.data_path.get() {
            // A waker fails only when its reactor is gone, and with it who would read this.
            let _ = waker.wake();
        }
        false
    }

    /// Waits until something came, or there is room again, or [`Self::wake`] was called.
    pub(super) async fn ready(&self) {
        self.0.stack.notified().await;
    }

    /// Ends the wait of [`Self::ready`], or the next one.
    pub(super) fn wake(&self) {
        self.0.stack.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(count: usize) -> GroupedPackets {
        let mut batch = GroupedPackets::default();
        for number in 0..count {
            batch.packets.push(&[&(number as u32).to_be_bytes()]);
            batch.groups.push(number as u32);
        }
        batch
    }

    #[test]
    fn packets_arrive_in_order_and_a_full_lane_keeps_the_rest() {
        let (data, stack) = lanes();
        let mut sent = batch(3);
        assert!(!stack.give(&mut sent));
        assert_eq!(sent.packets.len(), 0);
        assert!(!stack.give(&mut batch(MOST_PACKETS - 3)));
        let mut late = batch(1);
        assert!(stack.give(&mut late), "there is no room");
        assert_eq!(late.packets.len(), 1);
        let mut got = GroupedPackets::default();
        data.take(&mut got);
        assert_eq!((got.packets.len(), got.groups.len()), (MOST_PACKETS, MOST_PACKETS));
        assert_eq!(got.groups[..5], [0, 1, 2, 0, 1]);
        assert!(!stack.give(&mut late));
    }

    #[test]
    fn what_the_stack_cannot_hold_is_lost() {
        let (data, stack) = lanes();
        let many = batch(MOST_PACKETS).packets;
        assert_eq!(data.give(&many), MOST_PACKETS);
        assert_eq!(data.give(&batch(2).packets), 0);
        let mut got = PacketBatch::default();
        stack.take(&mut got);
        assert_eq!(got.len(), MOST_PACKETS);
        assert_eq!(data.give(&batch(2).packets), 2);
    }
}
