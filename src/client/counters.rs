//! What the proxies count, and how many connections one source may hold.
//!
//! In: connections that come and go. Out: numbers for status, and yes or no.
//! Called by: the listeners.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use crate::telemetry::ProxyStatus;

/// The counters of one listener, read by the control socket.
#[derive(Debug)]
pub(super) struct Counters {
    kind: &'static str,
    listen: SocketAddr,
    open: AtomicUsize,
    total: AtomicU64,
    refused: AtomicU64,
}

impl Counters {
    pub(super) fn new(kind: &'static str, listen: SocketAddr) -> Arc<Self> {
        Arc::new(Self {
            kind,
            listen,
            open: AtomicUsize::new(0),
            total: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        })
    }

    pub(super) fn refuse(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    /// Counts something as open until the guard is dropped.
    pub(super) fn open(self: &Arc<Self>) -> Open {
        self.open.fetch_add(1, Relaxed);
        self.total.fetch_add(1, Relaxed);
        Open(Arc::clone(self))
    }

    pub(super) fn status(&self) -> ProxyStatus {
        ProxyStatus {
            kind: self.kind.to_owned(),
            listen: self.listen.to_string(),
            open: self.open.load(Relaxed),
            total: self.total.load(Relaxed),
            refused: self.refused.load(Relaxed),
        }
    }
}

/// Something that is open.
pub(super) struct Open(Arc<Counters>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

/// How many connections there may be, in all and of one source.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// In all.
    pub(super) total: usize,
    /// Of one source address; of IPv6 one /64.
    pub(super) per_source: usize,
}

/// Who holds how many.
#[derive(Clone)]
pub(super) struct Sources {
    limits: Limits,
    held: Rc<RefCell<Held>>,
}

#[derive(Default)]
struct Held {
    total: usize,
    by_source: HashMap<IpAddr, usize>,
}

/// A place among the connections; given back when dropped.
pub(super) struct Seat {
    held: Rc<RefCell<Held>>,
    source: IpAddr,
}

impl Sources {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, held: Rc::default() }
    }

    /// A seat, if there is one.
    pub(super) fn seat(&self, source: IpAddr) -> Option<Seat> {
        let source = network(source);
        let mut held = self.held.borrow_mut();
        let own = held.by_source.get(&source).copied().unwrap_or_default();
        if held.total >= self.limits.total || own >= self.limits.per_source {
            return None;
        }
        held.by_source.insert(source, own + 1);
        held.total += 1;
        Some(Seat { held: Rc::clone(&self.held), source })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut held = self.held.borrow_mut();
        held.total -= 1;
        if let Some(own) = held.by_source.get_mut(&self.source) {
            *own -= 1;
            if *own == 0 {
                held.by_source.remove(&self.source);
            }
        }
    }
}

/// Whoever has one IPv6 address has 2^64 of them.
fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            [a, b, c, d, 0, 0, 0, 0].into()
        }
        v4 => v4,
    }
}

/// Whether a source is of this machine or its own network; nobody else gets a proxy.
pub(super) fn is_near(source: IpAddr) -> bool {
    match source.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_are_limited_in_all_and_per_source_and_come_back() {
        let sources = Sources::new(Limits { total: 3, per_source: 2 });
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = sources.seat(ip("192.0.2.1")).unwrap();
        let _second = sources.seat(ip("::ffff:192.0.2.1")).unwrap();
        assert!(sources.seat(ip("192.0.2.1")).is_none());
        let _third = sources.seat(ip("192.0.2.2")).unwrap();
        assert!(sources.seat(ip("192.0.2.3")).is_none());
        drop(first);
        let _v6 = sources.seat(ip("2001:db8::1")).unwrap();
        assert!(sources.seat(ip("192.0.2.1")).is_none());
    }

    #[test]
    fn one_v6_network_is_one_source() {
        let sources = Sources::new(Limits { total: 9, per_source: 1 });
        let _one = sources.seat("2001:db8::1".parse().unwrap()).unwrap();
        assert!(sources.seat("2001:db8::2".parse().unwrap()).is_none());
        assert!(sources.seat("2001:db8:0:1::2".parse().unwrap()).is_some());
        assert_eq!(sources.held.borrow().by_source.len(), 1, "refused sources leave no trace");
    }

    #[test]
    fn only_near_sources_are_served() {
        for near in ["127.0.0.1", "10.1.2.3", "192.168.0.9", "::1", "fe80::1", "fd00::1"] {
            assert!(is_near(near.parse().unwrap()), "{near}");
        }
        for far in ["8.8.8.8", "100.64.0.1", "2001:db8::1"] {
            assert!(!is_near(far.parse().unwrap()), "{far}");
        }
    }
}
