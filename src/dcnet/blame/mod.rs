//! Blame: whoever jams a slot is found, and whoever only spoke stays unknown.
//!
//! In: a round whose cell did not open. Out: questions to all parties, their signed answers, a
//! case that anyone can judge. Called by: relay (asks, collects), clients and trustees (answer,
//! judge), `cepa dcnet verdict`.
//!
//! ```text
//! jammed round r of slot s
//!   | three rounds of s whose keys carry the owner's accusation, inside the DC-net
//!   v
//! "bit b was 0"                          nothing, or no accusation's form
//!   | BIT: all open bit b of round r       | KEY: all prove their key share of the round right,
//!   v                                      v      or that they own s, without saying which
//! a pair's bits differ -> PAIR: one of the two reveals the pair's key (DLEQ), the liar is known
//! a party sent another bit than its pads -> its signed checkpoint convicts it
//! all agree and the sum is 0 -> the relay decoded what nobody sent
//! ```
//!
//! Only bits the accuser itself left 0 are opened, and only under a signature of the slot's key.

mod answer;
mod ask;
mod judge;

use std::collections::VecDeque;

use curve25519_dalek::{RistrettoPoint, Scalar};
use rand::Rng;
use serde::{Deserialize, Serialize};

pub use answer::{Answer, Answerer, Content, Secrets};
pub use ask::{Ask, Question};
pub use judge::{Case, Evidence};

use crate::dcnet::{
    error::DcnetError,
    group::Group,
    interval::{Interval, SignedInterval},
    member::PartyRef,
    message::Reader,
    proof::Schnorr,
};

/// Rounds an accusation takes.
pub const ACCUSATION_ROUNDS: usize = 3;
const CHUNK: usize = 30;

/// Who is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blamed {
    /// This party; the case proves it.
    Party(PartyRef),
    /// The relay: it claims what nobody sent.
    Relay,
    /// Nobody but the slot's own pseudonym can have done it.
    Nobody,
    /// The two contradict each other and neither has revealed the pair's key.
    Pair(u16, u16),
}

impl std::fmt::Display for Blamed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Party(party) => write!(formatter, "{party}"),
            Self::Relay => formatter.write_str("relay"),
            Self::Nobody => formatter.write_str("nobody"),
            Self::Pair(client, trustee) => {
                write!(formatter, "client {client} or trustee {trustee}")
            }
        }
    }
}

/// A verdict on disk: whoever has the group's files can judge it anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerdictFile {
    /// The interval, with the trustees' signatures.
    #[serde(with = "crate::dcnet::hex::vec")]
    pub interval: Vec<u8>,
    /// The case.
    #[serde(with = "crate::dcnet::hex::vec")]
    pub case: Vec<u8>,
}

impl VerdictFile {
    /// As a PAST message has it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4 + self.interval.len() + self.case.len());
        ask::put(&mut out, &self.interval);
        out.extend_from_slice(&self.case);
        out
    }

    /// The body of a PAST message.
    ///
    /// # Errors
    /// When it is too short for its interval.
    pub fn parse(body: &[u8]) -> Result<Self, DcnetError> {
        let mut reader = Reader::new("PAST", body);
        let interval = ask::get(&mut reader)?;
        Ok(Self { interval, case: reader.rest().to_vec() })
    }

    /// Checks every signature and judges.
    ///
    /// # Errors
    /// When the interval is not the group's, or the case is not what it claims to be.
    pub fn judge(&self, group: &Group) -> Result<Blamed, DcnetError> {
        let signed = SignedInterval::parse(&self.interval)?;
        signed.check_members(group)?;
        let hash = signed.interval.hash();
        Case::parse(&self.case)?.judge(&View::of_trustee(group, &signed.interval, &hash))
    }
}

/// What the relay decoded in a jammed round, as a client heard it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JammedRound {
    /// The round.
    pub round: u64,
    /// The key.
    pub key: Scalar,
    /// The cell.
    pub cell: Vec<u8>,
}

/// A recent round as a client heard it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeardRound {
    /// The round.
    pub round: u64,
    /// Whose turn it was.
    pub slot: u16,
    /// The history's scalar.
    pub scalar: Scalar,
}

/// What a party knows of an interval beside its secrets.
pub struct View<'a> {
    /// The group.
    pub group: &'a Group,
    /// The interval.
    pub interval: &'a Interval,
    /// Its hash.
    pub hash: &'a [u8; 32],
    /// What the relay said of jammed rounds; trustees hear nothing.
    pub jammed: Option<&'a VecDeque<JammedRound>>,
    /// Recent rounds; trustees hear nothing.
    pub heard: Option<&'a VecDeque<HeardRound>>,
}

impl<'a> View<'a> {
    /// Of somebody who hears no DOWN messages: a trustee, or a reader of a verdict file.
    pub fn of_trustee(group: &'a Group, interval: &'a Interval, hash: &'a [u8; 32]) -> Self {
        Self { group, interval, hash, jammed: None, heard: None }
    }

    fn slot_key(&self, slot: u16) -> Option<RistrettoPoint> {
        self.group.slots.keys.get(usize::from(slot)).copied()
    }
}

/// What the owner of a slot says was done to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accusation {
    /// A bit it left 0 was decoded as 1; the signature is left out until it is sent.
    Bit(u64, u32, [u8; 64]),
    /// The key was changed, and no bit of the cell was set.
    Key(u64, [u8; 64]),
    /// Bits were cleared and none was set: nothing can be opened this time.
    Cleared(u64, [u8; 64]),
}

fn statement(interval: &[u8; 32], kind: u8, round: u64, bit: Option<u32>) -> Vec<u8> {
    let bit = bit.map_or(u64::MAX, u64::from);
    [b"accusation".as_slice(), &[kind], interval, &round.to_be_bytes(), &bit.to_be_bytes()].concat()
}

impl Accusation {
    /// Compares what was sent with what was decoded.
    pub fn find(
        round: u64,
        key: &Scalar,
        sent: &[u8],
        decoded_key: &Scalar,
        decoded: &[u8],
    ) -> Option<Self> {
        let witness = sent.iter().zip(decoded).enumerate().find_map(|(at, (sent, decoded))| {
            let set = !sent & decoded;
            (set != 0).then(|| at * 8 + set.leading_zeros() as usize)
        });
        match witness {
            Some(bit) => Some(Self::Bit(round, u32::try_from(bit).unwrap_or(0), [0; 64])),
            None if key != decoded_key => Some(Self::Key(round, [0; 64])),
            None => (sent != decoded).then_some(Self::Cleared(round, [0; 64])),
        }
    }

    fn parts(&self) -> (u8, u64, Option<u32>, &[u8; 64]) {
        match self {
            Self::Bit(round, bit, signature) => (1, *round, Some(*bit), signature),
            Self::Key(round, signature) => (2, *round, None, signature),
            Self::Cleared(round, signature) => (3, *round, None, signature),
        }
    }

    /// Signs it with the pseudonym key and spreads it over the keys of its rounds.
    pub fn to_scalars(
        self,
        interval: &[u8; 32],
        pseudonym: &Scalar,
        base: &RistrettoPoint,
        rng: &mut impl Rng,
    ) -> Vec<Scalar> {
        let (kind, round, bit, _) = self.parts();
        let signature = Schnorr::sign(pseudonym, base, &statement(interval, kind, round, bit), rng);
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&round.to_be_bytes());
        bytes.extend_from_slice(&bit.unwrap_or(0).to_be_bytes());
        bytes.extend_from_slice(&signature.to_bytes());
        bytes.resize(ACCUSATION_ROUNDS * CHUNK, 0);
        bytes
            .chunks(CHUNK)
            .map(|chunk| {
                let mut scalar = [0; 32];
                scalar[0] = 1;
                scalar[1..=CHUNK].copy_from_slice(chunk);
                Scalar::from_bytes_mod_order(scalar)
            })
            .collect()
    }

    /// Reads the keys of its rounds.
    pub fn from_scalars(scalars: &[Scalar]) -> Option<Self> {
        let mut bytes = Vec::new();
        for scalar in scalars {
            let chunk = scalar.to_bytes();
            if chunk[0] != 1 || chunk[31] != 0 {
                return None;
            }
            bytes.extend_from_slice(&chunk[1..=CHUNK]);
        }
        if bytes.len() < 77 || bytes[77..].iter().any(|byte| *byte != 0) {
            return None;
        }
        let round = u64::from_be_bytes(bytes[1..9].try_into().ok()?);
        let bit = u32::from_be_bytes(bytes[9..13].try_into().ok()?);
        let signature: [u8; 64] = bytes[13..77].try_into().ok()?;
        match bytes[0] {
            1 => Some(Self::Bit(round, bit, signature)),
            2 => Some(Self::Key(round, signature)),
            3 => Some(Self::Cleared(round, signature)),
            _ => None,
        }
    }

    /// The round it is about.
    pub fn round(&self) -> u64 {
        self.parts().1
    }

    /// Whether the owner of `slot` signed it.
    pub fn verify(&self, view: &View<'_>, slot: u16) -> bool {
        let (kind, round, bit, signature) = self.parts();
        let Some(key) = view.slot_key(slot) else { return false };
        Schnorr::from_bytes(signature).is_some_and(|signature| {
            signature.verify(&key, &view.group.slots.base, &statement(view.hash, kind, round, bit))
        })
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn an_accusation_finds_a_bit_that_was_set() {
        let k = Scalar::from(3_u8);
        let (sent, decoded) = ([0b1010_0000, 0], [0b0010_0000, 0b0000_0100]);
        let found = Accusation::find(9, &k, &sent, &k, &decoded).unwrap();
        assert_eq!(found, Accusation::Bit(9, 13, [0; 64]));
        assert_eq!(
            Accusation::find(9, &k, &sent, &k, &[0; 2]),
            Some(Accusation::Cleared(9, [0; 64]))
        );
        assert_eq!(Accusation::find(9, &k, &sent, &k, &sent), None);
        let mut rng = StdRng::seed_from_u64(1);
        let base = RistrettoPoint::mul_base(&Scalar::from(9_u8));
        let scalars = found.to_scalars(&[4; 32], &Scalar::from(8_u8), &base, &mut rng);
        let read = Accusation::from_scalars(&scalars).unwrap();
        assert_eq!(read.round(), 9);
        let mut bent = scalars;
        bent[1] += Scalar::ONE;
        assert!(Accusation::from_scalars(&bent).is_none());
    }
}
