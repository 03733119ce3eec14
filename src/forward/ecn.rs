//! Explicit congestion notification (RFC 3168) across the circuit (RFC 6040).
//!
//! In: marks on the datagrams of cells, inner packets. Out: inner packets that carry the mark on.
//! Called by: the queues of this folder, the event loops.

/// What cells travel with: the path may mark them.
pub const CAPABLE: u8 = 0b10;
/// Congestion was met.
pub const MET: u8 = 0b11;

/// Marks an inner packet; false when its sender does not understand marks and must see a loss.
pub fn mark(packet: &mut [u8]) -> bool {
    match packet.first().map(|first| first >> 4) {
        Some(4) if packet.len() >= 20 => {
            let before = packet[1];
            if before & MET == 0 {
                return false;
            }
            packet[1] |= MET;
            // RFC 1624: the old word out, the new one in.
            let sum = u16::from_be_bytes([packet[10], packet[11]]);
            let grown = u32::from(!sum) + u32::from(packet[1] - before);
            let sum = !(((grown & 0xffff) + (grown >> 16)) as u16);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            true
        }
        Some(6) if packet.len() >= 40 => {
            let capable = packet[1] >> 4 & MET != 0;
            if capable {
                packet[1] |= MET << 4;
            }
            capable
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{IpNumber, Ipv4Header, Ipv6Header};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_mark_keeps_the_checksum_right(class: u8, ttl: u8, id: u16) {
            let mut header =
                Ipv4Header::new(0, ttl, IpNumber::UDP, [10, 1, 2, 3], [10, 4, 5, 6]).unwrap();
            header.identification = id;
            let mut packet = header.to_bytes().to_vec();
            packet[1] = class;
            let (mut header, _) = Ipv4Header::from_slice(&packet).unwrap();
            header.header_checksum = header.calc_header_checksum();
            let mut packet = header.to_bytes().to_vec();
            let marked = mark(&mut packet);
            prop_assert_eq!(marked, class & 3 != 0);
            let (after, _) = Ipv4Header::from_slice(&packet).unwrap();
            prop_assert_eq!(after.header_checksum, after.calc_header_checksum());
            prop_assert_eq!(packet[1], if marked { class | 3 } else { class });
        }

        #[test]
        fn ipv6_has_its_bits_elsewhere(class: u8) {
            let header = Ipv6Header { traffic_class: class, ..Ipv6Header::default() };
            let mut packet = header.to_bytes().to_vec();
            let marked = mark(&mut packet);
            prop_assert_eq!(marked, class & 3 != 0);
            let (after, _) = Ipv6Header::from_slice(&packet).unwrap();
            prop_assert_eq!(after.traffic_class, if marked { class | 3 } else { class });
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            mark(&mut bytes);
        }
    }
}
