//! Policy routing of the inside: whatever arrives by its interfaces has one way, or none.
//!
//! In: interfaces, the TUN. Out: rules and a routing table of the kernel. Called by: node::gateway.
//!
//! The table has a route into the TUN and, behind it, one to nowhere. When the TUN goes, so does its
//! route, and the other stays: packets of the inside never fall back to the system's own routes.

use std::{io, net::IpAddr};

use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};

use super::{CaptureError, Result, netlink::Netlink};

/// The table of the inside (`ip route show table 98`).
const TABLE: u8 = 98;
/// Marks our rules and routes.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(98);
/// After the table of local addresses, before all others.
const PRIORITY: u32 = 980;
const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

/// Routes everything that arrives by these interfaces into the TUN, or nowhere; rules for others
/// are removed.
///
/// # Errors
/// Without the privilege, or when the TUN is gone.
pub fn route_inside(interfaces: &[String], tun: u32) -> Result<()> {
    let work = || -> io::Result<()> {
        let netlink = Netlink::route()?;
        for family in FAMILIES {
            // First the end of the way, so that no packet gets past it.
            add(&netlink, route(family, None), NLM_F_EXCL)?;
            for name in interfaces {
                add(&netlink, RouteNetlinkMessage::NewRule(rule(family, name)), NLM_F_EXCL)?;
            }
            add(&netlink, route(family, Some(tun)), NLM_F_REPLACE)?;
        }
        remove_rules(&netlink, |name| !interfaces.iter().any(|wanted| wanted == name))
    };
    work().map_err(|error| CaptureError::step("route the inside", "CAP_NET_ADMIN", error))
}

/// Takes rules and table away; packets of the inside follow the system's routes again.
///
/// # Errors
/// Without the privilege.
pub fn forget_inside() -> Result<()> {
    let work = || -> io::Result<()> {
        let netlink = Netlink::route()?;
        remove_rules(&netlink, |_| true)?;
        for message in netlink.list(RouteNetlinkMessage::GetRoute(RouteMessage::default()))? {
            if let RouteNetlinkMessage::NewRoute(route) = message
                && route.header.table == TABLE
                && route.header.protocol == PROTOCOL
            {
                netlink.change(RouteNetlinkMessage::DelRoute(route), 0)?;
            }
        }
        Ok(())
    };
    work().map_err(|error| CaptureError::step("forget the inside's routes", "CAP_NET_ADMIN", error))
}

fn add(netlink: &Netlink, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    match netlink.change(message, NLM_F_CREATE | flags) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

fn remove_rules(netlink: &Netlink, unwanted: impl Fn(&str) -> bool) -> io::Result<()> {
    for family in FAMILIES {
        let mut question = RuleMessage::default();
        question.header.family = family;
        for message in netlink.list(RouteNetlinkMessage::GetRule(question))? {
            let RouteNetlinkMessage::NewRule(rule) = message else { continue };
            let is_ours = rule.attributes.contains(&RuleAttribute::Protocol(PROTOCOL));
            let name = rule.attributes.iter().find_map(|attribute| match attribute {
                RuleAttribute::Iifname(name) => Some(name.as_str()),
                _ => None,
            });
            if is_ours && name.is_some_and(&unwanted) {
                netlink.change(RouteNetlinkMessage::DelRule(rule), 0)?;
            }
        }
    }
    Ok(())
}

fn rule(family: AddressFamily, interface: &str) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family;
    rule.header.table = TABLE;
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Iifname(interface.to_owned()),
        RuleAttribute::Priority(PRIORITY),
        RuleAttribute::Protocol(PROTOCOL),
    ];
    rule
}

/// The default route by an interface; without one, to nowhere.
fn route(family: AddressFamily, interface: Option<u32>) -> RouteNetlinkMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = family;
    route.header.table = TABLE;
    route.header.protocol = PROTOCOL;
    route.header.scope = RouteScope::Universe;
    let priority = match interface {
        Some(index) => {
            route.header.kind = RouteType::Unicast;
            if family == AddressFamily::Inet {
                route.header.scope = RouteScope::Link;
            }
            route.attributes.push(RouteAttribute::Oif(index));
            1
        }
        None => {
            route.header.kind = RouteType::Prohibit;
            u32::from(u16::MAX)
        }
    };
    route.attributes.push(RouteAttribute::Priority(priority));
    RouteNetlinkMessage::NewRoute(route)
}

/// Where a packet that arrives by `interface` from `source` goes: the index of the interface it
/// leaves by, or none if nowhere.
///
/// # Errors
/// When the kernel does not answer.
pub fn way_of_inside(interface: u32, source: IpAddr, to: IpAddr) -> Result<Option<u32>> {
    use rtnetlink::packet_route::route::RouteAddress;
    let mut question = RouteMessage::default();
    let (family, bits) =
        if to.is_ipv4() { (AddressFamily::Inet, 32) } else { (AddressFamily::Inet6, 128) };
    question.header.address_family = family;
    question.header.destination_prefix_length = bits;
    question.header.source_prefix_length = bits;
    question.attributes.push(RouteAttribute::Destination(RouteAddress::from(to)));
    question.attributes.push(RouteAttribute::Source(RouteAddress::from(source)));
    question.attributes.push(RouteAttribute::Iif(interface));
    let answers =
        Netlink::route().and_then(|netlink| netlink.get(RouteNetlinkMessage::GetRoute(question)));
    match answers {
        Ok(answers) => Ok(answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(route) if route.header.kind == RouteType::Unicast => {
                route.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Oif(index) => Some(*index),
                    _ => None,
                })
            }
            _ => None,
        })),
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EACCES | libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EINVAL)
            ) =>
        {
            Ok(None)
        }
        Err(source) => {
            Err(CaptureError::Io { what: format!("finding the inside's route to {to}"), source })
        }
    }
}
