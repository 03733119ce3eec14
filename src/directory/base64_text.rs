//! Bytes as base64 text in JSON (RFC 4648, section 4, with padding).
//!
//! In: bytes or text. Out: the other. Called by: every signed document of this folder.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serializer, de::Error};

/// For `#[serde(with = "base64_text")]`.
pub(crate) fn serialize<S: Serializer, B: AsRef<[u8]>>(
    bytes: &B,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(bytes))
}

/// For `#[serde(with = "base64_text")]`: a vector, or an array of exactly its length.
pub(crate) fn deserialize<'de, D: Deserializer<'de>, B: TryFrom<Vec<u8>>>(
    deserializer: D,
) -> Result<B, D::Error> {
    let text = String::deserialize(deserializer)?;
    let bytes = STANDARD
        .decode(&text)
        .map_err(|error| D::Error::custom(format!("expected base64 text, got {error}")))?;
    let got = bytes.len();
    B::try_from(bytes).map_err(|_| {
        D::Error::custom(format!("expected {} bytes as base64, got {got}", size_of::<B>()))
    })
}

/// The same for a value that may be absent.
pub(super) mod optional {
    use super::*;

    pub(in super::super) fn serialize<T: AsRef<[u8]>, S: Serializer>(
        bytes: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match bytes {
            Some(bytes) => super::serialize(bytes, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(in super::super) fn deserialize<'de, T: TryFrom<Vec<u8>>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<T>, D::Error> {
        super::deserialize(deserializer).map(Some)
    }
}
