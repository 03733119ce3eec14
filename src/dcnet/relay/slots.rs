//! One pseudonym's slot: its order of cells, its connections, its seal.
//!
//! In: opened cells, exit bytes. Out: outcomes, frames. Called by: the relay core.

use crate::dcnet::{
    arq::SlotCell,
    message::Outcome,
    mux::{Mux, MuxEvent},
    sealing::DownSeal,
};

/// A slot's state; all but the seal outlives intervals.
#[derive(Default)]
pub(super) struct Slot {
    epoch: u32,
    pub(super) next_seq: u32,
    pub(super) mux: Mux,
    pub(super) seal: Option<DownSeal>,
    /// Gets turns until one comes back idle.
    pub(super) active: bool,
    /// Asked for a turn.
    pub(super) wanted: bool,
    /// Its last cell had data, and said that there is more.
    pub(super) more: bool,
    /// Spoke lately: preferred when nobody is active.
    pub(super) held: bool,
    /// Its own pseudonym breaks its cells: no turns until the next interval.
    pub(super) muted: bool,
}

impl Slot {
    /// A cell that opened.
    pub(super) fn handle(&mut self, plain: &[u8], events: &mut Vec<MuxEvent>) -> Outcome {
        let Ok(cell) = SlotCell::parse(plain) else { return Outcome::Refused };
        if cell.epoch != self.epoch {
            // The client started anew: what it had open is gone.
            events.extend(self.mux.reset().into_iter().map(MuxEvent::Close));
            (self.epoch, self.next_seq) = (cell.epoch, 0);
        }
        self.more = cell.seq.is_some() && cell.more;
        self.active |= self.more;
        let Some(seq) = cell.seq else { return Outcome::Idle };
        if seq != self.next_seq {
            return Outcome::Refused;
        }
        self.next_seq = self.next_seq.wrapping_add(1);
        if let Err(error) = self.mux.handle(cell.frames, true, events) {
            log::debug!("a pseudonym sent frames without form: {error}");
        }
        Outcome::Taken
    }

    /// A new interval: turns have to be asked for again.
    pub(super) fn renew(&mut self, seal: DownSeal) {
        self.seal = Some(seal);
        (self.active, self.wanted, self.more, self.muted) = (false, false, false, false);
    }
}
