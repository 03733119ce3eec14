//! Who is in: joins and leaves become signed intervals, while the one before runs on.
//!
//! In: links that come and go, SIGN and READY. Out: PROPOSE, INTERVAL, a new [`Running`].
//! Called by: the relay core.
//!
//! ```text
//! join/leave -> quiet for a moment -> PROPOSE -> SIGN of all trustees -> INTERVAL -> READY of all
//!            -> the rounds in flight end, or are void if a member is gone -> first DOWN
//! ```

use std::time::{Duration, Instant};

use curve25519_dalek::Scalar;
use rand::Rng;
use zeroize::Zeroizing;

use crate::dcnet::{
    error::DcnetError,
    hash,
    interval::{Interval, Member, Nonce, SignedInterval},
    member::PartyRef,
    message::{self, Reader, kind},
    proof,
    sealing::DownSeal,
};

use super::{Relay, RelayEvent, Transmit, rounds::Running};

/// An interval the trustees are asked to sign.
pub(super) struct Proposal {
    interval: Interval,
    signatures: Vec<Option<[u8; 64]>>,
    deadline: Instant,
}

/// A signed interval its parties prepare for.
pub(super) struct Prepared {
    signed: SignedInterval,
    secret: Zeroizing<Scalar>,
    relay_key: [u8; 32],
    waiting: Vec<PartyRef>,
    deadline: Instant,
}

fn u16_of(count: usize) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX)
}

impl Relay {
    /// A party opened a link.
    ///
    /// # Errors
    /// When it is convicted, or has a link already.
    pub fn handle_join(
        &mut self,
        now: Instant,
        party: PartyRef,
        nonce: Nonce,
    ) -> Result<(), DcnetError> {
        let refuse = |state: &str| DcnetError::OutOfPlace {
            what: format!("{party} joins"),
            state: state.into(),
        };
        if self.banned.contains(&party) {
            return Err(refuse("a verdict convicted it"));
        }
        if self.links.contains_key(&party) {
            return Err(refuse("it has a link"));
        }
        self.links.insert(party, nonce);
        for verdict in &self.past {
            let mut framed = Vec::new();
            message::frame(&mut framed, kind::PAST, &[&verdict.to_bytes()]);
            self.out.push_back(Transmit::To(party, framed));
        }
        self.changed = Some(now);
        Ok(())
    }

    /// A party's link is gone.
    pub fn handle_leave(&mut self, now: Instant, party: PartyRef) {
        if self.links.remove(&party).is_none() {
            return;
        }
        self.changed = Some(now);
        let in_proposal = self.proposal.as_ref().is_some_and(|p| has(&p.interval, party));
        if in_proposal {
            self.proposal = None;
        }
        if self.prepared.as_ref().is_some_and(|p| has(&p.signed.interval, party)) {
            self.prepared = None;
        }
        if self.running.as_ref().is_some_and(|running| running.place(party).is_some()) {
            self.void_running();
        }
    }

    /// What is in flight cannot complete any more; its numbers are void for good.
    fn void_running(&mut self) {
        if let Some(running) = self.running.take() {
            self.counters.void += running.in_flight() as u64;
        }
        self.trial = None;
    }

    pub(super) fn membership_deadline(&self) -> Option<Instant> {
        let proposal = self.proposal.as_ref().map(|proposal| proposal.deadline);
        let prepared = self.prepared.as_ref().map(|prepared| prepared.deadline);
        [proposal, prepared].into_iter().flatten().min()
    }

    pub(super) fn membership_timeout(&mut self, now: Instant) {
        if self.proposal.as_ref().is_some_and(|proposal| now >= proposal.deadline)
            && let Some(proposal) = self.proposal.take()
        {
            let members = proposal.interval.trustees.iter().zip(&proposal.signatures);
            for (member, _) in members.filter(|(_, signature)| signature.is_none()) {
                self.disconnect(PartyRef::Trustee(member.index), "it does not sign the interval");
            }
        }
        if self.prepared.as_ref().is_some_and(|prepared| now >= prepared.deadline)
            && let Some(prepared) = self.prepared.take()
        {
            for party in prepared.waiting {
                self.disconnect(party, "it does not get ready for the interval");
            }
        }
        if self.changed.is_some_and(|at| now >= at + self.pace.settle) {
            self.changed = None;
            self.propose(now);
        }
    }

    fn members(&self, clients: bool) -> Vec<Member> {
        self.links
            .iter()
            .filter(|(party, _)| !self.banned.contains(party))
            .filter_map(|(party, nonce)| match party {
                PartyRef::Client(index) if clients => Some(Member { index: *index, nonce: *nonce }),
                PartyRef::Trustee(index) if !clients => {
                    Some(Member { index: *index, nonce: *nonce })
                }
                _ => None,
            })
            .collect()
    }

    fn propose(&mut self, now: Instant) {
        let (clients, trustees) = (self.members(true), self.members(false));
        let settings = &self.group.system.settings;
        let convicted = self.banned.iter().filter(|party| matches!(party, PartyRef::Trustee(_)));
        let needed = self.group.trustees.len() - convicted.count();
        if trustees.len() < needed
            || trustees.is_empty()
            || clients.len() < settings.min_anonymity_set
        {
            return;
        }
        if self.proposal.is_some() || self.prepared.is_some() {
            // One change at a time: this one is taken up when that one is done.
            self.changed = Some(now + Duration::from_millis(5));
            return;
        }
        self.last_number += 1;
        let interval = Interval {
            group: self.group.group_id,
            session: self.group.session.session_id.0,
            number: self.last_number,
            cell_size: u16_of(settings.cell_size),
            window: u16_of(settings.client_window),
            clients,
            trustees,
        };
        let bytes = interval.to_bytes();
        let mut framed = Vec::new();
        message::frame(&mut framed, kind::PROPOSE, &[&bytes]);
        for member in &interval.trustees {
            self.out.push_back(Transmit::To(PartyRef::Trustee(member.index), framed.clone()));
        }
        self.proposal = Some(Proposal {
            signatures: vec![None; interval.trustees.len()],
            interval,
            deadline: now + self.preparing(),
        });
    }

    /// How long a step towards an interval may take. While nothing runs, streams wait for it.
    fn preparing(&self) -> Duration {
        let waited_for = self.running.is_none() && self.counters.intervals > 0;
        if waited_for { self.pace.patience / 3 } else { self.pace.patience }
    }

    pub(super) fn handle_sign(
        &mut self,
        now: Instant,
        trustee: u16,
        body: &[u8],
        rng: &mut impl Rng,
    ) -> Result<(), DcnetError> {
        let mut reader = Reader::new("SIGN", body);
        let (number, signature) = (reader.u32()?, reader.array::<64>()?);
        reader.end()?;
        let Some(proposal) = self.proposal.as_mut().filter(|p| p.interval.number == number) else {
            // Given up meanwhile.
            return Ok(());
        };
        let place = proposal.interval.trustees.iter().position(|member| member.index == trustee);
        let key = self.group.trustees[usize::from(trustee)];
        let Some(place) =
            place.filter(|_| key.verify("interval", &proposal.interval.to_bytes(), &signature))
        else {
            return Err(DcnetError::BadProof {
                what: "the signature of the interval",
                who: format!("trustee {trustee}"),
            });
        };
        proposal.signatures[place] = Some(signature);
        if proposal.signatures.iter().any(Option::is_none) {
            return Ok(());
        }
        let Some(proposal) = self.proposal.take() else { return Ok(()) };
        let signed = SignedInterval {
            interval: proposal.interval,
            signatures: proposal.signatures.into_iter().flatten().collect(),
        };
        self.announce(now, signed, rng);
        Ok(())
    }

    fn announce(&mut self, now: Instant, signed: SignedInterval, rng: &mut impl Rng) {
        let secret = Zeroizing::new(hash::random_scalar(rng));
        let relay_key = proof::bytes(&(*secret * self.group.slots.base));
        let mut framed = Vec::new();
        message::frame(&mut framed, kind::INTERVAL, &[&relay_key, &signed.to_bytes()]);
        let interval = &signed.interval;
        let waiting: Vec<PartyRef> = interval
            .clients
            .iter()
            .map(|member| PartyRef::Client(member.index))
            .chain(interval.trustees.iter().map(|member| PartyRef::Trustee(member.index)))
            .collect();
        for party in &waiting {
            self.out.push_back(Transmit::To(*party, framed.clone()));
        }
        let deadline = now + self.preparing();
        self.prepared = Some(Prepared { signed, secret, relay_key, waiting, deadline });
    }

    pub(super) fn handle_ready(
        &mut self,
        now: Instant,
        party: PartyRef,
        body: &[u8],
    ) -> Result<(), DcnetError> {
        let mut reader = Reader::new("READY", body);
        let number = reader.u32()?;
        reader.end()?;
        let Some(prepared) = self.prepared.as_mut().filter(|p| p.signed.interval.number == number)
        else {
            return Ok(());
        };
        prepared.waiting.retain(|waiting| *waiting != party);
        self.try_switch();
        self.pump(now);
        Ok(())
    }

    /// Begins the prepared interval once all are ready and nothing is in flight.
    pub(super) fn try_switch(&mut self) {
        if self.prepared.as_ref().is_none_or(|prepared| !prepared.waiting.is_empty()) {
            return;
        }
        if let Some(running) = &mut self.running {
            running.draining = true;
            if running.in_flight() > 0 {
                return;
            }
        }
        let Some(prepared) = self.prepared.take() else { return };
        self.trial = None;
        let hash = prepared.signed.interval.hash();
        for (slot, key) in self.slots.iter_mut().zip(&self.group.slots.keys) {
            slot.renew(DownSeal::new(&(*prepared.secret * key), &hash));
        }
        let clients = &prepared.signed.interval.clients;
        let set = clients.iter().map(|member| PartyRef::Client(member.index)).collect();
        self.out.push_back(Transmit::Set(set));
        self.counters.intervals += 1;
        self.events.push_back(RelayEvent::Interval(prepared.signed.clone()));
        let before = self.running.as_ref().map(|running| &running.window);
        self.running = Some(Running::new(prepared.signed, &prepared.relay_key, before));
    }
}

fn has(interval: &Interval, party: PartyRef) -> bool {
    match party {
        PartyRef::Client(at) => interval.clients.iter().any(|member| member.index == at),
        PartyRef::Trustee(at) => interval.trustees.iter().any(|member| member.index == at),
    }
}
