//! Where an exit lets packets go: rules in order, the first match decides, safe defaults at the end.
//!
//! In: text such as `reject:198.51.100.0/24,accept:*:443,reject:*`. Out: yes or no per destination.
//! Called by: config (parses it), directory (carries it), forward (enforces it).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// The most rules one policy may have.
const MAX_RULES: usize = 256;

/// What an exit lets out.
///
/// Rules are tried in order and the first match decides. A destination that no rule matches is
/// rejected when its range is reserved (private, link-local, carrier-grade NAT, unique local),
/// and accepted otherwise. So `accept:*:443` alone changes nothing and `accept:*:443,reject:*`
/// lets out port 443 only.
///
/// An accept rule opens a reserved range only when its prefix is at least as long as that
/// range's: `accept:*` never does, `accept:192.168.7.0/24` does. Unspecified, loopback, multicast,
/// broadcast and IPv4-mapped destinations are never let out. An IPv6 address that carries an IPv4
/// address for a translator (NAT64, 6to4) is judged by both.
///
/// | rule | meaning |
/// |---|---|
/// | `accept:*` | every address that is not reserved |
/// | `reject:*:25` | port 25 of every address |
/// | `accept:192.0.2.7` | one address |
/// | `reject:192.0.2.0/24:1-1023` | a port range of a prefix |
/// | `accept:[2001:db8::]/32:443` | IPv6 stands in brackets |
///
/// A rule with ports matches TCP and UDP only.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExitPolicy {
    rules: Vec<Rule>,
}

/// A text that is no exit policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseExitPolicyError {
    /// The rule starts with neither `accept:` nor `reject:`.
    #[error("expected `accept:` or `reject:` at the start of a rule, got {got:?}")]
    Action {
        /// The rule.
        got: String,
    },
    /// The address of a rule does not parse.
    #[error(
        "expected `*`, an IPv4 address or prefix, or an IPv6 address in brackets such as \
         [2001:db8::]/32, got {got:?}"
    )]
    Address {
        /// The rule.
        got: String,
    },
    /// A prefix has bits set behind its length.
    #[error("expected a prefix without bits behind its length, got {got:?}; write {instead}")]
    HostBits {
        /// The rule.
        got: String,
        /// The prefix it probably means.
        instead: String,
    },
    /// The ports of a rule do not parse.
    #[error("expected a port from 1 to 65535 or a range such as 80-90, got {got:?}")]
    Ports {
        /// The rule.
        got: String,
    },
    /// An accept rule for a range that never leaves a host.
    #[error(
        "expected a destination that can be routed, got {got:?}; unspecified, loopback, \
         multicast, broadcast and IPv4-mapped addresses are never let out, remove the rule"
    )]
    NeverAllowed {
        /// The rule.
        got: String,
    },
    /// More rules than a policy may have.
    #[error("expected at most {MAX_RULES} rules, got {got}; merge prefixes")]
    TooMany {
        /// How many there are.
        got: usize,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Rule {
    accept: bool,
    target: Target,
    ports: Option<(u16, u16)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Target {
    Any,
    V4(Prefix<32>),
    V6(Prefix<128>),
}

/// A prefix of an address of `BITS` bits, held in the low bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Prefix<const BITS: u8> {
    bits: u128,
    len: u8,
}

impl<const BITS: u8> Prefix<BITS> {
    const fn new(bits: u128, len: u8) -> Self {
        Self { bits, len }
    }

    const fn shift(self) -> u32 {
        (BITS - self.len) as u32
    }

    fn contains(self, bits: u128) -> bool {
        (bits ^ self.bits).checked_shr(self.shift()).unwrap_or(0) == 0
    }

    fn network(self) -> Self {
        let shift = self.shift();
        let bits = self.bits.checked_shr(shift).and_then(|bits| bits.checked_shl(shift));
        Self { bits: bits.unwrap_or(0), len: self.len }
    }

    fn is_within(self, other: Self) -> bool {
        self.len >= other.len && other.contains(self.bits)
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8, len: u8) -> Prefix<32> {
    Prefix::new(Ipv4Addr::new(a, b, c, d).to_bits() as u128, len)
}

const fn v6(high: u64, low: u64, len: u8) -> Prefix<128> {
    Prefix::new(((high as u128) << 64) | low as u128, len)
}

/// Ranges that no rule can open.
const NEVER_V4: [Prefix<32>; 4] =
    [v4(0, 0, 0, 0, 8), v4(127, 0, 0, 0, 8), v4(224, 0, 0, 0, 4), v4(240, 0, 0, 0, 4)];
/// Ranges that no rule can open: unspecified, loopback and the old IPv4-compatible form,
/// IPv4-mapped, multicast.
const NEVER_V6: [Prefix<128>; 3] =
    [v6(0, 0, 96), v6(0, 0x0000_ffff_0000_0000, 96), v6(0xff00_0000_0000_0000, 0, 8)];
/// Ranges that only a rule as narrow as they are opens: private, carrier-grade NAT, link-local,
/// protocol assignments.
const RESERVED_V4: [Prefix<32>; 6] = [
    v4(10, 0, 0, 0, 8),
    v4(172, 16, 0, 0, 12),
    v4(192, 168, 0, 0, 16),
    v4(100, 64, 0, 0, 10),
    v4(169, 254, 0, 0, 16),
    v4(192, 0, 0, 0, 24),
];
/// Ranges that only a rule as narrow as they are opens: unique local, link-local, site-local,
/// local NAT64.
const RESERVED_V6: [Prefix<128>; 4] = [
    v6(0xfc00_0000_0000_0000, 0, 7),
    v6(0xfe80_0000_0000_0000, 0, 10),
    v6(0xfec0_0000_0000_0000, 0, 10),
    v6(0x0064_ff9b_0001_0000, 0, 48),
];
/// What a lab opens: the private ranges, not link-local.
const LAB_V4: [Prefix<32>; 4] = [RESERVED_V4[0], RESERVED_V4[1], RESERVED_V4[2], RESERVED_V4[3]];
const LAB_V6: Prefix<128> = RESERVED_V6[0];

const NAT64: Prefix<128> = v6(0x0064_ff9b_0000_0000, 0, 96);
const SIX_TO_FOUR: Prefix<128> = v6(0x2002_0000_0000_0000, 0, 16);

impl Default for ExitPolicy {
    /// Everything that is not reserved.
    fn default() -> Self {
        Self { rules: vec![Rule { accept: true, target: Target::Any, ports: None }] }
    }
}

impl ExitPolicy {
    /// Adds rules behind the present ones that open the private ranges, for a lab whose hosts
    /// have private addresses.
    #[must_use]
    pub fn lab(mut self) -> Self {
        let targets = LAB_V4.map(Target::V4).into_iter().chain([Target::V6(LAB_V6)]);
        // Behind what the operator wrote, so that a rejected private range stays closed in a lab.
        self.rules.extend(targets.map(|target| Rule { accept: true, target, ports: None }));
        self
    }

    /// Adds rules before all others that reject the exit's own addresses.
    #[must_use]
    pub fn with_own_addresses(mut self, own: &[IpAddr]) -> Self {
        let own = own.iter().map(|address| {
            let target = match address {
                IpAddr::V4(address) => Target::V4(Prefix::new(address.to_bits().into(), 32)),
                IpAddr::V6(address) => Target::V6(Prefix::new(address.to_bits(), 128)),
            };
            Rule { accept: false, target, ports: None }
        });
        self.rules.splice(0..0, own);
        self
    }

    /// Whether a packet may go to `address`; `port` is that of TCP and UDP, none otherwise.
    pub fn allows(&self, address: IpAddr, port: Option<u16>) -> bool {
        self.judge(address, |ports, _| match (ports, port) {
            (None, _) => true,
            (Some((low, high)), Some(port)) => (low..=high).contains(&port),
            (Some(_), None) => false,
        })
    }

    /// Whether a packet may go to some port of `address`: for later fragments, which carry no port
    /// and are useless to the receiver without the first one, and for the choice of an exit.
    pub fn allows_some_port(&self, address: IpAddr) -> bool {
        self.judge(address, |ports, accept| ports.is_none() || accept)
    }

    fn judge(
        &self,
        address: IpAddr,
        matches: impl Fn(Option<(u16, u16)>, bool) -> bool + Copy,
    ) -> bool {
        match address {
            IpAddr::V4(address) => self.judge_v4(address, matches),
            IpAddr::V6(address) => {
                let bits = address.to_bits();
                self.judge_v6(bits, matches)
                    && embedded_v4(bits).is_none_or(|inner| self.judge_v4(inner, matches))
            }
        }
    }

    fn judge_v4(
        &self,
        address: Ipv4Addr,
        matches: impl Fn(Option<(u16, u16)>, bool) -> bool,
    ) -> bool {
        let bits = address.to_bits().into();
        if NEVER_V4.iter().any(|range| range.contains(bits)) {
            return false;
        }
        let reserved = RESERVED_V4.iter().find(|range| range.contains(bits)).map(|range| range.len);
        self.first_match(reserved, matches, |target| match target {
            Target::Any => Some(0),
            Target::V4(prefix) if prefix.contains(bits) => Some(prefix.len),
            Target::V4(_) | Target::V6(_) => None,
        })
    }

    fn judge_v6(&self, bits: u128, matches: impl Fn(Option<(u16, u16)>, bool) -> bool) -> bool {
        if NEVER_V6.iter().any(|range| range.contains(bits)) {
            return false;
        }
        let reserved = RESERVED_V6.iter().find(|range| range.contains(bits)).map(|range| range.len);
        self.first_match(reserved, matches, |target| match target {
            Target::Any => Some(0),
            Target::V6(prefix) if prefix.contains(bits) => Some(prefix.len),
            Target::V4(_) | Target::V6(_) => None,
        })
    }

    fn first_match(
        &self,
        reserved: Option<u8>,
        matches: impl Fn(Option<(u16, u16)>, bool) -> bool,
        covers: impl Fn(Target) -> Option<u8>,
    ) -> bool {
        for rule in &self.rules {
            let Some(len) = covers(rule.target) else { continue };
            let too_wide = rule.accept && reserved.is_some_and(|reserved| len < reserved);
            if !too_wide && matches(rule.ports, rule.accept) {
                return rule.accept;
            }
        }
        reserved.is_none()
    }
}

/// The IPv4 address that a translator takes out of `bits`.
fn embedded_v4(bits: u128) -> Option<Ipv4Addr> {
    let shift = match bits {
        _ if NAT64.contains(bits) => 0,
        _ if SIX_TO_FOUR.contains(bits) => 80,
        _ => return None,
    };
    Some(Ipv4Addr::from_bits((bits >> shift) as u32))
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::V4(prefix) => {
                write!(f, "{}", Ipv4Addr::from_bits(prefix.bits as u32))?;
                if prefix.len < 32 { write!(f, "/{}", prefix.len) } else { Ok(()) }
            }
            Self::V6(prefix) => {
                write!(f, "[{}]", Ipv6Addr::from_bits(prefix.bits))?;
                if prefix.len < 128 { write!(f, "/{}", prefix.len) } else { Ok(()) }
            }
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let action = if self.accept { "accept" } else { "reject" };
        write!(f, "{action}:{}", self.target)?;
        match self.ports {
            None => Ok(()),
            Some((low, high)) if low == high => write!(f, ":{low}"),
            Some((low, high)) => write!(f, ":{low}-{high}"),
        }
    }
}

impl fmt::Display for ExitPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, rule) in self.rules.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            rule.fmt(f)?;
        }
        Ok(())
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}

impl FromStr for ExitPolicy {
    type Err = ParseExitPolicyError;

    /// An empty text is the default policy.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let got = text.split(',').count();
        if got > MAX_RULES {
            return Err(ParseExitPolicyError::TooMany { got });
        }
        let rules = text.split(',').map(|rule| rule.trim().parse()).collect::<Result<_, _>>()?;
        Ok(Self { rules })
    }
}

impl FromStr for Rule {
    type Err = ParseExitPolicyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let got = || shorten(text);
        let (accept, rest) = if let Some(rest) = text.strip_prefix("accept:") {
            (true, rest)
        } else if let Some(rest) = text.strip_prefix("reject:") {
            (false, rest)
        } else {
            return Err(ParseExitPolicyError::Action { got: got() });
        };
        // Brackets keep the colons of an IPv6 address apart from the one before the ports.
        let inside = rest.find(']').unwrap_or(0);
        let (address, ports) = match rest[inside..].split_once(':') {
            Some((tail, ports)) => (&rest[..inside + tail.len()], Some(ports)),
            None => (rest, None),
        };
        let target = parse_target(address, text)?;
        let ports = match ports {
            None | Some("*") => None,
            Some(ports) => {
                Some(parse_ports(ports).ok_or_else(|| ParseExitPolicyError::Ports { got: got() })?)
            }
        };
        let never = match target {
            Target::Any => false,
            Target::V4(prefix) => NEVER_V4.iter().any(|range| prefix.is_within(*range)),
            Target::V6(prefix) => NEVER_V6.iter().any(|range| prefix.is_within(*range)),
        };
        if accept && never {
            return Err(ParseExitPolicyError::NeverAllowed { got: got() });
        }
        Ok(Self { accept, target, ports })
    }
}

fn parse_target(text: &str, rule: &str) -> Result<Target, ParseExitPolicyError> {
    let error = || ParseExitPolicyError::Address { got: shorten(rule) };
    if text == "*" {
        return Ok(Target::Any);
    }
    let (address, len) = match text.split_once('/') {
        Some((address, len)) => (address, Some(number(len).ok_or_else(error)?)),
        None => (text, None),
    };
    let len = |most: u8| match len {
        None => Ok(most),
        Some(len) => u8::try_from(len).ok().filter(|len| *len <= most).ok_or_else(error),
    };
    let target = if let Some(address) = address.strip_prefix('[') {
        let address: Ipv6Addr =
            address.strip_suffix(']').and_then(|inner| inner.parse().ok()).ok_or_else(error)?;
        let prefix = Prefix::<128>::new(address.to_bits(), len(128)?);
        (Target::V6(prefix), Target::V6(prefix.network()))
    } else {
        let address: Ipv4Addr = address.parse().map_err(|_| error())?;
        let prefix = Prefix::<32>::new(address.to_bits().into(), len(32)?);
        (Target::V4(prefix), Target::V4(prefix.network()))
    };
    let (written, network) = target;
    if written != network {
        return Err(ParseExitPolicyError::HostBits {
            got: shorten(rule),
            instead: network.to_string(),
        });
    }
    Ok(network)
}

fn parse_ports(text: &str) -> Option<(u16, u16)> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let (low, high) = (number(low)?, number(high)?);
    (1 <= low && low <= high).then_some((low, high))
}

/// Digits only: `u16::from_str` would also take a sign.
fn number(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

impl serde::Serialize for ExitPolicy {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for ExitPolicy {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy(text: &str) -> ExitPolicy {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn defaults_let_out_public_addresses_only() {
        let default = ExitPolicy::default();
        for public in ["1.1.1.1", "203.0.113.2", "172.32.0.1", "100.128.0.1", "2001:db8:1::2"] {
            assert!(default.allows(ip(public), Some(80)), "{public}");
            assert!(default.allows(ip(public), None), "{public}");
        }
        for closed in [
            "10.77.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "100.64.0.2",
            "127.0.0.1",
            "169.254.169.254",
            "224.0.0.1",
            "239.1.1.1",
            "255.255.255.255",
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
            "fd77::1",
            "fc00::1",
            "fec0::1",
            "::ffff:8.8.8.8",
            "::ffff:10.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b::127.0.0.1",
            "2002:c0a8:101::1",
            "64:ff9b:1::1",
        ] {
            assert!(!default.allows(ip(closed), Some(80)), "{closed}");
            assert!(!default.allows_some_port(ip(closed)), "{closed}");
        }
        assert!(default.allows(ip("64:ff9b::1.1.1.1"), Some(80)));
        assert_eq!(policy(""), default);
    }

    #[test]
    fn the_first_match_decides() {
        let rules =
            policy("reject:192.0.2.0/24,accept:*:443,accept:[2001:db8::]/32:80-90,reject:*");
        assert!(!rules.allows(ip("192.0.2.9"), Some(443)));
        assert!(rules.allows(ip("192.0.3.9"), Some(443)));
        assert!(!rules.allows(ip("192.0.3.9"), Some(80)));
        assert!(!rules.allows(ip("192.0.3.9"), None));
        assert!(rules.allows(ip("2001:db8::1"), Some(90)));
        assert!(!rules.allows(ip("2001:db8::1"), Some(91)));
        assert!(!rules.allows(ip("2001:db9::1"), Some(90)));
        assert!(rules.allows_some_port(ip("192.0.3.9")));
        assert!(!rules.allows_some_port(ip("192.0.2.9")));
    }

    #[test]
    fn a_wide_accept_opens_no_reserved_range() {
        for wide in ["accept:*", "accept:*:443", "accept:0.0.0.0/0,accept:[::]/0"] {
            assert!(!policy(wide).allows(ip("10.0.0.1"), Some(443)), "{wide}");
            assert!(!policy(wide).allows(ip("fd00::1"), Some(443)), "{wide}");
        }
        assert!(policy("accept:10.1.0.0/16").allows(ip("10.1.2.3"), None));
        assert!(!policy("accept:10.1.0.0/16").allows(ip("10.2.2.3"), None));
        assert!(!policy("reject:*,accept:10.1.0.0/16").allows(ip("10.1.2.3"), None));
    }

    #[test]
    fn a_lab_opens_private_ranges_and_nothing_else() {
        let lab = ExitPolicy::default().lab();
        for open in ["10.77.0.1", "192.168.1.1", "172.16.9.9", "100.64.0.2", "fd77::1", "1.1.1.1"] {
            assert!(lab.allows(ip(open), Some(80)), "{open}");
        }
        for closed in ["127.0.0.1", "169.254.1.1", "224.0.0.1", "fe80::1", "ff02::1", "::1"] {
            assert!(!lab.allows(ip(closed), Some(80)), "{closed}");
        }
        assert!(!policy("reject:10.77.0.9").lab().allows(ip("10.77.0.9"), None));
    }

    #[test]
    fn own_addresses_are_rejected_before_all_rules() {
        let own = [ip("203.0.113.9"), ip("2001:db8::9"), ip("10.77.0.3")];
        let rules = policy("accept:203.0.113.9,accept:*").lab().with_own_addresses(&own);
        for address in own {
            assert!(!rules.allows(address, Some(443)), "{address}");
        }
        assert!(rules.allows(ip("203.0.113.8"), Some(443)));
        assert_eq!(policy(&rules.to_string()), rules);
    }

    #[test]
    fn a_rejected_v4_address_is_not_reached_through_a_translator() {
        let rules = policy("reject:192.0.2.1");
        assert!(!rules.allows(ip("64:ff9b::192.0.2.1"), Some(80)));
        assert!(!rules.allows(ip("2002:c000:201::5"), Some(80)));
    }

    #[test]
    fn wrong_texts_say_what_is_wrong() {
        type E = ParseExitPolicyError;
        for (text, is_right) in [
            ("allow:*", (|e| matches!(e, E::Action { .. })) as fn(&E) -> bool),
            ("accept:*,", |e| matches!(e, E::Action { .. })),
            ("accept:", |e| matches!(e, E::Address { .. })),
            ("accept:10.0.0.0/33", |e| matches!(e, E::Address { .. })),
            ("accept:10.0.0.0/+8", |e| matches!(e, E::Address { .. })),
            ("accept:[2001:db8::/32", |e| matches!(e, E::Address { .. })),
            ("accept:2001:db8::/32", |e| matches!(e, E::Address { .. })),
            ("accept:[2001:db8::]/129", |e| matches!(e, E::Address { .. })),
            (
                "reject:10.0.0.1/8",
                |e| matches!(e, E::HostBits { instead, .. } if instead == "10.0.0.0/8"),
            ),
            (
                "reject:[2001:db8::1]/32",
                |e| matches!(e, E::HostBits { instead, .. } if instead == "[2001:db8::]/32"),
            ),
            ("accept:*:0", |e| matches!(e, E::Ports { .. })),
            ("accept:*:", |e| matches!(e, E::Ports { .. })),
            ("accept:*:90-80", |e| matches!(e, E::Ports { .. })),
            ("accept:*:65536", |e| matches!(e, E::Ports { .. })),
            ("accept:127.0.0.1", |e| matches!(e, E::NeverAllowed { .. })),
            ("accept:[::1]:80", |e| matches!(e, E::NeverAllowed { .. })),
        ] {
            let error = text.parse::<ExitPolicy>().unwrap_err();
            assert!(is_right(&error), "{text}: {error:?}");
        }
        let many = vec!["accept:*"; MAX_RULES + 1].join(",");
        assert!(matches!(many.parse::<ExitPolicy>(), Err(E::TooMany { got: 257 })));
    }

    #[test]
    fn texts_are_kept() {
        for text in [
            "accept:*",
            "reject:10.0.0.0/8,accept:*:443,reject:*",
            "accept:[2001:db8::]/32:443,accept:[2001:db8::1]:1-1023,reject:192.0.2.1:25",
        ] {
            assert_eq!(policy(text).to_string(), text);
        }
        assert_eq!(policy(" accept:*:* , reject:*:25-25").to_string(), "accept:*,reject:*:25");
        let json = serde_json::to_string(&policy("reject:*:25")).unwrap();
        assert_eq!(json, "\"reject:*:25\"");
        assert_eq!(serde_json::from_str::<ExitPolicy>(&json).unwrap(), policy("reject:*:25"));
    }

    fn rules() -> impl Strategy<Value = String> {
        let target = prop_oneof![
            Just("*".to_owned()),
            (any::<u32>(), 0..=32u8).prop_map(|(bits, len)| {
                Target::V4(Prefix::new(bits.into(), len).network()).to_string()
            }),
            (any::<u128>(), 0..=128u8).prop_map(|(bits, len)| {
                Target::V6(Prefix::new(bits, len).network()).to_string()
            }),
        ];
        let ports = prop_oneof![
            Just(String::new()),
            (1..=u16::MAX).prop_map(|port| format!(":{port}")),
            (1..1000u16, 1000..=u16::MAX).prop_map(|(low, high)| format!(":{low}-{high}")),
        ];
        let rule = (target, ports).prop_map(|(target, ports)| format!("reject:{target}{ports}"));
        proptest::collection::vec(rule, 1..8).prop_map(|rules| rules.join(","))
    }

    proptest! {
        #[test]
        fn text_round_trips(text in rules()) {
            let parsed = policy(&text);
            prop_assert_eq!(parsed.to_string(), text);
        }

        #[test]
        fn any_text_is_a_policy_or_an_error(text in "[acreptj:*\\[\\]/0-9a-f.,-]{0,60}", other: String) {
            for text in [text, other] {
                if let Ok(parsed) = text.parse::<ExitPolicy>() {
                    prop_assert_eq!(policy(&parsed.to_string()), parsed);
                }
            }
        }

        #[test]
        fn what_a_port_allows_some_port_allows(text in rules(), v4: u32, v6: u128, port: u16) {
            let parsed = policy(&text);
            for address in [IpAddr::from(v4.to_be_bytes()), IpAddr::from(v6.to_be_bytes())] {
                prop_assert!(!parsed.allows(address, Some(port)) || parsed.allows_some_port(address));
                prop_assert!(!parsed.allows(address, None) || parsed.allows_some_port(address));
            }
        }
    }
}
