//! What a key is: its name, its type in words, and how text becomes its value.
//!
//! In: the lists of `node.rs`, `client.rs`, `controller.rs`. Out: [`Key`], [`Settings`].
//! Called by: load (files and variables), cli (flags and help).

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use super::{Admission, CableAddress, Cidr, Period, Secret};
use crate::{
    directory::{ControllerLink, JoinToken, check_name, is_label},
    model::{Carrier, ExitPolicy, Suite},
};

/// How a value is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `true` or `false`; as a flag it needs no value.
    Switch,
    /// A whole number.
    Number,
    /// A string.
    Text,
    /// An array of strings; comma-separated in variables and flags, and flags may repeat.
    List,
}

/// One key of a role.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its name in files; `CEPA_<NAME>` and `--<name>` (with dashes) are made from it.
    pub name: &'static str,
    /// How its value is written.
    pub kind: Kind,
    /// What is accepted, in words that follow "expected".
    pub expects: &'static str,
    /// The placeholder in the help text.
    pub value_name: &'static str,
    /// The help text, line by line.
    pub help: &'static [&'static str],
    /// Whether the flag is also valid after a subcommand.
    pub global: bool,
    /// Whether the value is never shown.
    pub secret: bool,
    /// Whether this version refuses it: it has a name, and no effect yet.
    pub planned: bool,
}

impl Key {
    /// What a key is unless its line says otherwise.
    pub const PLAIN: Self = Self {
        name: "",
        kind: Kind::Text,
        expects: "",
        value_name: "",
        help: &[],
        global: false,
        secret: false,
        planned: false,
    };

    /// The environment variable of this key.
    pub fn variable(&self) -> String {
        format!("CEPA_{}", self.name.to_uppercase())
    }

    /// The flag of this key, without the dashes before it.
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }

    /// The value that `texts`, from a variable or a flag, stands for.
    pub(super) fn value_of(&self, texts: &[String]) -> toml::Value {
        let text = texts.last().map_or("", String::as_str);
        match self.kind {
            Kind::Switch => match text {
                "true" | "1" | "yes" => toml::Value::Boolean(true),
                "false" | "0" | "no" => toml::Value::Boolean(false),
                other => toml::Value::String(other.to_owned()),
            },
            Kind::Number => text
                .replace('_', "")
                .parse()
                .map_or_else(|_| toml::Value::String(text.to_owned()), toml::Value::Integer),
            Kind::Text => toml::Value::String(text.to_owned()),
            Kind::List => texts
                .iter()
                .flat_map(|text| text.split(','))
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .collect::<Vec<_>>()
                .into(),
        }
    }
}

/// A value that is well-formed and still not allowed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wrong {
    /// The key it stands under.
    pub key: &'static str,
    /// "expected X, got Y; do Z".
    pub why: String,
}

impl Wrong {
    /// A refusal of the value of `key`.
    pub fn new(key: &'static str, why: impl Into<String>) -> Self {
        Self { key, why: why.into() }
    }
}

/// The settings of one role.
pub trait Settings: Default + Clone + serde::Serialize + serde::de::DeserializeOwned {
    /// The role's name, which is also its subcommand and the stem of its file.
    const ROLE: &'static str;
    /// Every key, in the order of the help text.
    const KEYS: &'static [Key];

    /// Checks ranges and what keys mean together.
    ///
    /// # Errors
    /// The first key that is not allowed, and what to do.
    fn check(&self) -> Result<(), Wrong>;

    /// The log level, which every role has.
    fn log_level(&self) -> &str;
}

/// A type that can stand under a key.
pub trait Setting {
    /// How it is written.
    const KIND: Kind;
    /// What is accepted, in words that follow "expected".
    const EXPECTS: &'static str;
}

macro_rules! setting {
    ($($type:ty: $kind:ident, $expects:literal;)+) => {
        $(
            impl Setting for $type {
                const KIND: Kind = Kind::$kind;
                const EXPECTS: &'static str = $expects;
            }
        )+
    };
}

setting! {
    bool: Switch, "true or false";
    u8: Number, "a whole number from 0 to 255";
    u16: Number, "a whole number from 0 to 65535";
    u32: Number, "a whole number from 0 to 4294967295";
    u64: Number, "a whole number, 0 or more";
    String: Text, "text in quotes";
    PathBuf: Text, "a path in quotes";
    SocketAddr: Text, "\"IP:PORT\", such as \"0.0.0.0:5000\" or \"[::]:5000\"";
    IpAddr: Text, "an IP address in quotes";
    Cidr: Text, "\"ADDRESS/PREFIX\", such as \"10.0.0.0/8\" or \"2001:db8::/32\"";
    Period: Text, "a duration in quotes, such as \"30s\", \"10m\" or \"1h30m\"";
    Admission: Text, "\"token\" or \"open\"";
    Secret: Text, "text in quotes";
    ControllerLink: Text, "a link in quotes, as `cepa controller link` prints it";
    ExitPolicy: Text, "rules such as \"accept:*:443,reject:*\"";
    Carrier: Text, "\"udp\" or \"http\"";
    Suite: Text, "\"aes128gcm\" or \"chacha20poly1305\"";
    Vec<String>: List, "a list of texts, such as [\"a\", \"b\"]";
    Vec<Cidr>: List, "a list of \"ADDRESS/PREFIX\", such as [\"0.0.0.0/0\", \"::/0\"]";
    Vec<CableAddress>: List, "a list of \"ADDRESS/PREFIX\", such as [\"192.168.77.1/24\", \"fd78::1/64\"]";
    Vec<Suite>: List, "a list of \"aes128gcm\" and \"chacha20poly1305\"";
}

impl<T: Setting> Setting for Option<T> {
    const KIND: Kind = T::KIND;
    const EXPECTS: &'static str = T::EXPECTS;
}

/// The network of a default, which is known to be one.
pub(super) const fn network(address: IpAddr, prefix: u8) -> Cidr {
    Cidr { address, prefix }
}

/// Refuses what is no log level.
pub(super) fn check_log(level: &str) -> Result<(), Wrong> {
    match level.parse::<log::LevelFilter>() {
        Ok(_) => Ok(()),
        Err(_) => Err(Wrong::new(
            "log",
            format!("expected error, warn, info, debug, trace or off, got {level:?}"),
        )),
    }
}

/// Refuses names the kernel takes for no interface.
pub(super) fn check_interface(key: &'static str, name: &str) -> Result<(), Wrong> {
    let fits = |c: char| c.is_ascii_graphic() && c != '/';
    if (1..=15).contains(&name.len()) && name.chars().all(fits) && name != "." && name != ".." {
        return Ok(());
    }
    Err(Wrong::new(key, format!("expected an interface name of 1 to 15 characters, got {name:?}")))
}

/// Refuses what is not `HOST:PORT`.
pub(super) fn check_host_port(key: &'static str, text: &str) -> Result<(), Wrong> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0) => {
            Ok(())
        }
        _ => Err(Wrong::new(key, format!("expected HOST:PORT, got {text:?}"))),
    }
}

/// Refuses addresses for metrics that others could reach.
pub(super) fn check_metrics(addr: Option<SocketAddr>) -> Result<(), Wrong> {
    match addr {
        Some(addr) if !addr.ip().is_loopback() => Err(Wrong::new(
            "metrics",
            format!("expected an address of the loopback, such as 127.0.0.1:9150, got {addr}"),
        )),
        _ => Ok(()),
    }
}

/// Checks what every member of the directory is told: its name, its operator, its join token.
pub(super) fn check_member(
    name: Option<&str>,
    operator: Option<&str>,
    join: Option<&Secret>,
) -> Result<(), Wrong> {
    if let Some(name) = name {
        check_name(name).map_err(|error| Wrong::new("name", error.to_string()))?;
    }
    if let Some(operator) = operator.filter(|operator| !is_label(operator)) {
        return Err(Wrong::new(
            "operator",
            format!("expected 1 to 64 printable ASCII characters, got {operator:?}"),
        ));
    }
    if join.is_some_and(|join| join.reveal().parse::<JoinToken>().is_err()) {
        return Err(Wrong::new(
            "join",
            "expected a token as `cepa controller token new` prints it (cepa-join://...), got \
             something else",
        ));
    }
    Ok(())
}

/// Refuses more threads than a daemon has use for; its unit allows 64 tasks in all.
pub(super) fn check_workers(workers: u8) -> Result<(), Wrong> {
    if workers <= 16 {
        return Ok(());
    }
    Err(Wrong::new("workers", format!("expected 0 to 16, got {workers}")))
}

/// Refuses numbers under `least`.
pub(super) fn check_at_least(key: &'static str, value: u64, least: u64) -> Result<(), Wrong> {
    if value >= least {
        return Ok(());
    }
    Err(Wrong::new(key, format!("expected at least {least}, got {value}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(kind: Kind) -> Key {
        Key { name: "idle_after", kind, ..Key::PLAIN }
    }

    #[test]
    fn names_of_one_key() {
        assert_eq!(key(Kind::Text).variable(), "CEPA_IDLE_AFTER");
        assert_eq!(key(Kind::Text).flag(), "idle-after");
    }

    #[test]
    fn text_becomes_a_value_of_the_kind() {
        let list = key(Kind::List).value_of(&["a, b".to_owned(), "c".to_owned()]);
        assert_eq!(list, toml::Value::from(vec!["a", "b", "c"]));
        assert_eq!(key(Kind::Number).value_of(&["1_000".to_owned()]), toml::Value::Integer(1000));
        assert_eq!(key(Kind::Number).value_of(&["x".to_owned()]), toml::Value::from("x"));
        assert_eq!(key(Kind::Switch).value_of(&["yes".to_owned()]), toml::Value::Boolean(true));
    }
}
