//! Identities, the handshake, the key schedule and the hop layers.
//!
//! In: key material and bodies. Out: sealed or opened bytes, derived keys.
//! Called by: circuit, forward, directory.
