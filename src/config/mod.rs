//! Configuration: defaults, files, credentials, environment and flags, checked.
//!
//! In: TOML files, `CEPA_*` variables, flags. Out: one settings struct per role, and where each
//! value came from. Called by: cli, node, controller.
//!
//! ```text
//! defaults < /etc/cepa/<role>.toml < /etc/cepa/<role>.toml.d/*.toml
//!     < $CREDENTIALS_DIRECTORY/<key> (secret keys only) < CEPA_<KEY> < --<key>
//! ```
//!
//! A role's keys stand in one list (`settings!` in `node.rs`, `client.rs`, `controller.rs`); flags,
//! variables and file keys are all made from it.

mod cidr;
mod client;
mod controller;
mod error;
mod load;
mod node;
mod peer;
mod period;
mod secret;
mod setting;
mod tracker;

pub use cidr::{CableAddress, Cidr};
pub use client::ClientConfig;
pub use controller::{Admission, ControllerConfig};
pub use error::ConfigError;
pub use load::{Loaded, Loader, Origin};
pub use node::NodeConfig;
pub use peer::PeerConfig;
pub use period::Period;
pub use secret::Secret;
pub use setting::{Key, Kind, Setting, Settings, Wrong};
pub use tracker::TrackerConfig;

/// Defines one role's settings: a struct with a default for every key, and the list of its keys.
///
/// Each line reads `/// help` `name: Type = default, "VALUE"` and, after it, any of the marks
/// `global` (the flag is also valid after a subcommand), `secret` (never shown) and `planned`
/// (the key has a name, and no effect in this version: setting it is refused).
macro_rules! settings {
    (
        $(#[doc = $about:literal])+
        $name:ident for $role:literal {
            $(
                $(#[doc = $help:literal])+
                $key:ident: $type:ty = $default:expr, $value:literal $(, $mark:ident)*;
            )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $(
                $(#[doc = $help])+
                pub $key: $type,
            )+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)+ }
            }
        }

        impl $name {
            const KEY_LIST: &'static [$crate::config::Key] = &[
                $(
                    $crate::config::Key {
                        name: stringify!($key),
                        kind: <$type as $crate::config::Setting>::KIND,
                        expects: <$type as $crate::config::Setting>::EXPECTS,
                        value_name: $value,
                        help: &[$($help),+],
                        $($mark: true,)*
                        ..$crate::config::Key::PLAIN
                    },
                )+
            ];
            const ROLE_NAME: &'static str = $role;
        }
    };
}
use settings;
