//! Ports for daemons of a test, free for the moment.
//!
//! In: how many. Out: the first of them. Called by: tests that start daemons on loopback.

use std::net::TcpListener;

use rand::RngExt;

pub(crate) fn free_port() -> u16 {
    free_ports(1)
}

/// So many free ports in a row, below those that outgoing connections get.
pub(crate) fn free_ports(count: u16) -> u16 {
    'again: loop {
        let first = rand::rng().random_range(10_000..30_000 - count);
        for port in first..first + count {
            if TcpListener::bind(("127.0.0.1", port)).is_err() {
                continue 'again;
            }
        }
        return first;
    }
}
