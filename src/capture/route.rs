//! Interfaces, addresses and routes of this network namespace.
//!
//! In: names, addresses, networks. Out: what there is; changes made in the kernel.
//! Called by: node's and client's set-up.
//!
//! Routes made here carry a protocol number of their own, so that what a killed process left is
//! found and removed at the next start. Routes by way of a TUN interface vanish with it.

use std::{io, net::IpAddr, time::Duration};

use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
        link::{LinkAttribute, LinkFlags, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
    },
};

use super::{CaptureError, Result, netlink::Netlink};

/// Marks our routes (`ip route show proto 99`).
const OUR_PROTOCOL: RouteProtocol = RouteProtocol::Other(99);
const TABLE_MAIN: u8 = 254;
const ADMIN: &str = "CAP_NET_ADMIN";

/// An interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// The kernel's number for it.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is up.
    pub up: bool,
    /// Whether it is a loopback.
    pub loopback: bool,
}

/// How packets to a destination leave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Way {
    /// By this interface.
    pub interface: u32,
    /// By way of this router; none if the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// From this address.
    pub source: Option<IpAddr>,
}

/// The interfaces.
///
/// # Errors
/// When the kernel does not answer.
pub fn interfaces() -> Result<Vec<Interface>> {
    let list = || Netlink::route()?.list(RouteNetlinkMessage::GetLink(LinkMessage::default()));
    let messages = list().map_err(|error| CaptureError::step("list interfaces", ADMIN, error))?;
    Ok(messages
        .into_iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) => Some(Interface {
                index: link.header.index,
                up: link.header.flags.contains(LinkFlags::Up),
                loopback: link.header.flags.contains(LinkFlags::Loopback),
                name: link.attributes.into_iter().find_map(|attribute| match attribute {
                    LinkAttribute::IfName(name) => Some(name),
                    _ => None,
                })?,
            }),
            _ => None,
        })
        .collect())
}

/// The interface of this name.
///
/// # Errors
/// When there is none.
pub fn interface(name: &str) -> Result<Interface> {
    interfaces()?
        .into_iter()
        .find(|interface| interface.name == name)
        .ok_or_else(|| CaptureError::NoInterface { name: name.to_owned() })
}

/// The addresses of an interface, with their prefix lengths.
///
/// # Errors
/// When there is no such interface.
pub fn networks_of(name: &str) -> Result<Vec<(IpAddr, u8)>> {
    let index = interface(name)?.index;
    Ok(all_addresses()?
        .into_iter()
        .filter(|(owner, ..)| *owner == index)
        .map(|(_, address, prefix)| (address, prefix))
        .collect())
}

/// All addresses of this host, with the number of their interface.
///
/// # Errors
/// When the kernel does not answer.
pub fn addresses() -> Result<Vec<(u32, IpAddr)>> {
    Ok(all_addresses()?.into_iter().map(|(index, address, _)| (index, address)).collect())
}

fn all_addresses() -> Result<Vec<(u32, IpAddr, u8)>> {
    let list =
        || Netlink::route()?.list(RouteNetlinkMessage::GetAddress(AddressMessage::default()));
    let messages = list().map_err(|error| CaptureError::step("list addresses", ADMIN, error))?;
    Ok(messages
        .into_iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(message) => {
                let find = |local| {
                    message.attributes.iter().find_map(|attribute| match attribute {
                        AddressAttribute::Local(ip) if local => Some(*ip),
                        AddressAttribute::Address(ip) if !local => Some(*ip),
                        _ => None,
                    })
                };
                // On point-to-point links `Address` is the other end.
                let ip = find(true).or_else(|| find(false))?;
                Some((message.header.index, ip, message.header.prefix_len))
            }
            _ => None,
        })
        .collect())
}

/// Gives an interface, which is up, an address, and returns when it can be used.
///
/// # Errors
/// Without the privilege, or when the interface is gone.
pub fn add_address(interface: u32, address: IpAddr, prefix: u8) -> Result<()> {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = prefix;
    message.header.index = interface;
    message.attributes.push(AddressAttribute::Address(address));
    if address.is_ipv4() {
        message.attributes.push(AddressAttribute::Local(address));
    } else {
        // Usable at once: what is given here is chosen, not guessed.
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE).map_err(
        |error| CaptureError::step(format!("add the address {address}/{prefix}"), ADMIN, error),
    )?;
    // The kernel makes the local route of an IPv6 address a moment later and drops what arrives
    // before.
    for _ in 0..100 {
        if route_to(address).is_ok_and(|route| route.header.kind == RouteType::Local) {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Sets an interface's MTU and the length of its queue, and brings it up.
///
/// # Errors
/// Without the privilege, or when the interface is gone.
pub fn bring_up(interface: u32, mtu: u32, queue_len: u32) -> Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = interface;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes.push(LinkAttribute::Mtu(mtu));
    message.attributes.push(LinkAttribute::TxQueueLen(queue_len));
    change(RouteNetlinkMessage::SetLink(message), 0)
        .map_err(|error| CaptureError::step("bring an interface up", ADMIN, error))
}

/// A route of the main table to a network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// The network.
    pub network: IpAddr,
    /// Its prefix length.
    pub prefix: u8,
    /// Of two routes to one network the one with the lower number counts.
    pub priority: u32,
    /// Whether it carries our mark.
    pub ours: bool,
    /// How packets leave by it.
    pub way: Way,
}

/// The unicast routes of the main table.
///
/// # Errors
/// When the kernel does not answer.
pub fn routes() -> Result<Vec<Route>> {
    let list = || Netlink::route()?.list(RouteNetlinkMessage::GetRoute(RouteMessage::default()));
    let messages = list().map_err(|error| CaptureError::step("list routes", ADMIN, error))?;
    Ok(messages
        .into_iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewRoute(route)
                if route.header.table == TABLE_MAIN && route.header.kind == RouteType::Unicast =>
            {
                let mut network = match route.header.address_family {
                    AddressFamily::Inet => IpAddr::from([0; 4]),
                    AddressFamily::Inet6 => IpAddr::from([0; 16]),
                    _ => return None,
                };
                let mut priority = 0;
                for attribute in &route.attributes {
                    match attribute {
                        RouteAttribute::Destination(RouteAddress::Inet(ip)) => {
                            network = (*ip).into()
                        }
                        RouteAttribute::Destination(RouteAddress::Inet6(ip)) => {
                            network = (*ip).into();
                        }
                        RouteAttribute::Priority(number) => priority = *number,
                        _ => {}
                    }
                }
                Some(Route {
                    network,
                    prefix: route.header.destination_prefix_length,
                    priority,
                    ours: route.header.protocol == OUR_PROTOCOL,
                    way: way_of(&route)?,
                })
            }
            _ => None,
        })
        .collect())
}

/// How packets to `to` leave.
///
/// # Errors
/// When there is no route to it.
pub fn way_to(to: IpAddr) -> Result<Way> {
    route_to(to)
        .and_then(|route| way_of(&route).ok_or(io::ErrorKind::NetworkUnreachable.into()))
        .map_err(|source| CaptureError::Io { what: format!("finding the route to {to}"), source })
}

fn route_to(to: IpAddr) -> io::Result<RouteMessage> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(to);
    message.header.destination_prefix_length = if to.is_ipv4() { 32 } else { 128 };
    message.attributes.push(RouteAttribute::Destination(RouteAddress::from(to)));
    let answers = Netlink::route()?.get(RouteNetlinkMessage::GetRoute(message))?;
    answers
        .into_iter()
        .find_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => Some(route),
            _ => None,
        })
        .ok_or(io::ErrorKind::NetworkUnreachable.into())
}

fn way_of(route: &RouteMessage) -> Option<Way> {
    let address = |address: &RouteAddress| match address {
        RouteAddress::Inet(ip) => Some(IpAddr::from(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::from(*ip)),
        _ => None,
    };
    let mut way = Way { interface: 0, gateway: None, source: None };
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => way.interface = *index,
            RouteAttribute::Gateway(ip) => way.gateway = address(ip),
            RouteAttribute::PrefSource(ip) => way.source = address(ip),
            _ => {}
        }
    }
    (way.interface != 0).then_some(way)
}

/// The interface of the default route, IPv4 first.
///
/// # Errors
/// When the kernel does not answer.
pub fn default_interface() -> Result<Option<Interface>> {
    let list = || Netlink::route()?.list(RouteNetlinkMessage::GetRoute(RouteMessage::default()));
    let messages = list().map_err(|error| CaptureError::step("list routes", ADMIN, error))?;
    let mut found: Vec<(bool, u32, u32)> = messages
        .into_iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewRoute(route)
                if route.header.destination_prefix_length == 0
                    && route.header.table == TABLE_MAIN
                    && route.header.kind == RouteType::Unicast =>
            {
                let priority = route.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Priority(priority) => Some(*priority),
                    _ => None,
                });
                let v6 = route.header.address_family == AddressFamily::Inet6;
                Some((v6, priority.unwrap_or(0), way_of(&route)?.interface))
            }
            _ => None,
        })
        .collect();
    found.sort_unstable();
    let Some((_, _, index)) = found.first() else { return Ok(None) };
    Ok(interfaces()?.into_iter().find(|interface| interface.index == *index))
}

/// Routes a network by way of an interface, and a router if there is one.
///
/// # Errors
/// Without the privilege, or when the interface is down.
pub fn add_route(network: IpAddr, prefix: u8, way: &Way) -> Result<()> {
    change(
        RouteNetlinkMessage::NewRoute(our_route(network, prefix, way)),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
    .map_err(|error| CaptureError::step(format!("route {network}/{prefix}"), ADMIN, error))
}

/// Takes a route away again; one that is gone already is fine.
///
/// # Errors
/// Without the privilege.
pub fn remove_route(network: IpAddr, prefix: u8, way: &Way) -> Result<()> {
    match change(RouteNetlinkMessage::DelRoute(our_route(network, prefix, way)), 0) {
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
            Err(CaptureError::step(format!("remove the route {network}/{prefix}"), ADMIN, error))
        }
        _ => Ok(()),
    }
}

/// Routes a network to nowhere (`prohibit`), behind every other route to it: what is captured does
/// not leak when its interface goes.
///
/// # Errors
/// Without the privilege.
pub fn add_block(network: IpAddr, prefix: u8) -> Result<()> {
    let way = Way { interface: 0, gateway: None, source: None };
    let mut message = our_route(network, prefix, &way);
    message.header.kind = RouteType::Prohibit;
    message.attributes.push(RouteAttribute::Priority(u32::from(u16::MAX)));
    match change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL) {
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => {
            Err(CaptureError::step(format!("block {network}/{prefix}"), ADMIN, error))
        }
        _ => Ok(()),
    }
}

/// Removes every route that carries our mark, and says how many there were.
///
/// # Errors
/// Without the privilege.
pub fn remove_ours() -> Result<usize> {
    let work = || -> io::Result<usize> {
        let netlink = Netlink::route()?;
        let mut removed = 0;
        for message in netlink.list(RouteNetlinkMessage::GetRoute(RouteMessage::default()))? {
            if let RouteNetlinkMessage::NewRoute(route) = message
                && route.header.protocol == OUR_PROTOCOL
            {
                netlink.change(RouteNetlinkMessage::DelRoute(route), 0)?;
                removed += 1;
            }
        }
        Ok(removed)
    };
    work().map_err(|error| CaptureError::step("remove left-over routes", ADMIN, error))
}

fn our_route(network: IpAddr, prefix: u8, way: &Way) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(network);
    message.header.destination_prefix_length = prefix;
    message.header.table = TABLE_MAIN;
    message.header.protocol = OUR_PROTOCOL;
    message.header.kind = RouteType::Unicast;
    message.header.scope = if way.gateway.is_none() && network.is_ipv4() {
        RouteScope::Link
    } else {
        RouteScope::Universe
    };
    message.attributes.push(RouteAttribute::Destination(RouteAddress::from(network)));
    if way.interface != 0 {
        message.attributes.push(RouteAttribute::Oif(way.interface));
    }
    if let Some(gateway) = way.gateway {
        message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway)));
    }
    if let Some(source) = way.source {
        message.attributes.push(RouteAttribute::PrefSource(RouteAddress::from(source)));
    }
    message
}

fn change(message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    Netlink::route()?.change(message, flags)
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
