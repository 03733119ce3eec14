//! The main controller: asked for a node id, it answers public IP and public key.
//!
//! In: HTTP requests. Out: the signed directory.
//! Called by: cli.
//!
//! ```text
//! server -> router -> register -> admission by token -> registry -> publish -> GET /directory
//!                  -> query, download                      ^   \-> probe (UDP)
//! admin (another process) -> SQLite <- store <-------------/
//! ```

mod admin;
mod app;
mod body;
mod daemon;
mod download;
mod error;
mod keyring;
mod limit;
mod metrics;
mod probe;
mod problem;
mod publish;
mod query;
mod register;
mod registry;
mod router;
mod server;
mod settings;
mod sqlite;
mod store;

pub use admin::{Administration, KEY_OVERLAP, adopt_key};
pub use daemon::{Controller, run};
pub use error::ControllerError;
pub use settings::{Limits, Settings};
pub use store::{NodeRecord, TokenRecord, TokenRole};
