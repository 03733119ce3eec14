//! What is in the database: nodes, tokens, key changes and the last directory.
//!
//! In: records. Out: the same, after a restart. Called by: the daemon's store thread and the
//! administration commands, each with a connection of its own (WAL allows both at once).

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, TransactionBehavior, params};

use super::open::{Database, Result};
use crate::{
    controller::{
        ControllerError,
        store::{Admitted, NodeRecord, Remembered, TokenRecord},
    },
    directory::{SignedDescriptor, SignedDirectory, SignedKeyChange, TokenId, TokenSecret},
    model::NodeId,
};

const CURRENT_KEY: &str = "current_key";
const AUTHORITY: &str = "authority";

impl Database {
    /// The fingerprint of the controller's key; none before the first start is complete.
    pub(crate) fn current_key(&self) -> Result<Option<NodeId>> {
        let text: Option<String> = self
            .connection
            .query_row("SELECT value FROM meta WHERE key = ?1", [CURRENT_KEY], |row| row.get(0))
            .optional()
            .map_err(self.failed("read the current key"))?;
        let Some(text) = text else { return Ok(None) };
        let damaged = |_| ControllerError::Damaged {
            path: self.path.clone(),
            got: "a key fingerprint that is none".to_owned(),
        };
        text.parse().map(Some).map_err(damaged)
    }

    /// The `HOST:PORT` that the controller was last started with; none before.
    pub(crate) fn authority(&self) -> Result<Option<String>> {
        self.connection
            .query_row("SELECT value FROM meta WHERE key = ?1", [AUTHORITY], |row| row.get(0))
            .optional()
            .map_err(self.failed("read the address"))
    }

    /// Remembers the `HOST:PORT` that the controller is started with.
    pub(crate) fn set_authority(&mut self, authority: &str) -> Result<()> {
        self.connection
            .execute(
                "INSERT INTO meta (key, value) VALUES (?1, ?2)
                 ON CONFLICT (key) DO UPDATE SET value = ?2 WHERE value <> ?2",
                [AUTHORITY, authority],
            )
            .map(drop)
            .map_err(self.failed("write the address"))
    }

    /// Names the controller's key, and remembers how it came from `old`, if it did.
    pub(crate) fn set_current_key(
        &mut self,
        new: NodeId,
        change: Option<(NodeId, &SignedKeyChange)>,
    ) -> Result<bool> {
        let failed = self.failed("write the current key");
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(&failed)?;
        let made = match change {
            None => transaction.execute(
                "INSERT OR IGNORE INTO meta (key, value) VALUES (?1, ?2)",
                params![CURRENT_KEY, new.to_string()],
            ),
            Some((old, change)) => transaction
                .execute(
                    "UPDATE meta SET value = ?2 WHERE key = ?1 AND value = ?3",
                    params![CURRENT_KEY, new.to_string(), old.to_string()],
                )
                .and_then(|made| {
                    transaction.execute(
                        "INSERT INTO key_changes (change, signature) SELECT ?1, ?2 WHERE ?3",
                        params![change.bytes, change.signature, made == 1],
                    )
                }),
        }
        .map_err(&failed)?;
        transaction.commit().map_err(&failed)?;
        Ok(made == 1)
    }

    /// Everything the running controller works with; the key must have been named.
    pub(crate) fn load(&self) -> Result<Remembered> {
        let key = self.current_key()?.ok_or_else(|| ControllerError::Damaged {
            path: self.path.clone(),
            got: "one that names no key".to_owned(),
        })?;
        let key_changes = self.all(
            "SELECT change, signature FROM key_changes ORDER BY number",
            "read key changes",
            |row| Ok(SignedKeyChange { bytes: row.get(0)?, signature: row.get(1)? }),
        )?;
        let directory: Option<(i64, String)> = self
            .connection
            .query_row("SELECT version, signed FROM directory", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()
            .map_err(self.failed("read the directory"))?;
        let directory = match directory {
            Some((version, json)) => {
                let signed = SignedDirectory::parse(json.as_bytes()).map_err(|error| {
                    ControllerError::Damaged { path: self.path.clone(), got: error.to_string() }
                })?;
                Some((u64::try_from(version).unwrap_or(0), signed))
            }
            None => None,
        };
        Ok(Remembered { key, key_changes, nodes: self.nodes()?, directory })
    }

    /// All nodes, revoked ones included, by name.
    pub(crate) fn nodes(&self) -> Result<Vec<NodeRecord>> {
        self.all(
            "SELECT id, name, descriptor, signature, allowed, label, admitted, last_seen, revoked
             FROM nodes ORDER BY name, admitted",
            "read the nodes",
            |row| {
                Ok(NodeRecord {
                    id: NodeId::from_bytes(row.get(0)?),
                    name: row.get(1)?,
                    signed: SignedDescriptor { bytes: row.get(2)?, signature: row.get(3)? },
                    allowed: parsed(row, 4)?,
                    label: row.get(5)?,
                    admitted: time(row, 6)?,
                    last_seen: time(row, 7)?,
                    revoked: optional_time(row, 8)?,
                })
            },
        )
    }

    /// One token.
    pub(crate) fn token(&self, id: TokenId) -> Result<Option<TokenRecord>> {
        Ok(self.tokens()?.into_iter().find(|token| token.id == id))
    }

    /// All tokens, the oldest first.
    pub(crate) fn tokens(&self) -> Result<Vec<TokenRecord>> {
        self.all(
            "SELECT id, secret, role, label, created, expires, used_by, revoked
             FROM tokens ORDER BY created, id",
            "read the tokens",
            |row| {
                let secret: Option<[u8; 32]> = row.get(1)?;
                Ok(TokenRecord {
                    id: parsed(row, 0)?,
                    secret: secret.map(TokenSecret::from_bytes),
                    role: parsed(row, 2)?,
                    label: row.get(3)?,
                    created: time(row, 4)?,
                    expires: time(row, 5)?,
                    used_by: row.get::<_, Option<[u8; 32]>>(6)?.map(NodeId::from_bytes),
                    revoked: optional_time(row, 7)?,
                })
            },
        )
    }

    /// Remembers a new token, and forgets the secrets of those that have ended.
    pub(crate) fn add_token(&mut self, token: &TokenRecord) -> Result<()> {
        let secret = token.secret.as_ref().map(TokenSecret::as_bytes);
        let failed = self.failed("add a token");
        self.connection
            .execute(
                "INSERT INTO tokens (id, secret, role, label, created, expires)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![
                    token.id.to_string(),
                    secret,
                    token.role.name(),
                    token.label,
                    millis(token.created),
                    millis(token.expires)
                ],
            )
            .and_then(|_| {
                self.connection.execute(
                    "UPDATE tokens SET secret = NULL WHERE expires < ?1",
                    [millis(token.created)],
                )
            })
            .map(drop)
            .map_err(failed)
    }

    /// Revokes an unused token; false if there is none such.
    pub(crate) fn revoke_token(&mut self, id: TokenId, now: Timestamp) -> Result<bool> {
        self.connection
            .execute(
                "UPDATE tokens SET revoked = ?2, secret = NULL
                 WHERE id = ?1 AND revoked IS NULL AND used_by IS NULL",
                params![id.to_string(), millis(now)],
            )
            .map(|changed| changed == 1)
            .map_err(self.failed("revoke a token"))
    }

    /// Takes a node out; false if it is not in.
    pub(crate) fn revoke_node(&mut self, id: NodeId, now: Timestamp) -> Result<bool> {
        self.connection
            .execute(
                "UPDATE nodes SET revoked = ?2 WHERE id = ?1 AND revoked IS NULL",
                params![id.as_bytes(), millis(now)],
            )
            .map(|changed| changed == 1)
            .map_err(self.failed("revoke a node"))
    }

    /// Lets a node in and uses up the token, or neither.
    pub(crate) fn admit(
        &mut self,
        node: &NodeRecord,
        token: Option<TokenId>,
        now: Timestamp,
    ) -> Result<Admitted> {
        let failed = self.failed("admit a node");
        let known: Option<Option<i64>> = self
            .connection
            .query_row("SELECT revoked FROM nodes WHERE id = ?1", [node.id.as_bytes()], |row| {
                row.get(0)
            })
            .optional()
            .map_err(&failed)?;
        match known {
            Some(None) => return Ok(Admitted::Known),
            Some(Some(_)) => return Ok(Admitted::Revoked),
            None => {}
        }
        if let Some(owner) = self.owner_of(&node.name, node.id)? {
            return Ok(Admitted::NameTaken(owner));
        }
        if let Some(id) = token {
            let refusal = self.token(id)?.map_or(Some("unknown"), |token| token.refusal(now));
            if let Some(refusal) = refusal {
                return Ok(Admitted::TokenGone(refusal));
            }
        }
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(&failed)?;
        let used = match token {
            Some(id) => transaction
                .execute(
                    "UPDATE tokens SET used_by = ?2, secret = NULL
                     WHERE id = ?1 AND used_by IS NULL AND revoked IS NULL",
                    params![id.to_string(), node.id.as_bytes()],
                )
                .map_err(&failed)?,
            None => 1,
        };
        if used != 1 {
            return Ok(Admitted::TokenGone("used"));
        }
        transaction
            .execute(
                "INSERT INTO nodes (id, name, descriptor, signature, allowed, label, admitted,
                                    last_seen)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                params![
                    node.id.as_bytes(),
                    node.name,
                    node.signed.bytes,
                    node.signed.signature,
                    node.allowed.name(),
                    node.label,
                    millis(node.admitted),
                    millis(node.last_seen)
                ],
            )
            .map_err(&failed)?;
        transaction.commit().map_err(&failed)?;
        Ok(Admitted::New)
    }

    /// The node other than `but` that has this name.
    fn owner_of(&self, name: &str, but: NodeId) -> Result<Option<NodeId>> {
        self.connection
            .query_row(
                "SELECT id FROM nodes WHERE name = ?1 AND revoked IS NULL AND id <> ?2",
                params![name, but.as_bytes()],
                |row| row.get(0),
            )
            .optional()
            .map(|id| id.map(NodeId::from_bytes))
            .map_err(self.failed("look up a name"))
    }

    /// Remembers what known nodes said last, or nothing if a name is another node's.
    pub(crate) fn update(&mut self, nodes: &[NodeRecord]) -> Result<Option<NodeId>> {
        for node in nodes {
            if let Some(owner) = self.owner_of(&node.name, node.id)? {
                return Ok(Some(owner));
            }
        }
        let failed = self.failed("update the nodes");
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(&failed)?;
        for node in nodes {
            transaction
                .execute(
                    "UPDATE nodes SET name = ?2, descriptor = ?3, signature = ?4, last_seen = ?5
                     WHERE id = ?1 AND revoked IS NULL",
                    params![
                        node.id.as_bytes(),
                        node.name,
                        node.signed.bytes,
                        node.signed.signature,
                        millis(node.last_seen)
                    ],
                )
                .map_err(&failed)?;
        }
        transaction.commit().map_err(&failed)?;
        Ok(None)
    }

    /// Remembers the directory of this version.
    pub(crate) fn publish(&mut self, version: u64, json: &str) -> Result<()> {
        self.connection
            .execute(
                "INSERT INTO directory (only, version, signed) VALUES (1, ?1, ?2)
                 ON CONFLICT (only) DO UPDATE SET version = ?1, signed = ?2",
                params![i64::try_from(version).unwrap_or(i64::MAX), json],
            )
            .map(drop)
            .map_err(self.failed("write the directory"))
    }

    /// A number that changes when another connection changes the database.
    pub(crate) fn data_version(&self) -> Result<i64> {
        self.connection
            .query_row("PRAGMA data_version", [], |row| row.get(0))
            .map_err(self.failed("look for changes"))
    }

    fn all<T>(
        &self,
        sql: &str,
        action: &'static str,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let failed = self.failed(action);
        let mut statement = self.connection.prepare_cached(sql).map_err(&failed)?;
        let rows = statement.query_map([], read).map_err(&failed)?;
        rows.collect::<rusqlite::Result<_>>().map_err(&failed)
    }
}

/// A column that holds a word.
fn parsed<T: std::str::FromStr>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T::Err: std::fmt::Display,
{
    let text: String = row.get(column)?;
    text.parse().map_err(|error: T::Err| conversion(column, error.to_string()))
}

fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<Timestamp> {
    Timestamp::from_millisecond(row.get(column)?)
        .map_err(|error| conversion(column, error.to_string()))
}

fn optional_time(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Timestamp>> {
    match row.get::<_, Option<i64>>(column)? {
        Some(_) => time(row, column).map(Some),
        None => Ok(None),
    }
}

fn millis(time: Timestamp) -> i64 {
    time.as_millisecond()
}

fn conversion(column: usize, text: String) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, text.into())
}
