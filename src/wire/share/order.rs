//! What the tracker orders exits to do: `make_bridge`, `receive_bridge`, `drop_bridge`.
//!
//! In: the payload of a `"CID": "control"` message. Out: a typed order and the bytes that are
//! signed. Called by: tracker (signs), forward (checks and obeys).
//!
//! The signature is Ed25519 over `cepa-order-v1\n` and the fields in fixed widths, so that no
//! other spelling of the JSON says anything else.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Consent, Session, ShareRole, ShareWireError, Via, hex_text, hex_text::base64_text};
use crate::model::{Cid, NodeId};

/// How far in the future an order may expire, in seconds.
pub const MOST_EXPIRY_S: u64 = 60;
/// The longest sealed route.
const MAX_ROUTE_LEN: usize = 2048;
const LABEL: &[u8] = b"cepa-order-v1\n";

/// What is ordered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderKind {
    /// To the uploader's exit: join the circuit to the exit `to`.
    MakeBridge,
    /// To the downloader's exit: accept the join of the exit `to`.
    ReceiveBridge,
    /// To either: end the session.
    DropBridge,
}

impl OrderKind {
    /// The side whose circuit is concerned.
    pub const fn role(self) -> Option<ShareRole> {
        match self {
            Self::MakeBridge => Some(ShareRole::Uploader),
            Self::ReceiveBridge => Some(ShareRole::Downloader),
            Self::DropBridge => None,
        }
    }
}

/// An order of the tracker to one exit.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// What to do.
    #[serde(rename = "type")]
    pub kind: OrderKind,
    /// The session.
    pub session: Session,
    /// The leg of the circuit that is joined.
    #[serde(rename = "CID")]
    pub leg: Uuid,
    /// The id of the link between the two exits.
    #[serde(rename = "bridge_CID")]
    pub bridge: Uuid,
    /// The other exit.
    pub to: NodeId,
    /// The exit that is ordered.
    pub node: NodeId,
    /// The tracker that orders.
    pub tracker: NodeId,
    /// How the exits are joined.
    #[serde(default)]
    pub via: Via,
    /// For tracking codes: the route, sealed to this exit.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "base64_text")]
    pub route: Vec<u8>,
    /// Grows with every order of this tracker.
    pub seq: u64,
    /// Not to be obeyed after this: seconds since 1970.
    pub exp: u64,
    /// The client's consent; all zero where none is needed.
    pub token: Consent,
    /// Ed25519 by the tracker's order key.
    #[serde(with = "hex_text")]
    pub sig: [u8; 64],
}

impl Order {
    /// Reads an order.
    ///
    /// # Errors
    /// When it is no such JSON or its route is too long.
    pub fn parse(json: &[u8]) -> Result<Self, ShareWireError> {
        let order: Self = serde_json::from_slice(json)
            .map_err(|error| ShareWireError::malformed("an order", error))?;
        if order.route.len() > MAX_ROUTE_LEN {
            return Err(ShareWireError::TooLong {
                what: "route",
                most: MAX_ROUTE_LEN,
                got: order.route.len(),
            });
        }
        Ok(order)
    }

    /// The JSON of the order.
    pub fn emit(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The leg's id.
    pub fn leg_cid(&self) -> Cid {
        Cid::from_bytes(*self.leg.as_bytes())
    }

    /// The bridge's id.
    pub fn bridge_cid(&self) -> Cid {
        Cid::from_bytes(*self.bridge.as_bytes())
    }

    /// What is signed: every field but the signature.
    pub fn signed_bytes(&self) -> Vec<u8> {
        let kind = match self.kind {
            OrderKind::MakeBridge => 1,
            OrderKind::ReceiveBridge => 2,
            OrderKind::DropBridge => 3,
        };
        let via = match self.via {
            Via::Bridge => 0,
            Via::Code => 1,
        };
        let mut bytes = LABEL.to_vec();
        bytes.extend([kind, via]);
        bytes.extend(self.session.0);
        bytes.extend(self.leg.as_bytes());
        bytes.extend(self.bridge.as_bytes());
        bytes.extend(self.to.as_bytes());
        bytes.extend(self.node.as_bytes());
        bytes.extend(self.tracker.as_bytes());
        bytes.extend(self.seq.to_be_bytes());
        bytes.extend(self.exp.to_be_bytes());
        bytes.extend(self.token.0);
        bytes.extend((self.route.len() as u32).to_be_bytes());
        bytes.extend(&self.route);
        bytes
    }

    /// What the client's consent is a MAC over, under the key of its circuit with this exit.
    pub fn consent_bytes(
        session: Session,
        role: ShareRole,
        bridge: Cid,
        to: &NodeId,
        exp: u64,
    ) -> [u8; 73] {
        let mut bytes = [0; 73];
        bytes[..16].copy_from_slice(&session.0);
        bytes[16] = role.byte();
        bytes[17..33].copy_from_slice(bridge.as_bytes());
        bytes[33..65].copy_from_slice(to.as_bytes());
        bytes[65..].copy_from_slice(&exp.to_be_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn order(seed: [u8; 32], number: u64, route: Vec<u8>) -> Order {
        Order {
            kind: [OrderKind::MakeBridge, OrderKind::ReceiveBridge, OrderKind::DropBridge]
                [(number % 3) as usize],
            session: Session([seed[0]; 16]),
            leg: Uuid::from_bytes([seed[1]; 16]),
            bridge: Uuid::from_bytes([seed[2]; 16]),
            to: NodeId::from_bytes(seed),
            node: NodeId::from_bytes([seed[3]; 32]),
            tracker: NodeId::from_bytes([seed[4]; 32]),
            via: if number.is_multiple_of(2) { Via::Bridge } else { Via::Code },
            route,
            seq: number,
            exp: number / 2,
            token: Consent([seed[5]; 16]),
            sig: [seed[6]; 64],
        }
    }

    proptest! {
        #[test]
        fn round_trips(seed: [u8; 32], number: u64,
            route in prop::collection::vec(any::<u8>(), 0..200)) {
            let order = order(seed, number, route);
            prop_assert_eq!(Order::parse(&order.emit()), Ok(order));
        }

        #[test]
        fn any_bytes_parse_or_err(bytes: Vec<u8>) {
            let _ = Order::parse(&bytes);
        }
    }

    #[test]
    fn every_field_is_signed() {
        let base = order(
            [
                1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23,
                24, 25, 26, 27, 28, 29, 30, 31, 32,
            ],
            6,
            vec![1],
        );
        let other = NodeId::from_bytes([9; 32]);
        let changes: [&dyn Fn(&mut Order); 12] = [
            &|order| order.kind = OrderKind::DropBridge,
            &|order| order.session.0[0] ^= 1,
            &|order| order.leg = Uuid::nil(),
            &|order| order.bridge = Uuid::nil(),
            &|order| order.to = other,
            &|order| order.node = other,
            &|order| order.tracker = other,
            &|order| order.via = Via::Code,
            &|order| order.route.push(0),
            &|order| order.seq += 1,
            &|order| order.exp += 1,
            &|order| order.token.0[0] ^= 1,
        ];
        for (index, change) in changes.iter().enumerate() {
            let mut changed = base.clone();
            change(&mut changed);
            assert_ne!(changed.signed_bytes(), base.signed_bytes(), "change {index}");
        }
    }
}
