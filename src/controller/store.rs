//! What the controller remembers across restarts, and the seam where another store would go.
//!
//! In: records. Out: the same, after a restart, and decisions that must not race.
//! Called by: registration, the publisher, the watcher; implemented by the SQLite store.

use std::pin::Pin;

use jiff::Timestamp;

use super::ControllerError;
use crate::{
    directory::{SignedDescriptor, SignedDirectory, SignedKeyChange, TokenId, TokenSecret},
    model::{NodeId, Role},
};

/// The answer of a store, in the future.
pub(crate) type Answer<'a, T> =
    Pin<Box<dyn Future<Output = Result<T, ControllerError>> + Send + 'a>>;

/// What a token lets its holder be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenRole {
    /// A relay or an exit.
    #[default]
    Node,
    /// A tracker, and a relay besides.
    Tracker,
    /// Anything.
    Any,
}

impl TokenRole {
    /// All token roles.
    pub const ALL: [Self; 3] = [Self::Node, Self::Tracker, Self::Any];

    /// The name used in commands and the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Tracker => "tracker",
            Self::Any => "any",
        }
    }

    /// Whether a node with such a token may have `role`.
    pub const fn allows(self, role: Role) -> bool {
        match self {
            Self::Node => matches!(role, Role::Relay | Role::Exit),
            Self::Tracker => matches!(role, Role::Relay | Role::Tracker),
            Self::Any => true,
        }
    }
}

impl std::str::FromStr for TokenRole {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|role| role.name() == text)
            .ok_or_else(|| format!("expected node, tracker or any, got {text:?}"))
    }
}

/// A node as it is remembered.
#[derive(Clone, Debug)]
pub struct NodeRecord {
    /// SHA-256 of its public key.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// What it said of itself last.
    pub signed: SignedDescriptor,
    /// What it may be.
    pub allowed: TokenRole,
    /// The label of the token that let it in.
    pub label: Option<String>,
    /// When it was let in.
    pub admitted: Timestamp,
    /// When it renewed last, a little behind.
    pub last_seen: Timestamp,
    /// When it was taken out, if it was.
    pub revoked: Option<Timestamp>,
}

/// A join token as it is remembered.
#[derive(Clone, Debug)]
pub struct TokenRecord {
    /// Its public name.
    pub id: TokenId,
    /// What proves its possession; erased with the token's use, revocation or end.
    pub secret: Option<TokenSecret>,
    /// What it lets its holder be.
    pub role: TokenRole,
    /// A word for people.
    pub label: Option<String>,
    /// When it was made.
    pub created: Timestamp,
    /// When it ends.
    pub expires: Timestamp,
    /// Who used it, if anyone.
    pub used_by: Option<NodeId>,
    /// When it was revoked, if it was.
    pub revoked: Option<Timestamp>,
}

impl TokenRecord {
    /// Why the token lets nobody in at `now`; none if it does.
    pub fn refusal(&self, now: Timestamp) -> Option<&'static str> {
        if self.revoked.is_some() {
            Some("revoked")
        } else if self.used_by.is_some() {
            Some("used")
        } else if now > self.expires {
            Some("expired")
        } else {
            None
        }
    }
}

/// Everything that is remembered and that the running controller works with.
#[derive(Debug)]
pub(crate) struct Remembered {
    /// The fingerprint of the controller's key.
    pub(crate) key: NodeId,
    /// How that key came to be, the oldest change first.
    pub(crate) key_changes: Vec<SignedKeyChange>,
    /// All nodes, revoked ones included.
    pub(crate) nodes: Vec<NodeRecord>,
    /// The last directory and its version.
    pub(crate) directory: Option<(u64, SignedDirectory)>,
}

/// What became of a node that asked to be let in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Admitted {
    /// It is in.
    New,
    /// It was in already.
    Known,
    /// It is taken out.
    Revoked,
    /// Another node has the name.
    NameTaken(NodeId),
    /// The token has been used, revoked or has ended in the meantime.
    TokenGone(&'static str),
}

/// What the controller remembers.
pub(crate) trait Store: Send + Sync + 'static {
    /// Everything, at the start and after others changed it.
    fn load(&self) -> Answer<'_, Remembered>;
    /// A number that changes when another process changes what is remembered.
    fn changes_by_others(&self) -> Answer<'_, i64>;
    /// One token.
    fn token(&self, id: TokenId) -> Answer<'_, Option<TokenRecord>>;
    /// Lets a node in and uses up the token, or neither.
    fn admit(
        &self,
        node: NodeRecord,
        token: Option<TokenId>,
        now: Timestamp,
    ) -> Answer<'_, Admitted>;
    /// Remembers what known nodes said last and when they were seen; revoked ones stay as they
    /// are. Returns the owner of a name that is another node's; then nothing is changed.
    fn update(&self, nodes: Vec<NodeRecord>) -> Answer<'_, Option<NodeId>>;
    /// Remembers the directory of this version.
    fn publish(&self, version: u64, signed: SignedDirectory) -> Answer<'_, ()>;
    /// Remembers the `HOST:PORT` that links and tokens carry, for commands.
    fn set_authority(&self, authority: String) -> Answer<'_, ()>;
    /// Writes everything out and ends; whatever is asked later fails.
    fn close(&self) -> Answer<'_, ()>;
}
