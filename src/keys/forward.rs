//! The forward layers: a client wraps one per hop, each hop peels its own.
//!
//! In: cells with a body. Out: the same cells, one layer more or less, the same length.
//! Called by: the data path (`forward`), client side and node side.
//!
//! Every tag covers later slots, filler and body, so a cell changed anywhere is dropped by the next
//! honest hop. A hop shifts the slots left and fills the end from its own keystream; the client
//! knows all fillers before it seals.

use aes::Block;
use rand::Rng;

use super::{
    HopKeys,
    aead::{BadTag, CounterAead, counter_nonce},
    stream::BlocksAhead,
};
use crate::model::{
    BODY_AT, CELL_LEN, CID_LEN, SEQ_LEN, SLOT_LEN, SLOTS, Suite, TAG_LEN, prefetch,
};

/// Where the sealed part of a forward cell starts.
const SEALED_AT: usize = CID_LEN + SLOT_LEN;
/// The later slots, at the start of the sealed part.
const LATER_LEN: usize = SLOT_LEN * (SLOTS - 1);

/// A node's forward layer.
pub struct ForwardLayer {
    aead: CounterAead,
    fill: BlocksAhead<2>,
}

impl ForwardLayer {
    /// Expands the forward keys of a hop.
    pub fn new(keys: &HopKeys) -> Self {
        Self {
            aead: CounterAead::new(keys.suite, &keys.fwd_aead, keys.fwd_salt),
            fill: BlocksAhead::new(&keys.fwd_fill),
        }
    }

    /// Has the keys fetched that [`Self::peel`] works with.
    pub fn prefetch(&self) {
        prefetch(&self.aead);
        self.fill.prefetch();
    }

    /// Opens the cell in place, all but its slots; [`Self::shift`] is next.
    ///
    /// # Errors
    /// When the tag does not verify; the cell must be dropped.
    pub fn open(&self, cell: &mut [u8; CELL_LEN]) -> Result<(), BadTag> {
        let (head, sealed) = cell.split_at_mut(SEALED_AT);
        let (seq, tag) = slot(head)?;
        self.aead.open(seq, &[], &tag, sealed)
    }

    /// Shifts the slots of a cell that was opened under `seq` and appends the filler; bytes 16.. are
    /// then those of the next link, and the body is open if it is for this hop.
    pub fn shift(&mut self, seq: u32, cell: &mut [u8; CELL_LEN]) {
        cell.copy_within(SEALED_AT..BODY_AT, CID_LEN);
        cell[BODY_AT - SLOT_LEN..BODY_AT].copy_from_slice(self.filler(seq));
    }

    /// [`Self::open`] and [`Self::shift`].
    ///
    /// # Errors
    /// When the tag does not verify; the cell must be dropped.
    pub fn peel(&mut self, cell: &mut [u8; CELL_LEN]) -> Result<(), BadTag> {
        let (seq, _) = slot(&cell[..SEALED_AT])?;
        self.open(cell)?;
        self.shift(seq, cell);
        Ok(())
    }

    fn filler(&mut self, seq: u32) -> &[u8; SLOT_LEN] {
        first_bytes(self.fill.of(seq, |seq, number| {
            let mut block = [0u8; 16];
            block[..SEQ_LEN].copy_from_slice(&seq.to_be_bytes());
            block[12..].copy_from_slice(&number.to_be_bytes());
            block
        }))
    }
}

/// A client's forward layer of one hop: the node's, and the keystream that meets the fillers.
pub struct ForwardWrap {
    layer: ForwardLayer,
    /// With AES, the blocks that the AEAD encrypts the later slots with.
    ahead: Option<Box<BlocksAhead<4>>>,
    salt: [u8; 12],
}

impl ForwardWrap {
    /// Expands the forward keys of a hop for its client.
    pub fn new(keys: &HopKeys) -> Self {
        let ahead = match keys.suite {
            Suite::Aes128Gcm => Some(Box::new(BlocksAhead::new(&keys.fwd_aead[..16]))),
            Suite::ChaCha20Poly1305 => None,
        };
        Self { layer: ForwardLayer::new(keys), ahead, salt: keys.fwd_salt }
    }

    /// The AEAD's keystream over the last `length` bytes of the later slots, xored into `bytes`.
    fn meet(&mut self, seq: u32, bytes: &mut [u8]) {
        if bytes.is_empty() {
            return;
        }
        let start = LATER_LEN - bytes.len();
        let salt = &self.salt;
        let mut sealed;
        let stream = match &mut self.ahead {
            Some(ahead) => first_bytes::<4, LATER_LEN>(ahead.of(seq, |seq, number| {
                let mut block = [0u8; 16];
                block[..12].copy_from_slice(&counter_nonce(salt, seq));
                // GCM (NIST SP 800-38D): block 1 masks the tag, data starts at block 2.
                block[12..].copy_from_slice(&(number + 2).to_be_bytes());
                block
            })),
            None => {
                sealed = [0u8; LATER_LEN];
                self.layer.aead.apply_keystream(seq, &mut sealed);
                &sealed
            }
        };
        for (byte, key) in bytes.iter_mut().zip(&stream[start..LATER_LEN]) {
            *byte ^= key;
        }
    }
}

/// Begins a cell whose body is written for the last of `hops`, in path order: what stands between its
/// slots and its body. `seqs` holds one fresh sequence number per hop. [`seal_wrap`] is next.
///
/// # Panics
/// When there are no hops, more than [`SLOTS`], or not one number per hop.
pub fn begin_wrap(
    hops: &mut [ForwardWrap],
    seqs: &[u32],
    cell: &mut [u8; CELL_LEN],
    rng: &mut impl Rng,
) {
    assert!((1..=SLOTS).contains(&hops.len()) && hops.len() == seqs.len());
    let last = hops.len() - 1;
    let mut fillers = [0u8; LATER_LEN];
    let mut filled = 0;
    for (hop, seq) in hops.iter_mut().zip(seqs).take(last) {
        hop.meet(*seq, &mut fillers[..filled]);
        fillers[filled..filled + SLOT_LEN].copy_from_slice(hop.layer.filler(*seq));
        filled += SLOT_LEN;
    }
    hops[last].meet(seqs[last], &mut fillers[..filled]);
    rng.fill_bytes(&mut cell[SEALED_AT..BODY_AT - filled]);
    cell[BODY_AT - filled..BODY_AT].copy_from_slice(&fillers[..filled]);
}

/// Puts the layers of `hops` around a cell that was begun with them and `seqs`. Bytes 16.. of the
/// cell are then those of the first link.
pub fn seal_wrap(hops: &[ForwardWrap], seqs: &[u32], cell: &mut [u8; CELL_LEN]) {
    for (outer, (hop, seq)) in hops.iter().zip(seqs).rev().enumerate() {
        if outer > 0 {
            cell.copy_within(CID_LEN..BODY_AT - SLOT_LEN, SEALED_AT);
        }
        let tag = hop.layer.aead.seal(*seq, &[], &mut cell[SEALED_AT..]);
        cell[CID_LEN..CID_LEN + SEQ_LEN].copy_from_slice(&seq.to_be_bytes());
        cell[CID_LEN + SEQ_LEN..SEALED_AT].copy_from_slice(&tag);
    }
}

/// [`begin_wrap`] and [`seal_wrap`].
///
/// # Panics
/// As [`begin_wrap`].
pub fn wrap(hops: &mut [ForwardWrap], seqs: &[u32], cell: &mut [u8; CELL_LEN], rng: &mut impl Rng) {
    begin_wrap(hops, seqs, cell, rng);
    seal_wrap(hops, seqs, cell);
}

/// The start of some blocks; they are longer than what is asked of them.
fn first_bytes<const BLOCKS: usize, const LEN: usize>(blocks: &[Block; BLOCKS]) -> &[u8; LEN] {
    const { assert!(LEN <= 16 * BLOCKS) }
    let Some(bytes) = Block::slice_as_flattened(blocks).first_chunk() else {
        unreachable!("checked when it was compiled")
    };
    bytes
}

fn slot(head: &[u8]) -> Result<(u32, [u8; TAG_LEN]), BadTag> {
    let slot = head.last_chunk::<SLOT_LEN>().ok_or(BadTag)?;
    let (seq, tag) = slot.split_first_chunk::<SEQ_LEN>().ok_or(BadTag)?;
    Ok((u32::from_be_bytes(*seq), tag.try_into().map_err(|_| BadTag)?))
}

#[cfg(test)]
mod tests;
