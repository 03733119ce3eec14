//! Packets that wait for the data path: fair between owners, and between the flows of each; kept
//! short (RFC 8290, FQ-CoDel, twice).
//!
//! In: batches of one flow, as a device gave them. Out: the same, sparse flows first, then in turn.
//! Called by: the event loops, between device and circuits.
//!
//! ```text
//! device -> owner's bucket -> new ones once | others by deficit round robin
//!             flow's lane  -> new ones once | others by deficit round robin -> cells
//!                             CoDel as each batch leaves; the longest bucket pays when full
//! ```

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::codel::Codel;

/// Owners that share a bucket share its turn; two of a few dozen seldom do.
const BUCKETS: usize = 256;
/// Flows of one owner that share a lane share its turn.
const LANES: usize = 16;
/// What an owner or a flow may send per turn, in bytes.
const QUANTUM: isize = 8 * 1024;

/// A bounded queue of batches `T`, each of one flow of one owner.
#[derive(Debug)]
pub struct FairQueue<T> {
    buckets: Box<[Bucket<T>]>,
    turns: Turns,
    bytes: usize,
    len: usize,
    most_bytes: usize,
    most_len: usize,
}

/// What waits of one owner.
#[derive(Debug)]
struct Bucket<T> {
    lanes: [Lane<T>; LANES],
    turns: Turns,
    bytes: usize,
}

/// What waits of one flow.
#[derive(Debug)]
struct Lane<T> {
    waiting: VecDeque<Waiting<T>>,
    bytes: usize,
    codel: Codel,
}

#[derive(Debug)]
struct Waiting<T> {
    since: Instant,
    bytes: usize,
    batch: T,
}

/// Whose turn it is among those that wait: the new ones once, then all in rounds.
#[derive(Debug)]
struct Turns {
    fresh: VecDeque<u16>,
    rounds: VecDeque<u16>,
    /// What each may still send in this turn, if it is in one of the lists.
    credit: Box<[Option<isize>]>,
}

impl Turns {
    fn new(count: usize) -> Self {
        Self {
            fresh: VecDeque::new(),
            rounds: VecDeque::new(),
            credit: vec![None; count].into_boxed_slice(),
        }
    }

    /// Something of `number` waits.
    fn arrive(&mut self, number: u16) {
        let credit = &mut self.credit[usize::from(number)];
        if credit.is_none() {
            *credit = Some(QUANTUM);
            self.fresh.push_back(number);
        }
    }

    /// Whose turn it is; `waits` says whether anything of it waits.
    fn next(&mut self, waits: impl Fn(u16) -> bool) -> Option<u16> {
        loop {
            let is_fresh = !self.fresh.is_empty();
            let list = if is_fresh { &mut self.fresh } else { &mut self.rounds };
            let number = *list.front()?;
            let credit = &mut self.credit[usize::from(number)];
            match *credit {
                Some(left) if left <= 0 => {
                    *credit = Some(left + QUANTUM);
                    list.pop_front();
                    self.rounds.push_back(number);
                }
                _ if waits(number) => return Some(number),
                _ => {
                    list.pop_front();
                    // An emptied new one waits a round, or it would be new again at once.
                    if is_fresh && !self.rounds.is_empty() {
                        self.rounds.push_back(number);
                    } else {
                        *credit = None;
                    }
                }
            }
        }
    }

    fn charge(&mut self, number: u16, bytes: usize) {
        if let Some(credit) = &mut self.credit[usize::from(number)] {
            *credit -= bytes as isize;
        }
    }
}

impl<T> FairQueue<T> {
    /// A queue of at most so many bytes and batches.
    pub fn new(most_bytes: usize, most_len: usize) -> Self {
        let lane = |_| Lane { waiting: VecDeque::new(), bytes: 0, codel: Codel::default() };
        let bucket =
            |_| Bucket { lanes: std::array::from_fn(lane), turns: Turns::new(LANES), bytes: 0 };
        Self {
            buckets: (0..BUCKETS).map(bucket).collect(),
            turns: Turns::new(BUCKETS),
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

    /// Appends a batch of `bytes` bytes of the owner and flow with these hashes. Returns the batch
    /// that had to go for it, the oldest of the longest flow of the owner with most, when the queue
    /// was full.
    pub fn push(
        &mut self,
        now: Instant,
        (owner, flow): (u64, u64),
        bytes: usize,
        batch: T,
    ) -> Option<T> {
        let out = if self.is_full() { self.shed() } else { None };
        let number = (owner % BUCKETS as u64) as u16;
        let bucket = &mut self.buckets[usize::from(number)];
        let lane = (flow % LANES as u64) as u16;
        bucket.lanes[usize::from(lane)].push(Waiting { since: now, bytes, batch });
        bucket.turns.arrive(lane);
        bucket.bytes += bytes;
        self.bytes += bytes;
        self.len += 1;
        self.turns.arrive(number);
        out
    }

    /// The next batch, and how long it waited. `tell` marks or thins out a batch whose sender must
    /// learn of a long wait.
    pub fn pop(&mut self, now: Instant, tell: impl FnOnce(&mut T)) -> Option<(T, Duration)> {
        let buckets = &self.buckets;
        let number = self.turns.next(|number| buckets[usize::from(number)].bytes > 0)?;
        let bucket = &mut self.buckets[usize::from(number)];
        let lanes = &bucket.lanes;
        let lane = bucket.turns.next(|lane| !lanes[usize::from(lane)].waiting.is_empty())?;
        let mut next = bucket.lanes[usize::from(lane)].pop()?;
        bucket.turns.charge(lane, next.bytes);
        bucket.bytes -= next.bytes;
        self.turns.charge(number, next.bytes);
        self.bytes -= next.bytes;
        self.len -= 1;
        let Lane { waiting, codel, .. } = &mut bucket.lanes[usize::from(lane)];
        let waited = now.saturating_duration_since(next.since);
        let judged = if waiting.is_empty() { Duration::ZERO } else { waited };
        if codel.judge(now, judged) {
            tell(&mut next.batch);
        }
        Some((next.batch, waited))
    }

    fn shed(&mut self) -> Option<T> {
        let longest = self.buckets.iter_mut().max_by_key(|bucket| bucket.bytes)?;
        let oldest = longest.lanes.iter_mut().max_by_key(|lane| lane.bytes)?.pop()?;
        longest.bytes -= oldest.bytes;
        self.bytes -= oldest.bytes;
        self.len -= 1;
        Some(oldest.batch)
    }
}

impl<T> Lane<T> {
    fn push(&mut self, batch: Waiting<T>) {
        self.bytes += batch.bytes;
        self.waiting.push_back(batch);
    }

    fn pop(&mut self) -> Option<Waiting<T>> {
        let oldest = self.waiting.pop_front()?;
        self.bytes -= oldest.bytes;
        Some(oldest)
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
            assert_eq!(queue.push(now, (1, 0), 60_000, (1, number)), None);
        }
        assert_eq!(queue.pop(now, |_| {}).map(|(batch, _)| batch), Some((1, 0)));
        queue.push(now, (2, 0), 84, (2, 0));
        assert_eq!(queue.pop(now, |_| {}).map(|(batch, _)| batch), Some((2, 0)));
        assert_eq!(drain(&mut queue, now).len(), 9);
        assert!(queue.is_empty());
    }

    /// A circuit's ping does not wait behind its download; and a circuit of many flows has one share.
    #[test]
    fn a_sparse_flow_overtakes_a_loud_one_of_its_owner() {
        let (mut queue, now) = (FairQueue::new(1 << 24, 1000), Instant::now());
        for number in 0..10 {
            queue.push(now, (1, 7), 60_000, (1, number));
            queue.push(now, (2, u64::from(number)), 60_000, (2, number));
        }
        queue.pop(now, |_| {});
        queue.push(now, (1, 8), 84, (3, 0));
        let out = drain(&mut queue, now);
        let at = out.iter().position(|batch| *batch == (3, 0)).unwrap();
        assert!(at <= 2, "{out:?}: behind at most one batch of each owner");
        let ones = out.iter().take(10).filter(|(owner, _)| *owner == 1).count();
        assert!((4..=6).contains(&ones), "{out:?}: half for each owner");
    }

    #[test]
    fn two_loud_flows_alternate() {
        let (mut queue, now) = (FairQueue::new(1 << 24, 1000), Instant::now());
        for number in 0..20 {
            queue.push(now, (1, 0), 60_000, (1, number));
        }
        for number in 0..20 {
            queue.push(now, (2, 0), 30_000, (2, number));
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
            queue.push(now, (1, 0), 60_000, (1, number));
        }
        assert_eq!(queue.push(now, (2, 0), 84, (2, 0)), Some((1, 0)));
        assert_eq!(queue.len(), 2);
    }

    #[test]
    fn a_flow_that_stands_is_told_and_another_is_not() {
        let (mut queue, start) = (FairQueue::new(1 << 30, 1 << 20), Instant::now());
        let mut told = [0; 3];
        for number in 0..20_000u32 {
            let at = start + Duration::from_micros(50) * number;
            queue.push(at, (1, 0), 1500, (1, number));
            if number % 2 == 0 {
                continue;
            }
            queue.push(at, (2, 0), 84, (2, number));
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
                gone += usize::from(queue.push(now, (flow / 2, flow % 2), bytes, (flow, number as u32)).is_some());
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
