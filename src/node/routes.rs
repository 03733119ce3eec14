//! The kernel's routes of a client: what it captures, and what must not be captured.
//!
//! In: the configured networks, the directory. Out: routes, removed when dropped.
//! Called by: the client's service.
//!
//! Captured networks point to the TUN. Members and the controller that lie in them keep the way
//! they had, or cells would be captured themselves.

use std::{
    collections::BTreeMap,
    net::{IpAddr, ToSocketAddrs},
    sync::Arc,
    time::Duration,
};

use tokio::sync::watch;

use crate::{
    capture::{
        Result,
        route::{self, Route, Way},
    },
    config::Cidr,
    directory::{ControllerLink, Directory},
};

/// How often the kernel's routes are looked at: an interface that went down takes its routes along,
/// and another network has another router.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Routes that are in force until dropped.
pub(super) struct Routes {
    captured: Vec<Cidr>,
    /// Members and the controller that lie in captured networks, and the way each has.
    kept: BTreeMap<IpAddr, Option<Way>>,
}

impl Routes {
    /// Captures the networks. The controller keeps its way.
    pub(super) fn start(tun: &str, captured: &[Cidr], link: &ControllerLink) -> Result<Self> {
        route::remove_ours()?;
        let mut routes = Self { captured: captured.to_vec(), kept: BTreeMap::new() };
        let controller = (link.host(), link.port()).to_socket_addrs();
        controller.into_iter().flatten().for_each(|addr| routes.keep(addr.ip()));
        routes.keep_ways()?;
        let interface = route::interface(tun)?.index;
        let way = Way { interface, gateway: None, source: None };
        for network in captured {
            for half in halves(*network) {
                route::add_route(half.address, half.prefix, &way)?;
            }
        }
        Ok(routes)
    }

    /// Keeps the way to every member that lies in a captured network, as the directory and this
    /// machine's own network change.
    pub(super) async fn follow(mut self, mut directories: watch::Receiver<Option<Arc<Directory>>>) {
        let mut last_error = None;
        loop {
            let directory = directories.borrow_and_update().clone();
            for member in directory.iter().flat_map(|directory| directory.nodes()) {
                self.keep(member.addr().ip());
            }
            let error = self.keep_ways().err().map(|error| error.to_string());
            if error != last_error
                && let Some(error) = &error
            {
                log::warn!(event = "route"; "a member inside a captured network keeps no way of its own: {error}");
            }
            last_error = error;
            let changed = tokio::time::timeout(LOOK_EVERY, directories.changed()).await;
            if let Ok(Err(_)) = changed {
                return;
            }
        }
    }

    fn keep(&mut self, address: IpAddr) {
        if self.captured.iter().any(|network| network.contains(address)) {
            self.kept.entry(address).or_default();
        }
    }

    /// Gives every kept address the way it would have without the capture, where that changed.
    fn keep_ways(&mut self) -> Result<()> {
        if self.kept.is_empty() {
            return Ok(());
        }
        let table = route::routes()?;
        let mut result = Ok(());
        for (address, kept) in &mut self.kept {
            let Some(way) = way_around(&table, *address) else {
                if kept.take().is_some() {
                    log::warn!(event = "route"; "no route leads to a member inside a captured network any more");
                }
                continue;
            };
            let prefix = full_prefix(*address);
            let is_there = table.iter().any(|route| {
                route.ours
                    && (route.network, route.prefix) == (*address, prefix)
                    && (route.way.interface, route.way.gateway) == (way.interface, way.gateway)
            });
            if !is_there || kept.as_ref() != Some(&way) {
                match route::add_route(*address, prefix, &way) {
                    Ok(()) => *kept = Some(way),
                    Err(error) => result = Err(error),
                }
            }
        }
        result
    }
}

fn full_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The way to an address by the routes that are not ours: the longest prefix decides, then the
/// priority.
fn way_around(table: &[Route], address: IpAddr) -> Option<Way> {
    table
        .iter()
        .filter(|route| !route.ours)
        .filter(|route| {
            let network = Cidr { address: route.network, prefix: route.prefix };
            network.contains(address)
        })
        .min_by_key(|route| (u8::MAX - route.prefix, route.priority))
        .map(|route| route.way.clone())
}

/// A default route is captured in two halves, so that the system's own stays as it is.
fn halves(network: Cidr) -> Vec<Cidr> {
    if network.prefix > 0 {
        return vec![network];
    }
    let second = match network.address {
        IpAddr::V4(_) => IpAddr::from([128, 0, 0, 0]),
        IpAddr::V6(_) => IpAddr::from([0x8000, 0, 0, 0, 0, 0, 0, 0]),
    };
    vec![Cidr { prefix: 1, ..network }, Cidr { address: second, prefix: 1 }]
}

impl Drop for Routes {
    fn drop(&mut self) {
        if let Err(error) = route::remove_ours() {
            log::warn!(event = "route"; "routes stay behind: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(network: &str, interface: u32, priority: u32, ours: bool) -> Route {
        let Cidr { address: network, prefix } = network.parse().unwrap();
        Route {
            network,
            prefix,
            priority,
            ours,
            way: Way { interface, gateway: None, source: None },
        }
    }

    #[test]
    fn the_way_around_the_capture_is_the_one_the_kernel_would_take() {
        let table = [
            route("0.0.0.0/0", 1, 600, false),
            route("0.0.0.0/0", 2, 100, false),
            route("192.0.2.0/24", 3, 0, false),
            route("0.0.0.0/1", 9, 0, true),
            route("192.0.2.7/32", 9, 0, true),
            route("2001:db8::/32", 4, 0, false),
        ];
        let way =
            |address: &str| way_around(&table, address.parse().unwrap()).map(|way| way.interface);
        assert_eq!(way("8.8.8.8"), Some(2), "the lower number counts");
        assert_eq!(way("192.0.2.7"), Some(3), "the longer prefix counts, and ours do not");
        assert_eq!(way("2001:db8::1"), Some(4));
        assert_eq!(way("fd00::1"), None);
    }
}
