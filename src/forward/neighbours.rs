//! A gateway on a cable without an IP stack of its own there: whose packets are for it, who asks for
//! its hardware address, and where the devices are.
//!
//! In: Ethernet frames of the cable; packets for devices. Out: packets for the gateway, answers to
//! ARP (RFC 826), neighbour and router solicitations (RFC 4861); headers for packets.
//! Called by: node's raw capture.
//!
//! | frame | what becomes of it |
//! |---|---|
//! | ARP request for an address of the gateway | answered; the asker is remembered |
//! | neighbour solicitation for one | the same |
//! | router solicitation | an advertisement: this router, its /64 networks, its resolver |
//! | ARP reply, neighbour advertisement | the sender is remembered |
//! | an IP packet to the gateway's hardware address, or a broadcast | passed on; the sender is remembered |
//! | anything else | none of our business |

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::exit::checksum::Sum;

/// The length of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Devices remembered at once.
const MOST_DEVICES: usize = 4096;
const BROADCAST: [u8; 6] = [0xff; 6];
const IPV4: [u8; 2] = [0x08, 0x00];
const ARP: [u8; 2] = [0x08, 0x06];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ICMPV6: u8 = 58;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// How long devices use this router after an advertisement, in seconds.
const ROUTER_LIFETIME: u16 = 1800;
/// How long the addresses they make of its network last, in seconds.
const PREFIX_LIFETIME: u32 = 7200;

/// A hardware address.
pub type HardwareAddress = [u8; 6];

/// What a frame is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FrameVerdict {
    /// An IP packet for the gateway: what stands behind the Ethernet header.
    Packet,
    /// A frame to send back.
    Answer(Vec<u8>),
    /// Nothing to do.
    Ignore,
}

/// The gateway's place on the cable.
#[derive(Clone, Debug)]
pub struct Neighbours {
    hardware: HardwareAddress,
    networks: Vec<(IpAddr, u8)>,
    link_local: Ipv6Addr,
    devices: HashMap<IpAddr, HardwareAddress>,
}

impl Neighbours {
    /// A gateway with this hardware address and these addresses, with their prefix lengths.
    pub fn new(hardware: HardwareAddress, networks: &[(IpAddr, u8)]) -> Self {
        let [a, b, c, d, e, f] = hardware;
        let word = |high: u8, low: u8| u16::from_be_bytes([high, low]);
        let link_local = Ipv6Addr::new(
            0xfe80,
            0,
            0,
            0,
            word(a ^ 2, b),
            word(c, 0xff),
            word(0xfe, d),
            word(e, f),
        );
        Self { hardware, networks: networks.to_vec(), link_local, devices: HashMap::new() }
    }

    /// Judges a frame of the cable, whole, its Ethernet header first.
    pub fn handle_frame(&mut self, frame: &[u8]) -> FrameVerdict {
        let Some((header, body)) = frame.split_first_chunk::<ETHERNET>() else {
            return FrameVerdict::Ignore;
        };
        let (mut to, mut from) = ([0; 6], [0; 6]);
        to.copy_from_slice(&header[..6]);
        from.copy_from_slice(&header[6..12]);
        // A sender that is a group, or this gateway, is nobody.
        if from == self.hardware || from[0] & 1 != 0 {
            return FrameVerdict::Ignore;
        }
        let for_us = to == self.hardware || to == BROADCAST;
        match [header[12], header[13]] {
            ARP => self.handle_arp(from, body).unwrap_or(FrameVerdict::Ignore),
            IPV4 if for_us => self.handle_v4(from, body).unwrap_or(FrameVerdict::Ignore),
            IPV6 if for_us || to[..2] == [0x33, 0x33] => {
                self.handle_v6(from, to == self.hardware, body).unwrap_or(FrameVerdict::Ignore)
            }
            _ => FrameVerdict::Ignore,
        }
    }

    fn handle_arp(&mut self, from: HardwareAddress, body: &[u8]) -> Option<FrameVerdict> {
        let arp = body.first_chunk::<28>()?;
        // Ethernet, IPv4, addresses of 6 and 4 bytes; the sender is who the frame says.
        if arp[..6] != [0, 1, 8, 0, 6, 4] || arp[8..14] != from {
            return None;
        }
        let sender = Ipv4Addr::new(arp[14], arp[15], arp[16], arp[17]);
        let target = Ipv4Addr::new(arp[24], arp[25], arp[26], arp[27]);
        self.remember(sender.into(), from);
        if arp[6..8] != [0, 1] || !self.is_ours(target.into()) || self.is_ours(sender.into()) {
            return None;
        }
        let mut answer = self.header(from, ARP).to_vec();
        answer.extend([0, 1, 8, 0, 6, 4, 0, 2]);
        answer.extend(self.hardware);
        answer.extend(target.octets());
        answer.extend(from);
        answer.extend(sender.octets());
        Some(FrameVerdict::Answer(answer))
    }

    fn handle_v4(&mut self, from: HardwareAddress, packet: &[u8]) -> Option<FrameVerdict> {
        let header = packet.first_chunk::<20>().filter(|header| header[0] >> 4 == 4)?;
        let source = Ipv4Addr::new(header[12], header[13], header[14], header[15]);
        self.remember(source.into(), from);
        Some(FrameVerdict::Packet)
    }

    fn handle_v6(
        &mut self,
        from: HardwareAddress,
        for_us: bool,
        packet: &[u8],
    ) -> Option<FrameVerdict> {
        let (header, body) = packet.split_first_chunk::<40>()?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let source = Ipv6Addr::from(*header[8..].first_chunk::<16>()?);
        // Discovery crosses no router: its hop limit says that it did not.
        if header[6] == ICMPV6 && header[7] == 255 && matches!(body.first(), Some(133..=136)) {
            return self.handle_discovery(from, source, body);
        }
        if !for_us {
            return None;
        }
        self.remember(source.into(), from);
        Some(FrameVerdict::Packet)
    }

    fn handle_discovery(
        &mut self,
        from: HardwareAddress,
        source: Ipv6Addr,
        body: &[u8],
    ) -> Option<FrameVerdict> {
        self.remember(source.into(), from);
        match body.first()? {
            133 => Some(FrameVerdict::Answer(self.advertisement())),
            135 => {
                let target = Ipv6Addr::from(*body.get(8..24)?.first_chunk::<16>()?);
                if !self.is_ours(target.into()) {
                    return None;
                }
                // Whoever is still choosing an address has none to be answered at.
                let (to, flags) =
                    if source.is_unspecified() { (ALL_NODES, 0xa0) } else { (source, 0xe0) };
                let hardware =
                    if source.is_unspecified() { [0x33, 0x33, 0, 0, 0, 1] } else { from };
                let mut message = vec![136, 0, 0, 0, flags, 0, 0, 0];
                message.extend(target.octets());
                message.extend([2, 1]);
                message.extend(self.hardware);
                Some(FrameVerdict::Answer(self.icmpv6(hardware, target, to, message)))
            }
            _ => None,
        }
    }

    /// A router advertisement to all devices; none of them uses IPv6 by this router without one.
    pub fn advertisement(&self) -> Vec<u8> {
        let networks = || {
            self.networks.iter().filter_map(|(address, prefix)| match address {
                IpAddr::V6(v6) if *prefix == 64 => Some(*v6),
                _ => None,
            })
        };
        // Without a network to give, this router offers nothing.
        let lifetime = if networks().next().is_some() { ROUTER_LIFETIME } else { 0 };
        let mut message = vec![134, 0, 0, 0, 64, 0];
        message.extend(lifetime.to_be_bytes());
        message.extend([0; 8]);
        message.extend([1, 1]);
        message.extend(self.hardware);
        for network in networks() {
            message.extend([3, 4, 64, 0xc0]);
            message.extend(PREFIX_LIFETIME.to_be_bytes());
            message.extend(PREFIX_LIFETIME.to_be_bytes());
            message.extend([0; 4]);
            message.extend((network.to_bits() >> 64 << 64).to_be_bytes());
        }
        if let Some(resolver) = networks().next() {
            message.extend([25, 3, 0, 0]);
            message.extend(PREFIX_LIFETIME.to_be_bytes());
            message.extend(resolver.octets());
        }
        self.icmpv6([0x33, 0x33, 0, 0, 0, 1], self.link_local, ALL_NODES, message)
    }

    fn icmpv6(
        &self,
        hardware: HardwareAddress,
        from: Ipv6Addr,
        to: Ipv6Addr,
        mut message: Vec<u8>,
    ) -> Vec<u8> {
        let sum = [Sum::of(&from.octets()), Sum::of(&to.octets()), Sum::of(&message)]
            .into_iter()
            .fold(Sum::of_number(message.len() as u32 + u32::from(ICMPV6)), Sum::plus);
        message[2..4].copy_from_slice(&sum.checksum().to_be_bytes());
        let mut frame = self.header(hardware, IPV6).to_vec();
        frame.extend([0x60, 0, 0, 0]);
        frame.extend((message.len() as u16).to_be_bytes());
        frame.extend([ICMPV6, 255]);
        frame.extend(from.octets());
        frame.extend(to.octets());
        frame.extend(message);
        frame
    }

    /// The Ethernet header of a packet for a device; none if the packet is none, goes to no single
    /// device, or the device has never been heard of.
    pub fn header_for(&self, packet: &[u8]) -> Option<[u8; ETHERNET]> {
        let (to, kind) = match packet.first()? >> 4 {
            4 => (IpAddr::from(*packet.get(16..20)?.first_chunk::<4>()?), IPV4),
            6 => (IpAddr::from(*packet.get(24..40)?.first_chunk::<16>()?), IPV6),
            _ => return None,
        };
        let device = match to {
            IpAddr::V4(v4) if v4.is_broadcast() => BROADCAST,
            _ => *self.devices.get(&to)?,
        };
        Some(self.header(device, kind))
    }

    fn header(&self, to: HardwareAddress, kind: [u8; 2]) -> [u8; ETHERNET] {
        let mut header = [0; ETHERNET];
        header[..6].copy_from_slice(&to);
        header[6..12].copy_from_slice(&self.hardware);
        header[12..].copy_from_slice(&kind);
        header
    }

    fn is_ours(&self, address: IpAddr) -> bool {
        address == IpAddr::V6(self.link_local)
            || self.networks.iter().any(|(own, _)| *own == address)
    }

    /// Remembers who has an address of one of the gateway's networks, or a link-local one.
    fn remember(&mut self, address: IpAddr, device: HardwareAddress) {
        let is_near = match address {
            IpAddr::V6(v6) if v6.is_unicast_link_local() => true,
            _ => self.networks.iter().any(|(own, prefix)| is_within(address, *own, *prefix)),
        };
        if !is_near || self.is_ours(address) {
            return;
        }
        // A full table forgets somebody, who is remembered again with the next packet.
        if self.devices.len() >= MOST_DEVICES
            && !self.devices.contains_key(&address)
            && let Some(someone) = self.devices.keys().next().copied()
        {
            self.devices.remove(&someone);
        }
        self.devices.insert(address, device);
    }
}

fn is_within(address: IpAddr, network: IpAddr, prefix: u8) -> bool {
    let apart = match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => return false,
    };
    apart >= u32::from(prefix)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWN: HardwareAddress = [2, 0, 0, 0, 0, 1];
    const DEVICE: HardwareAddress = [2, 0, 0, 0, 0, 9];

    fn gateway() -> Neighbours {
        Neighbours::new(
            OWN,
            &[("192.168.77.1".parse().unwrap(), 24), ("fd78::1".parse().unwrap(), 64)],
        )
    }

    fn arp_request(target: [u8; 4]) -> Vec<u8> {
        let mut frame = [BROADCAST.as_slice(), &DEVICE, &ARP, &[0, 1, 8, 0, 6, 4, 0, 1]].concat();
        frame.extend(DEVICE);
        frame.extend([192, 168, 77, 2]);
        frame.extend([0; 6]);
        frame.extend(target);
        frame
    }

    #[test]
    fn the_gateways_address_is_answered_and_no_other() {
        let mut gateway = gateway();
        let FrameVerdict::Answer(answer) = gateway.handle_frame(&arp_request([192, 168, 77, 1]))
        else {
            panic!("no answer")
        };
        assert_eq!(answer[..14], [DEVICE.as_slice(), &OWN, &ARP].concat());
        assert_eq!(answer[20..32], [&[0, 2], OWN.as_slice(), &[192, 168, 77, 1]].concat());
        assert_eq!(gateway.handle_frame(&arp_request([192, 168, 77, 3])), FrameVerdict::Ignore);
        // Whoever asked can be sent to.
        let mut packet = vec![0x45; 20];
        packet[16..20].copy_from_slice(&[192, 168, 77, 2]);
        assert_eq!(gateway.header_for(&packet).unwrap()[..6], DEVICE);
        packet[16..20].copy_from_slice(&[192, 168, 77, 3]);
        assert_eq!(gateway.header_for(&packet), None);
    }

    fn solicitation(kind: u8, target: &str) -> Vec<u8> {
        let mut frame = [&[0x33, 0x33, 0xff, 0, 0, 1], DEVICE.as_slice(), &IPV6].concat();
        frame.extend([0x60, 0, 0, 0, 0, 24, ICMPV6, 255]);
        frame.extend("fe80::9".parse::<Ipv6Addr>().unwrap().octets());
        frame.extend("ff02::1:ff00:1".parse::<Ipv6Addr>().unwrap().octets());
        frame.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend(target.parse::<Ipv6Addr>().unwrap().octets());
        frame
    }

    fn checksum_is_right(frame: &[u8]) -> bool {
        let message = &frame[54..];
        let sum = [Sum::of(&frame[22..54]), Sum::of(message)]
            .into_iter()
            .fold(Sum::of_number(message.len() as u32 + 58), Sum::plus);
        sum.checksum() == 0
    }

    #[test]
    fn neighbours_and_routers_are_found() {
        let mut gateway = gateway();
        for (kind, target, answered) in [
            (135, "fd78::1", Some(136)),
            (135, "fe80::ff:fe00:1", Some(136)),
            (135, "fd78::2", None),
            (133, "::", Some(134)),
            (136, "fd78::1", None),
        ] {
            match (gateway.handle_frame(&solicitation(kind, target)), answered) {
                (FrameVerdict::Answer(frame), Some(kind)) => {
                    assert_eq!(frame[54], kind);
                    assert!(checksum_is_right(&frame), "{target}");
                }
                (FrameVerdict::Ignore, None) => {}
                (verdict, _) => panic!("{kind} {target}: {verdict:?}"),
            }
        }
        let mut far = solicitation(135, "fd78::1");
        far[21] = 254;
        assert_eq!(gateway.handle_frame(&far), FrameVerdict::Ignore, "it has crossed a router");
    }

    #[test]
    fn only_what_is_for_the_gateway_is_taken() {
        let mut gateway = gateway();
        let frame = |to: HardwareAddress| {
            let mut frame = [to.as_slice(), &DEVICE, &IPV4, &[0x45]].concat();
            frame.resize(34, 0);
            frame[26..30].copy_from_slice(&[192, 168, 77, 2]);
            frame
        };
        assert_eq!(gateway.handle_frame(&frame(OWN)), FrameVerdict::Packet);
        assert_eq!(gateway.handle_frame(&frame(BROADCAST)), FrameVerdict::Packet);
        assert_eq!(gateway.handle_frame(&frame([2, 0, 0, 0, 0, 7])), FrameVerdict::Ignore);
        let mut own = frame(OWN);
        own[6..12].copy_from_slice(&OWN);
        assert_eq!(gateway.handle_frame(&own), FrameVerdict::Ignore);
    }

    proptest! {
        #[test]
        fn any_frame_is_taken(frame in prop::collection::vec(any::<u8>(), 0..200), kind in 0..4usize) {
            let mut frame = frame;
            if frame.len() > 14 {
                frame[12..14].copy_from_slice(&[[8, 0], [8, 6], [0x86, 0xdd], [0, 0]][kind]);
                frame[0..6].copy_from_slice(&OWN);
            }
            let mut gateway = gateway();
            let _ = gateway.handle_frame(&frame);
            let _ = gateway.header_for(&frame);
        }
    }
}
