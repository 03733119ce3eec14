//! Threads that share the cryptography of a batch of cells with the data path's thread.
//!
//! In: cells of one read or one write. Out: the same, worked on. Called by: the tables of the data path.
//!
//! Where a cell's ciphers take microseconds, as on a processor without AES instructions, a batch is
//! worth waking threads for: then one circuit, even one download, is quicker by them. Elsewhere the data
//! path's own thread is (docs/decisions/0025-crews.md).

use std::thread;

use rayon::{
    ThreadPool, ThreadPoolBuilder,
    iter::{IndexedParallelIterator, IntoParallelRefMutIterator, ParallelIterator},
};

use crate::model::{Alone, CELL_LEN, Crew};

/// Fewer cells are done by the time another thread is awake.
const FEWEST: usize = 8;
/// Shares of a batch are not divided below so many cells.
const LEAST_SHARE: usize = 4;
/// Threads of a crew, unless the settings say otherwise.
const MOST: usize = 4;

/// The data path's thread and those that help it, if any do.
#[derive(Default)]
pub struct Workers(Option<ThreadPool>);

impl Workers {
    /// How many threads work on cells: what the settings say; with 0, as many as this machine needs.
    pub fn count(configured: u8, has_aes: bool) -> usize {
        match (configured, has_aes) {
            (0, true) => 1,
            (0, false) => thread::available_parallelism().map_or(1, |cores| cores.get().min(MOST)),
            (count, _) => usize::from(count),
        }
    }

    /// The calling thread and `count - 1` others, which sleep until there is something to do. A thread
    /// can be of one crew only.
    pub fn start(count: usize) -> Self {
        if count < 2 {
            return Self::default();
        }
        let pool = ThreadPoolBuilder::new()
            .num_threads(count)
            .thread_name(|index| format!("cells-{index}"))
            .use_current_thread()
            .build();
        Self(
            pool.inspect_err(|error| log::warn!("one thread works on cells, not {count}: {error}"))
                .ok(),
        )
    }
}

impl Crew for Workers {
    fn shares(&self, cells: usize) -> bool {
        self.0.is_some() && cells >= FEWEST
    }

    fn each<N: Send>(
        &self,
        cells: &mut [[u8; CELL_LEN]],
        notes: &mut [N],
        work: impl Fn(&mut [u8; CELL_LEN], &mut N) + Sync,
    ) {
        match &self.0 {
            Some(pool) if self.shares(cells.len()) => pool.install(|| {
                cells
                    .par_iter_mut()
                    .zip(notes)
                    .with_min_len(LEAST_SHARE)
                    .for_each(|(cell, note)| work(cell, note));
            }),
            _ => Alone.each(cells, notes, work),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Every cell meets its own note, once, whatever the numbers of cells and threads.
    #[test]
    fn every_cell_meets_its_note_once() {
        for count in [1, 2, 3] {
            // On a thread of its own: a thread can be of one crew only.
            let crew = move || {
                let workers = Workers::start(count);
                for cells in [0, 1, FEWEST - 1, FEWEST, 46, 138] {
                    let mut batch = vec![[0u8; CELL_LEN]; cells];
                    let mut notes: Vec<usize> = (0..cells).collect();
                    workers.each(&mut batch, &mut notes, |cell, note| {
                        cell[*note] += 1;
                        *note += 1;
                    });
                    for (index, (cell, note)) in batch.iter().zip(notes).enumerate() {
                        assert_eq!((cell[index], note), (1, index + 1));
                        assert_eq!(cell.iter().map(|byte| u32::from(*byte)).sum::<u32>(), 1);
                    }
                }
            };
            thread::spawn(crew).join().unwrap();
        }
    }

    /// The others do take part.
    #[test]
    fn a_large_batch_is_done_by_several_threads() {
        let crew = || {
            let workers = Workers::start(2);
            let mut batch = vec![[0u8; CELL_LEN]; 138];
            for _ in 0..1000 {
                let mut notes = vec![None; 138];
                workers.each(&mut batch, &mut notes, |cell, note| {
                    for _ in 0..100 {
                        std::hint::black_box(&mut *cell).rotate_left(1);
                    }
                    *note = Some(thread::current().id());
                });
                if notes.into_iter().collect::<HashSet<_>>().len() > 1 {
                    return true;
                }
            }
            false
        };
        assert!(thread::spawn(crew).join().unwrap());
    }

    #[test]
    fn settings_come_before_the_machine() {
        assert_eq!(Workers::count(3, true), 3);
        assert_eq!(Workers::count(1, false), 1);
        assert_eq!(Workers::count(0, true), 1);
        assert!((1..=MOST).contains(&Workers::count(0, false)));
    }
}
