//! Identities, the handshake, the key schedule and the hop layers.
//!
//! In: key material and bodies. Out: sealed or opened bytes, derived keys.
//! Called by: circuit, forward, directory.

mod error;
mod identity;
#[cfg(test)]
pub(crate) mod test_keys;

pub use error::KeyError;
pub use identity::{Identity, OnionKey, PublicIdentity, RSA_LEN, SPKI_LEN, onion_key_id};
