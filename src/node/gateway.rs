//! A gateway in force: the inside's packets go into the TUN, or nowhere.
//!
//! In: settings. Out: routes, rules, kernel settings; the devices of the inside.
//! Called by: the client's service; cli (lan, lockdown off).
//!
//! ```text
//! inside -> kernel: device refused? count it -> port 53? to our resolver
//!        -> rule: TUN or nowhere -> masquerade -> TUN -> circuit
//! ```

use std::{collections::BTreeMap, fs};

use super::NodeError;
use crate::{
    capture::{CaptureError, nft, policy, route, sysctl::Sysctls},
    client::gateway::{self, Denied, Gateway, Mac, TABLE},
    config::ClientConfig,
    keys::StateDir,
    telemetry::Device,
};

/// Where dnsmasq keeps whom it gave an address.
const LEASES: &str = "/var/lib/misc/dnsmasq.leases";

/// Kernel settings of a gateway, put back when dropped. Rules and routes stay: without the client
/// the inside has no way out.
#[derive(Debug)]
pub(super) struct Forwarding {
    _sysctls: Sysctls,
}

/// Puts the gateway in force, if the settings name an inside.
pub(super) fn start(
    config: &ClientConfig,
    dir: &StateDir,
) -> Result<Option<Forwarding>, NodeError> {
    let inside = config.inside();
    if inside.is_empty() {
        return Ok(None);
    }
    for name in &inside {
        route::interface(name)?;
    }
    let denied = Denied::load(&config.state).map_err(|source| CaptureError::Io {
        what: "reading the list of refused devices".to_owned(),
        source,
    })?;
    let gateway = Gateway {
        tun: config.tun.clone(),
        lan: inside.clone(),
        captured: config.capture_interface.clone(),
        resolver: config.dns.map(|addr| addr.port()),
        denied: denied.devices,
        apart: !config.lan_shared,
    };
    // First the rules and the one way, then forwarding: at no time is there another.
    nft::apply(&gateway.rules(), "set the gateway's rules")?;
    policy::route_inside(&inside, route::interface(&config.tun)?.index)?;
    let mut sysctls = Sysctls::new(Some(&dir.file("sysctls")));
    let names: Vec<&str> = inside.iter().chain([&config.tun]).map(String::as_str).collect();
    sysctls.forward_v4(&names)?;
    sysctls.forward_v6()?;
    if let Some(name) = &config.capture_interface {
        // The gateway's addresses are local to the kernel, too, which would answer for them.
        sysctls.set(&format!("net/ipv4/conf/{name}/arp_ignore"), "8")?;
    }
    log::info!(event = "gateway"; "the inside ({}) goes through {}", inside.join(" "), config.tun);
    Ok(Some(Forwarding { _sysctls: sysctls }))
}

/// Takes the gateway's rules and routes away.
///
/// # Errors
/// Without `nft` or the privilege.
pub fn forget() -> Result<(), CaptureError> {
    if nft::list("inet", TABLE)?.is_some() {
        nft::apply(&gateway::removal(), "remove the gateway's rules")?;
    }
    policy::forget_inside()
}

/// The devices of the inside, with the names they gave; none if there is no gateway.
///
/// # Errors
/// Without `nft` or the privilege.
pub fn devices() -> Result<Option<Vec<Device>>, CaptureError> {
    let Some(items) = nft::list("inet", TABLE)? else { return Ok(None) };
    let mut devices = gateway::devices(&items);
    let names = fs::read_to_string(LEASES).map(|text| names(&text)).unwrap_or_default();
    for device in &mut devices {
        device.name = names.get(&device.mac).cloned();
    }
    Ok(Some(devices))
}

/// Refuses a device, or lets it send again, here and after every start.
///
/// # Errors
/// Without `nft` or the privilege, or when the list cannot be kept.
pub fn refuse(config: &ClientConfig, device: Mac, refused: bool) -> Result<(), CaptureError> {
    let io = |source| CaptureError::Io {
        what: "keeping the list of refused devices".to_owned(),
        source,
    };
    let mut denied = Denied::load(&config.state).map_err(io)?;
    let changes =
        if refused { denied.devices.insert(device) } else { denied.devices.remove(&device) };
    if !changes {
        return Ok(());
    }
    denied.save().map_err(io)?;
    match nft::list("inet", TABLE)? {
        Some(_) => nft::apply(&gateway::change(device, refused), "refuse a device"),
        // The next start reads the list.
        None => Ok(()),
    }
}

/// Names by hardware address: `EXPIRY MAC ADDRESS NAME ID` a line, `*` for no name.
fn names(leases: &str) -> BTreeMap<String, String> {
    leases
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            let (mac, name) = (words.next()?, words.nth(1)?);
            (name != "*").then(|| (mac.to_ascii_lowercase(), name.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_name_devices() {
        let found = names(
            "1767225600 02:00:5E:10:00:01 192.168.77.20 laptop 01:02\n\
             1767225600 02:00:5e:10:00:02 192.168.77.21 * *\nduid 00:01\nnonsense\n",
        );
        assert_eq!(found.len(), 1);
        assert_eq!(found["02:00:5e:10:00:01"], "laptop");
    }
}
