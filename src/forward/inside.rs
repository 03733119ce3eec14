//! The devices of a gateway, each on circuits of its own.
//!
//! In: packets of the kernel, which gave each device an address of its own; packets of circuits.
//! Out: whose a packet is; the same packet with the address that every client has, and back.
//! Called by: the client's data path.
//!
//! The kernel's NAT turns what devices send into [`Slot`] addresses, so two devices may use the same
//! ports. On the circuit all of them look like any client. A circuit serves one slot as long as it
//! lives, so it says whose an answer is.

use super::{
    exit::{PoolAddress, Rewrite},
    ip::Headers,
};
use crate::model::{CLIENT_INNER_V4, CLIENT_INNER_V6, CircuitKey, DropReason};

/// Devices that are kept apart; one more shares with another.
pub const SLOTS: u8 = 32;
/// The third byte of a slot's IPv4 address, and the last but one word of its IPv6 address.
const DEVICES: u8 = 1;

/// Whose packets: those of this machine (and of devices that are not kept apart), or of a device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Slot(u8);

impl Slot {
    /// This machine, and everybody who shares its circuits.
    pub const SHARED: Self = Self(0);

    /// The slots of devices.
    pub fn devices() -> impl Iterator<Item = Self> {
        (1..=SLOTS).map(Self)
    }

    /// Its number, from 1; 0 is [`Self::SHARED`].
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The addresses that the kernel gives the packets of this device.
    pub fn address(self) -> PoolAddress {
        if self == Self::SHARED {
            return PoolAddress { v4: CLIENT_INNER_V4, v6: CLIENT_INNER_V6 };
        }
        let [a, b, ..] = CLIENT_INNER_V4.octets();
        let [first, second, third, ..] = CLIENT_INNER_V6.segments();
        let (devices, number) = (u16::from(DEVICES), u16::from(self.0));
        PoolAddress {
            v4: [a, b, DEVICES, self.0].into(),
            v6: [first, second, third, 0, 0, 0, devices, number].into(),
        }
    }

    /// Whose address a packet has as its source.
    ///
    /// # Errors
    /// `InnerSource` when nobody's, `BadInnerPacket` when it is no packet.
    pub fn of_source(packet: &[u8]) -> Result<Self, DropReason> {
        match packet.first().map(|byte| byte >> 4) {
            Some(4) => packet.get(12..16).and_then(|source| slot_v4(source.try_into().ok()?)),
            Some(6) => packet.get(8..24).and_then(|source| slot_v6(source.try_into().ok()?)),
            _ => return Err(DropReason::BadInnerPacket),
        }
        .ok_or(DropReason::InnerSource)
    }
}

fn slot_v4(source: [u8; 4]) -> Option<Slot> {
    let own = CLIENT_INNER_V4.octets();
    match source {
        source if source == own => Some(Slot::SHARED),
        [a, b, DEVICES, number] if [a, b] == own[..2] => slot(number.into()),
        _ => None,
    }
}

fn slot_v6(source: [u8; 16]) -> Option<Slot> {
    if source == CLIENT_INNER_V6.octets() {
        return Some(Slot::SHARED);
    }
    let [.., high, low] = source;
    let found = slot(u16::from_be_bytes([high, low]))?;
    (found.address().v6.octets() == source).then_some(found)
}

fn slot(number: u16) -> Option<Slot> {
    let number = u8::try_from(number).ok()?;
    (1..=SLOTS).contains(&number).then_some(Slot(number))
}

/// Which circuits serve which device, and the change of addresses for each.
#[derive(Debug)]
pub struct Inside {
    rewrites: Vec<Rewrite>,
    /// By circuit key.
    serves: Vec<Slot>,
}

impl Default for Inside {
    fn default() -> Self {
        let rewrites = Slot::devices().map(|slot| Rewrite::new(slot.address())).collect();
        Self { rewrites, serves: Vec::new() }
    }
}

impl Inside {
    /// Makes a packet of a device one of this client, on a circuit that serves the device.
    ///
    /// # Errors
    /// `BadInnerPacket` when its headers cannot be read.
    pub fn enter(
        &mut self,
        slot: Slot,
        circuit: CircuitKey,
        packet: &mut [u8],
    ) -> Result<(), DropReason> {
        let Some(rewrite) = self.rewrite(slot) else { return Ok(()) };
        let headers = Headers::parse(packet)?;
        rewrite.enter(packet, &headers);
        if self.serves.len() <= circuit.index() {
            self.serves.resize(circuit.index() + 1, Slot::SHARED);
        }
        self.serves[circuit.index()] = slot;
        Ok(())
    }

    /// Makes a packet for this client one for the device that its circuit serves.
    ///
    /// # Errors
    /// `BadInnerPacket` when its headers cannot be read.
    pub fn leave(&self, circuit: CircuitKey, packet: &mut [u8]) -> Result<(), DropReason> {
        let slot = self.serves.get(circuit.index()).copied().unwrap_or_default();
        let Some(rewrite) = self.rewrite(slot) else { return Ok(()) };
        let headers = Headers::parse(packet)?;
        rewrite.leave(packet, &headers);
        Ok(())
    }

    /// A circuit is gone; its key may name another one, of somebody else.
    pub fn on_closed(&mut self, circuit: CircuitKey) {
        if let Some(slot) = self.serves.get_mut(circuit.index()) {
            *slot = Slot::SHARED;
        }
    }

    fn rewrite(&self, slot: Slot) -> Option<Rewrite> {
        self.rewrites.get(usize::from(slot.0).checked_sub(1)?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::exit::checksum::Sum;

    /// A UDP datagram between these two, with right checksums.
    fn datagram(from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0];
        packet.extend(from);
        packet.extend(to);
        packet.extend([0x10, 0, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4]);
        let header = Sum::of(&packet[..20]).checksum();
        packet[10..12].copy_from_slice(&header.to_be_bytes());
        let udp = transport_sum(&packet).checksum();
        packet[26..28].copy_from_slice(&udp.to_be_bytes());
        packet
    }

    fn transport_sum(packet: &[u8]) -> Sum {
        Sum::of(&packet[12..20]).plus(Sum::of(&packet[20..])).plus(Sum::of_number(17 + 12))
    }

    fn is_right(packet: &[u8]) -> bool {
        Sum::of(&packet[..20]).checksum() == 0 && transport_sum(packet).checksum() == 0
    }

    #[test]
    fn every_slot_has_addresses_of_its_own_and_is_found_by_them() {
        for slot in [Slot::SHARED].into_iter().chain(Slot::devices()) {
            let address = slot.address();
            let v4 = datagram(address.v4.octets(), [8, 8, 8, 8]);
            assert_eq!(Slot::of_source(&v4), Ok(slot));
            let mut v6 = vec![0; 40];
            v6[0] = 0x60;
            v6[8..24].copy_from_slice(&address.v6.octets());
            assert_eq!(Slot::of_source(&v6), Ok(slot));
            v6[20] = 9;
            assert_eq!(Slot::of_source(&v6), Err(DropReason::InnerSource));
        }
        for other in [[100, 64, 0, 1], [100, 64, 1, 0], [100, 64, 1, SLOTS + 1], [192, 168, 1, 1]] {
            assert_eq!(Slot::of_source(&datagram(other, [8; 4])), Err(DropReason::InnerSource));
        }
        assert_eq!(Slot::of_source(&[0x45]), Err(DropReason::InnerSource));
        assert_eq!(Slot::of_source(&[]), Err(DropReason::BadInnerPacket));
    }

    #[test]
    fn a_device_looks_like_any_client_and_gets_its_own_answers() {
        let own = CLIENT_INNER_V4.octets();
        let (first, second) = (Slot(1), Slot(SLOTS));
        let mut inside = Inside::default();
        for (slot, circuit) in [(first, CircuitKey(7)), (second, CircuitKey(3))] {
            let mut packet = datagram(slot.address().v4.octets(), [8, 8, 8, 8]);
            inside.enter(slot, circuit, &mut packet).unwrap();
            assert_eq!(packet, datagram(own, [8, 8, 8, 8]));
            assert!(is_right(&packet));
        }
        for (slot, circuit) in [(first, CircuitKey(7)), (second, CircuitKey(3))] {
            let mut answer = datagram([8, 8, 8, 8], own);
            inside.leave(circuit, &mut answer).unwrap();
            assert_eq!(answer, datagram([8, 8, 8, 8], slot.address().v4.octets()));
            assert!(is_right(&answer));
        }
        // The key of a circuit that is gone names another one.
        inside.on_closed(CircuitKey(7));
        for circuit in [CircuitKey(7), CircuitKey(900)] {
            let mut answer = datagram([8, 8, 8, 8], own);
            inside.leave(circuit, &mut answer).unwrap();
            assert_eq!(answer, datagram([8, 8, 8, 8], own));
        }
    }
}
