//! What each party sent, kept as long as blame may need it.
//!
//! In: shares and signed checkpoints. Out: evidence. Called by: the relay core.

use std::collections::VecDeque;

use crate::dcnet::{
    blame::Evidence,
    error::DcnetError,
    group::Group,
    member::{CHECK_EVERY, Chain, PartyRef},
    message::Reader,
};

/// Signed windows that are kept.
const WINDOWS: usize = 4;

struct Window {
    start: [u8; 32],
    first: u64,
    shares: Vec<Vec<u8>>,
}

/// One party's record in an interval.
pub(super) struct Record {
    pub(super) party: PartyRef,
    chain: Chain,
    open: Window,
    signed: VecDeque<(Window, u64, [u8; 64])>,
}

impl Record {
    pub(super) fn new(party: PartyRef, interval: &[u8; 32]) -> Self {
        let chain = Chain::new(interval);
        let open = Window { start: chain.0, first: 0, shares: Vec::new() };
        Self { party, chain, open, signed: VecDeque::new() }
    }

    /// A share came; one that should have been signed is not taken.
    ///
    /// # Errors
    /// When the checkpoint before is missing.
    pub(super) fn push(&mut self, share: &[u8]) -> Result<(), DcnetError> {
        if self.open.shares.len() as u64 >= CHECK_EVERY {
            return Err(DcnetError::malformed(
                "share",
                format!("a signed checkpoint every {CHECK_EVERY} rounds"),
                "none",
            ));
        }
        self.chain.push(share);
        self.open.shares.push(share.to_vec());
        Ok(())
    }

    /// A checkpoint came; rounds from `keep` on are kept.
    ///
    /// # Errors
    /// When it is not the party's signature over what it sent.
    pub(super) fn check(
        &mut self,
        group: &Group,
        interval: &[u8; 32],
        body: &mut Reader<'_>,
        keep: u64,
    ) -> Result<(), DcnetError> {
        let (round, signature) = (body.u64()?, body.array::<64>()?);
        let bad = || DcnetError::BadProof { what: "a checkpoint", who: self.party.to_string() };
        let key = self.party.key(group).ok_or_else(bad)?;
        let next = self.open.first + self.open.shares.len() as u64;
        if round + 1 != next
            || !key.verify("check", &self.chain.signed(interval, round), &signature)
        {
            return Err(bad());
        }
        let fresh = Window { start: self.chain.0, first: next, shares: Vec::new() };
        let window = std::mem::replace(&mut self.open, fresh);
        self.signed.push_back((window, round, signature));
        while self.signed.len() > WINDOWS && self.signed[0].1 < keep {
            self.signed.pop_front();
        }
        Ok(())
    }

    /// Whether a signed checkpoint covers `round`.
    pub(super) fn covers(&self, round: u64) -> bool {
        self.signed.iter().any(|(window, last, _)| window.first <= round && round <= *last)
    }

    /// The share of `round`.
    pub(super) fn share(&self, round: u64) -> Option<&[u8]> {
        let windows = self.signed.iter().map(|(window, ..)| window).chain([&self.open]);
        windows
            .filter(|window| window.first <= round)
            .find_map(|window| window.shares.get(usize::try_from(round - window.first).ok()?))
            .map(Vec::as_slice)
    }

    /// What convicts the party of what it sent in `round`.
    pub(super) fn evidence(&self, round: u64) -> Option<Evidence> {
        let (window, last, signature) =
            self.signed.iter().find(|(window, last, _)| window.first <= round && round <= *last)?;
        Some(Evidence {
            party: self.party,
            start: window.start,
            shares: window.shares.clone(),
            round: *last,
            signature: *signature,
        })
    }
}
