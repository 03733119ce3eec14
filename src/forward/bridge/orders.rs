//! Whether an exit obeys an order: the tracker's signature, freshness, and the client's consent.
//!
//! In: orders, the key of the tracker that they name, consent keys of circuits. Out: yes, or why
//! not. Called by: the exit's bridges.

use std::collections::HashMap;

use ed25519_dalek::{Signature, VerifyingKey};

use crate::{
    keys::ConsentKey,
    model::NodeId,
    wire::share::{Consent, MOST_EXPIRY_S, Order, OrderKind},
};

/// Used tokens remembered; the oldest are past their expiry long before.
const MOST_TOKENS: usize = 65_536;
/// How much a tracker's clock may be ahead, in seconds.
const CLOCK_SLACK_S: u64 = 5;

/// Why an order is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OrderError {
    /// The directory has no such tracker.
    #[error("expected a tracker of the directory, got another sender")]
    UnknownTracker,
    /// Made for another exit.
    #[error("expected an order for this node, got one for another")]
    OtherNode,
    /// Forged or changed.
    #[error("expected a signature by the tracker's order key, got one that does not verify")]
    Signature,
    /// Too old, or dated too far ahead.
    #[error("expected an expiry within {MOST_EXPIRY_S} s, got one that is over or too far ahead")]
    Expired,
    /// Replayed, or overtaken by a later one.
    #[error("expected a number above the last order's, got an old one")]
    Replayed,
    /// The circuit is gone, or never was.
    #[error("expected the CID of a circuit that ends here, got an unknown one")]
    UnknownLeg,
    /// The client did not agree.
    #[error("expected the client's consent to exactly this bridge, got another token")]
    NoConsent,
    /// The token was used before.
    #[error("expected a fresh token of the client, got one that was used")]
    ConsentUsed,
    /// The other exit is not in the directory.
    #[error("expected an exit of the directory as the other end, got an unknown node")]
    UnknownExit,
    /// The route of tracking codes is not for this exit.
    #[error("expected a route of relays of the directory, sealed to this exit, got another")]
    Route,
    /// Limits of this exit.
    #[error("expected fewer bridges; this exit, or the circuit, has no room for another")]
    NoRoom,
    /// No such session to drop.
    #[error("expected a session of this exit, got an unknown one")]
    UnknownSession,
}

/// What an exit remembers of orders.
#[derive(Default)]
pub(super) struct Orders {
    /// The last number of each tracker.
    last: HashMap<NodeId, u64>,
    /// Tokens that were used, until they expire.
    used: HashMap<[u8; 16], u64>,
}

impl Orders {
    /// Checks everything that needs no circuit, and takes the order's number.
    pub(super) fn check(
        &mut self,
        order: &Order,
        own: &NodeId,
        tracker_key: Option<&[u8; 32]>,
        unix: u64,
    ) -> Result<(), OrderError> {
        let key = tracker_key.ok_or(OrderError::UnknownTracker)?;
        if order.node != *own {
            return Err(OrderError::OtherNode);
        }
        VerifyingKey::from_bytes(key)
            .and_then(|key| {
                key.verify_strict(&order.signed_bytes(), &Signature::from_bytes(&order.sig))
            })
            .map_err(|_| OrderError::Signature)?;
        if unix > order.exp || order.exp > unix + MOST_EXPIRY_S + CLOCK_SLACK_S {
            return Err(OrderError::Expired);
        }
        let last = self.last.entry(order.tracker).or_default();
        if order.seq <= *last {
            return Err(OrderError::Replayed);
        }
        *last = order.seq;
        Ok(())
    }

    /// Checks and uses the client's consent.
    pub(super) fn consume(
        &mut self,
        order: &Order,
        key: &ConsentKey,
        unix: u64,
    ) -> Result<(), OrderError> {
        let role = order.kind.role().ok_or(OrderError::NoConsent)?;
        let bytes =
            Order::consent_bytes(order.session, role, order.bridge_cid(), &order.to, order.exp);
        let Consent(token) = order.token;
        if !key.accepts(&bytes, &token) {
            return Err(OrderError::NoConsent);
        }
        if self.used.len() >= MOST_TOKENS {
            self.used.retain(|_, exp| *exp >= unix);
        }
        if self.used.len() >= MOST_TOKENS {
            return Err(OrderError::NoRoom);
        }
        match self.used.insert(token, order.exp) {
            None => Ok(()),
            Some(_) => Err(OrderError::ConsentUsed),
        }
    }

    /// Forgets tokens that are over.
    pub(super) fn handle_timeout(&mut self, unix: u64) {
        self.used.retain(|_, exp| *exp >= unix);
    }
}

/// Whether an order needs a circuit and its client's consent.
pub(super) const fn needs_consent(kind: OrderKind) -> bool {
    kind.role().is_some()
}
