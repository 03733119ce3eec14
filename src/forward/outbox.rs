//! Cells on their way to the socket, back to back, so that one system call sends many.
//!
//! In: cells and their destinations. Out: runs of cells with one destination.
//! Called by: the tables of this folder (fill it), node (sends it).

use std::net::SocketAddr;

use crate::model::CELL_LEN;

/// Cells in one buffer, in order, with runs of equal destination. The buffer is reused.
#[derive(Default)]
pub struct Outbox {
    /// As long as it ever was; the cells are the first `len`.
    bytes: Vec<u8>,
    len: usize,
    runs: Vec<(SocketAddr, usize)>,
}

impl Outbox {
    /// How many cells wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no cell waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends a cell for `to` and returns its index. What it holds is for the caller to write.
    pub fn push(&mut self, to: SocketAddr) -> usize {
        let index = self.len();
        self.len += 1;
        if self.bytes.len() < self.len * CELL_LEN {
            self.bytes.resize(self.len * CELL_LEN, 0);
        }
        match self.runs.last_mut() {
            Some((last, count)) if *last == to => *count += 1,
            _ => self.runs.push((to, 1)),
        }
        index
    }

    /// The cell of an index that [`Self::push`] returned since the last [`Self::clear`].
    ///
    /// # Panics
    /// When there is no such cell.
    pub fn cell_mut(&mut self, index: usize) -> &mut [u8; CELL_LEN] {
        let start = index * CELL_LEN;
        match (&mut self.bytes[start..start + CELL_LEN]).try_into() {
            Ok(cell) => cell,
            Err(_) => unreachable!("the slice has the length of a cell"),
        }
    }

    /// All cells, in order.
    pub fn cells_mut(&mut self) -> &mut [[u8; CELL_LEN]] {
        self.bytes[..self.len * CELL_LEN].as_chunks_mut().0
    }

    /// The runs in order: a destination and its cells back to back.
    pub fn runs(&self) -> impl Iterator<Item = (SocketAddr, &[u8])> {
        let mut start = 0;
        self.runs.iter().map(move |(to, count)| {
            let end = start + count * CELL_LEN;
            let cells = &self.bytes[start..end];
            start = end;
            (*to, cells)
        })
    }

    /// Forgets the cells and keeps the buffer.
    pub fn clear(&mut self) {
        self.len = 0;
        self.runs.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_join_equal_neighbours_only() {
        let (one, two) = (([1, 1, 1, 1], 1).into(), ([2, 2, 2, 2], 2).into());
        let mut outbox = Outbox::default();
        for (mark, to) in [(1, one), (2, one), (3, two), (4, one)] {
            let index = outbox.push(to);
            outbox.cell_mut(index)[0] = mark;
        }
        let runs: Vec<_> = outbox
            .runs()
            .map(|(to, cells)| (to, cells.chunks(CELL_LEN).map(|cell| cell[0]).collect::<Vec<_>>()))
            .collect();
        assert_eq!(runs, [(one, vec![1, 2]), (two, vec![3]), (one, vec![4])]);
        outbox.clear();
        assert!(outbox.is_empty());
    }
}
