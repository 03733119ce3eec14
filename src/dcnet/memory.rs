//! What a party must not forget when its program ends, as it stands in its private
//! `{id}-{session}-memory.json`.
//!
//! In: a client's or trustee's state. Out: the same, for the program that starts next.
//! Called by: the client and the trustee core; [`crate::dcnet::store`] reads and writes it.
//!
//! That no round is ever answered over two sets does not hang on it: every link has a fresh nonce,
//! and with it other pads.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::dcnet::member::PartyRef;

/// A client's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ClientMemory {
    /// The members of every set the pseudonym may have spoken in, by index; none if it never has.
    pub spoken: Option<BTreeSet<u16>>,
    /// Whom a checked verdict has convicted.
    pub convicted: Vec<PartyRef>,
}

/// A trustee's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TrusteeMemory {
    /// The members of the last set it signed, by index.
    pub members: BTreeSet<u16>,
    /// When members were left out within the last hour, in Unix seconds.
    pub removals: Vec<u64>,
    /// Whom a checked verdict has convicted.
    pub convicted: Vec<PartyRef>,
}
