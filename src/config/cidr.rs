//! A network: an address and how many of its leading bits count.
//!
//! In: text such as `10.0.0.0/8`. Out: a typed network. Called by: the settings of node and client.

use std::{fmt, net::IpAddr, str::FromStr};

/// An IPv4 or IPv6 network. A bare address stands for itself alone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Cidr {
    /// The first address, its host bits zero.
    pub address: IpAddr,
    /// How many leading bits count: 0 to 32, or 0 to 128.
    pub prefix: u8,
}

impl Cidr {
    /// The network of `address` with `prefix` leading bits, if there are so many.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(v4) if prefix <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V4((u32::from(v4) & mask).into())
            }
            IpAddr::V6(v6) if prefix <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V6((u128::from(v6) & mask).into())
            }
            IpAddr::V4(_) | IpAddr::V6(_) => return None,
        };
        Some(Self { address, prefix })
    }

    /// Whether `address` lies in this network.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4()
            && Self::new(address, self.prefix).is_some_and(|network| network == *self)
    }
}

/// Text that is no network.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected a network such as 10.0.0.0/8 or 2001:db8::/32, got {0:?}")]
pub struct ParseCidrError(String);

impl FromStr for Cidr {
    type Err = ParseCidrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseCidrError(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse::<u8>().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let full = if address.is_ipv4() { 32 } else { 128 };
        Self::new(address, prefix.unwrap_or(full)).ok_or_else(wrong)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl serde::Serialize for Cidr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Cidr {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// An address on a cable: the address itself and the length of its network's prefix, such as
/// `192.168.77.1/24`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CableAddress {
    /// The address, all its bits.
    pub address: IpAddr,
    /// How many leading bits are its network's: 1 to 32, or 1 to 128.
    pub prefix: u8,
}

impl FromStr for CableAddress {
    type Err = ParseCidrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseCidrError(text.to_owned());
        let (address, _) = text.split_once('/').ok_or_else(wrong)?;
        let Cidr { prefix, .. } = text.parse()?;
        match prefix {
            0 => Err(wrong()),
            _ => Ok(Self { address: address.parse().map_err(|_| wrong())?, prefix }),
        }
    }
}

impl fmt::Display for CableAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl serde::Serialize for CableAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for CableAddress {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_people_write() {
        for (text, shown) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("203.0.113.2", "203.0.113.2/32"),
            ("2001:db8:ffff::/32", "2001:db8::/32"),
        ] {
            assert_eq!(text.parse::<Cidr>().unwrap().to_string(), shown);
        }
        for text in ["", "10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/-1", "a/8"] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_address_on_a_cable_keeps_its_bits() {
        let own: CableAddress = "192.168.77.1/24".parse().unwrap();
        assert_eq!(own.to_string(), "192.168.77.1/24");
        for text in ["192.168.77.1", "192.168.77.1/33", "192.168.77.1/0", "fd78::1/129", "/24"] {
            assert!(text.parse::<CableAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn membership() {
        let ten: Cidr = "10.0.0.0/8".parse().unwrap();
        assert!(ten.contains("10.255.0.1".parse().unwrap()));
        assert!(!ten.contains("11.0.0.1".parse().unwrap()));
        assert!(!ten.contains("::a00:1".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn text_round_trips(address: IpAddr, prefix in 0u8..=128) {
            if let Some(network) = Cidr::new(address, prefix) {
                prop_assert_eq!(network.to_string().parse(), Ok(network));
                prop_assert!(network.contains(address));
            }
        }
    }
}
