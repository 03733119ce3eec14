//! Cells that are not lost: each carries its number, and is sent again until the relay took it.
//!
//! In: payloads, and what became of the rounds they went into. Out: the next cell to send.
//! Called by: the client core.

use std::collections::VecDeque;

use crate::dcnet::error::DcnetError;

/// Bytes before a cell's frames: `epoch 4 | seq 4 | flags 1`.
pub const CELL_HEADER: usize = 9;
/// Cells that may be on their way.
pub const UNTAKEN_MAX: usize = 128;
const MORE: u8 = 1;
const IDLE: u8 = 2;

/// The plaintext of a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotCell<'a> {
    /// Drawn anew by each start of a client: all connections before are gone.
    pub epoch: u32,
    /// Counts cells of the epoch; none for a cell that only stands for silence.
    pub seq: Option<u32>,
    /// The slot would like another turn at once.
    pub more: bool,
    /// Frames, as [`crate::dcnet::mux`] has them.
    pub frames: &'a [u8],
}

impl<'a> SlotCell<'a> {
    /// Strictly one plaintext.
    ///
    /// # Errors
    /// When it is shorter than its header or has unknown flags.
    pub fn parse(plain: &'a [u8]) -> Result<Self, DcnetError> {
        let wrong =
            |got: String| DcnetError::malformed("slot", "epoch, seq, flags and frames", got);
        let (head, frames) = plain
            .split_at_checked(CELL_HEADER)
            .ok_or_else(|| wrong(format!("{} bytes", plain.len())))?;
        if head[8] & !(MORE | IDLE) != 0 {
            return Err(wrong(format!("flags {:#x}", head[8])));
        }
        let seq = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        if head[8] & IDLE != 0 && seq != 0 {
            return Err(wrong(format!("number {seq} of an idle cell")));
        }
        Ok(Self {
            epoch: u32::from_be_bytes([head[0], head[1], head[2], head[3]]),
            seq: (head[8] & IDLE == 0).then_some(seq),
            more: head[8] & MORE != 0,
            frames,
        })
    }

    /// The plaintext, filled with zeros to `len`.
    pub fn emit(&self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len);
        out.extend_from_slice(&self.epoch.to_be_bytes());
        out.extend_from_slice(&self.seq.unwrap_or(0).to_be_bytes());
        let more = if self.more { MORE } else { 0 };
        out.push(more | if self.seq.is_none() { IDLE } else { 0 });
        out.extend_from_slice(self.frames);
        out.resize(len, 0);
        out
    }
}

/// The cells on their way.
#[derive(Debug, Default)]
pub struct Arq {
    next_seq: u32,
    untaken: VecDeque<(u32, Vec<u8>)>,
    /// How many of `untaken` went out since the last loss.
    out: usize,
    /// Losses of rounds before this one are known already.
    since: u64,
}

impl Arq {
    /// Whether a cell waits to be sent again.
    pub fn has_lost(&self) -> bool {
        self.out < self.untaken.len()
    }

    /// Whether a fresh payload may be sent.
    pub fn has_room(&self) -> bool {
        self.untaken.len() < UNTAKEN_MAX
    }

    /// Cells the relay has not confirmed.
    pub fn untaken(&self) -> usize {
        self.untaken.len()
    }

    /// The cell to send again, if any.
    pub fn again(&mut self) -> Option<(u32, &[u8])> {
        let (seq, frames) = self.untaken.get(self.out)?;
        self.out += 1;
        Some((*seq, frames))
    }

    /// Whether the relay has yet to take a cell.
    pub fn awaits(&self, seq: u32) -> bool {
        self.untaken.iter().any(|(waiting, _)| *waiting == seq)
    }

    /// Gives a fresh payload its number.
    pub fn fresh(&mut self, frames: &[u8]) -> u32 {
        let seq = self.next_seq;
        self.next_seq = self.next_seq.wrapping_add(1);
        self.untaken.push_back((seq, frames.to_vec()));
        self.out = self.untaken.len();
        seq
    }

    /// The relay has everything before `next_seq`.
    pub fn taken(&mut self, next_seq: u32) {
        while self.untaken.front().is_some_and(|(seq, _)| seq.wrapping_sub(next_seq) > u32::MAX / 2)
        {
            self.untaken.pop_front();
            self.out = self.out.saturating_sub(1);
        }
    }

    /// A cell of `round` was lost; cells sent from `now_at` on count anew. Whether all are to be
    /// sent again: a loss from before is known already.
    pub fn lost(&mut self, round: u64, now_at: u64) -> bool {
        let fresh = round >= self.since;
        if fresh {
            self.out = 0;
            self.since = now_at;
        }
        fresh
    }

    /// All rounds on their way are void.
    pub fn all_lost(&mut self) {
        self.out = 0;
        self.since = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_repeats_what_was_not_taken() {
        let mut arq = Arq::default();
        for byte in 0..4 {
            assert_eq!(arq.fresh(&[byte]), u32::from(byte));
        }
        arq.taken(1);
        assert!(!arq.has_lost());
        arq.lost(11, 20);
        arq.lost(12, 20);
        assert_eq!(arq.again().unwrap(), (1, [1].as_slice()));
        arq.lost(13, 21);
        assert_eq!(arq.again().unwrap(), (2, [2].as_slice()));
        assert_eq!(arq.again().unwrap(), (3, [3].as_slice()));
        assert!(arq.again().is_none());
        assert_eq!(arq.fresh(&[4]), 4);
        arq.taken(5);
        assert_eq!(arq.untaken(), 0);
    }

    #[test]
    fn cells_have_one_form() {
        for seq in [Some(2), None] {
            let bytes = SlotCell { epoch: 1, seq, more: true, frames: b"ab" }.emit(20);
            let parsed = SlotCell::parse(&bytes).unwrap();
            assert_eq!((parsed.epoch, parsed.seq, parsed.more), (1, seq, true));
            assert_eq!(&parsed.frames[..2], b"ab");
        }
        let bytes = [0; 20];
        assert!(SlotCell::parse(&bytes[..8]).is_err());
        assert!(SlotCell::parse(&[0, 0, 0, 0, 0, 0, 0, 0, 4]).is_err());
    }
}
