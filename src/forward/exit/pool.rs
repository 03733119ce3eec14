//! The exit's pool: one IPv4 and one IPv6 address per circuit, with a rest between two circuits.
//!
//! In: two networks; circuits that come and go. Out: addresses; those whose connection tracking
//! must be flushed. Called by: the exit table, and through it the node.
//!
//! ```text
//! fresh --lease--> in use --release--> released --poll_released--> resting --(time)--> lease again
//!                                                 the shell flushes
//! ```

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use super::PoolAddress;

/// The exit's device has address 1; 0 is the network's own.
const DEVICE: u32 = 1;
const FIRST: u32 = 2;

/// Why there is no pool, or no address of it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PoolError {
    /// A network has more prefix bits than an address, or no room.
    #[error(
        "expected pool networks of at least 4 addresses without host bits, such as 100.65.0.0/16 \
         and fd63:6570:6101::/64, got {v4}/{v4_len} and {v6}/{v6_len}"
    )]
    Network {
        /// The IPv4 network.
        v4: Ipv4Addr,
        /// Its prefix length.
        v4_len: u8,
        /// The IPv6 network.
        v6: Ipv6Addr,
        /// Its prefix length.
        v6_len: u8,
    },
    /// Every address is in use or rests.
    #[error(
        "expected a free pool address, got none: {in_use} in use, {resting} resting; \
         give the exit a larger pool"
    )]
    Exhausted {
        /// Addresses of circuits.
        in_use: u32,
        /// Addresses that wait before they are used again.
        resting: u32,
    },
}

/// Leases the addresses of two networks in pairs.
#[derive(Debug)]
pub struct AddressPool {
    v4: u32,
    v6: u128,
    v4_host_bits: u32,
    v6_host_bits: u32,
    /// One past the last usable number.
    end: u32,
    /// The lowest number that was never leased.
    fresh: u32,
    in_use: u32,
    released: VecDeque<u32>,
    resting: VecDeque<(u32, Instant)>,
    rest: Duration,
}

impl AddressPool {
    /// A pool of the given networks (address and prefix length); a released address rests for
    /// `rest` before it is leased again.
    ///
    /// # Errors
    ///
    /// When a network is none, or too small.
    pub fn new(v4: (Ipv4Addr, u8), v6: (Ipv6Addr, u8), rest: Duration) -> Result<Self, PoolError> {
        let error = PoolError::Network { v4: v4.0, v4_len: v4.1, v6: v6.0, v6_len: v6.1 };
        let (Some(v4_host_bits), Some(v6_host_bits)) =
            (32u32.checked_sub(v4.1.into()), 128u32.checked_sub(v6.1.into()))
        else {
            return Err(error);
        };
        let is_network = v4.0.to_bits().trailing_zeros() >= v4_host_bits
            && v6.0.to_bits().trailing_zeros() >= v6_host_bits;
        // The last address of an IPv4 network is its broadcast address.
        let v4_end = (1u64 << v4_host_bits) - 1;
        let v6_end = 1u64 << v6_host_bits.min(32);
        let end = u32::try_from(v4_end.min(v6_end)).unwrap_or(u32::MAX);
        if !is_network || end <= FIRST {
            return Err(error);
        }
        Ok(Self {
            v4: v4.0.to_bits(),
            v6: v6.0.to_bits(),
            v4_host_bits,
            v6_host_bits,
            end,
            fresh: FIRST,
            in_use: 0,
            released: VecDeque::new(),
            resting: VecDeque::new(),
            rest,
        })
    }

    /// The addresses of the exit's device, in the same networks as the circuits'.
    pub fn device_address(&self) -> PoolAddress {
        self.address(DEVICE)
    }

    /// The most circuits that can have addresses at once.
    pub fn capacity(&self) -> u32 {
        self.end - FIRST
    }

    /// How many addresses are in use.
    pub fn in_use(&self) -> u32 {
        self.in_use
    }

    /// Whether `address` lies in one of the networks.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => {
                (v4.to_bits() ^ self.v4).checked_shr(self.v4_host_bits).unwrap_or(0) == 0
            }
            IpAddr::V6(v6) => {
                (v6.to_bits() ^ self.v6).checked_shr(self.v6_host_bits).unwrap_or(0) == 0
            }
        }
    }

    /// Takes the address that rested longest, or else a fresh one.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn lease(&mut self, now: Instant) -> Result<PoolAddress, PoolError> {
        let number = match self.resting.front() {
            Some((number, until)) if *until <= now => {
                let number = *number;
                self.resting.pop_front();
                number
            }
            _ if self.fresh < self.end => {
                self.fresh += 1;
                self.fresh - 1
            }
            _ => {
                let resting = (self.resting.len() + self.released.len()) as u32;
                return Err(PoolError::Exhausted { in_use: self.in_use, resting });
            }
        };
        self.in_use += 1;
        Ok(self.address(number))
    }

    /// Takes back an address that was leased.
    pub fn release(&mut self, address: PoolAddress) {
        if let Some(number) = self.number(address.v4.into()) {
            self.in_use = self.in_use.saturating_sub(1);
            self.released.push_back(number);
        }
    }

    /// The next released address. Its connection-tracking entries are to be flushed at once; its
    /// rest begins.
    pub fn poll_released(&mut self, now: Instant) -> Option<PoolAddress> {
        let number = self.released.pop_front()?;
        self.resting.push_back((number, now + self.rest));
        Some(self.address(number))
    }

    /// The place of an address in the pool: small numbers, each for one pair.
    pub(super) fn number(&self, address: IpAddr) -> Option<u32> {
        let number = match address {
            IpAddr::V4(v4) => v4.to_bits().wrapping_sub(self.v4),
            IpAddr::V6(v6) => u32::try_from(v6.to_bits().wrapping_sub(self.v6)).ok()?,
        };
        (FIRST..self.end).contains(&number).then_some(number)
    }

    fn address(&self, number: u32) -> PoolAddress {
        PoolAddress {
            v4: Ipv4Addr::from_bits(self.v4 + number),
            v6: Ipv6Addr::from_bits(self.v6 + u128::from(number)),
        }
    }
}

#[cfg(test)]
mod tests;
