//! A reusable batch of IP packets, so that the data path allocates nothing per packet.
//!
//! In: packets of a device or of reassembled cells. Out: the same, in order.
//! Called by: forward (fills it), capture (reads and writes devices with it).

/// Room before each packet for the device's offload header.
const HEADROOM: usize = 16;

/// Packets in order, each in a buffer of its own with [`PacketBatch::HEADROOM`] spare bytes before it.
/// Buffers are kept and reused after [`PacketBatch::clear`].
#[derive(Default, Debug)]
pub struct PacketBatch {
    buffers: Vec<Vec<u8>>,
    used: usize,
}

impl PacketBatch {
    /// Spare bytes before each packet.
    pub const HEADROOM: usize = HEADROOM;

    /// Forgets the packets and keeps their buffers.
    pub fn clear(&mut self) {
        self.used = 0;
    }

    /// How many packets there are.
    pub fn len(&self) -> usize {
        self.used
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Appends a packet made of pieces.
    pub fn push(&mut self, pieces: &[&[u8]]) -> &mut [u8] {
        if self.used == self.buffers.len() {
            self.buffers.push(Vec::with_capacity(2048));
        }
        let buffer = &mut self.buffers[self.used];
        self.used += 1;
        buffer.clear();
        buffer.resize(HEADROOM, 0);
        for piece in pieces {
            buffer.extend_from_slice(piece);
        }
        &mut buffer[HEADROOM..]
    }

    /// Takes the last packet back.
    pub fn pop(&mut self) {
        self.used = self.used.saturating_sub(1);
    }

    /// The packets in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.buffers[..self.used].iter().map(|buffer| &buffer[HEADROOM..])
    }

    /// The packets in order, to change in place.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.buffers[..self.used].iter_mut().map(|buffer| &mut buffer[HEADROOM..])
    }

    /// The buffers of the packets, headroom included, for a device that writes in place.
    pub fn buffers_mut(&mut self) -> &mut [Vec<u8>] {
        &mut self.buffers[..self.used]
    }
}
