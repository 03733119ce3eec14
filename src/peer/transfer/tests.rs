//! Transfers in virtual time: a tracker and sources that are slow, lie, stall, die or lack chunks.

use std::collections::{BTreeSet, HashMap};

use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::peer::geometry::{CHUNK_LEN, GROUP_LEN, GROUPS};

const TICK: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, PartialEq, Debug)]
enum Nature {
    Honest,
    /// Lies in the first group of its n-th chunk.
    Liar(u32),
    /// Falls silent after so many groups.
    Staller(u32),
    /// Its exit goes away after so many groups.
    Mortal(u32),
}

struct SimSource {
    nature: Nature,
    per_second: f64,
    credit: f64,
    queue: VecDeque<u32>,
    group: usize,
    sent: u32,
    begun: u32,
}

struct Sim {
    rng: StdRng,
    now: Instant,
    start: Instant,
    transfer: Transfer,
    sources: HashMap<SourceId, SimSource>,
    next: u64,
    coming: Vec<(Instant, Nature, Option<Bitmap>)>,
    is_empty_until: Duration,
    delivered: HashMap<u32, u32>,
    stalled: Vec<(Instant, SourceId)>,
    closed: Vec<(SourceId, CloseReason)>,
    natures: Vec<Nature>,
    per_second: std::ops::Range<f64>,
    lies: u32,
}

impl Sim {
    fn new(seed: u64, chunks: u32, natures: Vec<Nature>) -> Self {
        let now = Instant::now();
        let size = Size::try_from(u64::from(chunks) * CHUNK_LEN).unwrap();
        Self {
            rng: StdRng::seed_from_u64(seed),
            now,
            start: now,
            transfer: Transfer::new(now, TransferConfig::default(), size, Bitmap::new(chunks), 0),
            sources: HashMap::new(),
            next: 0,
            coming: Vec::new(),
            is_empty_until: Duration::ZERO,
            delivered: HashMap::new(),
            stalled: Vec::new(),
            closed: Vec::new(),
            natures,
            per_second: 2e5..2e6,
            lies: 0,
        }
    }

    fn find(&mut self, wanted: usize) {
        if self.now - self.start < self.is_empty_until {
            self.transfer.handle_nobody(self.now);
            return;
        }
        let count = self.rng.random_range(1..=wanted);
        self.transfer.handle_found(self.now, count);
        for _ in 0..count {
            let nature = self.natures[self.rng.random_range(0..self.natures.len())];
            let partial = self.rng.random_bool(0.3) && nature == Nature::Honest;
            let have = partial.then(|| {
                let limit = self.transfer.have().limit();
                let mut have = Bitmap::new(limit);
                for chunk in 0..limit {
                    if self.rng.random_bool(0.7) {
                        have.insert(chunk);
                    }
                }
                have
            });
            let after = Duration::from_millis(self.rng.random_range(50..800));
            self.coming.push((self.now + after, nature, have));
        }
    }

    fn events(&mut self) {
        while let Some(event) = self.transfer.poll_event() {
            match event {
                TransferEvent::Want(id, chunk) => {
                    let source = self.sources.get_mut(&id).expect("asks only who is there");
                    source.queue.push_back(chunk);
                }
                TransferEvent::Cancel(id, chunk) => {
                    if let Some(source) = self.sources.get_mut(&id) {
                        let begun = usize::from(source.group > 0);
                        let at = source.queue.iter().skip(begun).position(|c| *c == chunk);
                        if let Some(at) = at {
                            source.queue.remove(at + begun);
                        }
                    }
                }
                TransferEvent::Close(id, why) => {
                    self.sources.remove(&id);
                    self.closed.push((id, why));
                }
                TransferEvent::Find { wanted, .. } => self.find(wanted),
                TransferEvent::Done => {}
            }
        }
    }

    fn tick(&mut self) {
        self.now += TICK;
        if self.transfer.poll_timeout().is_some_and(|at| at <= self.now) {
            self.transfer.handle_timeout(self.now, &mut self.rng);
            self.events();
        }
        let due: Vec<_> = self.coming.extract_if(.., |(at, ..)| *at <= self.now).collect();
        for (_, nature, have) in due {
            let id = SourceId(self.next);
            self.next += 1;
            let per_second = self.rng.random_range(self.per_second.clone());
            let source = SimSource {
                nature,
                per_second,
                credit: 0.0,
                queue: VecDeque::new(),
                group: 0,
                sent: 0,
                begun: 0,
            };
            self.sources.insert(id, source);
            self.transfer.handle_source(self.now, id, have, &mut self.rng);
            let actives = self.transfer.actives();
            assert!(actives <= 2 * self.transfer.config.sources, "{actives} sources send");
            self.events();
        }
        let ids: BTreeSet<SourceId> = self.sources.keys().copied().collect();
        for id in ids {
            self.deliver(id);
            self.events();
        }
    }

    fn deliver(&mut self, id: SourceId) {
        let Some(source) = self.sources.get_mut(&id) else { return };
        source.credit = (source.credit + source.per_second * TICK.as_secs_f64()).min(1e6);
        while let Some(source) = self.sources.get_mut(&id)
            && source.credit >= GROUP_LEN as f64
            && let Some(&chunk) = source.queue.front()
        {
            match source.nature {
                Nature::Staller(after) if source.sent >= after => {
                    if !self.stalled.iter().any(|(_, other)| *other == id) {
                        self.stalled.push((self.now, id));
                    }
                    return;
                }
                Nature::Mortal(after) if source.sent >= after => {
                    self.sources.remove(&id);
                    self.transfer.handle_gone(self.now, id, Loss::Exit);
                    return;
                }
                Nature::Liar(after) if source.begun >= after => {
                    self.lies += 1;
                    self.transfer.handle_lie(self.now, id);
                    assert!(matches!(
                        self.transfer.events.iter().find(|e| matches!(e, TransferEvent::Close(..))),
                        Some(TransferEvent::Close(closed, CloseReason::Lied)) if *closed == id
                    ));
                    return;
                }
                _ => {}
            }
            source.credit -= GROUP_LEN as f64;
            source.sent += 1;
            source.group += 1;
            self.transfer.handle_group(self.now, id, GROUP_LEN as usize);
            if source.group == GROUPS {
                source.group = 0;
                source.begun += 1;
                source.queue.pop_front();
                self.transfer.handle_chunk(self.now, id, chunk);
                *self.delivered.entry(chunk).or_default() += 1;
            }
            self.events();
        }
    }

    /// Until done; the seconds it took.
    fn run(&mut self, at_most: Duration) -> f64 {
        while !self.transfer.is_done() {
            self.tick();
            let passed = self.now - self.start;
            assert!(
                passed < at_most,
                "{} of {} chunks after {passed:?}: {:?}",
                self.transfer.have().count(),
                self.transfer.have().limit(),
                self.transfer
            );
        }
        (self.now - self.start).as_secs_f64()
    }
}

fn seeds() -> std::ops::Range<u64> {
    let count = std::env::var("CEPA_TRANSFER_SEEDS").ok().and_then(|text| text.parse().ok());
    0..count.unwrap_or(150)
}

#[test]
fn every_transfer_ends_whoever_lies_stalls_or_dies() {
    for seed in seeds() {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut natures = vec![Nature::Honest, Nature::Honest];
        natures.extend((0..rng.random_range(0..4)).map(|_| match rng.random_range(0..3) {
            0 => Nature::Liar(rng.random_range(0..4)),
            1 => Nature::Staller(rng.random_range(0..40)),
            _ => Nature::Mortal(rng.random_range(0..100)),
        }));
        let mut sim = Sim::new(seed, rng.random_range(1..60), natures);
        sim.run(Duration::from_secs(400));
        assert_eq!(sim.delivered.len() as u32, sim.transfer.have().limit());
        let again: u32 = sim.delivered.values().map(|times| times - 1).sum();
        let sources = sim.next as u32;
        assert!(again <= sources, "seed {seed}: {again} chunks twice from {sources} sources");
        let liars = sim.closed.iter().filter(|(_, why)| *why == CloseReason::Lied).count();
        assert_eq!(liars as u32, sim.lies, "every lie closes its source, at once");
    }
}

#[test]
fn a_source_that_stalls_is_replaced_within_five_seconds() {
    for seed in 0..50 {
        let mut sim = Sim::new(seed, 40, vec![Nature::Staller(7)]);
        sim.transfer.config.sources = 1;
        while sim.stalled.is_empty() {
            sim.tick();
        }
        // Its replacement, and everybody after it, is honest.
        sim.natures = vec![Nature::Honest];
        let (since, silent) = sim.stalled[0];
        let owed = sim.transfer.sources[&silent].owes[0];
        loop {
            sim.tick();
            // A replacement that has not got that chunk is asked for others.
            let is_asked = sim.sources.iter().any(|(id, s)| *id != silent && !s.queue.is_empty());
            if sim.transfer.have().has(owed) || is_asked {
                break;
            }
            let waited = sim.now - since;
            assert!(waited < Duration::from_secs(5), "seed {seed}: {:?}", sim.transfer);
        }
        sim.run(Duration::from_secs(300));
    }
}

#[test]
fn more_sources_are_faster() {
    let seconds = |sources: usize| {
        let mut sim = Sim::new(1, 400, vec![Nature::Honest]);
        sim.transfer.config.sources = sources;
        sim.per_second = 0.99e6..1.01e6;
        sim.run(Duration::from_secs(300))
    };
    let (one, four) = (seconds(1), seconds(4));
    assert!(four * 3.0 < one, "1 source: {one} s, 4 sources: {four} s");
}

#[test]
fn a_slow_source_does_not_hold_up_the_end() {
    let mut sim = Sim::new(3, 100, vec![Nature::Honest]);
    sim.transfer.config.sources = 2;
    sim.per_second = 5e6..5.1e6;
    while sim.sources.is_empty() {
        sim.tick();
    }
    sim.per_second = 2e4..2.1e4;
    let seconds = sim.run(Duration::from_secs(60));
    assert!(seconds < 10.0, "{seconds} s");
}

#[test]
fn rotation_loses_nothing_and_drains_the_old() {
    let mut sim = Sim::new(4, 400, vec![Nature::Honest]);
    sim.transfer.config.rotate_every = Duration::from_secs(20);
    sim.run(Duration::from_secs(600));
    let rotated = sim.closed.iter().filter(|(_, why)| *why == CloseReason::Rotated).count();
    assert!(rotated >= 4, "{rotated} old circuits were replaced");
    let again: u32 = sim.delivered.values().map(|times| times - 1).sum();
    assert!(again <= 4, "{again} chunks twice");
}

#[test]
fn stalls_have_reasons() {
    let mut sim = Sim::new(5, 20, vec![Nature::Honest]);
    let stall = |sim: &Sim| sim.transfer.stall(sim.now);
    assert_eq!(stall(&sim), Some(Stall::Starting));
    sim.transfer.handle_stage(Stage::BuildingHop { hop: 2, of: 3 });
    assert_eq!(stall(&sim), Some(Stall::BuildingHop { hop: 2, of: 3 }));
    sim.transfer.handle_stage(Stage::TrackerUnreachable { why: String::new() });
    assert!(stall(&sim).unwrap().to_string().contains("tracker does not answer"));
    sim.transfer.handle_stage(Stage::Ready);
    sim.is_empty_until = Duration::from_secs(20);
    for _ in 0..100 {
        sim.tick();
    }
    assert_eq!(stall(&sim), Some(Stall::NoSource));
    while stall(&sim).is_some() {
        sim.tick();
        assert!(sim.now - sim.start < Duration::from_secs(60));
    }
    let (id, _) = sim.sources.iter().next().map(|(id, source)| (*id, source.sent)).unwrap();
    for id in sim.sources.keys().copied().collect::<Vec<_>>() {
        sim.transfer.handle_gone(sim.now, id, Loss::Exit);
    }
    sim.sources.clear();
    sim.coming.clear();
    sim.now += STILL;
    assert_eq!(stall(&sim), Some(Stall::ExitLost), "{id:?}");
    sim.transfer.handle_lie(sim.now, SourceId(99));
    assert_eq!(stall(&sim), Some(Stall::SourceRejected));
    sim.run(Duration::from_secs(300));
    assert_eq!(stall(&sim), None);
}

#[test]
fn nothing_to_fetch_is_done() {
    let now = Instant::now();
    for chunks in [0, 3] {
        let size = Size::try_from(u64::from(chunks) * CHUNK_LEN).unwrap();
        let config = TransferConfig::default();
        let mut transfer = Transfer::new(now, config, size, Bitmap::full(chunks), 0);
        assert!(transfer.is_done() && transfer.poll_timeout().is_none());
        assert_eq!(transfer.poll_event(), Some(TransferEvent::Done));
        assert_eq!(transfer.poll_event(), None);
    }
}
