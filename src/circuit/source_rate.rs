//! How many CREATEs each source may send.
//!
//! In: a source address and a time. Out: yes or no. Called by: the node's circuits.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

/// The most sources remembered at once.
const MAX_SOURCES: usize = 4_096;

/// A token bucket per source: an IPv4 address, or an IPv6 network of 64 bits.
pub(super) struct SourceRate {
    per_second: f32,
    burst: f32,
    buckets: HashMap<IpAddr, (f32, Instant)>,
}

impl SourceRate {
    pub(super) fn new(per_second: u32, burst: u32) -> Self {
        Self { per_second: per_second as f32, burst: burst as f32, buckets: HashMap::new() }
    }

    /// Takes one token of the source; false when it has none, or when too many sources are known.
    pub(super) fn allows(&mut self, now: Instant, source: IpAddr) -> bool {
        let source = match source {
            IpAddr::V4(_) => source,
            IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
        };
        if self.buckets.len() >= MAX_SOURCES && !self.buckets.contains_key(&source) {
            self.forget_full(now);
            if self.buckets.len() >= MAX_SOURCES {
                return false;
            }
        }
        let (tokens, last) = self.buckets.entry(source).or_insert((self.burst, now));
        let elapsed = now.saturating_duration_since(*last);
        *tokens = (*tokens + elapsed.as_secs_f32() * self.per_second).min(self.burst);
        *last = now;
        let allowed = *tokens >= 1.0;
        if allowed {
            *tokens -= 1.0;
        }
        allowed
    }

    /// Forgets the sources whose buckets are full again.
    fn forget_full(&mut self, now: Instant) {
        let full = Duration::from_secs_f32(self.burst / self.per_second.max(0.001));
        self.buckets.retain(|_, (_, last)| now.saturating_duration_since(*last) < full);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_spends_its_burst_and_earns_it_back() {
        let (mut rate, now) = (SourceRate::new(10, 3), Instant::now());
        let source = IpAddr::from([192, 0, 2, 1]);
        assert_eq!([true, true, true, false], [(); 4].map(|()| rate.allows(now, source)));
        assert!(rate.allows(now, [192, 0, 2, 2].into()), "other sources keep theirs");
        assert!(rate.allows(now + Duration::from_millis(150), source));
        assert!(!rate.allows(now + Duration::from_millis(150), source));
    }

    #[test]
    fn one_ipv6_network_is_one_source() {
        let (mut rate, now) = (SourceRate::new(1, 1), Instant::now());
        assert!(rate.allows(now, "2001:db8::1".parse().unwrap()));
        assert!(!rate.allows(now, "2001:db8::ffff".parse().unwrap()));
        assert!(rate.allows(now, "2001:db8:0:1::1".parse().unwrap()));
    }

    #[test]
    fn the_table_is_bounded_and_recovers() {
        let (mut rate, now) = (SourceRate::new(10, 10), Instant::now());
        for number in 0..MAX_SOURCES as u32 {
            assert!(rate.allows(now, IpAddr::V4(number.into())));
        }
        let late = IpAddr::from([198, 51, 100, 1]);
        assert!(!rate.allows(now, late));
        assert!(rate.allows(now + Duration::from_secs(2), late));
    }
}
