//! What an exit needs: its service, and of the kernel a TUN with the pool's addresses and NAT.
//!
//! In: settings. Out: an [`Exit`] for the data path, and its policy. Called by: the node's service.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use super::{
    NodeError,
    relay::{Exit, KernelExit},
};
use crate::{
    capture::{
        PacketDevice,
        nat::{ExitNat, NatOptions},
        route,
        tun::{Tun, TunOptions},
    },
    config::{Cidr, NodeConfig},
    exit::{EngineSettings, Service},
    forward::exit::{AddressPool, ExitLimits, ExitTable},
    keys::StateDir,
    model::ExitPolicy,
};

/// How long an address rests before another circuit gets it.
const ADDRESS_REST: Duration = Duration::from_secs(60);

/// The policy of the settings, with this machine's own addresses rejected.
pub(super) fn policy(config: &NodeConfig, own: &[IpAddr]) -> ExitPolicy {
    let policy = config.exit_policy.clone();
    let policy = if config.lab { policy.lab() } else { policy };
    policy.with_own_addresses(own)
}

/// Makes the device, the NAT and the table.
pub(super) fn start(
    config: &NodeConfig,
    dir: &StateDir,
    policy: &ExitPolicy,
) -> Result<Exit, NodeError> {
    let (v4, v6) = (config.exit_pool_v4, config.exit_pool_v6);
    let (IpAddr::V4(v4_network), IpAddr::V6(v6_network)) = (v4.address, v6.address) else {
        return Err(NodeError::PoolFamilies);
    };
    let pool = AddressPool::new((v4_network, v4.prefix), (v6_network, v6.prefix), ADDRESS_REST)?;
    let (kernel, interface) = if config.userspace {
        (None, "sockets".to_owned())
    } else {
        let interface = match &config.exit_interface {
            Some(name) => name.clone(),
            None => route::default_interface()?.ok_or(NodeError::NoExitInterface)?.name,
        };
        (Some(kernel(config, dir, &pool, &interface)?), interface)
    };
    let limits = ExitLimits {
        packets_per_second: config.circuit_packet_rate,
        bytes_per_second: config.circuit_byte_rate,
        connections: config.circuit_connections,
    };
    let service = Service::start(EngineSettings {
        policy: policy.clone(),
        resolver: config.exit_resolver,
        userspace: config.userspace,
    })?;
    let table = ExitTable::new(policy.clone(), limits, pool, Instant::now());
    Ok(Exit::new(kernel, service, table, interface, policy.to_string()))
}

/// The TUN device and the NAT.
fn kernel(
    config: &NodeConfig,
    dir: &StateDir,
    pool: &AddressPool,
    interface: &str,
) -> Result<KernelExit, NodeError> {
    let (v4, v6) = (config.exit_pool_v4, config.exit_pool_v6);
    let device = pool.device_address();
    let addresses: Vec<(IpAddr, u8)> =
        vec![(device.v4.into(), v4.prefix), (device.v6.into(), v6.prefix)];
    let tun = Tun::create(&TunOptions::new(&config.exit_tun, &addresses))?;
    let pair = |cidr: Cidr| (cidr.address, cidr.prefix);
    let nat = ExitNat::start(&NatOptions {
        tun: tun.name().to_owned(),
        interface: interface.to_owned(),
        pool: vec![pair(v4), pair(v6)],
        memo: Some(dir.file("sysctls")),
    })?;
    Ok(KernelExit { device: Box::new(tun), nat })
}
