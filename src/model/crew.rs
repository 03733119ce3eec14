//! Work on many cells, by however many threads there are.
//!
//! In: cells that lie back to back, a note for each. Out: the same, worked on.
//! Called by: the tables of the data path. Carried out by: node.

use super::CELL_LEN;

/// Who works on the cells of a batch.
pub trait Crew {
    /// Whether so many cells are worth being shared out.
    fn shares(&self, cells: usize) -> bool;

    /// Calls `work` once for each cell with its note, in any order; returns when all are done.
    fn each<N: Send>(
        &self,
        cells: &mut [[u8; CELL_LEN]],
        notes: &mut [N],
        work: impl Fn(&mut [u8; CELL_LEN], &mut N) + Sync,
    );
}

/// The calling thread alone, one cell after the other.
pub struct Alone;

impl Crew for Alone {
    fn shares(&self, _: usize) -> bool {
        false
    }

    fn each<N: Send>(
        &self,
        cells: &mut [[u8; CELL_LEN]],
        notes: &mut [N],
        work: impl Fn(&mut [u8; CELL_LEN], &mut N) + Sync,
    ) {
        cells.iter_mut().zip(notes).for_each(|(cell, note)| work(cell, note));
    }
}
