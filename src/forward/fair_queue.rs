//! Packets that wait for the data path: fair between flows, each kept short (RFC 8290, FQ-CoDel).
//!
//! In: batches of one flow, as a device gave them. Out: the same, sparse flows first, then in turn.
//! Called by: the event loops, between device and circuits.
//!
//! ```text
//! device -> hash of the flow -> bucket -> new flows once | others by deficit round robin -> cells
//!                                 CoDel as each batch leaves; the longest bucket pays when full
//! ```

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::codel::Codel;

/// Flows that share a bucket share its turn; two of a few dozen seldom do.
const BUCKETS: usize = 256;
/// What a flow may send per turn, in bytes.
const QUANTUM: isize = 8 * 1024;

/// A bounded queue of batches `T`, each of one flow.
#[derive(Debug)]
pub struct FairQueue<T> {
    buckets: Box<[Bucket<T>]>,
    /// Buckets that just began to wait, and those that had a turn.
    fresh: VecDeque<u16>,
    turns: VecDeque<u16>,
    bytes: usize,
    len: usize,
    most_bytes: usize,
    most_len: usize,
}

#[derive(Debug)]
struct Bucket<T> {
    waiting: VecDeque<Waiting<T>>,
    bytes: usize,
    credit: isize,
    listed: bool,
    codel: Codel,
}

#[derive(Debug)]
struct Waiting<T> {
    since: Instant,
    bytes: usize,
    batch: T,
}

impl<T> FairQueue<T> {
    /// A queue of at most so many bytes and batches.
    pub fn new(most_bytes: usize, most_len: usize) -> Self {
        let bucket = || Bucket {
            waiting: VecDeque::new(),
            bytes: 0,
            credit: 0,
            listed: false,
            codel: Codel::default(),
        };
        Self {
            buckets: (0..BUCKETS).map(|_| bucket()).collect(),
            fresh: VecDeque::with_capacity(BUCKETS),
            turns: VecDeque::with_capacity(BUCKETS),
            bytes: 0,
            len: 0,
            most_bytes,
            most_len,
        }
    }

    /// How many batches wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the next batch would push another one out.
    pub fn is_full(&self) -> bool {
        self.bytes >= self.most_bytes || self.len >= self.most_len
    }

    /// Appends a batch of `bytes` bytes of the flow with this hash. Returns the batch that had to
    /// go for it, the oldest of the longest bucket, when the queue was full.
    pub fn push(&mut self, now: Instant, flow: u64, bytes: usize, batch: T) -> Option<T> {
        let out = if self.is_full() { self.shed() } else { None };
        let number = (flow % BUCKETS as u64) as u16;
        let bucket = &mut self.buckets[usize::from(number)];
        bucket.waiting.push_back(Waiting { since: now, bytes, batch });
        bucket.bytes += bytes;
        self.bytes += bytes;
        self.len += 1;
        if !bucket.listed {
            bucket.listed = true;
            bucket.credit = QUANTUM;
            self.fresh.push_back(number);
        }
        out
    }

    /// The next batch, and how long it waited. `tell` marks or thins out a batch whose sender must
    /// learn of a long wait.
    pub fn pop(&mut self, now: Instant, tell: impl FnOnce(&mut T)) -> Option<(T, Duration)> {
        loop {
            let is_fresh = !self.fresh.is_empty();
            let list = if is_fresh { &mut self.fresh } else { &mut self.turns };
            let number = *list.front()?;
            let bucket = &mut self.buckets[usize::from(number)];
            if bucket.credit <= 0 {
                bucket.credit += QUANTUM;
                list.pop_front();
                self.turns.push_back(number);
                continue;
            }
            let Some(mut next) = bucket.waiting.pop_front() else {
                list.pop_front();
                // An emptied new flow waits one turn, or it would be new again with its next packet.
                if is_fresh && !self.turns.is_empty() {
                    self.turns.push_back(number);
                } else {
                    bucket.listed = false;
                }
                continue;
            };
            bucket.bytes -= next.bytes;
            bucket.credit -= next.bytes as isize;
            self.bytes -= next.bytes;
            self.len -= 1;
            let waited = now.saturating_duration_since(next.since);
            let judged = if bucket.waiting.is_empty() { Duration::ZERO } else { waited };
            if bucket.codel.judge(now, judged) {
                tell(&mut next.batch);
            }
            return Some((next.batch, waited));
        }
    }

    fn shed(&mut self) -> Option<T> {
        let longest = self.buckets.iter_mut().max_by_key(|bucket| bucket.bytes)?;
        let oldest = longest.waiting.pop_front()?;
        longest.bytes -= oldest.bytes;
        self.bytes -= oldest.bytes;
        self.len -= 1;
        Some(oldest.batch)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drain(queue: &mut FairQueue<(u64, u32)>, now: Instant) -> Vec<(u64, u32)> {
        std::iter::from_fn(|| queue.pop(now, |_| {}).map(|(batch, _)| batch)).collect()
    }

    #[test]
    fn a_sparse_flow_overtakes_a_loud_one() {
        let (mut queue, now) = (FairQueue::new(1 << 20, 1000), Instant::now());
        for number in 0..10 {
            assert_eq!(queue.push(now, 1, 60_000, (1, number)), None);
        }
        assert_eq!(queue.pop(now, |_| {}).map(|(batch, _)| batch), Some((1, 0)));
        queue.push(now, 2, 84, (2, 0));
        assert_eq!(queue.pop(now, |_| {}).map(|(batch, _)| batch), Some((2, 0)));
        assert_eq!(drain(&mut queue, now).len(), 9);
        assert!(queue.is_empty());
    }

    #[test]
    fn two_loud_flows_alternate() {
        let (mut queue, now) = (FairQueue::new(1 << 24, 1000), Instant::now());
        for number in 0..20 {
            queue.push(now, 1, 60_000, (1, number));
        }
        for number in 0..20 {
            queue.push(now, 2, 30_000, (2, number));
        }
        let out: Vec<_> =
            drain(&mut queue, now).into_iter().take(15).map(|(flow, _)| flow).collect();
        let ones = out.iter().filter(|flow| **flow == 1).count();
        assert!((4..=6).contains(&ones), "{out:?}: a third of the batches, half of the bytes");
    }

    #[test]
    fn a_full_queue_takes_from_the_longest() {
        let (mut queue, now) = (FairQueue::new(100_000, 1000), Instant::now());
        for number in 0..2 {
            queue.push(now, 1, 60_000, (1, number));
        }
        assert_eq!(queue.push(now, 2, 84, (2, 0)), Some((1, 0)));
        assert_eq!(queue.len(), 2);
    }

    #[test]
    fn a_flow_that_stands_is_told_and_another_is_not() {
        let (mut queue, start) = (FairQueue::new(1 << 30, 1 << 20), Instant::now());
        let mut told = [0; 3];
        for number in 0..20_000u32 {
            let at = start + Duration::from_micros(50) * number;
            queue.push(at, 1, 1500, (1, number));
            if number % 2 == 0 {
                continue;
            }
            queue.push(at, 2, 84, (2, number));
            for _ in 0..2 {
                queue.pop(at, |batch| {
                    told[batch.0 as usize] += 1;
                });
            }
        }
        assert!(told[1] > 10 && told[2] == 0, "{told:?}");
    }

    proptest! {
        /// Nothing is lost or doubled, and each flow keeps its order.
        #[test]
        fn every_batch_comes_out_once_and_in_order(
            steps in prop::collection::vec((0u64..5, 1usize..70_000, any::<bool>()), 0..300),
        ) {
            let now = Instant::now();
            let mut queue = FairQueue::new(500_000, 40);
            let (mut pushed, mut out) = (0usize, Vec::new());
            let mut gone = 0;
            for (number, (flow, bytes, pop)) in steps.into_iter().enumerate() {
                gone += usize::from(queue.push(now, flow, bytes, (flow, number as u32)).is_some());
                pushed += 1;
                if pop {
                    out.extend(queue.pop(now, |_| {}).map(|(batch, _)| batch));
                }
                prop_assert!(queue.len() <= 40);
            }
            out.extend(drain(&mut queue, now));
            prop_assert_eq!(out.len() + gone, pushed);
            prop_assert_eq!(queue.bytes, 0);
            for flow in 0..5 {
                let of: Vec<_> = out.iter().filter(|batch| batch.0 == flow).map(|batch| batch.1).collect();
                prop_assert!(of.is_sorted());
            }
        }
    }
}
