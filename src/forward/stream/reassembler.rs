//! Takes packets out of the bodies of data cells and joins those that span cells.
//!
//! In: bodies by sequence number, in about the order they were sent, some lost.
//! Out: whole packets, each once. Called by: the exit for what it opened, the client for answers.
//!
//! Packets that lie within one cell leave at once, whatever is missing before them. Of the others
//! the parts wait for their neighbours:
//!
//! ```text
//!          cell n            n+1 (missing)           n+2
//!  | ..... | head |      |    ?    |    ?    |    | tail | ..... |
//!             held until n+1 says what follows       held until n+1 says what precedes
//! ```

use super::{Body, NO_PACKET_START, OFFSET};
use crate::{
    forward::ip::{Declared, LEN_KNOWN_AT, declared_len},
    model::{BODY_HEADER_LEN, BODY_LEN, DropCounters, DropReason, PacketBatch},
};

/// How many sequence numbers back parts wait for their neighbours.
const WINDOW: u32 = u128::BITS;
/// How many parts may wait; about two for each gap among the newest cells.
const MOST_HELD: usize = 16;

/// Reassembles the packets of one circuit and direction.
///
/// With nothing held it owns next to no memory: the buffer of a packet that spans cells is borrowed
/// from the batch and goes back to it with the packet.
#[derive(Debug, Default)]
pub struct Reassembler {
    newest: u32,
    /// Bit i: cell `newest - i` was seen and carries data.
    data: u128,
    /// Bit i: cell `newest - i` was seen and carries something else.
    other: u128,
    heads: Vec<Head>,
    tails: Vec<Tail>,
}

/// The first part of a packet, up to the end of cell `last`.
#[derive(Debug)]
struct Head {
    last: u32,
    buffer: Vec<u8>,
}

/// The bytes of cell `seq` before its first packet start, whose head is not here.
#[derive(Debug)]
struct Tail {
    seq: u32,
    /// Whether the packet must end with these bytes.
    ends: bool,
    bytes: Box<[u8]>,
}

/// Where a sequence number stands.
enum Place {
    /// Not seen before, this many behind the newest.
    Behind(u32),
    Seen,
    TooOld,
}

impl Reassembler {
    /// A reassembler that takes the first sequence number it is given as the start.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in the cell `seq`: its body if it carries data, none if it carries something else.
    /// Appends every packet that is whole by that to `out`.
    ///
    /// Counts `FragmentLost` for each part given up, `BadInnerPacket` for what does not parse.
    pub fn push(
        &mut self,
        seq: u32,
        body: Option<&Body>,
        out: &mut PacketBatch,
        drops: &mut DropCounters,
    ) {
        match (self.mark(seq, body.is_some(), out, drops), body) {
            (Place::Behind(behind), Some(body)) => self.push_data(seq, behind, body, out, drops),
            (Place::Behind(behind), None) => self.bridge(behind, out, drops),
            (Place::TooOld, Some(body)) => {
                let Some(cell) = Cell::read(body) else {
                    return drops.count(DropReason::BadInnerPacket);
                };
                let trail = deliver_whole(cell.packets, out, drops);
                for part in [cell.lead, trail] {
                    if !part.is_empty() {
                        drops.count(DropReason::FragmentLost);
                    }
                }
            }
            (Place::Seen, _) | (Place::TooOld, None) => {}
        }
    }

    /// Whether parts of packets wait for their neighbours.
    pub fn is_waiting(&self) -> bool {
        !self.heads.is_empty() || !self.tails.is_empty()
    }

    /// Gives up what waits and frees its memory, for a circuit that fell silent.
    pub fn forget(&mut self, drops: &mut DropCounters) {
        for _ in 0..self.heads.len() + self.tails.len() {
            drops.count(DropReason::FragmentLost);
        }
        self.heads = Vec::new();
        self.tails = Vec::new();
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.heads.capacity() * size_of::<Head>()
            + self.tails.capacity() * size_of::<Tail>()
            + self.heads.iter().map(|head| head.buffer.capacity()).sum::<usize>()
            + self.tails.iter().map(|tail| tail.bytes.len()).sum::<usize>()
    }

    fn mark(
        &mut self,
        seq: u32,
        is_data: bool,
        out: &mut PacketBatch,
        drops: &mut DropCounters,
    ) -> Place {
        if self.data | self.other == 0 {
            self.newest = seq;
        }
        let behind = if seq > self.newest {
            let ahead = seq - self.newest;
            self.data = self.data.checked_shl(ahead).unwrap_or(0);
            self.other = self.other.checked_shl(ahead).unwrap_or(0);
            self.newest = seq;
            if self.is_waiting() {
                self.give_up_before(seq.saturating_sub(WINDOW - 1), out, drops);
            }
            0
        } else {
            self.newest - seq
        };
        if behind >= WINDOW {
            return Place::TooOld;
        }
        let bit = 1 << behind;
        if (self.data | self.other) & bit != 0 {
            return Place::Seen;
        }
        if is_data {
            self.data |= bit;
        } else {
            self.other |= bit;
        }
        Place::Behind(behind)
    }

    fn push_data(
        &mut self,
        seq: u32,
        behind: u32,
        body: &Body,
        out: &mut PacketBatch,
        drops: &mut DropCounters,
    ) {
        let Some(cell) = Cell::read(body) else {
            // What waits for this cell can never be completed.
            drops.count(DropReason::BadInnerPacket);
            if let Some(head) = self.previous(behind).and_then(|seq| self.take_head(seq)) {
                give_up(head, DropReason::BadInnerPacket, out, drops);
            }
            return self.orphan_next(seq, drops);
        };
        let previous = self.previous(behind);
        let mut open = None;
        if let Some(head) = previous.and_then(|previous| self.take_head(previous)) {
            open = extend(head, seq, cell.lead, cell.ends, out, drops);
        } else if cell.lead.is_empty() {
        } else if previous.is_none_or(|previous| self.goes_on(previous)) {
            let bytes = cell.lead.into();
            self.tails.push(Tail { seq, ends: cell.ends, bytes });
            self.bound(out, drops);
        } else {
            drops.count(DropReason::FragmentLost);
        }
        let trail = deliver_whole(cell.packets, out, drops);
        if !trail.is_empty() {
            let mut buffer = out.take_spare();
            buffer.extend_from_slice(trail);
            open = Some(Head { last: seq, buffer });
        }
        match open {
            Some(head) => self.advance(head, out, drops),
            None => self.orphan_next(seq, drops),
        }
    }

    /// A cell without data tells that the data cells around it are neighbours.
    fn bridge(&mut self, behind: u32, out: &mut PacketBatch, drops: &mut DropCounters) {
        if !self.is_waiting() {
            return;
        }
        let Some(previous) = self.previous(behind) else { return };
        match self.take_head(previous) {
            Some(head) => self.advance(head, out, drops),
            None => self.orphan_next(previous, drops),
        }
    }

    /// Joins `head` with the parts behind it that are here, and holds it if one is missing.
    fn advance(&mut self, mut head: Head, out: &mut PacketBatch, drops: &mut DropCounters) {
        loop {
            let Some(next) = self.next(self.newest - head.last) else {
                self.heads.push(head);
                return self.bound(out, drops);
            };
            let Some(tail) = self.take_tail(next) else {
                return give_up(head, DropReason::FragmentLost, out, drops);
            };
            match extend(head, next, &tail.bytes, tail.ends, out, drops) {
                Some(longer) => head = longer,
                None => return,
            }
        }
    }

    /// Drops the tail in the data cell after `seq`, unless a packet may go on from `seq` into it.
    fn orphan_next(&mut self, seq: u32, drops: &mut DropCounters) {
        if self.tails.is_empty() || self.goes_on(seq) {
            return;
        }
        if self.next(self.newest - seq).and_then(|next| self.take_tail(next)).is_some() {
            drops.count(DropReason::FragmentLost);
        }
    }

    /// Whether cell `seq` waits in the middle of a packet whose head is not here.
    fn goes_on(&self, seq: u32) -> bool {
        self.tails.iter().any(|tail| tail.seq == seq && !tail.ends)
    }

    /// The data cell just before the one `behind` the newest, if nothing is missing in between.
    fn previous(&self, behind: u32) -> Option<u32> {
        let older = self.other.checked_shr(behind + 1)?.trailing_ones();
        let at = behind + 1 + older;
        (self.data.checked_shr(at)? & 1 == 1).then(|| self.newest - at)
    }

    /// The data cell just after the one `behind` the newest, if nothing is missing in between.
    fn next(&self, behind: u32) -> Option<u32> {
        let newer = self.other.checked_shl(WINDOW - behind)?.leading_ones();
        let at = behind.checked_sub(1 + newer)?;
        (self.data >> at & 1 == 1).then(|| self.newest - at)
    }

    fn take_head(&mut self, last: u32) -> Option<Head> {
        let at = self.heads.iter().position(|head| head.last == last)?;
        Some(self.heads.swap_remove(at))
    }

    fn take_tail(&mut self, seq: u32) -> Option<Tail> {
        let at = self.tails.iter().position(|tail| tail.seq == seq)?;
        Some(self.tails.swap_remove(at))
    }

    fn give_up_before(&mut self, oldest: u32, out: &mut PacketBatch, drops: &mut DropCounters) {
        while let Some(at) = self.heads.iter().position(|head| head.last < oldest) {
            let head = self.heads.swap_remove(at);
            give_up(head, DropReason::FragmentLost, out, drops);
        }
        self.tails.retain(|tail| {
            let keep = tail.seq >= oldest;
            if !keep {
                drops.count(DropReason::FragmentLost);
            }
            keep
        });
    }

    /// Gives up the oldest parts while more are held than may be.
    fn bound(&mut self, out: &mut PacketBatch, drops: &mut DropCounters) {
        while self.heads.len() + self.tails.len() > MOST_HELD {
            let heads = self.heads.iter().map(|head| head.last);
            let tails = self.tails.iter().map(|tail| tail.seq);
            let Some(oldest) = heads.chain(tails).min() else { return };
            self.give_up_before(oldest.saturating_add(1), out, drops);
        }
    }
}

/// A body, taken apart at its offset.
struct Cell<'a> {
    /// What continues the packet of the previous data cell.
    lead: &'a [u8],
    /// Whether that packet ends with `lead`.
    ends: bool,
    /// From the first packet start to the end.
    packets: &'a [u8],
}

impl<'a> Cell<'a> {
    fn read(body: &'a Body) -> Option<Self> {
        let offset = u16::from_be_bytes([body[OFFSET.start], body[OFFSET.start + 1]]);
        if offset == NO_PACKET_START {
            return Some(Self { lead: &body[BODY_HEADER_LEN..], ends: false, packets: &[] });
        }
        let offset = usize::from(offset);
        (BODY_HEADER_LEN..BODY_LEN).contains(&offset).then(|| Self {
            lead: &body[BODY_HEADER_LEN..offset],
            ends: true,
            packets: &body[offset..],
        })
    }
}

/// Appends the whole packets at the start of `rest` to `out` and returns the part of a packet that
/// remains.
fn deliver_whole<'a>(
    mut rest: &'a [u8],
    out: &mut PacketBatch,
    drops: &mut DropCounters,
) -> &'a [u8] {
    while let Some(first) = rest.first() {
        if first >> 4 == 0 {
            return &[];
        }
        match declared_len(rest) {
            Declared::Len(len) if len <= rest.len() => {
                let (packet, later) = rest.split_at(len);
                out.push(&[packet]);
                rest = later;
            }
            Declared::Len(_) | Declared::Unknown => break,
            Declared::Malformed => {
                drops.count(DropReason::BadInnerPacket);
                return &[];
            }
        }
    }
    rest
}

/// Continues `head` with the bytes before the first packet start of cell `seq`. Delivers the
/// packet if it is whole by that, and returns it if it goes on behind that cell.
fn extend(
    mut head: Head,
    seq: u32,
    lead: &[u8],
    ends: bool,
    out: &mut PacketBatch,
    drops: &mut DropCounters,
) -> Option<Head> {
    let here = &head.buffer[..];
    let mut start = [0; LEN_KNOWN_AT];
    let known = start.iter_mut().zip(here.iter().chain(lead)).map(|(to, from)| *to = *from).count();
    let missing = match declared_len(&start[..known]) {
        Declared::Len(len) => len.checked_sub(here.len()),
        Declared::Unknown | Declared::Malformed => None,
    };
    match missing {
        Some(missing) if missing == lead.len() || !ends && missing < lead.len() => {
            head.buffer.extend_from_slice(&lead[..missing]);
            out.push_owned(head.buffer);
            None
        }
        Some(missing) if !ends && missing > lead.len() => {
            head.buffer.extend_from_slice(lead);
            head.last = seq;
            Some(head)
        }
        _ => {
            give_up(head, DropReason::BadInnerPacket, out, drops);
            None
        }
    }
}

fn give_up(head: Head, reason: DropReason, out: &mut PacketBatch, drops: &mut DropCounters) {
    drops.count(reason);
    out.give_back(head.buffer);
}
