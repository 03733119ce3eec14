//! What one circuit may use at the exit: packets and bytes per second, connections at once.
//!
//! In: packets that the policy lets out. Out: yes or the reason. Called by: the exit table.

use std::time::{Duration, Instant};

use hashbrown::HashTable;

use crate::{forward::ip::protocol, model::DropReason};

/// What one circuit may use at the exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExitLimits {
    /// Packets per second that leave; 0: no limit.
    pub packets_per_second: u64,
    /// Bytes per second that leave, IP headers included; 0: no limit.
    pub bytes_per_second: u64,
    /// TCP connections, UDP flows and other conversations at once.
    pub connections: u32,
}

impl Default for ExitLimits {
    fn default() -> Self {
        Self { packets_per_second: 0, bytes_per_second: 0, connections: 1024 }
    }
}

/// A burst is what this time lets through.
const BURST: Duration = Duration::from_millis(250);
/// But at least so many packets,
const LEAST_BURST_PACKETS: f64 = 64.0;
/// or so many bytes: one superframe of the device.
const LEAST_BURST_BYTES: f64 = 65_536.0;

/// A token bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    tokens: f64,
    refilled: Instant,
}

impl Bucket {
    pub(super) fn new(now: Instant) -> Self {
        // The first refill cuts this to the burst.
        Self { tokens: f64::MAX, refilled: now }
    }

    /// Takes `cost` tokens if they are there.
    pub(super) fn take(&mut self, now: Instant, rate: f64, burst: f64, cost: f64) -> bool {
        let elapsed = now.saturating_duration_since(self.refilled);
        self.tokens = (self.tokens + rate * elapsed.as_secs_f64()).min(burst);
        self.refilled = self.refilled.max(now);
        let enough = self.tokens >= cost;
        if enough {
            self.tokens -= cost;
        }
        enough
    }

    fn give_back(&mut self, cost: f64) {
        self.tokens += cost;
    }
}

/// One circuit's rate.
#[derive(Debug)]
pub(super) struct Rate {
    packets: Bucket,
    bytes: Bucket,
}

impl Rate {
    pub(super) fn new(now: Instant) -> Self {
        Self { packets: Bucket::new(now), bytes: Bucket::new(now) }
    }

    /// Counts one packet of `len` bytes.
    pub(super) fn admit(
        &mut self,
        now: Instant,
        limits: &ExitLimits,
        len: usize,
    ) -> Result<(), DropReason> {
        let burst = |rate: f64, least: f64| (rate * BURST.as_secs_f64()).max(least);
        let packets = limits.packets_per_second as f64;
        if limits.packets_per_second > 0
            && !self.packets.take(now, packets, burst(packets, LEAST_BURST_PACKETS), 1.0)
        {
            return Err(DropReason::ExitRate);
        }
        let bytes = limits.bytes_per_second as f64;
        if limits.bytes_per_second > 0
            && !self.bytes.take(now, bytes, burst(bytes, LEAST_BURST_BYTES), len as f64)
        {
            self.packets.give_back(1.0);
            return Err(DropReason::ExitRate);
        }
        Ok(())
    }
}

const TCP_IDLE_S: u32 = 600;
const TCP_OPENING_S: u32 = 30;
const TCP_CLOSED_S: u32 = 10;
const UDP_IDLE_S: u32 = 120;
const OTHER_IDLE_S: u32 = 30;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// The conversations of one circuit. Empty it owns no memory.
///
/// A flow is remembered by 32 bits of its keyed hash: two flows that share them count as one,
/// which lets one more through.
#[derive(Debug, Default)]
pub(super) struct Connections {
    table: HashTable<Connection>,
    swept_s: u32,
}

#[derive(Clone, Copy, Debug)]
struct Connection {
    mark: u32,
    /// Seconds since the table's start; the lowest bit says whether it is closing.
    expires_s: u32,
}

impl Connection {
    fn hash(&self) -> u64 {
        u64::from(self.mark).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

impl Connections {
    /// Counts a packet of the flow with hash `hash`, at `now_s` seconds after a fixed start.
    pub(super) fn admit(
        &mut self,
        now_s: u32,
        most: u32,
        hash: u64,
        protocol: u8,
        tcp_flags: Option<u8>,
    ) -> Result<(), DropReason> {
        let flags = tcp_flags.unwrap_or(0);
        let closes = flags & (FIN | RST) != 0;
        if closes && flags & SYN != 0 {
            // No host sends it: it would open and close a conversation at once.
            return Err(DropReason::BadInnerPacket);
        }
        let opens = flags & (SYN | ACK) == SYN;
        let idle_s = match protocol {
            protocol::TCP if closes => TCP_CLOSED_S,
            protocol::TCP if opens => TCP_OPENING_S,
            protocol::TCP => TCP_IDLE_S,
            protocol::UDP | protocol::UDP_LITE => UDP_IDLE_S,
            _ => OTHER_IDLE_S,
        };
        let expires_s = |idle_s: u32, closing: bool| (now_s + idle_s) & !1 | u32::from(closing);
        let mut new =
            Connection { mark: (hash >> 32) as u32, expires_s: expires_s(idle_s, closes) };
        if let Some(known) = self.table.find_mut(new.hash(), |other| other.mark == new.mark) {
            if known.expires_s & 1 == 1 && !opens {
                new.expires_s = expires_s(TCP_CLOSED_S, true);
            }
            *known = new;
            return Ok(());
        }
        if self.table.len() >= most as usize {
            if self.swept_s < now_s {
                self.sweep(now_s);
            }
            if self.table.len() >= most as usize {
                return Err(DropReason::ExitConnections);
            }
        }
        self.table.insert_unique(new.hash(), new, Connection::hash);
        Ok(())
    }

    /// Forgets the conversations that ended, and their memory with the last one.
    pub(super) fn sweep(&mut self, now_s: u32) {
        self.swept_s = now_s;
        self.table.retain(|connection| connection.expires_s & !1 > now_s);
        if self.table.is_empty() {
            self.table = HashTable::new();
        } else if self.table.len() < self.table.capacity() / 4 {
            self.table.shrink_to_fit(Connection::hash);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.table.allocation_size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(packets: u64, bytes: u64) -> ExitLimits {
        ExitLimits { packets_per_second: packets, bytes_per_second: bytes, connections: 3 }
    }

    fn admitted(rate: &mut Rate, now: Instant, limits: &ExitLimits, len: usize) -> usize {
        (0..100_000).take_while(|_| rate.admit(now, limits, len).is_ok()).count()
    }

    #[test]
    fn a_burst_then_the_rate() {
        let now = Instant::now();
        let limits = limits(1000, 0);
        let mut rate = Rate::new(now);
        assert_eq!(admitted(&mut rate, now, &limits, 1500), 250);
        assert_eq!(rate.admit(now, &limits, 20), Err(DropReason::ExitRate));
        // Many small steps add up.
        let mut sum = 0;
        for step in 1..=100_000u32 {
            let now = now + Duration::from_micros(10) * step;
            sum += usize::from(rate.admit(now, &limits, 1500).is_ok());
        }
        assert!((999..=1001).contains(&sum), "{sum}");
        assert_eq!(admitted(&mut rate, now + Duration::from_secs(3600), &limits, 1500), 250);
    }

    #[test]
    fn bytes_count_too_and_refused_packets_cost_nothing() {
        let now = Instant::now();
        let limits = limits(1_000_000, 1_000_000);
        let mut rate = Rate::new(now);
        assert_eq!(admitted(&mut rate, now, &limits, 1000), 250);
        let later = now + Duration::from_millis(10);
        assert_eq!(admitted(&mut rate, later, &limits, 1000), 10);
        assert!(rate.packets.tokens > 240_000.0);
        assert_eq!(admitted(&mut rate, now, &limits, 1000), 0, "time does not run backwards");
    }

    #[test]
    fn zero_is_no_limit() {
        let now = Instant::now();
        assert_eq!(admitted(&mut Rate::new(now), now, &limits(0, 0), 1500), 100_000);
    }

    fn tcp(connections: &mut Connections, now_s: u32, flow: u64, flags: u8) -> bool {
        connections.admit(now_s, 3, flow << 32, protocol::TCP, Some(flags)).is_ok()
    }

    #[test]
    fn connections_are_capped_and_known_ones_go_on() {
        let mut connections = Connections::default();
        for flow in 0..3 {
            assert!(tcp(&mut connections, 0, flow, SYN));
            assert!(tcp(&mut connections, 0, flow, ACK));
        }
        assert!(!tcp(&mut connections, 0, 3, SYN));
        assert!(tcp(&mut connections, 1, 1, ACK));
        assert!(tcp(&mut connections, 1, 2, ACK | FIN));
        assert!(tcp(&mut connections, 2, 2, ACK), "the last acknowledgement does not reopen it");
        assert!(!tcp(&mut connections, 3, 3, SYN));
        assert!(tcp(&mut connections, 13, 3, SYN));
        assert!(!tcp(&mut connections, 14, 4, SYN));
        assert!(tcp(&mut connections, 44, 4, SYN), "the half-open one gave way");
        assert_eq!(connections.len(), 3);
        connections.sweep(10_000);
        assert_eq!((connections.len(), connections.heap_bytes()), (0, 0));
    }

    #[test]
    fn a_syn_that_also_closes_starts_nothing() {
        let mut connections = Connections::default();
        for flags in [SYN | FIN, SYN | RST, SYN | FIN | RST, SYN | ACK | FIN, SYN | ACK | RST] {
            let refused = connections.admit(0, 3, 1 << 32, protocol::TCP, Some(flags));
            assert_eq!(refused, Err(DropReason::BadInnerPacket), "{flags:#04x}");
        }
        assert_eq!(connections.len(), 0);
        // Nor does it close, or keep open, one that is there.
        assert!(tcp(&mut connections, 0, 1, SYN) && tcp(&mut connections, 0, 1, ACK));
        assert!(!tcp(&mut connections, 1, 1, SYN | FIN));
        connections.sweep(599);
        assert_eq!(connections.len(), 1);
        connections.sweep(601);
        assert_eq!(connections.len(), 0);
    }

    #[test]
    fn udp_and_echo_count_too() {
        let mut connections = Connections::default();
        let udp = |connections: &mut Connections, now_s, flow: u64| {
            connections.admit(now_s, 2, flow << 32, protocol::UDP, None).is_ok()
        };
        assert!(udp(&mut connections, 0, 1));
        assert!(connections.admit(0, 2, 2 << 32, protocol::ICMP, None).is_ok());
        assert!(!udp(&mut connections, 20, 3));
        assert!(udp(&mut connections, 31, 3));
        assert!(!udp(&mut connections, 32, 4));
        assert!(udp(&mut connections, 121, 4));
    }
}
