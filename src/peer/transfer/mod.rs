//! One download: whom to ask for which chunk, and what to do about those who lie or stall.
//!
//! In: sources that come and go, verified chunks, time. Out: what to ask whom, when to look for
//! more sources, why nothing moves. Called by: peer_run.
//!
//! ```text
//! handle_source ─► Want(source, chunk) ... ─► handle_group, handle_chunk ─► Done
//!                  silent for 4 s: its chunks go to others ─► Find ─► replaced
//!                  lied: Close at once                     ─► Find
//! rotation: Find(fresh) ─► the new source takes new chunks, an old one drains and is closed
//! the end: what slow sources owe is asked for a second time from fast ones
//! ```

mod asking;
mod searching;
mod source;
mod stall;
mod wanted;

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use rand::{Rng, RngExt};

pub use self::stall::{Stage, Stall};
use self::{
    source::{Rate, Source, Standing},
    wanted::Wanted,
};
use super::{bitmap::Bitmap, geometry::Size};

/// The number of a source within one transfer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SourceId(pub u64);

/// What a transfer can be told.
#[derive(Clone, Copy, Debug)]
pub struct TransferConfig {
    /// Sources at once, at most.
    pub sources: usize,
    /// Circuits are replaced after so long, give or take a fifth.
    pub rotate_every: Duration,
}

impl Default for TransferConfig {
    fn default() -> Self {
        Self { sources: 4, rotate_every: Duration::from_secs(600) }
    }
}

/// Why a source is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseReason {
    /// It sent something that is not the content.
    Lied,
    /// It was silent for too long.
    Stalled,
    /// Its circuit was replaced.
    Rotated,
    /// There are enough others.
    Spare,
    /// Everything is there.
    Done,
}

/// What a transfer wants done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TransferEvent {
    /// Ask this source for this chunk.
    Want(SourceId, u32),
    /// Tell this source that this chunk is there already.
    Cancel(SourceId, u32),
    /// Close this source; it is forgotten already.
    Close(SourceId, CloseReason),
    /// Look for sources.
    Find {
        /// How many.
        wanted: usize,
        /// Over new circuits.
        is_fresh: bool,
    },
    /// Every chunk is there.
    Done,
}

/// How a source went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loss {
    /// The exit or the circuit went away.
    Exit,
    /// The other side ended it.
    Left,
}

/// Old circuits that were not replaced one by one drain after so long.
const ROTATION: Duration = Duration::from_secs(30);
/// Without a byte for so long, there is a reason to give.
const STILL: Duration = Duration::from_millis(1500);

/// The state of one download.
#[derive(Debug)]
pub struct Transfer {
    config: TransferConfig,
    have: Bitmap,
    wanted: Wanted,
    front: u32,
    sources: BTreeMap<SourceId, Source>,
    events: VecDeque<TransferEvent>,
    generation: u32,
    rotate_at: Option<Instant>,
    drain_at: Option<Instant>,
    search_until: Option<Instant>,
    next_search: Instant,
    pause: Duration,
    stage: Stage,
    last_loss: Option<Stall>,
    progress: Instant,
    rate: Rate,
    is_done: bool,
}

impl Transfer {
    /// A download of a content of `size`, of which `have` is there. `front`: so many chunks at the
    /// start must be there before any other is asked for.
    pub fn new(now: Instant, config: TransferConfig, size: Size, have: Bitmap, front: u32) -> Self {
        let mut transfer = Self {
            config,
            wanted: Wanted::new(&have),
            front,
            sources: BTreeMap::new(),
            events: VecDeque::new(),
            generation: 0,
            rotate_at: None,
            drain_at: None,
            search_until: None,
            next_search: now,
            pause: searching::SOON,
            stage: Stage::Starting,
            last_loss: None,
            progress: now,
            rate: Rate::new(now),
            is_done: false,
            have,
        };
        debug_assert_eq!(transfer.have.limit(), size.chunks());
        transfer.finish_if_full();
        transfer
    }

    /// Which chunks are there.
    pub const fn have(&self) -> &Bitmap {
        &self.have
    }

    /// Whether everything is there.
    pub const fn is_done(&self) -> bool {
        self.is_done
    }

    /// Verified bytes a second, over the last seconds.
    pub fn rate(&self, now: Instant) -> f64 {
        self.rate.at(now)
    }

    /// The rate of one source, in bytes a second.
    pub fn rate_of(&self, now: Instant, source: SourceId) -> f64 {
        self.sources.get(&source).map_or(0.0, |source| source.rate.at(now))
    }

    /// How many sources there are, draining and silent ones included.
    pub fn sources(&self) -> usize {
        self.sources.len()
    }

    /// Notes what the network does; it explains stalls.
    pub fn handle_stage(&mut self, stage: Stage) {
        self.stage = stage;
    }

    /// A source is connected. `have`: what it has; none: everything.
    pub fn handle_source(
        &mut self,
        now: Instant,
        id: SourceId,
        have: Option<Bitmap>,
        rng: &mut impl Rng,
    ) {
        if self.is_done {
            self.events.push_back(TransferEvent::Close(id, CloseReason::Done));
            return;
        }
        let newest = |source: &&Source| source.is_active() && source.generation == self.generation;
        if self.sources.values().filter(newest).count() >= self.config.sources {
            self.events.push_back(TransferEvent::Close(id, CloseReason::Spare));
            return;
        }
        for chunk in have.iter().flat_map(Bitmap::iter) {
            self.wanted.count_holder(chunk, true);
        }
        self.sources.insert(id, Source::new(now, have, self.generation));
        self.pause = searching::SOON;
        self.last_loss = None;
        if self.rotate_at.is_none() {
            self.rotate_at = Some(now + jittered(self.config.rotate_every, rng));
        }
        // One comes, one of the replaced circuits goes; a stalled one before all.
        let stalled = |(_, source): &(&SourceId, &mut Source)| !source.is_active();
        let leaving = self.sources.iter_mut().find(stalled).map(|(id, _)| *id);
        if let Some(stalled) = leaving.filter(|id| {
            matches!(self.sources.get(id).map(|s| s.standing), Some(Standing::Stalled(_)))
        }) {
            self.close(stalled, CloseReason::Stalled);
        } else if let Some(old) = self.oldest_of_before() {
            self.drain(old);
        }
        self.ask_all(now);
    }

    /// An active source of an earlier generation.
    fn oldest_of_before(&self) -> Option<SourceId> {
        let generation = self.generation;
        self.sources
            .iter()
            .find(|(_, source)| source.is_active() && source.generation < generation)
            .map(|(id, _)| *id)
    }

    fn drain(&mut self, id: SourceId) {
        let Some(source) = self.sources.get_mut(&id) else { return };
        source.standing = Standing::Draining;
        if source.owes.is_empty() {
            self.close(id, CloseReason::Rotated);
        }
    }

    /// An incomplete source has one more chunk.
    pub fn handle_gained(&mut self, now: Instant, id: SourceId, chunk: u32) {
        let Some(source) = self.sources.get_mut(&id) else { return };
        if source.have.as_mut().is_some_and(|have| have.insert(chunk)) {
            self.wanted.count_holder(chunk, true);
            self.ask_all(now);
        }
    }

    /// Verified bytes of a chunk came from a source.
    pub fn handle_group(&mut self, now: Instant, id: SourceId, bytes: usize) {
        let Some(source) = self.sources.get_mut(&id) else { return };
        source.progress = now;
        source.rate.add(now, bytes);
        if matches!(source.standing, Standing::Stalled(_)) {
            source.standing = Standing::Active;
        }
        self.progress = now;
        self.rate.add(now, bytes);
    }

    /// A chunk came whole from a source, verified and written. Whether it was missing.
    pub fn handle_chunk(&mut self, now: Instant, id: SourceId, chunk: u32) -> bool {
        let is_new = self.have.insert(chunk);
        self.wanted.remove(chunk);
        self.settle(now, id, chunk);
        if is_new {
            let events = &mut self.events;
            for (other, source) in &mut self.sources {
                if source.settle(chunk) {
                    events.push_back(TransferEvent::Cancel(*other, chunk));
                }
            }
        }
        self.finish_if_full();
        self.ask_all(now);
        is_new
    }

    /// A source says that it does not send a chunk it was asked for.
    pub fn handle_skipped(&mut self, now: Instant, id: SourceId, chunk: u32) {
        if let Some(have) = self.sources.get_mut(&id).and_then(|source| source.have.as_mut())
            && have.has(chunk)
            && !self.have.has(chunk)
        {
            have.remove(chunk);
            self.wanted.count_holder(chunk, false);
        }
        if self.settle(now, id, chunk) {
            self.put_back(chunk);
        }
        self.ask_all(now);
    }

    /// A source sent what is not the content: it is closed at once.
    pub fn handle_lie(&mut self, now: Instant, id: SourceId) {
        self.last_loss = Some(Stall::SourceRejected);
        self.close(id, CloseReason::Lied);
        self.search_soon(now);
        self.ask_all(now);
    }

    /// A source is gone.
    pub fn handle_gone(&mut self, now: Instant, id: SourceId, loss: Loss) {
        if self.forget(id) {
            if loss == Loss::Exit {
                self.last_loss = Some(Stall::ExitLost);
            }
            self.search_soon(now);
            self.ask_all(now);
        }
    }

    /// Notes the time: silent sources, searches, rotation.
    pub fn handle_timeout(&mut self, now: Instant, rng: &mut impl Rng) {
        if self.is_done {
            return;
        }
        let late: Vec<SourceId> = self
            .sources
            .iter()
            .filter(|(_, source)| source.silent_at().is_some_and(|at| at <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            self.handle_silence(now, id);
        }
        if self.rotate_at.is_some_and(|at| at <= now) && !self.sources.is_empty() {
            self.rotate_at = Some(now + jittered(self.config.rotate_every, rng));
            self.drain_at = Some(now + ROTATION);
            self.generation += 1;
            self.search_until = Some(now + searching::SEARCH);
            self.next_search = now + searching::SEARCH;
            let wanted = self.actives().max(1);
            self.events.push_back(TransferEvent::Find { wanted, is_fresh: true });
        }
        if self.drain_at.is_some_and(|at| at <= now) {
            self.drain_at = None;
            let is_replaced =
                self.sources.values().any(|s| s.is_active() && s.generation == self.generation);
            while let Some(old) = self.oldest_of_before().filter(|_| is_replaced) {
                self.drain(old);
            }
        }
        if self.search_until.is_some_and(|until| until <= now) {
            self.search_until = None;
        }
        self.search(now);
        self.ask_all(now);
    }

    fn handle_silence(&mut self, now: Instant, id: SourceId) {
        let Some(source) = self.sources.get_mut(&id) else { return };
        if matches!(source.standing, Standing::Stalled(_)) {
            self.close(id, CloseReason::Stalled);
            self.search_soon(now);
            return;
        }
        source.standing = Standing::Stalled(now);
        let owed: Vec<u32> = source.owes.iter().copied().collect();
        for chunk in owed {
            self.put_back(chunk);
        }
        self.search_soon(now);
    }

    fn actives(&self) -> usize {
        self.sources.values().filter(|source| source.is_active()).count()
    }

    /// When [`Self::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.is_done {
            return None;
        }
        let silent = self.sources.values().filter_map(Source::silent_at).min();
        let search = match self.search_until {
            Some(until) => Some(until),
            None if self.actives() < self.config.sources || self.is_stuck() => {
                Some(self.next_search)
            }
            None => None,
        };
        [silent, search, self.rotate_at, self.drain_at].into_iter().flatten().min()
    }

    /// The next thing to do.
    pub fn poll_event(&mut self) -> Option<TransferEvent> {
        self.events.pop_front()
    }

    /// Why nothing arrives; none if bytes do, or everything is there.
    pub fn stall(&self, now: Instant) -> Option<Stall> {
        if self.is_done
            || now.saturating_duration_since(self.progress) < STILL && self.rate.at(now) > 0.0
        {
            return None;
        }
        let youngest = self.sources.values().map(|source| source.born).max();
        if let Some(born) = youngest {
            let is_new = now.saturating_duration_since(born) < STILL * 2;
            return Some(if is_new { Stall::Connecting } else { Stall::SourceSilent });
        }
        let is_ready = self.stage == Stage::Ready;
        if let Some(loss) = self.last_loss.clone().filter(|_| is_ready) {
            return Some(loss);
        }
        Some(Stall::without_sources(&self.stage, self.search_until.is_some()))
    }

    fn put_back(&mut self, chunk: u32) {
        let is_owed = self
            .sources
            .values()
            .any(|s| !matches!(s.standing, Standing::Stalled(_)) && s.owes.contains(&chunk));
        if !is_owed && !self.have.has(chunk) {
            self.wanted.insert(chunk);
        }
    }

    /// Takes a chunk off what a source owes; whether it did.
    fn settle(&mut self, now: Instant, id: SourceId, chunk: u32) -> bool {
        let Some(source) = self.sources.get_mut(&id) else { return false };
        source.progress = now;
        let owed = source.settle(chunk);
        if source.owes.is_empty() && source.standing == Standing::Draining {
            self.close(id, CloseReason::Rotated);
        }
        owed
    }

    fn close(&mut self, id: SourceId, why: CloseReason) {
        if self.forget(id) {
            self.events.push_back(TransferEvent::Close(id, why));
        }
    }

    fn forget(&mut self, id: SourceId) -> bool {
        let Some(source) = self.sources.remove(&id) else { return false };
        for chunk in source.have.iter().flat_map(Bitmap::iter) {
            self.wanted.count_holder(chunk, false);
        }
        for chunk in source.owes {
            self.put_back(chunk);
        }
        true
    }

    fn finish_if_full(&mut self) {
        if self.is_done || !self.have.is_full() {
            return;
        }
        self.is_done = true;
        let ids: Vec<_> = self.sources.keys().copied().collect();
        for id in ids {
            self.close(id, CloseReason::Done);
        }
        self.events.push_back(TransferEvent::Done);
    }
}

fn jittered(period: Duration, rng: &mut impl Rng) -> Duration {
    period.mul_f64(rng.random_range(0.8..1.2))
}

#[cfg(test)]
mod tests;
