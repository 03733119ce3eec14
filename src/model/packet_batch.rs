//! A reusable batch of IP packets, so that the data path allocates nothing per packet.
//!
//! In: packets of a device or of reassembled cells. Out: the same, in order.
//! Called by: forward (fills it), capture (reads and writes devices with it).

/// What a fresh buffer holds: the largest packet, without growing.
const CAPACITY: usize = 2048;

/// Packets in order, each in a buffer of its own.
/// Buffers are kept and reused after [`PacketBatch::clear`].
#[derive(Default, Debug)]
pub struct PacketBatch {
    buffers: Vec<Vec<u8>>,
    used: usize,
}

impl PacketBatch {
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
            self.buffers.push(Vec::with_capacity(CAPACITY));
        }
        let buffer = &mut self.buffers[self.used];
        self.used += 1;
        buffer.clear();
        for piece in pieces {
            buffer.extend_from_slice(piece);
        }
        buffer
    }

    /// Lends an empty buffer, for a packet that comes in parts; it returns
    /// with [`PacketBatch::push_owned`] or [`PacketBatch::give_back`], so that the parts are copied
    /// once and nothing is allocated once the batch has buffers.
    pub fn take_spare(&mut self) -> Vec<u8> {
        let mut buffer = if self.used < self.buffers.len() {
            self.buffers.pop().unwrap_or_default()
        } else {
            Vec::with_capacity(CAPACITY)
        };
        buffer.clear();
        buffer
    }

    /// Appends the packet in `buffer`.
    pub fn push_owned(&mut self, buffer: Vec<u8>) {
        self.buffers.push(buffer);
        let last = self.buffers.len() - 1;
        self.buffers.swap(self.used, last);
        self.used += 1;
    }

    /// Takes an unused buffer back.
    pub fn give_back(&mut self, buffer: Vec<u8>) {
        self.buffers.push(buffer);
    }

    /// Visits the packets from index `start` on, in order, and removes those that `keep` refuses.
    pub fn retain_from(&mut self, start: usize, mut keep: impl FnMut(&mut [u8]) -> bool) {
        let mut kept = start;
        for index in start..self.used {
            if keep(&mut self.buffers[index]) {
                self.buffers.swap(kept, index);
                kept += 1;
            }
        }
        self.used = kept.min(self.used);
    }

    /// Takes the last packet back.
    pub fn pop(&mut self) {
        self.used = self.used.saturating_sub(1);
    }

    /// The packets in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.buffers[..self.used].iter().map(Vec::as_slice)
    }

    /// The packet at a position.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        self.buffers[..self.used].get(index).map(Vec::as_slice)
    }

    /// How many bytes the packets have together.
    pub fn byte_len(&self) -> usize {
        self.iter().map(<[u8]>::len).sum()
    }

    /// The packets in order, to change in place.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.buffers[..self.used].iter_mut().map(Vec::as_mut_slice)
    }

    /// The buffers of the packets.
    pub fn buffers_mut(&mut self) -> &mut [Vec<u8>] {
        &mut self.buffers[..self.used]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lent_buffer_returns_as_a_packet_and_is_reused() {
        let mut batch = PacketBatch::default();
        batch.push(&[b"one"]);
        batch.push(&[b"two"]);
        batch.clear();
        batch.push(&[b"three"]);
        let mut lent = batch.take_spare();
        let address = lent.as_ptr();
        batch.push(&[b"four"]);
        lent.extend_from_slice(b"five");
        batch.push_owned(lent);
        let packets: Vec<&[u8]> = batch.iter().collect();
        assert_eq!(packets, [b"three".as_slice(), b"four", b"five"]);
        batch.clear();
        assert_eq!(batch.buffers.len(), 3);
        assert!(batch.buffers.iter().any(|buffer| buffer.as_ptr() == address));
    }

    #[test]
    fn refused_packets_leave_and_the_others_keep_their_order() {
        let mut batch = PacketBatch::default();
        for number in 0..6u8 {
            batch.push(&[&[number]]);
        }
        batch.retain_from(1, |packet| packet[0].is_multiple_of(2));
        assert_eq!(batch.iter().map(|packet| packet[0]).collect::<Vec<_>>(), [0, 2, 4]);
        batch.retain_from(3, |_| false);
        batch.retain_from(9, |_| false);
        assert_eq!(batch.len(), 3);
        assert_eq!(batch.buffers.len(), 6);
    }
}
