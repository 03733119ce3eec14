//! The ciphers of one hop's layer.
//!
//! In: a wire number or a name. Out: a typed suite. Called by: keys, wire, directory, config.

use std::{fmt, str::FromStr};

/// The layer suite of a hop: same geometry, invisible on the wire.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Debug,
    Default,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Suite {
    /// AES-128-GCM forwards, AES-128-CTR backwards; for CPUs with AES instructions.
    #[default]
    Aes128Gcm = 1,
    /// ChaCha20-Poly1305 forwards, ChaCha20 backwards; for CPUs without.
    ChaCha20Poly1305 = 2,
}

impl Suite {
    /// All suites this program can use.
    pub const ALL: [Self; 2] = [Self::Aes128Gcm, Self::ChaCha20Poly1305];

    /// The suite of a wire number, if known.
    pub fn from_wire(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| *suite as u8 == number)
    }

    /// The name used in descriptors and settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes128Gcm => "aes128gcm",
            Self::ChaCha20Poly1305 => "chacha20poly1305",
        }
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Suite {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|suite| suite.name() == text)
            .ok_or_else(|| format!("expected a suite (aes128gcm, chacha20poly1305), got {text:?}"))
    }
}
