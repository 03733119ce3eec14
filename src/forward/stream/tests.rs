//! The packer against the reassembler, over links that lose, repeat and reorder, and against
//! senders that lie.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::model::{DropCounters, DropReason, PacketBatch, STREAM_LEN};

#[derive(Default)]
struct Bodies(Vec<Body>);

impl BodySink for Bodies {
    fn next_body(&mut self) -> &mut Body {
        // What an earlier cell left there must not show.
        self.0.push([0xee; BODY_LEN]);
        self.body()
    }

    fn body(&mut self) -> &mut Body {
        self.0.last_mut().unwrap()
    }
}

/// An IP packet of `len` bytes whose payload tells it apart from others.
fn packet(is_v6: bool, len: usize, mark: u32) -> Vec<u8> {
    let len = if is_v6 { len.max(40) } else { len.max(20) };
    let mut bytes: Vec<u8> =
        (0..len as u32).map(|at| mark.wrapping_mul(31).wrapping_add(at) as u8).collect();
    if is_v6 {
        bytes[0] = 0x60;
        bytes[4..6].copy_from_slice(&(len as u16 - 40).to_be_bytes());
        bytes[16..20].copy_from_slice(&mark.to_be_bytes());
    } else {
        bytes[0] = 0x45;
        bytes[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        bytes[12..16].copy_from_slice(&mark.to_be_bytes());
    }
    bytes
}

/// Packs packets, with a flush wherever asked for.
fn pack(packets: &[(Vec<u8>, bool)]) -> Vec<Body> {
    let mut bodies = Bodies::default();
    let mut packer = Packer::new();
    for (packet, flush) in packets {
        packer.push(packet, &mut bodies).unwrap();
        if *flush {
            packer.flush(&mut bodies);
        }
    }
    packer.flush(&mut bodies);
    bodies.0
}

fn packets() -> impl Strategy<Value = Vec<(Vec<u8>, bool)>> {
    let len = prop_oneof![3 => 20..=100usize, 2 => 1200..=1500usize, 1 => 20..=1500usize];
    let one = (any::<bool>(), len, prop::bool::weighted(0.1));
    prop::collection::vec(one, 1..60).prop_map(|all| {
        let numbered = all.into_iter().zip(1..);
        numbered.map(|((is_v6, len, flush), mark)| (packet(is_v6, len, mark), flush)).collect()
    })
}

/// What the receiver has seen of one stream.
#[derive(Default)]
struct Receiver {
    reassembler: Reassembler,
    out: PacketBatch,
    drops: DropCounters,
    got: HashMap<Vec<u8>, u32>,
    order: Vec<Vec<u8>>,
}

impl Receiver {
    fn push(&mut self, seq: u32, body: Option<&Body>) {
        self.reassembler.push(seq, body, &mut self.out, &mut self.drops);
        for packet in self.out.iter() {
            *self.got.entry(packet.to_vec()).or_default() += 1;
            self.order.push(packet.to_vec());
        }
        self.out.clear();
    }

    fn dropped(&self) -> u64 {
        self.drops.iter().map(|(_, count)| count).sum()
    }
}

/// Data cells with their sequence numbers; after those marked, a cell without data follows.
fn numbered(bodies: Vec<Body>, start: u32, gaps: &[bool]) -> Vec<(u32, Option<Body>)> {
    let mut cells = Vec::new();
    for (index, body) in bodies.into_iter().enumerate() {
        cells.push(Some(body));
        if gaps[index % gaps.len()] {
            cells.push(None);
        }
    }
    (start..).zip(cells).collect()
}

/// Moves cells by at most `most` places.
fn shuffle<T>(cells: &mut [T], most: usize, places: &[usize]) {
    for chunk in cells.chunks_mut(most.max(1)) {
        for index in 0..chunk.len() {
            let place = places[index % places.len()] % chunk.len();
            chunk.swap(index, place);
        }
    }
}

proptest! {
    #[test]
    fn in_order_everything_arrives_in_order(
        packets in packets(),
        start in 0..1u32 << 30,
        gaps in prop::collection::vec(prop::bool::weighted(0.2), 7),
    ) {
        let mut receiver = Receiver::default();
        for (seq, body) in numbered(pack(&packets), start, &gaps) {
            receiver.push(seq, body.as_ref());
        }
        let sent: Vec<Vec<u8>> = packets.into_iter().map(|(packet, _)| packet).collect();
        prop_assert_eq!(receiver.order, sent);
        prop_assert!(!receiver.reassembler.is_waiting());
        prop_assert_eq!(receiver.drops.iter().count(), 0);
    }

    #[test]
    fn reordered_and_repeated_everything_arrives_once(
        packets in packets(),
        start in 0..1u32 << 30,
        gaps in prop::collection::vec(prop::bool::weighted(0.2), 7),
        most in 1..14usize,
        places in prop::collection::vec(0..14usize, 14),
        repeats in prop::collection::vec(any::<bool>(), 5),
    ) {
        let mut cells = numbered(pack(&packets), start, &gaps);
        // The first cell tells the receiver where the stream starts.
        shuffle(&mut cells[1..], most, &places);
        let mut receiver = Receiver::default();
        for (index, (seq, body)) in cells.iter().enumerate() {
            receiver.push(*seq, body.as_ref());
            if repeats[index % repeats.len()] {
                receiver.push(*seq, body.as_ref());
                let (earlier, body) = &cells[index.saturating_sub(20)];
                receiver.push(*earlier, body.as_ref());
            }
        }
        for (packet, _) in &packets {
            prop_assert_eq!(receiver.got.remove(packet), Some(1));
        }
        prop_assert!(receiver.got.is_empty());
        prop_assert!(!receiver.reassembler.is_waiting());
        prop_assert_eq!(receiver.drops.iter().count(), 0);
    }

    #[test]
    fn losses_cost_only_the_packets_they_touch(
        packets in packets(),
        start in 0..1u32 << 30,
        gaps in prop::collection::vec(prop::bool::weighted(0.2), 7),
        lost in prop::collection::vec(prop::bool::weighted(0.15), 1..80),
        places in prop::collection::vec(0..6usize, 6),
    ) {
        let cells = numbered(pack(&packets), start, &gaps);
        // Where each packet lies, found the slow way: by joining all stream areas.
        let mut touched = HashMap::new();
        let mut all = Vec::new();
        for (index, (_, body)) in cells.iter().enumerate() {
            if let Some(body) = body {
                all.extend(body[12..].iter().map(|byte| (*byte, index)));
            }
        }
        let mut at = 0;
        for (packet, _) in &packets {
            // A flush leaves zeros up to the next cell.
            while all[at].0 == 0 {
                at += 1;
            }
            let here = &all[at..at + packet.len()];
            prop_assert!(here.iter().map(|(byte, _)| byte).eq(packet));
            touched.insert(packet.clone(), (here[0].1, here[packet.len() - 1].1));
            at += packet.len();
        }
        let mut arriving: Vec<_> = cells.iter().enumerate().collect();
        arriving.retain(|(index, _)| *index == 0 || !lost[index % lost.len()]);
        let kept: Vec<usize> = arriving.iter().map(|(index, _)| *index).collect();
        shuffle(&mut arriving[1..], 6, &places);
        let mut receiver = Receiver::default();
        for (_, (seq, body)) in arriving {
            receiver.push(*seq, body.as_ref());
        }
        for (packet, (first, last)) in touched {
            let whole = (first..=last).all(|index| {
                // A lost cell without data leaves its neighbours apart, too.
                kept.binary_search(&index).is_ok()
            });
            let got = receiver.got.remove(&packet).unwrap_or(0);
            prop_assert_eq!(got, u32::from(whole));
        }
        prop_assert!(receiver.got.is_empty());
        prop_assert_eq!(receiver.drops.get(DropReason::BadInnerPacket), 0);
    }

    #[test]
    fn lies_never_make_a_packet_that_contradicts_itself(
        cells in prop::collection::vec(
            (0..200u32, prop::option::of((any::<u16>(), prop::collection::vec(hostile(), 1..40)))),
            1..120,
        ),
        start in prop_oneof![Just(0u32), 0..u32::MAX - 300, Just(u32::MAX - 200)],
    ) {
        let mut receiver = Receiver::default();
        for (seq, content) in cells {
            let body = content.map(|(offset, pieces)| {
                let mut body = [0; BODY_LEN];
                let offset = match offset % 4 {
                    0 => offset,
                    1 => NO_PACKET_START,
                    _ => 12 + offset % 1300,
                };
                body[OFFSET].copy_from_slice(&offset.to_be_bytes());
                let bytes: Vec<u8> = pieces.concat();
                let len = bytes.len().min(STREAM_LEN);
                body[12..12 + len].copy_from_slice(&bytes[..len]);
                body
            });
            receiver.push(start + seq, body.as_ref());
            prop_assert!(receiver.reassembler.heap_bytes() <= 48 << 10);
        }
        for packet in receiver.order {
            prop_assert!((20..=1500).contains(&packet.len()));
            let declared = match packet[0] >> 4 {
                4 => {
                    prop_assert!(packet[0] & 15 >= 5 && usize::from(packet[0] & 15) * 4 <= packet.len());
                    usize::from(u16::from_be_bytes([packet[2], packet[3]]))
                }
                6 => usize::from(u16::from_be_bytes([packet[4], packet[5]])) + 40,
                other => return Err(TestCaseError::fail(format!("version {other}"))),
            };
            prop_assert_eq!(declared, packet.len());
        }
    }
}

/// Parts of bodies that look like packets, nearly like packets, or like nothing.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        (any::<bool>(), 20..=1500usize, any::<u32>())
            .prop_map(|(v6, len, mark)| packet(v6, len, mark)),
        (any::<bool>(), 20..=1500usize, any::<u16>()).prop_map(|(v6, len, lie)| {
            let mut bytes = packet(v6, len, 7);
            bytes[if v6 { 4..6 } else { 2..4 }].copy_from_slice(&lie.to_be_bytes());
            bytes
        }),
        prop::collection::vec(any::<u8>(), 1..200),
        Just(vec![0; 50]),
    ]
}

#[test]
fn small_packets_share_a_cell_and_large_ones_span_two() {
    let small: Vec<_> = (1..=20).map(|mark| (packet(false, 64, mark), false)).collect();
    assert_eq!(pack(&small).len(), 1);
    let bodies = pack(&[(packet(true, 1500, 1), false), (packet(false, 1100, 2), false)]);
    assert_eq!(bodies.len(), 2);
    assert_eq!(bodies[0][..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12]);
    assert_eq!(bodies[1][..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 212]);
    assert_eq!(bodies[1][1312 - 10..], packet(false, 1100, 2)[1090..]);
}

#[test]
fn a_packet_may_span_three_cells_and_the_middle_one_has_no_start() {
    let bodies = pack(&[(packet(false, 1290, 1), false), (packet(false, 1500, 2), false)]);
    assert_eq!(bodies.len(), 3);
    assert_eq!(bodies[1][OFFSET], [0xff, 0xff]);
    assert_eq!(bodies[2][OFFSET], [0xff, 0xff]);
    assert!(bodies[2][12 + 190..].iter().all(|byte| *byte == 0));
    // Every order of arrival gives both packets, the first cell aside.
    let [first, second, third] = [0, 1, 2].map(|index| &bodies[index]);
    for order in [[(8, second), (9, third)], [(9, third), (8, second)]] {
        let mut receiver = Receiver::default();
        receiver.push(7, Some(first));
        for (seq, body) in order {
            receiver.push(seq, Some(body));
        }
        assert_eq!(receiver.order, [packet(false, 1290, 1), packet(false, 1500, 2)]);
        assert!(!receiver.reassembler.is_waiting());
    }
    let mut receiver = Receiver::default();
    receiver.push(9, Some(third));
    receiver.push(8, Some(second));
    receiver.push(7, Some(first));
    assert_eq!(receiver.got.len(), 2);
}

#[test]
fn a_split_header_is_joined() {
    for left in 1..8 {
        let bodies = pack(&[(packet(false, 1300 - left, 1), false), (packet(true, 700, 2), false)]);
        for reversed in [false, true] {
            let mut receiver = Receiver::default();
            let mut cells = [(1, &bodies[0]), (2, &bodies[1])];
            if reversed {
                cells.reverse();
            }
            for (seq, body) in cells {
                receiver.push(seq, Some(body));
            }
            assert_eq!(receiver.got.len(), 2, "{left} {reversed}");
            assert!(receiver.got.contains_key(&packet(true, 700, 2)));
        }
    }
}

#[test]
fn whole_packets_leave_at_once_and_late_ones_still_count() {
    let packets: Vec<_> = (0..400).map(|mark| (packet(false, 1000, mark), true)).collect();
    let bodies = pack(&packets);
    let mut receiver = Receiver::default();
    receiver.push(1000, Some(&bodies[0]));
    receiver.push(1399, Some(&bodies[399]));
    assert_eq!(receiver.order.len(), 2);
    receiver.push(1001, Some(&bodies[1]));
    assert_eq!(receiver.order.len(), 3);
    assert_eq!(receiver.dropped(), 0);
}

#[test]
fn lost_neighbours_are_counted_and_their_memory_is_freed() {
    let packets: Vec<_> = (0..6).map(|mark| (packet(false, 1500, mark), false)).collect();
    let bodies = pack(&packets);
    let mut receiver = Receiver::default();
    receiver.push(1, Some(&bodies[0]));
    receiver.push(3, Some(&bodies[2]));
    assert!(receiver.reassembler.is_waiting());
    let mut later = receiver;
    later.push(2 + 128, None);
    assert_eq!(later.drops.get(DropReason::FragmentLost), 1);
    later.push(3 + 128, None);
    assert_eq!(later.drops.get(DropReason::FragmentLost), 3);
    assert!(!later.reassembler.is_waiting());

    let mut silent = Receiver::default();
    silent.push(1, Some(&bodies[0]));
    silent.push(3, Some(&bodies[2]));
    silent.reassembler.forget(&mut silent.drops);
    assert_eq!(silent.drops.get(DropReason::FragmentLost), 3);
    assert_eq!(silent.reassembler.heap_bytes(), 0);
    silent.push(4, Some(&bodies[3]));
    silent.push(5, Some(&bodies[4]));
    silent.push(6, Some(&bodies[5]));
    assert!(silent.got.contains_key(&packet(false, 1500, 4)));
}

#[test]
fn what_is_held_is_bounded() {
    let packets: Vec<_> = (0..200).map(|mark| (packet(false, 1500, mark), false)).collect();
    let mut receiver = Receiver::default();
    for (seq, body) in pack(&packets).iter().enumerate() {
        if seq % 2 == 0 {
            receiver.push(seq as u32, Some(body));
            assert!(receiver.reassembler.heap_bytes() < 36 << 10);
        }
    }
    assert!(receiver.drops.get(DropReason::FragmentLost) > 100);
}

#[test]
fn in_order_arrival_allocates_nothing_and_holds_nothing_between_batches() {
    let packets: Vec<_> = (0..13).map(|mark| (packet(false, 1500, mark), false)).collect();
    let bodies = pack(&packets);
    let mut receiver = Receiver::default();
    let mut seq = 0;
    let mut buffers = Vec::new();
    for round in 0..20 {
        for body in &bodies {
            receiver.reassembler.push(seq, Some(body), &mut receiver.out, &mut receiver.drops);
            seq += 1;
        }
        assert_eq!(receiver.out.len(), 13);
        let mut used: Vec<_> =
            receiver.out.buffers_mut().iter().map(|buffer| buffer.as_ptr()).collect();
        used.sort();
        if round == 1 {
            buffers = used;
        } else if round > 1 {
            assert_eq!(used, buffers, "the same buffers go round");
        }
        receiver.out.clear();
        assert!(!receiver.reassembler.is_waiting());
        assert!(receiver.reassembler.heap_bytes() <= 256);
    }
}

#[test]
fn a_sender_that_contradicts_itself_is_counted() {
    let bodies = pack(&[(packet(false, 1500, 1), false), (packet(false, 100, 2), false)]);
    for offset in [12u16, 211, 213, 11, 1312, NO_PACKET_START] {
        let mut receiver = Receiver::default();
        receiver.push(1, Some(&bodies[0]));
        let mut body = bodies[1];
        body[OFFSET].copy_from_slice(&offset.to_be_bytes());
        receiver.push(2, Some(&body));
        let counted = receiver.drops.get(DropReason::BadInnerPacket);
        assert_eq!(counted == 0, offset == NO_PACKET_START, "{offset}");
        assert_eq!(receiver.got.len(), usize::from(offset == NO_PACKET_START), "{offset}");
        assert!(!receiver.reassembler.is_waiting());
    }
}

#[test]
fn the_packer_takes_ip_packets_only_and_cuts_what_trails() {
    let mut bodies = Bodies::default();
    let mut packer = Packer::new();
    let mut long = packet(false, 1500, 1);
    long[2..4].copy_from_slice(&1501u16.to_be_bytes());
    long.push(0);
    assert_eq!(packer.push(&long, &mut bodies), Err(DropReason::TooLarge));
    for bad in [vec![], vec![0x45], vec![0x50; 40], packet(false, 30, 1)[..29].to_vec()] {
        assert_eq!(packer.push(&bad, &mut bodies), Err(DropReason::BadInnerPacket));
    }
    packer.flush(&mut bodies);
    assert!(bodies.0.is_empty());
    let mut trailed = packet(false, 30, 1);
    trailed.extend_from_slice(&[9; 10]);
    packer.push(&trailed, &mut bodies).unwrap();
    packer.flush(&mut bodies);
    assert!(bodies.0[0][12 + 30..].iter().all(|byte| *byte == 0));
}
