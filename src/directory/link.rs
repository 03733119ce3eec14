//! How a controller is named: where it is and which key it has.
//!
//! In: text such as `cepa://192.0.2.1:5000/<fingerprint>`. Out: a link, or a join token.
//! Called by: config, cli, controller, the HTTP client.
//!
//! ```text
//! link   cepa://HOST:PORT/FINGERPRINT                    FINGERPRINT = SHA-256 of the SPKI, hex
//! token  cepa-join://HOST:PORT/FINGERPRINT/ID/SECRET     ID = 8 bytes hex, SECRET = 32 bytes hex
//! ```
//! The secret of a token is never sent: a MAC over the descriptor under it is.

use std::{fmt, str::FromStr};

use aws_lc_rs::hmac;
use rand::Rng;
use zeroize::Zeroizing;

use super::DirectoryError;
use crate::model::NodeId;

const LINK_SCHEME: &str = "cepa://";
const LINK_EXAMPLE: &str = "cepa://192.0.2.1:5000/64-hex-digits (print it: cepa controller link)";
const TOKEN_SCHEME: &str = "cepa-join://";
const TOKEN_EXAMPLE: &str = "cepa-join://192.0.2.1:5000/64-hex-digits/16-hex-digits/64-hex-digits \
                             (make one: cepa controller token new)";
const DEFAULT_PORT: u16 = 5000;
const JOIN_LABEL: &[u8] = b"cepa-join-v1\n";

/// Where the controller is, and the hash of its public key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ControllerLink {
    host: String,
    port: u16,
    fingerprint: NodeId,
}

impl ControllerLink {
    /// A link to the controller at `host` (a name or an address, without brackets).
    ///
    /// # Errors
    /// [`DirectoryError::Link`] when the host cannot stand in a link.
    pub fn new(host: &str, port: u16, fingerprint: NodeId) -> Result<Self, DirectoryError> {
        let is_v6 = host.parse::<std::net::Ipv6Addr>().is_ok();
        let is_name = (1..=253).contains(&host.len())
            && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
            && !host.starts_with(['-', '.']);
        if !(is_v6 || is_name) || port == 0 {
            return Err(DirectoryError::Link {
                kind: "controller link",
                example: LINK_EXAMPLE,
                got: shown(host),
            });
        }
        Ok(Self { host: host.to_ascii_lowercase(), port, fingerprint })
    }

    /// The host, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The hash of the controller's public key.
    pub const fn fingerprint(&self) -> NodeId {
        self.fingerprint
    }

    /// `HOST:PORT`, with brackets around an IPv6 address.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// `http://HOST:PORT`: what it answers is signed, so the transport need not be.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.authority())
    }

    /// Parses `HOST:PORT/FINGERPRINT` and returns what follows the fingerprint.
    fn parse_rest(rest: &str) -> Option<(Self, &str)> {
        let (authority, rest) = rest.split_once('/')?;
        let (fingerprint, rest) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = match authority.strip_prefix('[') {
            Some(inner) => {
                let (host, port) = inner.split_once(']')?;
                host.parse::<std::net::Ipv6Addr>().ok()?;
                (host, port.strip_prefix(':'))
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let port = match port {
            Some(port) => port.parse().ok()?,
            None => DEFAULT_PORT,
        };
        Some((Self::new(host, port, fingerprint.parse().ok()?).ok()?, rest))
    }
}

impl fmt::Display for ControllerLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{LINK_SCHEME}{}/{}", self.authority(), self.fingerprint)
    }
}

impl FromStr for ControllerLink {
    type Err = DirectoryError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || DirectoryError::Link {
            kind: "controller link",
            example: LINK_EXAMPLE,
            // A token given by mistake must not appear in a log.
            got: shown(if text.starts_with(TOKEN_SCHEME) { "a join token" } else { text }),
        };
        let rest = text.trim().strip_prefix(LINK_SCHEME).ok_or_else(wrong)?;
        let (link, rest) =
            Self::parse_rest(rest.strip_suffix('/').unwrap_or(rest)).ok_or_else(wrong)?;
        if rest.is_empty() { Ok(link) } else { Err(wrong()) }
    }
}

impl serde::Serialize for ControllerLink {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for ControllerLink {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The first characters of a text that is shown in an error.
fn shown(text: &str) -> String {
    text.chars().take(120).collect()
}

/// The public name of a join token.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TokenId([u8; 8]);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

impl FromStr for TokenId {
    type Err = DirectoryError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        from_hex(text).map(Self).ok_or_else(|| DirectoryError::Link {
            kind: "token id",
            example: "0123456789abcdef (list them: cepa controller token list)",
            got: shown(text),
        })
    }
}

/// The secret of a join token; erased when dropped, never printed but in the token itself.
#[derive(Clone)]
pub struct TokenSecret(Zeroizing<[u8; 32]>);

impl TokenSecret {
    /// Takes the secret from its bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes, for the controller's store.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// HMAC-SHA-256 over the signed bytes of a descriptor.
    pub fn mac(&self, descriptor: &[u8]) -> Vec<u8> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &*self.0);
        hmac::sign(&key, &[JOIN_LABEL, descriptor].concat()).as_ref().to_vec()
    }

    /// Whether `mac` is that of `descriptor`, in constant time.
    pub fn accepts(&self, descriptor: &[u8], mac: &[u8]) -> bool {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &*self.0);
        hmac::verify(&key, &[JOIN_LABEL, descriptor].concat(), mac).is_ok()
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret(not shown)")
    }
}

/// A single-use right to register, with the link to the controller that gave it.
#[derive(Clone, Debug)]
pub struct JoinToken {
    /// The controller.
    pub link: ControllerLink,
    /// The token's public name.
    pub id: TokenId,
    /// What proves its possession.
    pub secret: TokenSecret,
}

impl JoinToken {
    /// Draws a token.
    pub fn generate(link: ControllerLink, rng: &mut impl Rng) -> Self {
        let mut id = [0; 8];
        rng.fill_bytes(&mut id);
        let mut secret = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut *secret);
        Self { link, id: TokenId(id), secret: TokenSecret(secret) }
    }

    /// The token with its secret, as it is printed once.
    pub fn reveal(&self) -> Zeroizing<String> {
        Zeroizing::new(format!(
            "{TOKEN_SCHEME}{}/{}/{}/{}",
            self.link.authority(),
            self.link.fingerprint,
            self.id,
            to_hex(self.secret.as_bytes())
        ))
    }
}

impl FromStr for JoinToken {
    type Err = DirectoryError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |got: &str| DirectoryError::Link {
            kind: "join token",
            example: TOKEN_EXAMPLE,
            got: got.to_owned(),
        };
        let parsed = text.trim().strip_prefix(TOKEN_SCHEME).and_then(ControllerLink::parse_rest);
        let Some((link, rest)) = parsed else {
            return Err(wrong(if text.starts_with(LINK_SCHEME) {
                "a controller link"
            } else {
                "another text (not shown: it may hold a secret)"
            }));
        };
        let parts = rest.split_once('/').and_then(|(id, secret)| {
            Some((id.parse().ok()?, TokenSecret::from_bytes(from_hex(secret)?)))
        });
        let (id, secret) = parts.ok_or_else(|| wrong("a token that was cut or changed"))?;
        Ok(Self { link, id, secret })
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; N];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;

    use super::*;

    fn link(host: &str, port: u16) -> ControllerLink {
        ControllerLink::new(host, port, NodeId::from_bytes([0xab; 32])).unwrap()
    }

    #[test]
    fn links_are_read_as_people_write_them() {
        let print = "ab".repeat(32);
        for (text, host, port) in [
            (format!("cepa://192.0.2.1:5000/{print}"), "192.0.2.1", 5000),
            (format!(" cepa://ctl.example:80/{print}/\n"), "ctl.example", 80),
            (format!("cepa://CTL.example/{}", print.to_uppercase()), "ctl.example", 5000),
            (format!("cepa://[2001:db8::1]:7/{print}"), "2001:db8::1", 7),
            (format!("cepa://[::1]/{print}"), "::1", 5000),
        ] {
            assert_eq!(text.parse::<ControllerLink>().unwrap(), link(host, port), "{text}");
        }
        assert_eq!(link("2001:db8::1", 7).base_url(), "http://[2001:db8::1]:7");
        assert_eq!(link("ctl.example", 5000).base_url(), "http://ctl.example:5000");
    }

    #[test]
    fn other_texts_are_refused_with_an_example() {
        let print = "ab".repeat(32);
        for text in [
            String::new(),
            "192.0.2.1:5000".into(),
            "cepa://".into(),
            "cepa://192.0.2.1:5000".into(),
            "cepa://192.0.2.1:5000/abcd".into(),
            format!("http://192.0.2.1:5000/{print}"),
            format!("cepa://192.0.2.1:0/{print}"),
            format!("cepa://192.0.2.1:65536/{print}"),
            format!("cepa://:5000/{print}"),
            format!("cepa://a b:5000/{print}"),
            format!("cepa://user@host:5000/{print}"),
            format!("cepa://2001:db8::1:5000/{print}"),
            format!("cepa://[192.0.2.1]:5000/{print}"),
            format!("cepa://192.0.2.1:5000/{print}/more"),
        ] {
            let error = text.parse::<ControllerLink>().unwrap_err().to_string();
            assert!(error.contains("cepa controller link"), "{text}: {error}");
        }
    }

    #[test]
    fn secrets_stay_out_of_errors_and_logs() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let token = JoinToken::generate(link("192.0.2.1", 5000), &mut rng);
        let secret = to_hex(token.secret.as_bytes());
        let text = token.reveal();
        assert!(text.ends_with(&secret));
        assert!(!format!("{token:?}").contains(&secret));
        let error = text.parse::<ControllerLink>().unwrap_err().to_string();
        assert!(!error.contains(&secret), "{error}");
        for cut in [text.len() - 1, text.len() - 10, 20, 3] {
            let error = text[..cut].parse::<JoinToken>().unwrap_err().to_string();
            assert!(!error.contains(&secret[..10]) && error.contains("token new"), "{error}");
        }
        let error = text.replace("cepa-join", "cepa_join").parse::<JoinToken>().unwrap_err();
        assert!(!error.to_string().contains(&secret));
    }

    #[test]
    fn a_mac_belongs_to_one_secret_and_one_descriptor() {
        let secret = TokenSecret::from_bytes([1; 32]);
        let mac = secret.mac(b"descriptor");
        assert!(secret.accepts(b"descriptor", &mac));
        assert!(!secret.accepts(b"Descriptor", &mac));
        assert!(!secret.accepts(b"descriptor", &mac[..31]));
        assert!(!secret.accepts(b"descriptor", &[]));
        assert!(!TokenSecret::from_bytes([2; 32]).accepts(b"descriptor", &mac));
    }

    proptest! {
        #[test]
        fn links_and_tokens_round_trip(
            host in "[a-z0-9]{1,10}(\\.[a-z0-9]{1,10}){0,3}", port in 1u16.., print: [u8; 32], seed: u64,
        ) {
            let link = ControllerLink::new(&host, port, NodeId::from_bytes(print)).unwrap();
            prop_assert_eq!(&link.to_string().parse::<ControllerLink>().unwrap(), &link);
            let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
            let token = JoinToken::generate(link.clone(), &mut rng);
            let again: JoinToken = token.reveal().parse().unwrap();
            prop_assert_eq!(again.link, link);
            prop_assert_eq!(again.id, token.id);
            prop_assert_eq!(again.secret.as_bytes(), token.secret.as_bytes());
        }

        #[test]
        fn any_text_is_a_link_or_an_error(text in "(cepa://|cepa-join://)?[ -~é/:\\[\\]]{0,80}") {
            if let Ok(link) = text.parse::<ControllerLink>() {
                prop_assert_eq!(link.to_string().parse::<ControllerLink>().unwrap(), link);
            }
            let _ = text.parse::<JoinToken>();
            let _ = text.parse::<TokenId>();
        }
    }
}
