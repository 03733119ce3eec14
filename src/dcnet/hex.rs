//! Byte strings of fixed length that stand as hexadecimal text in the JSON files.
//!
//! In: bytes or hex text. Out: [`Hex`], comparable and printable; text is parsed strictly.
//! Called by: the configuration formats in [`crate::dcnet::group`].

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroize;

/// `N` bytes, written as `2 N` lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hex<const N: usize>(pub [u8; N]);

impl<const N: usize> Zeroize for Hex<N> {
    fn zeroize(&mut self) {
        self.0.zeroize();
    }
}

/// Hex text of any length.
pub fn encode(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// The bytes of hex text.
///
/// # Errors
/// On an odd length or a character that is no hex digit, with what was expected.
pub fn decode(text: &str) -> Result<Vec<u8>, String> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return Err(format!("expected an even number of hex digits, got {}", digits.len()));
    }
    let value = |digit: u8| {
        char::from(digit)
            .to_digit(16)
            .and_then(|value| u8::try_from(value).ok())
            .ok_or_else(|| format!("expected hex digits, got {:?}", char::from(digit)))
    };
    digits.chunks_exact(2).map(|pair| Ok(value(pair[0])? << 4 | value(pair[1])?)).collect()
}

impl<const N: usize> fmt::Display for Hex<N> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&encode(&self.0))
    }
}

impl<const N: usize> fmt::Debug for Hex<N> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl<const N: usize> FromStr for Hex<N> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = decode(text)?;
        let got = bytes.len();
        bytes
            .try_into()
            .map(Self)
            .map_err(|_| format!("expected {} hex digits, got {}", 2 * N, 2 * got))
    }
}

impl<const N: usize> Serialize for Hex<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Serde form of a byte vector as hex text.
pub mod vec {
    use super::{Deserialize, Deserializer, Serializer, de, decode, encode};

    /// Writes hex text.
    ///
    /// # Errors
    /// As the serializer does.
    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&encode(bytes))
    }

    /// Reads hex text.
    ///
    /// # Errors
    /// On text that is not hex.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        decode(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let value = Hex([0_u8, 1, 0xab, 0xff]);
        assert_eq!(value.to_string(), "0001abff");
        assert_eq!("0001abff".parse::<Hex<4>>().unwrap(), value);
        assert!("0001abf".parse::<Hex<4>>().is_err());
        assert!("0001abfg".parse::<Hex<4>>().is_err());
        assert!("0001ab".parse::<Hex<4>>().unwrap_err().contains("expected 8"));
    }
}
