//! The HTTP message of source 001: `POST /` on port 5000 with `{"CID", "payload"}`.
//!
//! In: the body of a request. Out: an address and bytes, or an order. Called by: node, tracker.
//!
//! ```text
//! {"CID": "<uuid>", "payload": "<base64>"}      cells, or a frame of a tracker leg; "" asks to poll
//! {"CID": "control", "payload": {...}}          an order of the tracker
//! ```

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Order, ShareWireError};
use crate::model::{CELL_LEN, CID_LEN, Cid};

/// Cells of one message, at most.
const MAX_CELLS: usize = 32;
/// The longest payload, in bytes before base64: 32 cells without their circuit ids.
pub const MAX_PAYLOAD_LEN: usize = MAX_CELLS * (CELL_LEN - CID_LEN);
/// The longest message.
pub const MAX_ENVELOPE_LEN: usize = MAX_PAYLOAD_LEN.div_ceil(3) * 4 + 128;
/// The longest order, as JSON.
const MAX_ORDER_LEN: usize = 8 * 1024;

/// Where an envelope belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Address {
    /// A circuit, or a leg to a tracker.
    Circuit(Cid),
    /// The exit itself.
    Control,
}

/// A message between members over HTTP.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Envelope {
    /// Bytes of a circuit or of a leg.
    Bytes {
        /// Which.
        cid: Cid,
        /// The bytes; empty asks for what waits in the other direction.
        payload: Vec<u8>,
    },
    /// An order of the tracker.
    Order(Box<Order>),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Json<'a> {
    #[serde(rename = "CID", borrow)]
    cid: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    payload: &'a RawValue,
}

impl Envelope {
    /// Reads the body of a request.
    ///
    /// # Errors
    /// When it is too long or no such JSON, or the base64, the UUID or the order is off.
    pub fn parse(body: &[u8]) -> Result<Self, ShareWireError> {
        if body.len() > MAX_ENVELOPE_LEN {
            return Err(ShareWireError::TooLong {
                what: "message",
                most: MAX_ENVELOPE_LEN,
                got: body.len(),
            });
        }
        let expected = "{\"CID\", \"payload\"}";
        let json: Json<'_> = serde_json::from_slice(body)
            .map_err(|error| ShareWireError::malformed(expected, error))?;
        let payload = json.payload.get();
        if json.cid == "control" {
            if payload.len() > MAX_ORDER_LEN {
                return Err(ShareWireError::TooLong {
                    what: "order",
                    most: MAX_ORDER_LEN,
                    got: payload.len(),
                });
            }
            return Order::parse(payload.as_bytes()).map(|order| Self::Order(Box::new(order)));
        }
        let uuid = uuid::Uuid::parse_str(&json.cid)
            .map_err(|error| ShareWireError::malformed("a UUID or \"control\" as CID", error))?;
        let text: std::borrow::Cow<'_, str> = serde_json::from_str(payload)
            .map_err(|error| ShareWireError::malformed("a payload of base64", error))?;
        let payload = BASE64
            .decode(text.as_bytes())
            .map_err(|error| ShareWireError::malformed("a payload of base64", error))?;
        Ok(Self::Bytes { cid: Cid::from_bytes(*uuid.as_bytes()), payload })
    }

    /// The body of a request that carries `payload` for `cid`.
    pub fn emit_bytes(cid: Cid, payload: &[u8]) -> Vec<u8> {
        let mut body = format!("{{\"CID\":\"{}\",\"payload\":\"", cid.uuid());
        BASE64.encode_string(payload, &mut body);
        body.push_str("\"}");
        body.into_bytes()
    }

    /// The body of a request that carries an order.
    pub fn emit_order(order: &Order) -> Vec<u8> {
        let mut body = b"{\"CID\":\"control\",\"payload\":".to_vec();
        body.extend(order.emit());
        body.push(b'}');
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_round_trip(
            cid: [u8; 16], payload in prop::collection::vec(any::<u8>(), 0..3000),
        ) {
            let cid = Cid::from_bytes(cid);
            let body = Envelope::emit_bytes(cid, &payload);
            prop_assert_eq!(Envelope::parse(&body), Ok(Envelope::Bytes { cid, payload }));
        }

        #[test]
        fn any_bytes_parse_or_err(bytes: Vec<u8>) {
            let _ = Envelope::parse(&bytes);
        }
    }

    #[test]
    fn the_longest_message_fits() {
        let body = Envelope::emit_bytes(Cid::from_bytes([0xff; 16]), &vec![7; MAX_PAYLOAD_LEN]);
        assert!(body.len() <= MAX_ENVELOPE_LEN, "{}", body.len());
        assert!(Envelope::parse(&body).is_ok());
        let body = Envelope::emit_bytes(Cid::from_bytes([0xff; 16]), &vec![7; 2 * MAX_PAYLOAD_LEN]);
        assert!(matches!(Envelope::parse(&body), Err(ShareWireError::TooLong { .. })));
    }

    #[test]
    fn strangers_get_reasons() {
        for (body, part) in [
            (r#"{"CID":"zebra","payload":""}"#, "UUID"),
            (r#"{"CID":"35ce8f75-6b57-4824-8597-dd756c75a9c5","payload":"%%"}"#, "base64"),
            (r#"{"CID":"35ce8f75-6b57-4824-8597-dd756c75a9c5"}"#, "payload"),
            (r#"{"CID":"control","payload":"x"}"#, "an order"),
            ("[[[[[[[[", "CID"),
        ] {
            let error = Envelope::parse(body.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
