//! Settings for the programs that serve the inside: dnsmasq gives addresses, hostapd is the access
//! point.
//!
//! In: an interface and its addresses. Out: their settings as text. Called by: `cepa lan`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rand::{Rng, RngExt};

use crate::config::Cidr;

/// An interface of the inside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inside {
    interface: String,
    v4: Ipv4Addr,
    mask: Ipv4Addr,
    /// The first and the last address that is given to a device.
    range: [Ipv4Addr; 2],
    v6: Option<Ipv6Addr>,
}

impl Inside {
    /// The inside of an interface with these networks; none without an IPv4 network that has room.
    pub fn new(interface: &str, networks: &[(IpAddr, u8)]) -> Option<Self> {
        let (v4, prefix) = networks.iter().find_map(|(address, prefix)| match address {
            IpAddr::V4(v4) if (8..=29).contains(prefix) => Some((*v4, *prefix)),
            _ => None,
        })?;
        let mask = u32::MAX << (32 - prefix);
        let IpAddr::V4(network) = Cidr::new(v4.into(), prefix)?.address else { return None };
        let (first, last) = (network.to_bits() + 1, (network.to_bits() | !mask) - 1);
        // The gateway stands at one end; the devices get the longer rest.
        let own = v4.to_bits();
        let range = if own - first < last - own { [own + 1, last] } else { [first, own - 1] };
        let v6 = networks.iter().find_map(|(address, prefix)| match address {
            IpAddr::V6(v6) if *prefix == 64 && !v6.is_unicast_link_local() => Some(*v6),
            _ => None,
        });
        Some(Self {
            interface: interface.to_owned(),
            v4,
            mask: mask.into(),
            range: range.map(Ipv4Addr::from),
            v6,
        })
    }
}

/// DHCP and router advertisements; names are resolved by cepa, so dnsmasq answers no question.
pub fn dnsmasq(inside: &Inside) -> String {
    let Inside { interface, v4, mask, range: [first, last], v6 } = inside;
    let mut text = format!(
        "# Addresses for the devices behind this gateway, made by `cepa lan dnsmasq`.
# No DNS here: cepa takes every question and asks at the other end of the circuit.
port=0
interface={interface}
bind-dynamic
dhcp-authoritative
dhcp-range={first},{last},{mask},12h
dhcp-option=option:router,{v4}
dhcp-option=option:dns-server,{v4}
"
    );
    if let Some(v6) = v6 {
        text.push_str(&format!(
            "enable-ra
dhcp-range=::,constructor:{interface},slaac,64,12h
dhcp-option=option6:dns-server,[{v6}]
"
        ));
    }
    text
}

/// A WPA2/WPA3 access point.
///
/// # Errors
/// What is wrong with the network's name, the country or the passphrase.
pub fn hostapd(
    interface: &str,
    ssid: &str,
    country: &str,
    passphrase: &str,
) -> Result<String, String> {
    if !(1..=32).contains(&ssid.len()) || ssid.chars().any(char::is_control) {
        return Err(format!("expected a network name of 1 to 32 bytes, got {ssid:?}"));
    }
    if country.len() != 2 || !country.chars().all(|c| c.is_ascii_uppercase()) {
        return Err(format!("expected two capital letters such as DE, got {country:?}"));
    }
    Ok(format!(
        "# A Wi-Fi access point for the inside, made by `cepa lan hostapd`.
interface={interface}
driver=nl80211
ssid={ssid}
country_code={country}
ieee80211d=1
hw_mode=g
channel=6
ieee80211n=1
wmm_enabled=1
auth_algs=1
wpa=2
wpa_key_mgmt=WPA-PSK WPA-PSK-SHA256 SAE
rsn_pairwise=CCMP
ieee80211w=1
sae_require_mfp=1
wpa_passphrase={passphrase}
ap_isolate=1
ignore_broadcast_ssid=0
"
    ))
}

/// A passphrase of 100 bits, without letters that look like others.
pub fn passphrase(rng: &mut impl Rng) -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    (0..20)
        .map(|_| char::from(LETTERS[rng.random_range(0..LETTERS.len())]))
        .collect::<Vec<_>>()
        .chunks(5)
        .map(|word| word.iter().collect::<String>())
        .collect::<Vec<_>>()
        .join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inside(networks: &[(&str, u8)]) -> Option<Inside> {
        let networks: Vec<_> =
            networks.iter().map(|(ip, prefix)| (ip.parse().unwrap(), *prefix)).collect();
        Inside::new("eth1", &networks)
    }

    #[test]
    fn devices_get_what_the_gateway_leaves() {
        let low = inside(&[("192.168.77.1", 24)]).unwrap();
        assert_eq!(low.range.map(|ip| ip.to_string()), ["192.168.77.2", "192.168.77.254"]);
        let high = inside(&[("192.168.77.254", 24)]).unwrap();
        assert_eq!(high.range.map(|ip| ip.to_string()), ["192.168.77.1", "192.168.77.253"]);
        assert!(inside(&[("192.168.77.1", 31)]).is_none());
        assert!(inside(&[("fd78::1", 64)]).is_none());
    }

    #[test]
    fn without_a_ula_there_is_no_ipv6() {
        assert!(
            !dnsmasq(&inside(&[("10.0.0.1", 24), ("fe80::1", 64)]).unwrap()).contains("enable-ra")
        );
        let text = dnsmasq(&inside(&[("10.0.0.1", 24), ("fd78::1", 64)]).unwrap());
        assert!(text.contains("[fd78::1]") && text.contains("enable-ra"));
    }

    #[test]
    fn an_access_point_is_checked() {
        let phrase = passphrase(&mut rand::rng());
        assert_eq!(phrase.len(), 23);
        assert!(hostapd("wlan0", "home", "DE", &phrase).unwrap().contains(&phrase));
        assert!(hostapd("wlan0", "a\nwpa=0", "DE", &phrase).is_err());
        assert!(hostapd("wlan0", "home", "de", &phrase).is_err());
    }
}
