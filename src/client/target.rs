//! Where a proxy is asked to connect to.
//!
//! In: names and addresses of requests. Out: checked targets. Called by: the proxies' parsers.

use std::net::{IpAddr, SocketAddr};

/// A host by address or by a name that the exit resolves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Host {
    /// An address.
    Address(IpAddr),
    /// A name in lower case, without a dot at its end.
    Name(String),
}

/// A host and a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// The host.
    pub host: Host,
    /// The port.
    pub port: u16,
}

/// Why a name is not resolved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NameRefused {
    /// It is no name of a host.
    #[error("expected a host name of at most 253 letters, digits, dots, - and _")]
    Malformed,
    /// Names that mean nothing in the public DNS (RFC 6761, 6762, 7686).
    #[error("names that end in .localhost, .local, .onion, .invalid and .test are not resolved")]
    SpecialUse,
}

const SPECIAL: [&str; 5] = ["localhost", "local", "onion", "invalid", "test"];

/// Checks a name and brings it into the form that is asked for.
///
/// # Errors
/// When it is malformed, or of a kind that must not be asked for in the public DNS.
pub fn check_name(name: &str) -> Result<String, NameRefused> {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    if name.is_empty() || name.len() > 253 || !name.split('.').all(is_label) {
        return Err(NameRefused::Malformed);
    }
    let last = name.rsplit('.').next().unwrap_or_default();
    // A name whose last label is a number is an address that somebody wrote wrongly.
    if last.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(NameRefused::Malformed);
    }
    if SPECIAL.contains(&last) {
        return Err(NameRefused::SpecialUse);
    }
    Ok(name)
}

impl Target {
    /// From a host in words: an address, an IPv6 address in brackets, or a name.
    ///
    /// # Errors
    /// When the name is refused.
    pub fn new(host: &str, port: u16) -> Result<Self, NameRefused> {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let host = match bare.parse::<IpAddr>() {
            Ok(address) => Host::Address(address.to_canonical()),
            Err(_) => Host::Name(check_name(host)?),
        };
        Ok(Self { host, port })
    }
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self { host: Host::Address(address.ip().to_canonical()), port: address.port() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_and_addresses_are_taken_as_such() {
        let name = |text: &str| Host::Name(text.to_owned());
        assert_eq!(Target::new("WWW.Example.ORG.", 80).unwrap().host, name("www.example.org"));
        assert_eq!(Target::new("_a-1.b", 80).unwrap().host, name("_a-1.b"));
        for address in ["192.0.2.1", "2001:db8::1", "[2001:db8::1]", "::ffff:192.0.2.1"] {
            assert!(matches!(Target::new(address, 1).unwrap().host, Host::Address(_)), "{address}");
        }
        for wrong in ["", ".", "a..b", "a b", "a\0", "1.2.3", "1.2.3.4.5", "é.org", &"a".repeat(64)]
        {
            assert_eq!(Target::new(wrong, 1), Err(NameRefused::Malformed), "{wrong:?}");
        }
        for special in ["localhost", "printer.local", "abc.onion", "x.localhost."] {
            assert_eq!(Target::new(special, 1), Err(NameRefused::SpecialUse), "{special:?}");
        }
    }
}
