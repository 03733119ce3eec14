//! The messages of the modern wire: parse and emit only.
//!
//! In: the plaintext of an authenticated link. Out: typed messages, or what is wrong with one.
//! Called by: relay, trustee and client cores.
//!
//! ```text
//! on the link   [len 4 | kind 1 | body]*
//! PROPOSE   relay -> trustee   interval
//! SIGN      trustee -> relay   number 4 | signature 64
//! INTERVAL  relay -> all       relay key 32 | interval | signatures
//! READY     all -> relay       number 4
//! CREDIT    relay -> trustee   number 4 | first round that may not be sent 8
//! DOWN      relay -> client    number 4 | round 8 | next slot 2 | flags 1 | results 1 | result*
//!                              | accused round 8, part 1 if flagged | signature 64 if flagged
//!                              | [slot 2 | len 2 | sealed]*
//! result                       round 8 | outcome 1 | next seq 4 (| key 32 | cell L if jammed)
//! UP        client -> relay    number 4 | round 8 | requests 32 (| key share 32 | cell L)
//! PAD       trustee -> relay   number 4 | round 8 | requests 32 | key share 32 | pad L
//! CHECK     party -> relay     number 4 | round 8 | signature 64
//! ASK       relay -> all       a blame question       (see `blame`)
//! ANSWER    party -> relay     a signed blame answer
//! VERDICT   relay -> all       the evidence, for everyone to judge
//! PAST      relay -> a joiner  interval len 4 | interval | signatures | the evidence of a verdict
//! ```

use curve25519_dalek::Scalar;

use crate::dcnet::error::DcnetError;

mod reader;

pub use reader::Reader;

/// Largest message.
pub const MESSAGE_MAX: usize = 4 * 1024 * 1024;
/// NextSlot when nobody's turn it is.
pub const NO_SLOT: u16 = 0xffff;

/// Kinds, as the byte before the body.
pub mod kind {
    /// See [`super`].
    pub const PROPOSE: u8 = 1;
    /// See [`super`].
    pub const SIGN: u8 = 2;
    /// See [`super`].
    pub const INTERVAL: u8 = 3;
    /// See [`super`].
    pub const READY: u8 = 4;
    /// See [`super`].
    pub const CREDIT: u8 = 5;
    /// See [`super`].
    pub const DOWN: u8 = 6;
    /// See [`super`].
    pub const UP: u8 = 7;
    /// See [`super`].
    pub const PAD: u8 = 8;
    /// See [`super`].
    pub const CHECK: u8 = 9;
    /// See [`super`].
    pub const ASK: u8 = 10;
    /// See [`super`].
    pub const ANSWER: u8 = 11;
    /// See [`super`].
    pub const VERDICT: u8 = 12;
    /// See [`super`].
    pub const PAST: u8 = 13;
}

/// Appends one framed message.
pub fn frame(out: &mut Vec<u8>, kind: u8, body: &[&[u8]]) {
    let len: usize = 1 + body.iter().map(|part| part.len()).sum::<usize>();
    out.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
    out.push(kind);
    for part in body {
        out.extend_from_slice(part);
    }
}

/// A message's kind and body, and the bytes it took with its length.
pub type Frame<'a> = (u8, &'a [u8], usize);

/// Takes the next whole message off the front; none until all of it is there.
///
/// # Errors
/// On a length no message has.
pub fn next_frame(bytes: &[u8]) -> Result<Option<Frame<'_>>, DcnetError> {
    let Some((head, rest)) = bytes.split_at_checked(4) else { return Ok(None) };
    let len = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
    if len == 0 || len > MESSAGE_MAX {
        return Err(DcnetError::malformed(
            "message",
            format!("a length from 1 to {MESSAGE_MAX}"),
            len.to_string(),
        ));
    }
    Ok(rest.get(..len).map(|message| (message[0], &message[1..], 4 + len)))
}

/// What became of a round's slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nobody spoke.
    Idle,
    /// The cell was taken.
    Taken,
    /// It opened, but was not the next in order.
    Refused,
    /// It did not open: the key and the cell the relay decoded.
    Jammed(Scalar, Vec<u8>),
}

/// The outcome of a round's slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoundResult {
    /// The round.
    pub round: u64,
    /// What became of it.
    pub outcome: Outcome,
    /// The number the slot's next cell has to carry.
    pub next_seq: u32,
}

/// A DOWN message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Down<'a> {
    /// The interval.
    pub number: u32,
    /// The round it opens.
    pub round: u64,
    /// Whose turn it is in this round.
    pub next_slot: u16,
    /// The round's key carries a part of the slot's accusation about a jammed round, and no data:
    /// that round, and which part.
    pub accusation: Option<(u64, u8)>,
    /// Rounds that are complete.
    pub results: Vec<RoundResult>,
    /// The relay's signature over the history before this message.
    pub signature: Option<[u8; 64]>,
    /// `(slot, sealed)`.
    pub frames: Vec<(u16, &'a [u8])>,
}

const SIGNED: u8 = 1;
const ACCUSATION: u8 = 2;

impl<'a> Down<'a> {
    /// Strictly one message whose cells have `cell` bytes.
    ///
    /// # Errors
    /// Says what is missing or too much.
    pub fn parse(body: &'a [u8], cell: usize) -> Result<Self, DcnetError> {
        let mut reader = Reader::new("DOWN", body);
        let (number, round, next_slot) = (reader.u32()?, reader.u64()?, reader.u16()?);
        let flags = reader.u8()?;
        let count = reader.u8()?;
        if flags & !(SIGNED | ACCUSATION) != 0 {
            return Err(DcnetError::malformed("DOWN", "known flags", flags.to_string()));
        }
        let mut results = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let (round, outcome, next_seq) = (reader.u64()?, reader.u8()?, reader.u32()?);
            let outcome = match outcome {
                0 => Outcome::Idle,
                1 => Outcome::Taken,
                2 => Outcome::Refused,
                3 => Outcome::Jammed(reader.scalar()?, reader.take(cell)?.to_vec()),
                other => {
                    return Err(DcnetError::malformed(
                        "DOWN",
                        "an outcome 0 to 3",
                        other.to_string(),
                    ));
                }
            };
            results.push(RoundResult { round, outcome, next_seq });
        }
        let accusation =
            if flags & ACCUSATION != 0 { Some((reader.u64()?, reader.u8()?)) } else { None };
        let signature = if flags & SIGNED != 0 { Some(reader.array()?) } else { None };
        let mut frames = Vec::new();
        while !reader.is_empty() {
            let (slot, len) = (reader.u16()?, reader.u16()?);
            frames.push((slot, reader.take(usize::from(len))?));
        }
        Ok(Self { number, round, next_slot, accusation, results, signature, frames })
    }

    /// The body's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        out.extend_from_slice(&self.number.to_be_bytes());
        out.extend_from_slice(&self.round.to_be_bytes());
        out.extend_from_slice(&self.next_slot.to_be_bytes());
        let signed = if self.signature.is_some() { SIGNED } else { 0 };
        out.push(signed | if self.accusation.is_some() { ACCUSATION } else { 0 });
        out.push(u8::try_from(self.results.len()).unwrap_or(u8::MAX));
        for result in &self.results {
            out.extend_from_slice(&result.round.to_be_bytes());
            out.push(match result.outcome {
                Outcome::Idle => 0,
                Outcome::Taken => 1,
                Outcome::Refused => 2,
                Outcome::Jammed(..) => 3,
            });
            out.extend_from_slice(&result.next_seq.to_be_bytes());
            if let Outcome::Jammed(k, cell) = &result.outcome {
                out.extend_from_slice(k.as_bytes());
                out.extend_from_slice(cell);
            }
        }
        if let Some((round, part)) = self.accusation {
            out.extend_from_slice(&round.to_be_bytes());
            out.push(part);
        }
        if let Some(signature) = &self.signature {
            out.extend_from_slice(signature);
        }
        for (slot, sealed) in &self.frames {
            out.extend_from_slice(&slot.to_be_bytes());
            out.extend_from_slice(&u16::try_from(sealed.len()).unwrap_or(0).to_be_bytes());
            out.extend_from_slice(sealed);
        }
        out
    }
}

/// An UP or PAD message: what a party sent in a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share<'a> {
    /// The interval.
    pub number: u32,
    /// The round.
    pub round: u64,
    /// Its share of the requests.
    pub requests: Scalar,
    /// Its share of the slot's key and cell; a client sends none when nobody's turn it is.
    pub slot: Option<(Scalar, &'a [u8])>,
}

impl<'a> Share<'a> {
    /// Strictly one share.
    ///
    /// # Errors
    /// Says what is missing or too much.
    pub fn parse(body: &'a [u8], cell: usize) -> Result<Self, DcnetError> {
        let mut reader = Reader::new("UP or PAD", body);
        let (number, round, requests) = (reader.u32()?, reader.u64()?, reader.scalar()?);
        let slot =
            if reader.is_empty() { None } else { Some((reader.scalar()?, reader.take(cell)?)) };
        reader.end()?;
        Ok(Self { number, round, requests, slot })
    }

    /// The body's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(76 + self.slot.as_ref().map_or(0, |(_, cell)| cell.len()));
        out.extend_from_slice(&self.number.to_be_bytes());
        out.extend_from_slice(&self.round.to_be_bytes());
        out.extend_from_slice(self.requests.as_bytes());
        if let Some((key, cell)) = &self.slot {
            out.extend_from_slice(key.as_bytes());
            out.extend_from_slice(cell);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn down_and_back(number: u32, round: u64, next_slot: u16, accusation: Option<(u64, u8)>, seq: u32,
                         signed: bool, frame in proptest::collection::vec(any::<u8>(), 0..50)) {
            let down = Down {
                number, round, next_slot, accusation,
                results: vec![
                    RoundResult { round: 3, outcome: Outcome::Taken, next_seq: seq },
                    RoundResult { round: 4, outcome: Outcome::Jammed(Scalar::from(seq), vec![9; 64]), next_seq: 0 },
                ],
                signature: signed.then_some([5; 64]),
                frames: vec![(1, &frame), (2, &[])],
            };
            let bytes = down.to_bytes();
            prop_assert_eq!(Down::parse(&bytes, 64).unwrap(), down);
        }

        #[test]
        fn share_and_back(number: u32, round: u64, with: bool) {
            let cell = [3; 64];
            let share = Share {
                number, round, requests: Scalar::from(round),
                slot: with.then_some((Scalar::from(number), cell.as_slice())),
            };
            let bytes = share.to_bytes();
            prop_assert_eq!(Share::parse(&bytes, 64).unwrap(), share);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Down::parse(&bytes, 64);
            let _ = Share::parse(&bytes, 64);
            if let Ok(Some((_, body, used))) = next_frame(&bytes) {
                prop_assert_eq!(body.len() + 5, used);
            }
            let _ = crate::dcnet::interval::Interval::parse(&bytes);
            let _ = crate::dcnet::interval::SignedInterval::parse(&bytes);
        }
    }
}
