//! The backward layers: the originator seals, each hop adds a layer, the client peels them all.
//!
//! In: cells on their way to the client. Out: the same cells, one layer more or less.
//! Called by: the data path (`forward`), client side and node side.
//!
//! ```text
//! 0 CID 16 | 16 strip 4 x seq | 32 link tag 16 | 48 exit tag 16 | 64 reserved 32 | 96 body
//! ```
//! A hop's stream covers bytes 20..1408: the strip but for the hop's own counter, the link tag
//! (which is written afterwards), the exit tag, the reserved bytes and the body.

use rand::Rng;

use super::{
    HopKeys, PairKeys,
    aead::{BadTag, CounterAead, CounterTag},
    stream::StreamKey,
};
use crate::model::{BODY_AT, BODY_LEN, CELL_LEN, CID_LEN, SEQ_LEN, SLOTS, TAG_LEN};

const STRIP_END: usize = CID_LEN + SLOTS * SEQ_LEN;
const LINK_TAG_END: usize = STRIP_END + TAG_LEN;
const EXIT_TAG_END: usize = LINK_TAG_END + TAG_LEN;
const STREAM_AT: usize = CID_LEN + SEQ_LEN;

/// The backward layer of one hop, at that hop and at the client.
pub struct BackwardLayer {
    stream: StreamKey,
    aead: CounterAead,
}

impl BackwardLayer {
    /// Expands the backward keys of a hop.
    pub fn new(keys: &HopKeys) -> Self {
        Self {
            stream: StreamKey::new(keys.suite, &keys.bwd_stream, keys.bwd_stream_salt),
            aead: CounterAead::new(keys.suite, &keys.bwd_aead, keys.bwd_aead_salt),
        }
    }

    /// Begins a cell of this hop, whose body is written: a fresh counter, and what is random.
    pub fn begin(seq: u32, cell: &mut [u8; CELL_LEN], rng: &mut impl Rng) {
        rng.fill_bytes(&mut cell[STREAM_AT..STRIP_END]);
        rng.fill_bytes(&mut cell[EXIT_TAG_END..BODY_AT]);
        cell[CID_LEN..STREAM_AT].copy_from_slice(&seq.to_be_bytes());
    }

    /// Seals the body of a cell that was begun to the client.
    pub fn seal(&self, cell: &mut [u8; CELL_LEN]) {
        let seq = strip_head(cell);
        let (head, body) = cell.split_at_mut(BODY_AT);
        let tag = self.aead.seal(seq, &head[EXIT_TAG_END..], body);
        cell[LINK_TAG_END..EXIT_TAG_END].copy_from_slice(&tag);
    }

    /// Seals a written body to the client, under this hop's fresh counter.
    pub fn originate(&self, seq: u32, cell: &mut [u8; CELL_LEN], rng: &mut impl Rng) {
        Self::begin(seq, cell, rng);
        self.seal(cell);
    }

    /// Adds this hop's layer to a neighbour's cell, under this hop's fresh counter.
    pub fn add(&self, seq: u32, cell: &mut [u8; CELL_LEN]) {
        cell.copy_within(CID_LEN..STRIP_END - SEQ_LEN, STREAM_AT);
        cell[CID_LEN..STREAM_AT].copy_from_slice(&seq.to_be_bytes());
        self.apply(seq, cell);
    }

    /// Takes this hop's layer off; returns the counter that the hop had pushed.
    pub fn peel(&self, cell: &mut [u8; CELL_LEN]) -> u32 {
        let seq = strip_head(cell);
        self.apply(seq, cell);
        cell.copy_within(STREAM_AT..STRIP_END, CID_LEN);
        seq
    }

    /// Undoes [`Self::peel`] of the same counter, so that an earlier hop can be tried as originator.
    pub fn unpeel(&self, seq: u32, cell: &mut [u8; CELL_LEN]) {
        self.add(seq, cell);
    }

    /// Opens the body as sealed by this hop into `body`; returns the counter it was sealed under.
    /// The cell stays as it is.
    ///
    /// # Errors
    /// When this hop is not the originator, or the cell was changed.
    pub fn open(&self, cell: &[u8; CELL_LEN], body: &mut [u8; BODY_LEN]) -> Result<u32, BadTag> {
        let seq = strip_head(cell);
        let mut tag = [0u8; TAG_LEN];
        tag.copy_from_slice(&cell[LINK_TAG_END..EXIT_TAG_END]);
        let (head, sealed) = cell.split_at(BODY_AT);
        body.copy_from_slice(sealed);
        self.aead.open(seq, &head[EXIT_TAG_END..], &tag, body)?;
        Ok(seq)
    }

    fn apply(&self, seq: u32, cell: &mut [u8; CELL_LEN]) {
        self.stream.apply(seq, &mut cell[STREAM_AT..]);
    }
}

/// The tag that one neighbour puts on a backward cell and the other verifies.
pub struct LinkTag(CounterTag);

impl LinkTag {
    /// Expands the tag key of a link.
    pub fn new(keys: &PairKeys) -> Self {
        Self(CounterTag::new(keys.link_suite, &keys.bwd))
    }

    /// Tags a cell whose circuit id and strip are those of the link.
    pub fn tag(&self, cell: &mut [u8; CELL_LEN]) {
        cell[STRIP_END..LINK_TAG_END].fill(0);
        let tag = self.0.tag(strip_head(cell), cell);
        cell[STRIP_END..LINK_TAG_END].copy_from_slice(&tag);
    }

    /// Verifies a cell as it came from the neighbour; the tag's bytes are zero afterwards.
    ///
    /// # Errors
    /// When the tag does not verify; the cell must be dropped.
    pub fn verify(&self, cell: &mut [u8; CELL_LEN]) -> Result<(), BadTag> {
        let mut tag = [0u8; TAG_LEN];
        tag.copy_from_slice(&cell[STRIP_END..LINK_TAG_END]);
        cell[STRIP_END..LINK_TAG_END].fill(0);
        self.0.verify(strip_head(cell), cell, &tag)
    }
}

fn strip_head(cell: &[u8; CELL_LEN]) -> u32 {
    let mut bytes = [0u8; SEQ_LEN];
    bytes.copy_from_slice(&cell[CID_LEN..STREAM_AT]);
    u32::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests;
