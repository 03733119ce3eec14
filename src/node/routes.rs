//! The kernel's routes of a client: what it captures, and what must not be captured.
//!
//! In: the configured networks, the directory. Out: routes, removed when dropped.
//! Called by: the client's service.
//!
//! Captured networks point to the TUN. Members and the controller that lie in them keep the way
//! they had, or cells would be captured themselves.

use std::{
    collections::BTreeSet,
    net::{IpAddr, ToSocketAddrs},
    sync::Arc,
};

use tokio::sync::watch;

use crate::{
    capture::{
        Result,
        route::{self, Way},
    },
    config::Cidr,
    directory::{ControllerLink, Directory},
};

/// Routes that are in force until dropped.
pub(super) struct Routes {
    /// The captured networks, and the way that led there before.
    captured: Vec<(Cidr, Option<Way>)>,
    /// The TUN.
    interface: u32,
    ways: BTreeSet<IpAddr>,
}

impl Routes {
    /// Captures the networks. The controller keeps its way.
    pub(super) fn start(tun: &str, captured: &[Cidr], link: &ControllerLink) -> Result<Self> {
        route::remove_ours()?;
        let captured = captured.iter().map(|network| (*network, way_before(*network))).collect();
        let controller = (link.host(), link.port()).to_socket_addrs();
        let interface = route::interface(tun)?.index;
        let mut routes = Self { captured, interface, ways: BTreeSet::new() };
        let way = Way { interface, gateway: None, source: None };
        for (network, _) in &routes.captured {
            for half in halves(*network) {
                route::add_route(half.address, half.prefix, &way)?;
            }
        }
        for addr in controller.into_iter().flatten() {
            routes.keep_way(addr.ip());
        }
        Ok(routes)
    }

    /// Keeps the way to every member that lies in a captured network, as the directory changes.
    pub(super) async fn follow(mut self, mut directories: watch::Receiver<Option<Arc<Directory>>>) {
        loop {
            let directory = directories.borrow_and_update().clone();
            for member in directory.iter().flat_map(|directory| directory.nodes()) {
                self.keep_way(member.addr().ip());
            }
            if directories.changed().await.is_err() {
                return;
            }
        }
    }

    fn keep_way(&mut self, address: IpAddr) {
        let found = self.captured.iter().find(|(network, _)| network.contains(address));
        let Some((_, before)) = found else { return };
        if !self.ways.insert(address) {
            return;
        }
        // A route that is closer, such as that of a cable both are on, leads past the TUN already.
        if route::way_to(address).is_ok_and(|way| way.interface != self.interface) {
            return;
        }
        let Some(way) = before else {
            log::warn!("a member lies in a captured network that no route led to; not reachable");
            return;
        };
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        if let Err(error) = route::add_route(address, prefix, way) {
            log::warn!("a member inside a captured network keeps no way of its own: {error}");
        }
    }
}

/// The way that leads into a network before it is captured.
fn way_before(network: Cidr) -> Option<Way> {
    let first = match network.address {
        IpAddr::V4(address) => IpAddr::V4((address.to_bits() | 1).into()),
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() | 1).into()),
    };
    // The way to a router of a default route is found by any address behind it.
    let probe = if network.prefix > 0 {
        first
    } else if network.address.is_ipv4() {
        IpAddr::from([192, 0, 2, 1])
    } else {
        IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1])
    };
    route::way_to(probe).ok()
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
            log::warn!("routes stay behind: {error}");
        }
    }
}
