//! What a member of the directory does.
//!
//! In: a name. Out: a typed role. Called by: directory, controller, config.

use std::{fmt, str::FromStr};

/// A role in the directory. Every node relays; an exit also lets packets out.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Passes cells on.
    Relay,
    /// Passes inner packets out to the network behind it.
    Exit,
    /// Joins sharing peers.
    Tracker,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 3] = [Self::Relay, Self::Exit, Self::Tracker];

    /// The name used in descriptors and queries.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Exit => "exit",
            Self::Tracker => "tracker",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|role| role.name() == text)
            .ok_or_else(|| format!("expected a role (relay, exit, tracker), got {text:?}"))
    }
}
