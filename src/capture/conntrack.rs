//! Forgets the kernel's tracked connections of one address (ctnetlink).
//!
//! In: an address of the exit's pool. Out: its connections are gone, so that the next circuit
//! with this address does not get the last one's answers. Called by: node's exit.

use std::{io, net::IpAddr};

use super::{CaptureError, Result, netlink::Netlink};

/// NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE.
const DELETE: u16 = 1 << 8 | 2;
const NESTED: u16 = 1 << 15;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
const FILTER_IP_SRC: u32 = 1;

/// Removes the tracked connections that `source` started. Linux before 5.8 cannot filter; there
/// this fails and nothing is removed, so the address has to rest until the entries expire.
///
/// # Errors
/// Without the privilege, on old kernels, or where connection tracking is not loaded.
pub fn flush(source: IpAddr) -> Result<()> {
    let work = || match Netlink::netfilter()?.raw(DELETE, &request(source)) {
        // Nothing was tracked.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    };
    work().map_err(|error: io::Error| {
        CaptureError::step("flush tracked connections", "CAP_NET_ADMIN", error)
    })
}

fn request(source: IpAddr) -> Vec<u8> {
    let (family, address) = match source {
        IpAddr::V4(ip) => (libc::AF_INET, attribute(CTA_IP_V4_SRC, &ip.octets())),
        IpAddr::V6(ip) => (libc::AF_INET6, attribute(CTA_IP_V6_SRC, &ip.octets())),
    };
    let ip = attribute(CTA_TUPLE_IP | NESTED, &address);
    let flags = [
        attribute(CTA_FILTER_ORIG_FLAGS, &FILTER_IP_SRC.to_ne_bytes()),
        attribute(CTA_FILTER_REPLY_FLAGS, &0u32.to_ne_bytes()),
    ]
    .concat();
    // nfgenmsg: family, version, resource id.
    let mut bytes = vec![family as u8, 0, 0, 0];
    bytes.extend(attribute(CTA_TUPLE_ORIG | NESTED, &ip));
    bytes.extend(attribute(CTA_FILTER | NESTED, &flags));
    bytes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = 4 + value.len();
    let mut bytes = Vec::with_capacity(len.next_multiple_of(4));
    bytes.extend((len as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(len.next_multiple_of(4), 0);
    bytes
}
