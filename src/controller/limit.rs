//! How much one source may ask: a token bucket of requests and a count of connections each.
//!
//! In: addresses, time. Out: yes, or how long to wait. Called by: the server, the router.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use super::settings::Limits;

/// Sources that are remembered at most; then the fullest buckets are forgotten.
const MAX_SOURCES: usize = 16_384;

/// An IPv4 address or an IPv6 /64.
pub(crate) type Source = IpAddr;

/// The source that an address belongs to.
pub(crate) fn source_of(ip: IpAddr) -> Source {
    match ip.to_canonical() {
        IpAddr::V4(ip) => IpAddr::V4(ip),
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
    }
}

#[derive(Debug)]
struct Usage {
    tokens: f64,
    filled: Instant,
    connections: usize,
}

/// The usage of every source.
#[derive(Debug)]
pub(crate) struct Limiter {
    rate: f64,
    burst: f64,
    connections: usize,
    sources: HashMap<Source, Usage>,
}

impl Limiter {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            rate: limits.requests_per_s,
            burst: limits.request_burst,
            connections: limits.connections_per_source,
            sources: HashMap::new(),
        }
    }

    fn usage(&mut self, source: Source, now: Instant) -> &mut Usage {
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&source) {
            self.forget_idle(now);
        }
        let (rate, burst) = (self.rate, self.burst);
        let usage = self.sources.entry(source).or_insert(Usage {
            tokens: burst,
            filled: now,
            connections: 0,
        });
        let passed = now.saturating_duration_since(usage.filled).as_secs_f64();
        usage.tokens = (usage.tokens + passed * rate).min(burst);
        usage.filled = now;
        usage
    }

    /// Forgets sources whose buckets are full again and who have no connection; when that is not
    /// enough, all without a connection.
    fn forget_idle(&mut self, now: Instant) {
        let (rate, burst) = (self.rate, self.burst);
        self.sources.retain(|_, usage| {
            let passed = now.saturating_duration_since(usage.filled).as_secs_f64();
            usage.connections > 0 || usage.tokens + passed * rate < burst
        });
        if self.sources.len() >= MAX_SOURCES {
            self.sources.retain(|_, usage| usage.connections > 0);
        }
    }

    /// Takes one request, or says how long to wait.
    pub(crate) fn request(&mut self, source: Source, now: Instant) -> Result<(), Duration> {
        let rate = self.rate;
        let usage = self.usage(source, now);
        if usage.tokens >= 1.0 {
            usage.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64(((1.0 - usage.tokens) / rate.max(0.001)).min(3600.0)))
    }

    /// Takes one connection; false if the source has its share.
    pub(crate) fn connect(&mut self, source: Source, now: Instant) -> bool {
        let most = self.connections;
        let usage = self.usage(source, now);
        if usage.connections >= most {
            return false;
        }
        usage.connections += 1;
        true
    }

    /// Gives one connection back.
    pub(crate) fn disconnect(&mut self, source: Source) {
        if let Some(usage) = self.sources.get_mut(&source) {
            usage.connections = usage.connections.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(connections: usize) -> Limiter {
        Limiter::new(&Limits {
            requests_per_s: 2.0,
            request_burst: 4.0,
            connections_per_source: connections,
            ..Limits::default()
        })
    }

    fn ip(last: u8) -> Source {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn a_source_has_a_burst_and_then_a_rate_of_its_own() {
        let mut limiter = limiter(1);
        let begin = Instant::now();
        for _ in 0..4 {
            limiter.request(ip(1), begin).unwrap();
        }
        let wait = limiter.request(ip(1), begin).unwrap_err();
        assert_eq!(wait, Duration::from_millis(500));
        limiter.request(ip(2), begin).unwrap();
        limiter.request(ip(1), begin + wait).unwrap();
        limiter.request(ip(1), begin + wait).unwrap_err();
        let later = begin + Duration::from_secs(100);
        for _ in 0..4 {
            limiter.request(ip(1), later).unwrap();
        }
        limiter.request(ip(1), later).unwrap_err();
        // A clock that went backwards grants nothing and breaks nothing.
        limiter.request(ip(1), begin).unwrap_err();
    }

    #[test]
    fn connections_are_counted_and_given_back() {
        let mut limiter = limiter(2);
        let now = Instant::now();
        assert!(limiter.connect(ip(1), now));
        assert!(limiter.connect(ip(1), now));
        assert!(!limiter.connect(ip(1), now));
        limiter.disconnect(ip(1));
        assert!(limiter.connect(ip(1), now));
        limiter.disconnect(ip(9));
    }

    #[test]
    fn an_ipv6_source_is_a_network() {
        let of = |text: &str| source_of(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), ip(1));
    }

    #[test]
    fn memory_is_bounded() {
        let mut limiter = limiter(2);
        let now = Instant::now();
        assert!(limiter.connect(ip(1), now));
        for number in 0..MAX_SOURCES as u32 * 3 {
            let _ = limiter.request(IpAddr::from(number.to_be_bytes()), now);
        }
        assert!(limiter.sources.len() <= MAX_SOURCES);
        assert_eq!(limiter.sources[&ip(1)].connections, 1);
    }
}
