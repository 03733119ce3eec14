//! Messages between a peer and the tracker over frames that may be lost, repeated or reordered.
//!
//! In: messages to send, sealed segments of the other side, the time. Out: frames, whole messages
//! in order. Called by: the channel's two ends.
//!
//! Every segment is acknowledged, cumulatively and with a bit for each of the next 32; what is not
//! acknowledged is sent again with a fresh nonce. A message arrives once, whole and in order.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use snow::StatelessTransportState;

use super::TrackerError;
use crate::wire::share::{ChannelFrame, MAX_MESSAGE_LEN, MAX_SEGMENT_LEN, Segment};

/// Segments under way at once.
const WINDOW: u32 = 32;
/// Segments that wait to be sent, at most.
const MOST_QUEUED: usize = 256;
/// Messages that wait to be read, at most.
const MOST_UNREAD: usize = 64;
/// The first wait for an acknowledgement; doubles each time.
const PATIENCE: Duration = Duration::from_millis(400);
/// The longest wait.
const MOST_PATIENCE: Duration = Duration::from_secs(3);
/// A segment sent this often without an answer ends the conversation.
const MOST_ATTEMPTS: u32 = 10;
const TAG_LEN: usize = 16;

struct Outgoing {
    seq: u32,
    last: bool,
    bytes: Vec<u8>,
    due: Option<Instant>,
    attempts: u32,
}

/// One side of an open channel.
pub struct Conversation {
    noise: StatelessTransportState,
    nonce: u64,
    out: VecDeque<Outgoing>,
    next_seq: u32,
    /// The first segment that is lacking.
    expected: u32,
    early: BTreeMap<u32, (bool, Vec<u8>)>,
    partial: Vec<u8>,
    unread: VecDeque<Vec<u8>>,
    owes_ack: bool,
    heard: Instant,
    is_dead: bool,
}

impl Conversation {
    pub(super) fn new(now: Instant, noise: StatelessTransportState) -> Self {
        Self {
            noise,
            nonce: 0,
            out: VecDeque::new(),
            next_seq: 1,
            expected: 1,
            early: BTreeMap::new(),
            partial: Vec::new(),
            unread: VecDeque::new(),
            owes_ack: false,
            heard: now,
            is_dead: false,
        }
    }

    /// Whether the other side has stopped answering, or broke the rules.
    pub fn is_dead(&self) -> bool {
        self.is_dead
    }

    /// When a valid segment last came.
    pub fn heard(&self) -> Instant {
        self.heard
    }

    /// Whether a message of this length can be queued.
    pub fn has_room_for(&self, length: usize) -> bool {
        self.out.len() + length.div_ceil(MAX_SEGMENT_LEN).max(1) <= MOST_QUEUED
    }

    /// Whether everything sent has arrived.
    pub fn is_idle(&self) -> bool {
        self.out.is_empty()
    }

    /// Queues a message.
    ///
    /// # Errors
    /// When it is too long, or the queue is full.
    pub fn send(&mut self, message: &[u8]) -> Result<(), TrackerError> {
        if message.len() > MAX_MESSAGE_LEN {
            return Err(TrackerError::TooLong { got: message.len() });
        }
        if !self.has_room_for(message.len()) {
            return Err(TrackerError::QueueFull);
        }
        let mut pieces = message.chunks(MAX_SEGMENT_LEN).peekable();
        loop {
            let bytes = pieces.next().unwrap_or_default().to_vec();
            let last = pieces.peek().is_none();
            self.out.push_back(Outgoing {
                seq: self.next_seq,
                last,
                bytes,
                due: None,
                attempts: 0,
            });
            self.next_seq = self.next_seq.wrapping_add(1).max(1);
            if last {
                return Ok(());
            }
        }
    }

    /// The next message of the other side.
    pub fn poll_message(&mut self) -> Option<Vec<u8>> {
        self.unread.pop_front()
    }

    /// A data frame of the other side.
    ///
    /// # Errors
    /// When it was not sealed by the other side, or breaks the rules.
    pub fn handle_data(
        &mut self,
        now: Instant,
        nonce: u64,
        sealed: &[u8],
    ) -> Result<(), TrackerError> {
        let mut plain = vec![0; sealed.len()];
        let length =
            self.noise.read_message(nonce, sealed, &mut plain).map_err(|_| TrackerError::Seal)?;
        let segment = Segment::parse(&plain[..length])?;
        self.heard = now;
        self.out.retain(|out| !is_acknowledged(out.seq, segment.next, segment.more));
        if segment.seq == 0 {
            return Ok(());
        }
        self.owes_ack = true;
        let ahead = segment.seq.wrapping_sub(self.expected);
        if ahead < WINDOW && self.unread.len() < MOST_UNREAD {
            self.early.entry(segment.seq).or_insert((segment.last, segment.bytes.to_vec()));
        }
        while let Some((last, bytes)) = self.early.remove(&self.expected) {
            self.expected = self.expected.wrapping_add(1).max(1);
            self.partial.extend(bytes);
            if self.partial.len() > MAX_MESSAGE_LEN {
                self.is_dead = true;
                return Err(TrackerError::TooLong { got: self.partial.len() });
            }
            if last {
                self.unread.push_back(std::mem::take(&mut self.partial));
            }
        }
        Ok(())
    }

    /// The next frame to send.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.is_dead {
            return None;
        }
        let first = self.out.front().map_or(0, |out| out.seq);
        let due = self
            .out
            .iter_mut()
            .take_while(|out| out.seq.wrapping_sub(first) < WINDOW)
            .find(|out| out.due.is_none_or(|due| now >= due));
        let (seq, last, bytes) = match due {
            Some(out) if out.attempts >= MOST_ATTEMPTS => {
                self.is_dead = true;
                return None;
            }
            Some(out) => {
                let wait = PATIENCE.saturating_mul(1 << out.attempts.min(8));
                out.attempts += 1;
                out.due = Some(now + wait.min(MOST_PATIENCE));
                (out.seq, out.last, out.bytes.clone())
            }
            None if self.owes_ack => (0, false, Vec::new()),
            None => return None,
        };
        self.owes_ack = false;
        let more = self
            .early
            .keys()
            .map(|seq| seq.wrapping_sub(self.expected))
            .filter(|ahead| (1..=32).contains(ahead))
            .fold(0, |more, ahead| more | 1 << (ahead - 1));
        let plain = Segment { next: self.expected, more, seq, last, bytes: &bytes }.emit();
        let mut sealed = vec![0; plain.len() + TAG_LEN];
        let nonce = self.nonce;
        let length = self.noise.write_message(nonce, &plain, &mut sealed).ok()?;
        self.nonce += 1;
        Some(ChannelFrame::Data { nonce, sealed: &sealed[..length] }.emit())
    }

    /// When [`Self::poll_transmit`] has something to send again.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.out.iter().take(WINDOW as usize).filter_map(|out| out.due).min()
    }
}

fn is_acknowledged(seq: u32, next: u32, more: u32) -> bool {
    let ahead = seq.wrapping_sub(next);
    // Half of all numbers are before `next`: those arrived.
    ahead > u32::MAX / 2 || ((1..=32).contains(&ahead) && more & 1 << (ahead - 1) != 0)
}
