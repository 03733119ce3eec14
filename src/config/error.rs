//! What can be wrong with a configuration, and what to do.
//!
//! In: findings of the loader. Out: messages that name the place. Called by: load, cli.

use std::path::PathBuf;

use super::Origin;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file that cannot be read.
    #[error("{}: cannot be read: {source}; check the path and its permissions", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file that is no TOML.
    #[error("{}:{line}: expected TOML, got: {message}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The parser's reason.
        message: String,
    },
    /// A key that no setting has.
    #[error("{origin}: unknown key {key:?}; {hint}")]
    UnknownKey {
        /// Where it stands.
        origin: Origin,
        /// What stands there.
        key: String,
        /// The nearest valid key, or all of them.
        hint: String,
    },
    /// A value of the wrong type or out of range.
    #[error("{origin}: {key}: {why}")]
    Value {
        /// Where it stands.
        origin: Origin,
        /// The key it stands under.
        key: &'static str,
        /// "expected X, got Y; do Z".
        why: String,
    },
    /// A key that must be set and is not.
    #[error(
        "{key} is not set; give {flag}, set {variable}, or write {key} into {}", file.display()
    )]
    Missing {
        /// The key.
        key: &'static str,
        /// Its flag.
        flag: String,
        /// Its variable.
        variable: String,
        /// The role's main file.
        file: PathBuf,
    },
    /// The checked layers did not come together.
    #[error("the settings do not come together: {0}; report this as a bug")]
    Layers(#[from] config::ConfigError),
}
