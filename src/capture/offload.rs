//! The header that a TUN device with offload puts before each packet (virtio_net_hdr, 10 bytes,
//! native byte order), and what a packet's own headers say.
//!
//! In: bytes. Out: fields. Called by: capture::segment, capture::coalesce.

/// The length of the header.
pub(super) const HEADER_LEN: usize = 10;
/// The transport checksum is still to be computed, from `sum_start` on.
pub(super) const NEEDS_SUM: u8 = 1;
/// One packet, no segments.
pub(super) const SINGLE: u8 = 0;
/// TCP segments over IPv4.
pub(super) const TCP4: u8 = 1;
/// TCP segments over IPv6.
pub(super) const TCP6: u8 = 4;
/// UDP datagrams of one size.
pub(super) const UDP: u8 = 5;
/// The first segment carries CWR.
pub(super) const ECN: u8 = 0x80;

/// IP protocol numbers of the two that have segments.
pub(super) const PROTOCOL_TCP: u8 = 6;
/// See [`PROTOCOL_TCP`].
pub(super) const PROTOCOL_UDP: u8 = 17;

/// The fields of the header.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) flags: u8,
    pub(super) kind: u8,
    pub(super) header_len: u16,
    pub(super) segment: u16,
    pub(super) sum_start: u16,
    pub(super) sum_offset: u16,
}

impl Header {
    /// Reads the header before a packet; `None` if there is not one.
    pub(super) fn parse(frame: &[u8]) -> Option<(Self, &[u8])> {
        let (header, packet) = frame.split_first_chunk::<HEADER_LEN>()?;
        let word = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let parsed = Self {
            flags: header[0],
            kind: header[1],
            header_len: word(2),
            segment: word(4),
            sum_start: word(6),
            sum_offset: word(8),
        };
        Some((parsed, packet))
    }

    /// The header of the same packet after so many bytes before it were taken away.
    pub(super) fn moved_back(mut self, by: u16) -> Self {
        self.header_len = self.header_len.saturating_sub(by);
        if self.flags & NEEDS_SUM != 0 {
            self.sum_start = self.sum_start.saturating_sub(by);
        }
        self
    }

    /// The header of the same packet after so many bytes were put before it.
    pub(super) fn moved_on(mut self, by: u16) -> Self {
        if self.kind & !ECN != SINGLE {
            self.header_len = self.header_len.saturating_add(by);
        }
        if self.flags & NEEDS_SUM != 0 {
            self.sum_start = self.sum_start.saturating_add(by);
        }
        self
    }

    /// The header's bytes.
    pub(super) fn emit(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = self.flags;
        bytes[1] = self.kind;
        bytes[2..4].copy_from_slice(&self.header_len.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.segment.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.sum_start.to_ne_bytes());
        bytes[8..10].copy_from_slice(&self.sum_offset.to_ne_bytes());
        bytes
    }
}

/// Reads a big-endian number of a packet whose length the caller has checked.
pub(super) fn be16(packet: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([packet[at], packet[at + 1]])
}

/// See [`be16`].
pub(super) fn be32(packet: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]])
}

/// Writes a big-endian number.
pub(super) fn put16(packet: &mut [u8], at: usize, value: u16) {
    packet[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// The two addresses of a packet of this version, as one run of bytes.
pub(super) fn addresses(packet: &[u8], v6: bool) -> &[u8] {
    if v6 { &packet[8..40] } else { &packet[12..20] }
}
