//! Splits what one read of a TUN device with offload returned into packets.
//!
//! In: a frame of up to 64 KiB with its header. Out: packets that fit the MTU, checksums complete.
//! Called by: capture::tun.

use super::{
    checksum::Sum,
    offload::{
        ECN, Header, NEEDS_SUM, PROTOCOL_TCP, PROTOCOL_UDP, SINGLE, TCP4, TCP6, UDP, addresses,
        be16, be32, put16,
    },
};
use crate::model::PacketBatch;

const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// Appends the packets of a frame to `out` and says how many; `None` if the frame is not one.
pub(super) fn split(frame: &[u8], out: &mut PacketBatch) -> Option<usize> {
    let (header, packet) = Header::parse(frame)?;
    let v6 = match packet.first()? >> 4 {
        4 if packet.len() >= 20 => false,
        6 if packet.len() >= 40 => true,
        _ => return None,
    };
    match header.kind & !ECN {
        SINGLE => single(header, packet, out),
        TCP4 if !v6 => segments(header, packet, Transport::tcp(header, packet)?, v6, out),
        TCP6 if v6 => segments(header, packet, Transport::tcp(header, packet)?, v6, out),
        UDP => segments(header, packet, Transport::udp(header)?, v6, out),
        _ => None,
    }
}

/// A whole packet, whose checksum may be left to us.
fn single(header: Header, packet: &[u8], out: &mut PacketBatch) -> Option<usize> {
    let start = usize::from(header.sum_start);
    let field = start + usize::from(header.sum_offset);
    if header.flags & NEEDS_SUM == 0 {
        out.push(&[packet]);
        return Some(1);
    }
    if packet.len() < field + 2 {
        return None;
    }
    let packet = out.push(&[packet]);
    // The field holds the sum of the pseudo header, so it is part of what is summed.
    let sum = Sum::default().bytes(&packet[start..]).finish();
    put16(packet, field, if sum == 0 { 0xffff } else { sum });
    Some(1)
}

/// What differs between TCP and UDP segments.
#[derive(Clone, Copy)]
struct Transport {
    protocol: u8,
    start: usize,
    /// Where the payload starts.
    payload: usize,
    checksum: usize,
}

impl Transport {
    fn tcp(header: Header, packet: &[u8]) -> Option<Self> {
        let start = usize::from(header.sum_start);
        // The kernel's own header length is not used: on its forward path it may cover the whole
        // first segment.
        let len = usize::from(*packet.get(start + 12)? >> 4) * 4;
        (len >= 20).then_some(Self {
            protocol: PROTOCOL_TCP,
            start,
            payload: start + len,
            checksum: start + 16,
        })
    }

    fn udp(header: Header) -> Option<Self> {
        let start = usize::from(header.sum_start);
        Some(Self { protocol: PROTOCOL_UDP, start, payload: start + 8, checksum: start + 6 })
    }
}

fn segments(
    header: Header,
    packet: &[u8],
    transport: Transport,
    v6: bool,
    out: &mut PacketBatch,
) -> Option<usize> {
    let size = usize::from(header.segment);
    let least = if v6 { 40 } else { 20 };
    if size == 0 || transport.start < least || packet.len() <= transport.payload {
        return None;
    }
    let (headers, payload) = packet.split_at(transport.payload);
    let pseudo = Sum::default().bytes(addresses(packet, v6));
    let last = payload.len().div_ceil(size) - 1;
    for (number, piece) in payload.chunks(size).enumerate() {
        let segment = out.push(&[headers, piece]);
        let transport_len = segment.len() - transport.start;
        if v6 {
            put16(segment, 4, (segment.len() - 40) as u16);
        } else {
            let id = be16(segment, 4).wrapping_add(number as u16);
            put16(segment, 2, segment.len() as u16);
            put16(segment, 4, id);
            put16(segment, 10, 0);
            let sum = Sum::default().bytes(&segment[..transport.start]).finish();
            put16(segment, 10, sum);
        }
        if transport.protocol == PROTOCOL_TCP {
            let seq = be32(segment, transport.start + 4).wrapping_add((number * size) as u32);
            segment[transport.start + 4..transport.start + 8].copy_from_slice(&seq.to_be_bytes());
            if number > 0 && header.kind & ECN != 0 {
                segment[transport.start + 13] &= !CWR;
            }
            if number < last {
                segment[transport.start + 13] &= !FIN_PSH;
            }
        } else {
            put16(segment, transport.start + 4, transport_len as u16);
        }
        put16(segment, transport.checksum, 0);
        let sum = pseudo
            .pseudo(&[], transport.protocol, transport_len)
            .bytes(&segment[transport.start..])
            .finish();
        put16(segment, transport.checksum, if sum == 0 { 0xffff } else { sum });
    }
    Some(last + 1)
}
