//! Whether a packet may leave towards its destination.
//!
//! In: a packet whose headers were read. Out: yes, or the reason. Called by: the exit table.

use super::AddressPool;
use crate::{
    forward::ip::{Headers, Version, protocol},
    model::{
        CLIENT_INNER_V4, CLIENT_INNER_V6, DropReason, EXIT_INNER_V4, EXIT_INNER_V6,
        EXIT_RESOLVER_PORT, ExitPolicy,
    },
};

/// Checks the destination of a client's packet against the pool, then the policy.
///
/// Later fragments have no port; they pass where any port may be reached, and are useless without
/// the first one, which shows its port.
pub(super) fn check(
    policy: &ExitPolicy,
    pool: &AddressPool,
    packet: &[u8],
    headers: &Headers,
) -> Result<(), DropReason> {
    let destination = headers.destination(packet);
    // Every client has this address: it would reach whoever is nearest.
    let is_client = destination == CLIENT_INNER_V4 || destination == CLIENT_INNER_V6;
    if is_client || pool.contains(destination) {
        return Err(DropReason::PoolToPool);
    }
    let allowed = if headers.is_later_fragment() {
        policy.allows_some_port(destination)
    } else {
        policy.allows(destination, headers.ports(packet).map(|(_, to)| to))
    };
    if !allowed || is_of_the_link(packet, headers) {
        return Err(DropReason::ExitPolicy);
    }
    Ok(())
}

/// Whether a packet asks the exit's own resolver: nothing that the policy has a word in.
pub(super) fn asks_resolver(packet: &[u8], headers: &Headers) -> bool {
    let destination = headers.destination(packet);
    (destination == EXIT_INNER_V4 || destination == EXIT_INNER_V6)
        && matches!(headers.protocol, protocol::TCP | protocol::UDP)
        && headers.fragment.is_none()
        && headers.ports(packet).is_some_and(|(_, to)| to == EXIT_RESOLVER_PORT)
}

/// Redirects and neighbour discovery speak for a link that the client is not on.
fn is_of_the_link(packet: &[u8], headers: &Headers) -> bool {
    match (headers.version, headers.icmp_type(packet)) {
        (Version::V4, Some(kind)) => matches!(kind, 5 | 9 | 10),
        (Version::V6, Some(kind)) => matches!(kind, 133..=137),
        (_, None) => false,
    }
}
