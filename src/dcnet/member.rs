//! What clients and trustees have in common: identity, shared points, the chain of what they sent.
//!
//! In: the group, a party's secrets. Out: pads of an interval, signed checkpoints, frames.
//! Called by: the client and the trustee core.

use std::{collections::BTreeMap, sync::Arc};

use curve25519_dalek::{RistrettoPoint, Scalar};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::dcnet::{
    error::DcnetError,
    group::Group,
    hash,
    identity::Identity,
    interval::{Interval, Nonce, SignedInterval},
    message::{self, Reader, Share, kind},
    pads::Pads,
    proof,
};

/// Rounds between two signed checkpoints.
pub const CHECK_EVERY: u64 = 32;

/// A party's role and place in `system.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PartyRef {
    /// A client.
    Client(u16),
    /// A trustee.
    Trustee(u16),
}

impl std::fmt::Display for PartyRef {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Client(at) => write!(formatter, "client {at}"),
            Self::Trustee(at) => write!(formatter, "trustee {at}"),
        }
    }
}

impl PartyRef {
    /// Its identity in the group.
    pub fn key(self, group: &Group) -> Option<crate::dcnet::identity::PublicKey> {
        match self {
            Self::Client(at) => group.clients.get(usize::from(at)).copied(),
            Self::Trustee(at) => group.trustees.get(usize::from(at)).copied(),
        }
    }

    /// Its Diffie-Hellman key in the session.
    pub fn point(self, group: &Group) -> Option<RistrettoPoint> {
        match self {
            Self::Client(at) => group.client_keys.get(usize::from(at)).copied(),
            Self::Trustee(at) => group.trustee_keys.get(usize::from(at)).copied(),
        }
    }

    /// Three bytes: role and place.
    pub fn to_bytes(self) -> [u8; 3] {
        let (role, at) = match self {
            Self::Client(at) => (0, at),
            Self::Trustee(at) => (1, at),
        };
        [role, at.to_be_bytes()[0], at.to_be_bytes()[1]]
    }

    /// From its three bytes.
    ///
    /// # Errors
    /// On an unknown role.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, DcnetError> {
        match reader.u8()? {
            0 => Ok(Self::Client(reader.u16()?)),
            1 => Ok(Self::Trustee(reader.u16()?)),
            other => Err(DcnetError::malformed("party", "role 0 or 1", other.to_string())),
        }
    }
}

/// A party's secrets and its group.
pub struct Member {
    /// The group.
    pub group: Arc<Group>,
    /// The party.
    pub me: PartyRef,
    /// Signs.
    pub identity: Arc<Identity>,
    /// The Diffie-Hellman secret.
    pub secret: Zeroizing<Scalar>,
    /// Of this link.
    pub nonce: Nonce,
    /// Points shared with counterparts, by their place in `system.json`.
    shared: BTreeMap<u16, Zeroizing<RistrettoPoint>>,
    /// Parties a checked verdict has convicted.
    pub convicted: Vec<PartyRef>,
}

impl Member {
    /// Of a party.
    pub fn new(
        group: Arc<Group>,
        me: PartyRef,
        identity: Arc<Identity>,
        secret: Zeroizing<Scalar>,
        nonce: Nonce,
    ) -> Self {
        Self { group, me, identity, secret, nonce, shared: BTreeMap::new(), convicted: Vec::new() }
    }

    /// Computes the point shared with a counterpart, once.
    fn share(&mut self, other: u16) -> Option<()> {
        if self.shared.contains_key(&other) {
            return Some(());
        }
        let counterpart = match self.me {
            PartyRef::Client(_) => PartyRef::Trustee(other),
            PartyRef::Trustee(_) => PartyRef::Client(other),
        };
        let point = *self.secret * counterpart.point(&self.group)?;
        self.shared.insert(other, Zeroizing::new(point));
        Some(())
    }

    /// The pads of an interval: one pair for each counterpart, in the interval's order.
    pub fn pads(&mut self, interval: &Interval) -> Pads {
        let counterparts = match self.me {
            PartyRef::Client(_) => &interval.trustees,
            PartyRef::Trustee(_) => &interval.clients,
        };
        for member in counterparts {
            let _ = self.share(member.index);
        }
        let points = counterparts.iter().filter_map(|member| self.shared.get(&member.index));
        Pads::new(points.map(|point| &**point), &interval.hash())
    }

    /// Checks an interval for this party: signatures, its own nonce, nobody convicted.
    ///
    /// # Errors
    /// Says what was expected.
    pub fn check_interval(&self, signed: &SignedInterval) -> Result<(), DcnetError> {
        signed.check(&self.group, &self.convicted)?;
        self.check_own(&signed.interval)
    }

    /// Whether this party is in the interval with its own nonce.
    ///
    /// # Errors
    /// When it is not.
    pub fn check_own(&self, interval: &Interval) -> Result<(), DcnetError> {
        let (members, index) = match self.me {
            PartyRef::Client(at) => (&interval.clients, at),
            PartyRef::Trustee(at) => (&interval.trustees, at),
        };
        let own = members.iter().any(|m| m.index == index && m.nonce == self.nonce);
        if own {
            return Ok(());
        }
        Err(DcnetError::malformed("interval", "this link's nonce", "another one, or none"))
    }
}

/// The body of INTERVAL: the relay's key for it, the interval, the signatures.
pub fn parse_interval(body: &[u8]) -> Result<(RistrettoPoint, SignedInterval), DcnetError> {
    let mut reader = Reader::new("INTERVAL", body);
    let key = proof::point(&reader.array()?)
        .ok_or_else(|| DcnetError::malformed("INTERVAL", "a Ristretto point", "something else"))?;
    Ok((key, SignedInterval::parse(reader.rest())?))
}

/// A hash over everything a party sent in an interval, signed every [`CHECK_EVERY`] rounds.
#[derive(Debug, Clone, Copy)]
pub struct Chain(pub [u8; 32]);

impl Chain {
    /// Before the first round.
    pub fn new(interval: &[u8; 32]) -> Self {
        Self(hash::hash("chain", &[interval]))
    }

    /// After one more share.
    pub fn push(&mut self, share: &[u8]) {
        self.0 = hash::hash("chain", &[&self.0, share]);
    }

    /// What is signed after `round`.
    pub fn signed(&self, interval: &[u8; 32], round: u64) -> Vec<u8> {
        [interval.as_slice(), &round.to_be_bytes(), &self.0].concat()
    }

    /// Appends a share to `out`, and a checkpoint when it is due.
    pub fn send(
        &mut self,
        share_kind: u8,
        share: &Share<'_>,
        interval: &[u8; 32],
        identity: &Identity,
        out: &mut Vec<u8>,
    ) {
        let bytes = share.to_bytes();
        message::frame(out, share_kind, &[&bytes]);
        self.push(&bytes);
        if share.round % CHECK_EVERY == CHECK_EVERY - 1 {
            let signature = identity.sign("check", &self.signed(interval, share.round));
            message::frame(
                out,
                kind::CHECK,
                &[&share.number.to_be_bytes(), &share.round.to_be_bytes(), &signature.0],
            );
        }
    }
}
