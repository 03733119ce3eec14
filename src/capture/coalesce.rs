//! Joins consecutive segments of one flow, so that one write carries many packets to the kernel.
//!
//! In: a batch of packets. Out: lists of slices, one list a write, with the device's header; no
//! payload is copied. Called by: capture::tun.
//!
//! Order within a flow is kept: a packet that cannot be joined closes its flow's run, and runs
//! are written in the order of their first packets.

use std::io::IoSlice;

use super::{
    checksum::Sum,
    offload::{
        HEADER_LEN, Header, NEEDS_SUM, PROTOCOL_TCP, PROTOCOL_UDP, TCP4, TCP6, UDP, addresses,
        be16, be32, put16,
    },
};
use crate::model::PacketBatch;

/// Packets of one write: with the header slice, well below the kernel's vector limit, and no more
/// than UDP segmentation takes.
const MOST_PACKETS: usize = 63;
/// Bytes of one joined packet, headers included.
const MOST_BYTES: usize = 65_535;
/// Flows joined at the same time in one batch.
const MOST_OPEN: usize = 16;
/// IP and TCP headers with all options, after the device's header.
const MOST_HEADERS: usize = HEADER_LEN + 40 + 60;

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// Packets that one write carries.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: u32,
    last: u32,
    packets: u16,
    shape: Shape,
    /// Payload bytes of all packets.
    payload: usize,
    next_seq: u32,
    /// A short segment or PSH ended it.
    ended: bool,
    /// Its last segment carries PSH, which on a joined packet belongs to the whole.
    pushed: bool,
    /// The first packet's checksum has been verified.
    verified: bool,
}

/// How the headers of a packet lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Shape {
    v6: bool,
    protocol: u8,
    ip_len: u8,
    header_len: u8,
    segment: u16,
}

impl Shape {
    /// The shape of a packet that may be joined; `None` for all others.
    fn of(packet: &[u8], join_udp: bool) -> Option<Self> {
        let (v6, ip_len, protocol) = match packet.first()? {
            0x45 if packet.len() >= 28
                && usize::from(be16(packet, 2)) == packet.len()
                && packet[6] & 0x3f == 0
                && packet[7] == 0 =>
            {
                (false, 20u8, packet[9])
            }
            0x60..=0x6f
                if packet.len() >= 48 && usize::from(be16(packet, 4)) + 40 == packet.len() =>
            {
                (true, 40, packet[6])
            }
            _ => return None,
        };
        let at = usize::from(ip_len);
        let header_len = match protocol {
            PROTOCOL_TCP if packet.len() >= at + 20 => {
                if packet[at + 13] & !PSH != ACK {
                    return None;
                }
                let tcp_len = (packet[at + 12] >> 4) * 4;
                if tcp_len < 20 {
                    return None;
                }
                ip_len + tcp_len
            }
            PROTOCOL_UDP if join_udp => {
                if usize::from(be16(packet, at + 4)) != packet.len() - at
                    || be16(packet, at + 6) == 0
                {
                    return None;
                }
                ip_len + 8
            }
            _ => return None,
        };
        let payload = packet.len().checked_sub(usize::from(header_len)).filter(|len| *len > 0)?;
        Some(Self { v6, protocol, ip_len, header_len, segment: payload as u16 })
    }

    fn transport(self) -> usize {
        usize::from(self.ip_len)
    }

    fn sum_is_right(self, packet: &[u8]) -> bool {
        let at = self.transport();
        Sum::default()
            .pseudo(addresses(packet, self.v6), self.protocol, packet.len() - at)
            .bytes(&packet[at..])
            .finish()
            == 0
    }

    /// Whether two packets of this shape differ only in what segments of one packet differ in.
    fn same_headers(self, one: &[u8], other: &[u8]) -> bool {
        let at = self.transport();
        let ip = if self.v6 {
            one[..4] == other[..4] && one[6..40] == other[6..40]
        } else {
            one[..2] == other[..2] && one[6..10] == other[6..10] && one[12..20] == other[12..20]
        };
        let end = usize::from(self.header_len);
        ip && one[at..at + 4] == other[at..at + 4]
            && (self.protocol == PROTOCOL_UDP
                || (one[at + 8..at + 13] == other[at + 8..at + 13]
                    && one[at + 14..at + 16] == other[at + 14..at + 16]
                    && one[at + 18..end] == other[at + 18..end]))
    }
}

/// Whether two packets are of one flow; fragments and unknown protocols by their addresses alone.
fn same_flow(one: &[u8], other: &[u8]) -> bool {
    match (one.first().map(|byte| byte >> 4), other.first().map(|byte| byte >> 4)) {
        (Some(4), Some(4)) if one.len() >= 24 && other.len() >= 24 => {
            one[9] == other[9] && one[12..24] == other[12..24]
        }
        (Some(6), Some(6)) if one.len() >= 44 && other.len() >= 44 => {
            one[6] == other[6] && one[8..44] == other[8..44]
        }
        _ => false,
    }
}

/// Plans the writes of a batch; its memory is reused.
#[derive(Default, Debug)]
pub(super) struct Coalescer {
    runs: Vec<Run>,
    open: Vec<u32>,
    /// For each packet, the next of its run.
    next: Vec<u32>,
}

impl Coalescer {
    /// Sorts the packets of a batch into runs.
    pub(super) fn plan(&mut self, batch: &PacketBatch, join_udp: bool) {
        self.runs.clear();
        self.open.clear();
        self.next.clear();
        self.next.resize(batch.len(), u32::MAX);
        for (index, packet) in batch.iter().enumerate() {
            let shape = Shape::of(packet, join_udp);
            let Some(position) = self.open_run_of(batch, packet) else {
                self.start(index, packet, shape);
                continue;
            };
            let run = self.open[position] as usize;
            match shape {
                Some(shape) if self.runs[run].takes(batch, packet, shape) => {
                    let last = std::mem::replace(&mut self.runs[run].last, index as u32);
                    self.next[last as usize] = index as u32;
                    if self.runs[run].ended {
                        self.open.swap_remove(position);
                    }
                }
                _ => {
                    self.open.swap_remove(position);
                    self.start(index, packet, shape);
                }
            }
        }
    }

    fn open_run_of(&self, batch: &PacketBatch, packet: &[u8]) -> Option<usize> {
        self.open.iter().position(|run| {
            let first = self.runs[*run as usize].first as usize;
            batch.get(first).is_some_and(|first| same_flow(first, packet))
        })
    }

    fn start(&mut self, index: usize, packet: &[u8], shape: Option<Shape>) {
        let number = self.runs.len() as u32;
        let ended = match shape {
            Some(Shape { protocol: PROTOCOL_TCP, ip_len, .. }) => {
                packet[usize::from(ip_len) + 13] & PSH != 0
            }
            Some(_) => false,
            None => true,
        };
        let shape =
            shape.unwrap_or(Shape { v6: false, protocol: 0, ip_len: 0, header_len: 0, segment: 0 });
        let payload = usize::from(shape.segment);
        let next_seq = if shape.protocol == PROTOCOL_TCP {
            be32(packet, shape.transport() + 4).wrapping_add(payload as u32)
        } else {
            0
        };
        self.runs.push(Run {
            first: index as u32,
            last: index as u32,
            packets: 1,
            shape,
            payload,
            next_seq,
            ended,
            pushed: false,
            verified: false,
        });
        if !ended {
            if self.open.len() == MOST_OPEN {
                self.open.remove(0);
            }
            self.open.push(number);
        }
    }

    /// How many writes the batch needs.
    #[cfg(test)]
    fn writes(&self) -> usize {
        self.runs.len()
    }

    /// Calls `write` once per run with its slices and the number of packets in them.
    pub(super) fn for_each(
        &self,
        batch: &PacketBatch,
        mut write: impl FnMut(&[IoSlice<'_>], RunPackets<'_>),
    ) {
        for run in &self.runs {
            let packets = RunPackets { next: &self.next, at: run.first, left: run.packets };
            let Some(first) = batch.get(run.first as usize) else { continue };
            if run.packets == 1 {
                let header = Header::default().emit();
                write(&[IoSlice::new(&header), IoSlice::new(first)], packets);
                continue;
            }
            let headers = run.headers(first);
            let header_len = usize::from(run.shape.header_len);
            let mut slices = [IoSlice::new(&[]); MOST_PACKETS + 1];
            slices[0] = IoSlice::new(&headers[..HEADER_LEN + header_len]);
            let mut count = 1;
            for index in packets.clone() {
                if let Some(packet) = batch.get(index) {
                    slices[count] = IoSlice::new(&packet[header_len..]);
                    count += 1;
                }
            }
            write(&slices[..count], packets);
        }
    }
}

/// The positions of a run's packets in its batch.
#[derive(Clone, Debug)]
pub(super) struct RunPackets<'a> {
    next: &'a [u32],
    at: u32,
    left: u16,
}

impl Iterator for RunPackets<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.left = self.left.checked_sub(1)?;
        let index = self.at as usize;
        self.at = self.next[index];
        Some(index)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

impl ExactSizeIterator for RunPackets<'_> {}

impl Run {
    /// Takes a packet of the same flow if it continues the run.
    fn takes(&mut self, batch: &PacketBatch, packet: &[u8], shape: Shape) -> bool {
        let Some(first) = batch.get(self.first as usize) else { return false };
        let alike = Shape { segment: self.shape.segment, ..shape } == self.shape
            && shape.segment <= self.shape.segment
            && usize::from(self.packets) < MOST_PACKETS
            && usize::from(shape.header_len) + self.payload + usize::from(shape.segment)
                <= MOST_BYTES
            && shape.same_headers(first, packet);
        if !alike {
            return false;
        }
        let at = shape.transport();
        let tcp = shape.protocol == PROTOCOL_TCP;
        if tcp && be32(packet, at + 4) != self.next_seq {
            return false;
        }
        // Joining replaces the checksums, so a wrong one must not be joined: it would be repaired.
        if !self.verified {
            if !self.shape.sum_is_right(first) {
                return false;
            }
            self.verified = true;
        }
        if !shape.sum_is_right(packet) {
            return false;
        }
        self.packets += 1;
        self.payload += usize::from(shape.segment);
        self.next_seq = self.next_seq.wrapping_add(u32::from(shape.segment));
        self.pushed = tcp && packet[at + 13] & PSH != 0;
        self.ended = self.pushed || shape.segment < self.shape.segment;
        true
    }

    /// The device's header and the headers of the joined packet.
    fn headers(&self, first: &[u8]) -> [u8; MOST_HEADERS] {
        let Shape { v6, protocol, ip_len, header_len, segment } = self.shape;
        let tcp = protocol == PROTOCOL_TCP;
        let (at, len) = (usize::from(ip_len), usize::from(header_len));
        let sum_offset = if tcp { 16 } else { 6 };
        let mut bytes = [0; MOST_HEADERS];
        let device = Header {
            flags: NEEDS_SUM,
            kind: if !tcp {
                UDP
            } else if v6 {
                TCP6
            } else {
                TCP4
            },
            header_len: u16::from(header_len),
            segment,
            sum_start: u16::from(ip_len),
            sum_offset,
        };
        bytes[..HEADER_LEN].copy_from_slice(&device.emit());
        let packet = &mut bytes[HEADER_LEN..HEADER_LEN + len];
        packet.copy_from_slice(&first[..len]);
        let transport_len = len - at + self.payload;
        if v6 {
            put16(packet, 4, transport_len as u16);
        } else {
            put16(packet, 2, (at + transport_len) as u16);
            put16(packet, 10, 0);
            let sum = Sum::default().bytes(&packet[..at]).finish();
            put16(packet, 10, sum);
        }
        if !tcp {
            put16(packet, at + 4, transport_len as u16);
        } else if self.pushed {
            packet[at + 13] |= PSH;
        }
        let sum = Sum::default().pseudo(addresses(first, v6), protocol, transport_len).partial();
        put16(packet, at + usize::from(sum_offset), sum);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::segment;

    /// A packet with right checksums; `number` fills its payload.
    fn packet(v6: bool, tcp: bool, seq: u32, flags: u8, len: usize) -> Vec<u8> {
        let transport_len = len + if tcp { 20 } else { 8 };
        let mut packet = if v6 {
            let mut packet = vec![0x60, 0, 0, 0];
            packet.extend((transport_len as u16).to_be_bytes());
            packet.extend([if tcp { 6 } else { 17 }, 64]);
            packet.extend([1; 16]);
            packet.extend([2; 16]);
            packet
        } else {
            let mut packet = vec![0x45, 0];
            packet.extend((transport_len as u16 + 20).to_be_bytes());
            packet.extend([0, 7, 0x40, 0, 64, if tcp { 6 } else { 17 }, 0, 0]);
            packet.extend([10, 0, 0, 1, 10, 0, 0, 2]);
            let sum = Sum::default().bytes(&packet).finish();
            put16(&mut packet, 10, sum);
            packet
        };
        let at = packet.len();
        packet.extend([0x11, 0x22, 0x33, 0x44]);
        if tcp {
            packet.extend(seq.to_be_bytes());
            packet.extend([0, 0, 0, 9, 0x50, flags, 1, 0, 0, 0, 0, 0]);
        } else {
            packet.extend((transport_len as u16).to_be_bytes());
            packet.extend([0, 0]);
        }
        packet.extend((0..len).map(|byte| (byte as u32 + seq) as u8));
        let sum = Sum::default()
            .pseudo(addresses(&packet, v6), if tcp { 6 } else { 17 }, transport_len)
            .bytes(&packet[at..])
            .finish();
        put16(&mut packet, at + if tcp { 16 } else { 6 }, sum);
        packet
    }

    fn batch(packets: &[Vec<u8>]) -> PacketBatch {
        let mut batch = PacketBatch::default();
        for packet in packets {
            batch.push(&[packet]);
        }
        batch
    }

    fn frames(batch: &PacketBatch, udp: bool) -> Vec<(Vec<u8>, usize)> {
        let mut coalescer = Coalescer::default();
        coalescer.plan(batch, udp);
        let mut frames = Vec::new();
        coalescer.for_each(batch, |slices, packets| {
            let frame = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
            frames.push((frame, packets.len()));
        });
        assert_eq!(coalescer.writes(), frames.len());
        frames
    }

    /// What joining and splitting again gives.
    fn round_trip(packets: &[Vec<u8>], udp: bool) -> (Vec<usize>, Vec<Vec<u8>>) {
        let frames = frames(&batch(packets), udp);
        let mut out = PacketBatch::default();
        for (frame, count) in &frames {
            assert_eq!(segment::split(frame, &mut out), Some(*count));
        }
        (frames.iter().map(|(_, count)| *count).collect(), out.iter().map(<[u8]>::to_vec).collect())
    }

    fn numbered(v6: bool, mut packets: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        // Splitting counts the IPv4 identification up from the first packet's.
        for (number, packet) in packets.iter_mut().enumerate().filter(|_| !v6) {
            put16(packet, 4, 7 + number as u16);
            put16(packet, 10, 0);
            let sum = Sum::default().bytes(&packet[..20]).finish();
            put16(packet, 10, sum);
        }
        packets
    }

    #[test]
    fn segments_of_one_flow_are_one_write_and_split_into_themselves() {
        for v6 in [false, true] {
            for tcp in [false, true] {
                let packets: Vec<_> = (0..10)
                    .map(|n| {
                        let last = n == 9;
                        let flags = ACK | if last { PSH } else { 0 };
                        packet(v6, tcp, n * 1400, flags, if last { 33 } else { 1400 })
                    })
                    .collect();
                let packets = numbered(v6, packets);
                let (runs, back) = round_trip(&packets, true);
                assert_eq!(runs, [10], "v6 {v6} tcp {tcp}");
                assert_eq!(back, packets, "v6 {v6} tcp {tcp}");
            }
        }
    }

    #[test]
    fn udp_is_joined_only_when_asked() {
        let packets: Vec<_> = (0..4).map(|n| packet(false, false, n, 0, 700)).collect();
        assert_eq!(round_trip(&packets, false).0, [1, 1, 1, 1]);
        assert_eq!(round_trip(&numbered(false, packets), true).0, [4]);
    }

    #[test]
    fn what_does_not_continue_the_run_starts_another() {
        let p = |seq, flags, len| packet(false, true, seq, flags, len);
        let counts = |packets: &[Vec<u8>]| {
            frames(&batch(packets), false).iter().map(|(_, count)| *count).collect::<Vec<_>>()
        };
        assert_eq!(counts(&[p(0, ACK, 100), p(200, ACK, 100)]), [1, 1], "a gap");
        assert_eq!(counts(&[p(0, ACK, 100), p(100, ACK, 101)]), [1, 1], "a longer one");
        assert_eq!(
            counts(&[p(0, ACK, 100), p(100, ACK, 9), p(109, ACK, 9)]),
            [2, 1],
            "after a short one"
        );
        assert_eq!(
            counts(&[p(0, ACK, 100), p(100, ACK | PSH, 100), p(200, ACK, 100)]),
            [2, 1],
            "after PSH"
        );
        assert_eq!(counts(&[p(0, ACK, 100), p(100, ACK | 1, 100)]), [1, 1], "FIN");
        assert_eq!(
            counts(&[p(0, ACK, 100), p(100, ACK, 0), p(100, ACK, 100)]),
            [1, 1, 1],
            "a bare ACK between"
        );
        let mut ttl = p(100, ACK, 100);
        ttl[8] = 63;
        assert_eq!(counts(&[p(0, ACK, 100), ttl]), [1, 1], "another TTL");
        let mut fragment = p(100, ACK, 100);
        fragment[6] |= 0x20;
        assert_eq!(counts(&[p(0, ACK, 100), fragment]), [1, 1], "a fragment");
    }

    #[test]
    fn a_wrong_checksum_is_never_repaired() {
        let good = packet(false, true, 0, ACK, 100);
        let mut bad = packet(false, true, 100, ACK, 100);
        bad[60] ^= 1;
        for packets in [[good.clone(), bad.clone()], [packet(false, true, 0, ACK, 100), bad]] {
            let (runs, back) = round_trip(&packets, false);
            assert_eq!(runs, [1, 1]);
            assert_eq!(back, packets);
        }
        let mut bad_first = good;
        bad_first[60] ^= 1;
        let packets = [bad_first, packet(false, true, 100, ACK, 100)];
        assert_eq!(round_trip(&packets, false), (vec![1, 1], packets.to_vec()));
    }

    #[test]
    fn long_runs_stay_within_64_kib_and_the_vector_limit() {
        let big: Vec<_> = (0..100).map(|n| packet(true, true, n * 1440, ACK, 1440)).collect();
        assert_eq!(round_trip(&big, false).0, [45, 45, 10]);
        let small: Vec<_> = (0..100).map(|n| packet(true, true, n * 40, ACK, 40)).collect();
        assert_eq!(round_trip(&small, false).0, [63, 37]);
    }

    #[test]
    fn flows_are_joined_side_by_side_and_many_are_bounded() {
        let flow = |port: u8, seq| {
            let mut bytes = packet(false, true, seq, ACK, 500);
            bytes[20] = port;
            let at = 20;
            put16(&mut bytes, at + 16, 0);
            let sum = Sum::default()
                .pseudo(addresses(&bytes, false), 6, bytes.len() - at)
                .bytes(&bytes[at..])
                .finish();
            put16(&mut bytes, at + 16, sum);
            bytes
        };
        let packets: Vec<_> = (0..8).map(|n| flow(n % 2, u32::from(n / 2) * 500)).collect();
        assert_eq!(round_trip(&packets, false).0, [4, 4]);
        let packets: Vec<_> = (0..200).map(|n| flow(n, 0)).collect();
        assert_eq!(round_trip(&packets, false).0.len(), 200);
    }

    #[test]
    fn odd_bytes_are_written_as_they_are() {
        for bytes in [vec![], vec![0x45], vec![0x45; 20], vec![0x60; 48], vec![0xff; 100]] {
            let frames = frames(&batch(&[bytes.clone(), bytes.clone()]), true);
            assert_eq!(frames.len(), 2);
            assert_eq!(&frames[0].0[HEADER_LEN..], bytes);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(packets in proptest::collection::vec(proptest::collection::vec(proptest::prelude::any::<u8>(), 0..90), 0..20), udp: bool) {
            let frames = frames(&batch(&packets), udp);
            proptest::prop_assert_eq!(frames.iter().map(|(_, count)| count).sum::<usize>(), packets.len());
            let mut out = PacketBatch::default();
            for packet in &packets {
                segment::split(packet, &mut out);
            }
        }
    }
}
