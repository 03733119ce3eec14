//! Controlled delay (RFC 8289): a queue that stays long is told of early, a little at a time.
//!
//! In: how long each packet waited. Out: whether this one is to say so, by a mark or by its loss.
//! Called by: the queues of this folder; the event loops for what waited in a socket.

use std::time::{Duration, Instant};

use crate::model::CircuitKey;

/// A wait that is fine. Below the RFC's 5 ms, because a path has several queues.
pub(super) const TARGET: Duration = Duration::from_millis(2);
/// For so long a queue may be longer than that: a burst, or a scheduler's slice.
pub(super) const INTERVAL: Duration = Duration::from_millis(40);

/// The controller of one queue.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Codel {
    above_since: Option<Instant>,
    /// When the next packet is told, and how many have been in this run.
    next: Option<Instant>,
    count: u32,
    telling: bool,
}

impl Codel {
    /// Whether the packet that waited so long, and leaves the queue now, is marked or dropped.
    pub(super) fn judge(&mut self, now: Instant, waited: Duration) -> bool {
        if waited < TARGET {
            self.rest();
            return false;
        }
        let since = *self.above_since.get_or_insert(now);
        if now.saturating_duration_since(since) < INTERVAL {
            return false;
        }
        match self.next {
            Some(next) if self.telling => {
                if now < next {
                    return false;
                }
                self.count += 1;
                self.next = Some(next + self.gap());
            }
            before => {
                // A queue that was long not long ago starts at about the rate that was enough.
                let recent =
                    before.is_some_and(|next| now.saturating_duration_since(next) < 16 * INTERVAL);
                self.count = if recent { self.count.saturating_sub(2).max(1) } else { 1 };
                self.telling = true;
                self.next = Some(now + self.gap());
            }
        }
        true
    }

    /// The queue is empty or short.
    pub(super) fn rest(&mut self) {
        self.above_since = None;
        self.telling = false;
    }

    fn gap(&self) -> Duration {
        INTERVAL.div_f64(f64::from(self.count).sqrt())
    }
}

/// A queue that the kernel keeps for all circuits together, in order: a socket's.
///
/// Only circuits that send at least their share of what waits are told; a quiet one never pays for
/// a loud one.
#[derive(Default, Debug)]
pub struct SharedQueue {
    codel: Codel,
    /// Cells by circuit since the queue was last short.
    cells: Vec<u32>,
    loud: Vec<u32>,
    total: u32,
}

/// Shares are counted anew after so many cells, so that they follow what is sent.
const COUNTED: u32 = 1 << 16;

impl SharedQueue {
    /// Whether the cell of this circuit, which waited so long, is to carry a mark.
    pub fn judge(&mut self, now: Instant, waited: Duration, circuit: CircuitKey) -> bool {
        if waited < TARGET {
            if self.total > 0 {
                self.forget();
            }
            self.codel.rest();
            return false;
        }
        if self.total >= COUNTED {
            self.forget();
        }
        let index = circuit.index();
        if self.cells.len() <= index {
            self.cells.resize(index + 1, 0);
        }
        if self.cells[index] == 0 {
            self.loud.push(circuit.0);
        }
        self.cells[index] += 1;
        self.total += 1;
        let share = u64::from(self.cells[index]) * self.loud.len() as u64;
        share >= u64::from(self.total) && self.codel.judge(now, waited)
    }

    fn forget(&mut self) {
        for index in self.loud.drain(..) {
            self.cells[index as usize] = 0;
        }
        self.total = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_millis(9);

    /// Marks among packets that come every tenth of a millisecond and wait so long.
    fn marks(codel: &mut Codel, start: Instant, time: Duration, waited: Duration) -> usize {
        let step = Duration::from_micros(100);
        (0..(time.as_micros() / step.as_micros()) as u32)
            .filter(|number| codel.judge(start + step * *number, waited))
            .count()
    }

    #[test]
    fn a_short_queue_or_a_burst_is_left_alone() {
        let (mut codel, now) = (Codel::default(), Instant::now());
        assert_eq!(marks(&mut codel, now, Duration::from_secs(1), TARGET / 2), 0);
        assert_eq!(marks(&mut codel, now, INTERVAL - Duration::from_millis(1), LONG), 0);
        assert!(!codel.judge(now + INTERVAL, TARGET / 2));
        assert!(!codel.judge(now + INTERVAL, LONG), "the interval starts again");
    }

    #[test]
    fn a_standing_queue_is_told_ever_more_often() {
        let (mut codel, now) = (Codel::default(), Instant::now());
        let second = Duration::from_secs(1);
        let first = marks(&mut codel, now, second, LONG);
        let next = marks(&mut codel, now + second, second, LONG);
        assert!((20..200).contains(&first) && next > first, "{first}, then {next}");
        codel.rest();
        let again = marks(&mut codel, now + 2 * second + INTERVAL, second, LONG);
        assert!(again > first, "{again}: it starts where it was enough");
    }

    #[test]
    fn a_quiet_circuit_does_not_pay_for_a_loud_one() {
        let (mut queue, start) = (SharedQueue::default(), Instant::now());
        let mut told = [0; 2];
        for number in 0..100_000u32 {
            let circuit = u32::from(number % 50 == 0);
            let now = start + Duration::from_micros(10) * number;
            told[circuit as usize] += u32::from(queue.judge(now, LONG, CircuitKey(circuit)));
        }
        assert!(told[0] > 10 && told[1] == 0, "{told:?}");
        assert!(!queue.judge(start, Duration::ZERO, CircuitKey(0)));
        assert_eq!(queue.total, 0);
    }
}
