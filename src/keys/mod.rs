//! Identities, the handshake, the key schedule and the hop layers.
//!
//! In: key material and bodies. Out: sealed or opened bytes, derived keys.
//! Called by: circuit, forward, directory.

mod aead;
mod backward;
mod bridge;
mod code;
mod error;
mod forward;
mod handshake;
mod identity;
mod schedule;
mod store;
mod stream;
#[cfg(test)]
pub(crate) mod test_keys;

/// Seeds the library's random generator on this thread. Its first use in a process takes tens of
/// milliseconds, which no handshake should have to wait for.
pub fn seed_randomness() {
    // A generator that fails says so where its numbers are needed.
    let _ = aws_lc_rs::rand::fill(&mut [0u8; 1]);
}

pub use aead::BadTag;
pub use backward::{BackwardLayer, LinkTag};
pub use bridge::{BridgeKeys, BridgeLayer, BridgeNames, ConsentKey};
pub use code::{
    CodeKeys, CodeRelayKeys, Recognised, agree_along, build_code, open_route, recognise, seal_route,
};
pub use error::KeyError;
pub use forward::{ForwardLayer, ForwardWrap, begin_wrap, seal_wrap, wrap};
pub use handshake::{
    COOKIE_LEN, Cookie, CookieJar, MAC_LEN, OAEP_LABEL, PairControl, mac1, mac2, open_cookie,
    seal_cookie, transcript,
};
pub use identity::{Identity, OnionKey, PublicIdentity, RSA_LEN, SPKI_LEN, onion_key_id};
pub use schedule::{HopKeys, PairKeys, RelayKeys};
pub use store::{ONION_KEY_GRACE, ONION_KEY_LIFE, OnionKeys, StateDir};
