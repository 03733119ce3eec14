//! Which circuit a new flow takes: the active one, unless the policy of its exit does not let the
//! destination through; and packets that wait for a circuit.
//!
//! In: the first packet of a flow, the exits of the circuits. Out: a circuit, or the wish for one.
//! Called by: the client's packets and circuits.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::{
    directory::Directory,
    forward::{
        inside::Slot,
        ip::{Headers, protocol},
    },
    model::{CircuitKey, ExitPolicy},
};

/// Circuits for single destinations at once.
const MOST_EXTRAS: usize = 8;
/// How long such a circuit stays without a flow.
const EXTRA_IDLE: Duration = Duration::from_secs(60);
/// Packets that wait for a circuit at once, and for how long.
const MOST_HELD: usize = 64;
const HELD_FOR: Duration = Duration::from_secs(2);

/// A destination, and the port of TCP and UDP.
pub(super) type Target = (IpAddr, Option<u16>);

/// A circuit that is wished for: whose flows it is for, and where they go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Wish {
    pub(super) slot: Slot,
    pub(super) target: Target,
}

struct Row {
    key: CircuitKey,
    policy: ExitPolicy,
    /// Built for destinations that the active circuit's exit does not let through, for these flows.
    extra: Option<Slot>,
    ready: Option<Instant>,
    stalled: bool,
}

/// The exits of all circuits, by what they let through.
pub(super) struct Targets {
    rows: Vec<Row>,
    wish: Option<Wish>,
    held: Vec<(Instant, Vec<u8>)>,
    /// After so long an extra circuit takes no new flows.
    rotate_after: Duration,
    /// All circuits end at the same exit.
    fixed: bool,
}

impl Targets {
    pub(super) fn new(rotate_after: Duration, fixed: bool) -> Self {
        Self { rows: Vec::new(), wish: None, held: Vec::new(), rotate_after, fixed }
    }

    /// The circuit for the flow that `packet` of `slot` starts, whose flows take `active`, or
    /// `spare`, where their exits let them. None: there is none, and one is wished for.
    pub(super) fn choose(
        &mut self,
        now: Instant,
        (packet, slot): (&[u8], Slot),
        active: Option<CircuitKey>,
        spare: Option<CircuitKey>,
        directory: Option<&Directory>,
    ) -> Option<CircuitKey> {
        let active = active?;
        let Some((address, port)) = target_of(packet) else { return Some(active) };
        let allows = |key| {
            let row = self.rows.iter().find(|row| row.key == key);
            row.is_none_or(|row| row.policy.allows(address, port))
        };
        if allows(active) || self.fixed {
            return Some(active);
        }
        let fresh = |since| now.saturating_duration_since(since) < self.rotate_after;
        let extras = self
            .rows
            .iter()
            .filter(|row| row.extra == Some(slot) && !row.stalled && row.ready.is_some_and(fresh))
            .map(|row| row.key);
        if let Some(key) = spare.into_iter().chain(extras).find(|key| allows(*key)) {
            return Some(key);
        }
        let lets_through = |directory: &Directory| {
            let mut exits = directory.nodes().iter().filter(|member| member.is_exit());
            exits.any(|exit| exit.descriptor.exit_policy.allows(address, port))
        };
        if !directory.is_some_and(lets_through) {
            // Nobody does: the active circuit's exit says so to the program that asked.
            return Some(active);
        }
        self.wish = Some(Wish { slot, target: (address, port) });
        None
    }

    /// The destination for which a circuit is to be built.
    pub(super) fn take_wish(&mut self) -> Option<Wish> {
        let wish = self.wish.take()?;
        let (address, port) = wish.target;
        let mut extras = self.rows.iter().filter(|row| row.extra.is_some());
        let full = extras.clone().count() >= MOST_EXTRAS;
        let comes = extras.any(|row| {
            let serves = row.extra == Some(wish.slot) && row.policy.allows(address, port);
            serves && row.ready.is_none()
        });
        (!comes && !full).then_some(wish)
    }

    pub(super) fn on_building(&mut self, key: CircuitKey, policy: ExitPolicy, extra: Option<Slot>) {
        self.rows.push(Row { key, policy, extra, ready: None, stalled: false });
    }

    pub(super) fn on_ready(&mut self, now: Instant, key: CircuitKey) {
        if let Some(row) = self.row_mut(key) {
            row.ready = Some(now);
        }
    }

    pub(super) fn set_stalled(&mut self, key: CircuitKey, stalled: bool) {
        if let Some(row) = self.row_mut(key) {
            row.stalled = stalled;
        }
    }

    pub(super) fn on_closed(&mut self, key: CircuitKey) {
        self.rows.retain(|row| row.key != key);
    }

    pub(super) fn is_extra(&self, key: CircuitKey) -> bool {
        self.rows.iter().any(|row| row.key == key && row.extra.is_some())
    }

    /// The extra circuits that nobody needs any more.
    pub(super) fn idle(
        &self,
        now: Instant,
        flows: impl Fn(CircuitKey) -> usize,
    ) -> Vec<CircuitKey> {
        let old = |since| now.saturating_duration_since(since) >= EXTRA_IDLE;
        self.rows
            .iter()
            .filter(|row| row.extra.is_some() && row.ready.is_some_and(old) && flows(row.key) == 0)
            .map(|row| row.key)
            .collect()
    }

    /// Keeps a packet until a circuit is there; says whether there was room.
    pub(super) fn hold(&mut self, now: Instant, packet: &[u8]) -> bool {
        let room = self.held.len() < MOST_HELD;
        if room {
            self.held.push((now, packet.to_vec()));
        }
        room
    }

    /// The packets that waited and may still go, and how many waited too long.
    pub(super) fn take_held(&mut self, now: Instant) -> (Vec<Vec<u8>>, usize) {
        let count = self.held.len();
        let is_young = |(since, _): &(Instant, _)| now.saturating_duration_since(*since) < HELD_FOR;
        let young = self.held.drain(..).filter(is_young).map(|(_, packet)| packet);
        let young: Vec<_> = young.collect();
        let late = count - young.len();
        (young, late)
    }

    /// Gives up packets that waited too long, and says how many.
    pub(super) fn drop_late(&mut self, now: Instant) -> usize {
        let before = self.held.len();
        self.held.retain(|(since, _)| now.saturating_duration_since(*since) < HELD_FOR);
        before - self.held.len()
    }

    fn row_mut(&mut self, key: CircuitKey) -> Option<&mut Row> {
        self.rows.iter_mut().find(|row| row.key == key)
    }
}

fn target_of(packet: &[u8]) -> Option<Target> {
    let headers = Headers::parse(packet).ok()?;
    let has_ports = matches!(headers.protocol, protocol::TCP | protocol::UDP);
    let port = headers.ports(packet).filter(|_| has_ports).map(|(_, to)| to);
    Some((headers.destination(packet), port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::test_network::{descriptor, directory_of};

    const KEYS: [CircuitKey; 3] = [CircuitKey(0), CircuitKey(1), CircuitKey(2)];

    fn syn(port: u16) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[0] = 0x45;
        packet[3] = 40;
        packet[9] = protocol::TCP;
        packet[12..16].copy_from_slice(&[100, 64, 0, 2]);
        packet[16..20].copy_from_slice(&[8, 8, 8, 8]);
        packet[20..24].copy_from_slice(&[0x10, 0, (port >> 8) as u8, port as u8]);
        packet[32] = 0x50;
        packet
    }

    /// Circuits 0 and 1 reject port 25, the directory's exit lets it through.
    fn targets() -> (Targets, Directory, Instant) {
        let now = Instant::now();
        let mut targets = Targets::new(Duration::from_secs(600), false);
        for key in [KEYS[0], KEYS[1]] {
            targets.on_building(key, "reject:*:25".parse().unwrap(), None);
            targets.on_ready(now, key);
        }
        let mut exit = descriptor(1);
        exit.roles = vec![crate::model::Role::Exit];
        exit.exit_policy = "reject:*:26".parse().unwrap();
        (targets, directory_of(&[exit]), now)
    }

    #[test]
    fn a_flow_takes_a_circuit_whose_exit_lets_its_port_through() {
        let (mut targets, directory, now) = targets();
        let choose = |targets: &mut Targets, now, port| {
            targets.choose(
                now,
                (&syn(port), Slot::SHARED),
                Some(KEYS[0]),
                Some(KEYS[1]),
                Some(&directory),
            )
        };
        assert_eq!(choose(&mut targets, now, 443), Some(KEYS[0]));
        assert_eq!(targets.take_wish(), None);
        assert_eq!(choose(&mut targets, now, 25), None);
        let target = ([8, 8, 8, 8].into(), Some(25));
        let slot = Slot::SHARED;
        assert_eq!(targets.take_wish(), Some(Wish { slot, target }));
        targets.on_building(KEYS[2], "reject:*:26".parse().unwrap(), Some(Slot::SHARED));
        assert_eq!(choose(&mut targets, now, 25), None, "it is not ready yet");
        assert_eq!(targets.take_wish(), None, "but it comes");
        targets.on_ready(now, KEYS[2]);
        assert_eq!(choose(&mut targets, now, 25), Some(KEYS[2]));
        // What was built for others carries no flow of a device.
        let device = Slot::devices().next().unwrap();
        let choice = targets.choose(now, (&syn(25), device), Some(KEYS[0]), None, Some(&directory));
        assert_eq!((choice, targets.take_wish()), (None, Some(Wish { slot: device, target })));
        targets.set_stalled(KEYS[2], true);
        assert_eq!(choose(&mut targets, now, 25), None);
        targets.set_stalled(KEYS[2], false);
        let later = now + Duration::from_secs(600);
        assert_eq!(choose(&mut targets, later, 25), None, "it is as old as circuits get");
        assert_eq!(targets.idle(later, |_| 1), []);
        assert_eq!(targets.idle(later, |_| 0), [KEYS[2]]);
        targets.on_closed(KEYS[2]);
        assert!(!targets.is_extra(KEYS[2]));
    }

    #[test]
    fn the_spare_serves_if_its_exit_does() {
        let (mut targets, directory, now) = targets();
        targets.on_closed(KEYS[1]);
        targets.on_building(KEYS[1], "reject:*:26".parse().unwrap(), None);
        targets.on_ready(now, KEYS[1]);
        let choice = targets.choose(
            now,
            (&syn(25), Slot::SHARED),
            Some(KEYS[0]),
            Some(KEYS[1]),
            Some(&directory),
        );
        assert_eq!(choice, Some(KEYS[1]));
    }

    #[test]
    fn what_no_exit_lets_through_goes_to_the_active_one() {
        let (mut targets, directory, now) = targets();
        for key in [KEYS[0], KEYS[1]] {
            targets.on_closed(key);
            targets.on_building(key, "reject:*:25-26".parse().unwrap(), None);
        }
        let choose = |targets: &mut Targets, directory| {
            targets.choose(now, (&syn(26), Slot::SHARED), Some(KEYS[0]), Some(KEYS[1]), directory)
        };
        assert_eq!(choose(&mut targets, Some(&directory)), Some(KEYS[0]));
        assert_eq!(choose(&mut targets, None), Some(KEYS[0]));
        targets.fixed = true;
        let choice =
            targets.choose(now, (&syn(25), Slot::SHARED), Some(KEYS[0]), None, Some(&directory));
        assert_eq!(choice, Some(KEYS[0]), "a fixed path has one exit");
        assert_eq!(targets.take_wish(), None);
    }

    #[test]
    fn few_packets_wait_and_not_for_long() {
        let (mut targets, _, now) = targets();
        assert_eq!((0..100).filter(|_| targets.hold(now, &syn(1))).count(), MOST_HELD);
        assert_eq!(targets.drop_late(now + Duration::from_secs(1)), 0);
        let (young, late) = targets.take_held(now + Duration::from_secs(1));
        assert_eq!((young.len(), late), (MOST_HELD, 0));
        assert_eq!(young[0], syn(1));
        targets.hold(now, &syn(1));
        targets.hold(now + Duration::from_secs(1), &syn(2));
        let (young, late) = targets.take_held(now + Duration::from_secs(2));
        assert_eq!((young, late), (vec![syn(2)], 1));
    }
}
