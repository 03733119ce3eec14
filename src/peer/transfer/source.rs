//! One source of a transfer: what it has, what it was asked for, how fast it is.
//!
//! In: times and bytes. Out: rates and verdicts. Called by: transfer.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::peer::{bitmap::Bitmap, geometry::CHUNK_LEN};

/// A source owes bytes and sends none for so long: it stalls.
pub(super) const SILENCE: Duration = Duration::from_secs(4);
/// A source that stalled and did not recover is left after so long, replaced or not.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// Over which time rates are averaged.
const AVERAGED: f64 = 2.0;
/// Chunks asked for ahead: at least and at most.
const AHEAD: std::ops::RangeInclusive<usize> = 3..=64;

/// A rate, averaged over the last seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    per_second: f64,
    at: Instant,
}

impl Rate {
    pub(super) const fn new(now: Instant) -> Self {
        Self { per_second: 0.0, at: now }
    }

    pub(super) fn add(&mut self, now: Instant, bytes: usize) {
        self.per_second = self.at(now) + bytes as f64 / AVERAGED;
        self.at = now;
    }

    /// Bytes a second.
    pub(super) fn at(&self, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.per_second * (-passed / AVERAGED).exp()
    }
}

/// Whether a source gets new chunks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    Active,
    /// Silent since then; its chunks are asked for elsewhere.
    Stalled(Instant),
    /// It sends what it owes, then goes: its circuit is replaced.
    Draining,
}

#[derive(Debug)]
pub(super) struct Source {
    pub(super) have: Option<Bitmap>,
    pub(super) owes: VecDeque<u32>,
    pub(super) standing: Standing,
    pub(super) generation: u32,
    pub(super) born: Instant,
    pub(super) progress: Instant,
    pub(super) rate: Rate,
}

impl Source {
    pub(super) fn new(now: Instant, have: Option<Bitmap>, generation: u32) -> Self {
        Self {
            have,
            owes: VecDeque::new(),
            standing: Standing::Active,
            generation,
            born: now,
            progress: now,
            rate: Rate::new(now),
        }
    }

    pub(super) fn is_active(&self) -> bool {
        self.standing == Standing::Active
    }

    pub(super) fn has(&self, chunk: u32) -> bool {
        self.have.as_ref().is_none_or(|have| have.has(chunk))
    }

    /// How many more chunks it may be asked for: what it sends in a second.
    pub(super) fn room(&self, now: Instant) -> usize {
        if !self.is_active() {
            return 0;
        }
        let per_second = self.rate.at(now) / CHUNK_LEN as f64;
        let ahead = (per_second as usize + 2).clamp(*AHEAD.start(), *AHEAD.end());
        ahead.saturating_sub(self.owes.len())
    }

    /// Notes that it was asked for a chunk.
    pub(super) fn ask(&mut self, now: Instant, chunk: u32) {
        if self.owes.is_empty() {
            self.progress = now;
        }
        self.owes.push_back(chunk);
    }

    /// Takes a chunk off what it owes; whether it owed it.
    pub(super) fn settle(&mut self, chunk: u32) -> bool {
        let at = self.owes.iter().position(|owed| *owed == chunk);
        at.is_some_and(|at| self.owes.remove(at).is_some())
    }

    /// How long until it has sent `chunks` more, in seconds. One that has had no time to send
    /// anything is taken to send a chunk a second.
    pub(super) fn seconds_for(&self, now: Instant, chunks: usize) -> f64 {
        let is_new = now.saturating_duration_since(self.born) < SILENCE / 2;
        let least = if is_new { CHUNK_LEN as f64 } else { 1.0 };
        chunks as f64 * CHUNK_LEN as f64 / self.rate.at(now).max(least)
    }

    /// When it will have been silent for too long.
    pub(super) fn silent_at(&self) -> Option<Instant> {
        match self.standing {
            Standing::Stalled(since) => Some(since + PATIENCE),
            _ if self.owes.is_empty() => None,
            _ => Some(self.progress + SILENCE),
        }
    }
}
