//! The tracker's orders to exits, signed.
//!
//! In: what to order. Out: signed orders, numbered upwards. Called by: the tracker's state.

use ed25519_dalek::{Signer, SigningKey};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::TrackerError;
use crate::{
    keys::StateDir,
    model::{Cid, NodeId},
    wire::share::{Consent, Order, OrderKind, Session, Via},
};

const KEY_FILE: &str = "orders.key";

/// The key that signs orders; its public half is in the tracker's descriptor.
pub struct OrderKey {
    key: SigningKey,
    tracker: NodeId,
    last_seq: u64,
}

impl std::fmt::Debug for OrderKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OrderKey(secret not shown)")
    }
}

/// One half of a bridge, to be ordered.
#[derive(Clone, Debug)]
pub(super) struct Half {
    pub(super) leg: Cid,
    pub(super) node: NodeId,
    pub(super) to: NodeId,
    pub(super) token: Consent,
}

impl OrderKey {
    /// The key of these 32 secret bytes, for the tracker with this node id.
    pub fn new(secret: &[u8; 32], tracker: NodeId) -> Self {
        Self { key: SigningKey::from_bytes(secret), tracker, last_seq: 0 }
    }

    /// Reads the key of a state directory, or makes one.
    ///
    /// # Errors
    /// When the file cannot be read or written, or is no key.
    pub fn open(
        dir: &StateDir,
        tracker: NodeId,
        rng: &mut impl rand::Rng,
    ) -> Result<Self, TrackerError> {
        if let Some(bytes) = dir.read(KEY_FILE)? {
            let secret = bytes.as_slice().try_into().map_err(|_| TrackerError::Key)?;
            return Ok(Self::new(secret, tracker));
        }
        let mut secret = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut *secret);
        dir.write(KEY_FILE, &*secret)?;
        Ok(Self::new(&secret, tracker))
    }

    /// The public half, for the descriptor.
    pub fn public(&self) -> [u8; 32] {
        self.key.verifying_key().to_bytes()
    }

    /// Signs an order. Numbers are microseconds since 1970 where the clock allows, so that they
    /// grow over restarts.
    #[expect(clippy::too_many_arguments, reason = "the fields of one order, named at each call")]
    pub(super) fn sign(
        &mut self,
        unix_us: u64,
        kind: OrderKind,
        session: Session,
        bridge: Cid,
        half: &Half,
        via: Via,
        route: Vec<u8>,
        exp: u64,
    ) -> Order {
        self.last_seq = unix_us.max(self.last_seq + 1);
        let uuid = |cid: &Cid| Uuid::from_bytes(*cid.as_bytes());
        let mut order = Order {
            kind,
            session,
            leg: uuid(&half.leg),
            bridge: uuid(&bridge),
            to: half.to,
            node: half.node,
            tracker: self.tracker,
            via,
            route,
            seq: self.last_seq,
            exp,
            token: half.token,
            sig: [0; 64],
        };
        order.sig = self.key.sign(&order.signed_bytes()).to_bytes();
        order
    }
}
