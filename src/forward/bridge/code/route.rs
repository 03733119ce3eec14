//! The sender's side of tracking codes: a fresh code for every message, over the relays of one route.
//!
//! In: the relays of a route, payloads. Out: whole cells for its first relay.
//! Called by: the exit's links by code.

use std::net::SocketAddr;

use rand::Rng;
use zeroize::Zeroizing;

use crate::{
    forward::bridge::OtherNode,
    keys::{CodeKeys, KeyError, OnionKey, agree_along, build_code},
    model::{CELL_LEN, Cid, DropReason, NodeId},
    wire::{
        set_cid,
        share::{CODE_SLOTS, CodeGreeting, CodeHead, CodePart, CodeSlot, NextHop, NextRelayId},
    },
};

/// A way to the other exit, with keys of its own.
pub(super) struct CodeRoute {
    /// Which of its sender's set-ups opens it.
    pub(super) attempt: u8,
    to: SocketAddr,
    hops: Vec<RouteHop>,
    /// The key that the other exit sees in the set-up.
    last_ephemeral: [u8; 32],
    first_ephemeral: [u8; 32],
    padding: Zeroizing<[u8; 32]>,
    count: u32,
}

struct RouteHop {
    keys: CodeKeys,
    relay: NextRelayId,
    cid: Cid,
}

impl CodeRoute {
    /// Agrees on keys along `relays`, of which the last is the other exit.
    ///
    /// # Errors
    /// When there is none, or a key of one cannot be used.
    pub(super) fn open(
        attempt: u8,
        relays: &[(NodeId, OtherNode)],
        rng: &mut impl Rng,
    ) -> Result<Self, KeyError> {
        let to =
            relays.first().filter(|_| relays.len() <= CODE_SLOTS).ok_or(KeyError::Agreement)?;
        let fresh = OnionKey::generate(rng)?;
        let agreed = agree_along(&fresh, relays.iter().map(|(id, node)| (id, &node.onion_key)))?;
        let last_ephemeral = agreed.last().map_or([0; 32], |relay| relay.ephemeral);
        let mut padding = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut *padding);
        let hops = agreed.into_iter().zip(relays).map(|(agreed, (id, _))| RouteHop {
            keys: agreed.keys,
            relay: NextRelayId::of(id),
            cid: Cid::random(rng),
        });
        Ok(Self {
            attempt,
            to: to.1.addr,
            hops: hops.collect(),
            last_ephemeral,
            first_ephemeral: *fresh.public(),
            padding,
            count: 0,
        })
    }

    /// What the MACs of a greeting cover beside its words, so that it serves no other set-up.
    pub(super) fn last_ephemeral(&self) -> &[u8; 32] {
        &self.last_ephemeral
    }

    /// Where its first relay is.
    pub(super) fn to(&self) -> SocketAddr {
        self.to
    }

    /// The set-up: until `exp`, in seconds since 1970, each relay takes its keys from it.
    pub(super) fn setup(&self, exp: u32, greeting: &CodeGreeting, cell: &mut [u8; CELL_LEN]) {
        let ephemeral = self.first_ephemeral;
        let head = |mac| CodeHead::SetUp { ephemeral, mac };
        greeting.emit(head([0; 16]).parts(cell).1);
        self.seal([0; CODE_SLOTS], Some(exp), head, cell);
    }

    /// A message under a code that no other has.
    ///
    /// # Errors
    /// When the numbers of the route are used up.
    pub(super) fn message(
        &mut self,
        part: &CodePart<'_>,
        cell: &mut [u8; CELL_LEN],
    ) -> Result<SocketAddr, DropReason> {
        self.count = self.count.checked_add(1).ok_or(DropReason::CounterExhausted)?;
        let mut numbers = [0; CODE_SLOTS];
        for (number, hop) in numbers.iter_mut().zip(&self.hops) {
            *number = hop.keys.number(self.count).ok_or(DropReason::CounterExhausted)?;
        }
        let number = numbers[0];
        let head = |mac| CodeHead::Message { number, mac };
        part.emit(head([0; 16]).parts(cell).1);
        self.seal(numbers, None, head, cell);
        Ok(self.to)
    }

    fn seal(
        &self,
        numbers: [u32; CODE_SLOTS],
        exp: Option<u32>,
        head: impl Fn([u8; 16]) -> CodeHead,
        cell: &mut [u8; CELL_LEN],
    ) {
        let Some(first) = self.hops.first() else { return };
        let mut relays = [(&first.keys, 0); CODE_SLOTS];
        for ((relay, hop), number) in relays.iter_mut().zip(&self.hops).zip(numbers) {
            *relay = (&hop.keys, number);
        }
        let slot = |index: usize, behind: Option<[u8; 16]>| {
            let next = behind.zip(self.hops.get(index + 1)).map(|(mac, hop)| NextHop {
                relay: hop.relay,
                cid: hop.cid,
                mac,
            });
            let number = next.and_then(|_| numbers.get(index + 1).copied()).unwrap_or(0);
            CodeSlot { next, number: exp.unwrap_or(number) }.emit()
        };
        let (code, payload) = head([0; 16]).parts(cell);
        let mac = build_code(&relays[..self.hops.len()], slot, code, payload, &self.padding);
        head(mac).emit(cell);
        set_cid(cell, first.cid);
    }
}
