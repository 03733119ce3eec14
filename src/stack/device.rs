//! What smoltcp takes for a network device: the packets of one connection in the batch that just
//! came, and the batch that goes out.
//!
//! In: a batch and positions in it. Out: packets with the connection's group.
//! Called by: the connections.

use smoltcp::{
    phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken},
    time::Instant,
};

use super::queue::GroupedPackets;
use crate::model::{INNER_MTU, PacketBatch};

/// Packets that may wait to leave before connections have to hold theirs back.
pub(super) const MOST_WAITING: usize = 512;

pub(super) struct Wire<'a> {
    pub(super) arrived: &'a PacketBatch,
    /// Positions in `arrived` of this connection's packets.
    pub(super) mine: std::slice::Iter<'a, u32>,
    pub(super) leaving: &'a mut GroupedPackets,
    pub(super) group: u32,
}

pub(super) struct Arrived<'a>(&'a [u8]);

pub(super) struct Leaving<'a> {
    out: &'a mut GroupedPackets,
    group: u32,
}

impl Device for Wire<'_> {
    type RxToken<'a>
        = Arrived<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Leaving<'a>
    where
        Self: 'a;

    fn receive(&mut self, _now: Instant) -> Option<(Arrived<'_>, Leaving<'_>)> {
        let packet = self.arrived.get(*self.mine.next()? as usize)?;
        Some((Arrived(packet), Leaving { out: self.leaving, group: self.group }))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Leaving<'_>> {
        (self.leaving.packets.len() < MOST_WAITING)
            .then_some(Leaving { out: self.leaving, group: self.group })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = INNER_MTU;
        capabilities
    }
}

impl RxToken for Arrived<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

impl TxToken for Leaving<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut buffer = self.out.packets.take_spare();
        buffer.resize(len, 0);
        let result = write(&mut buffer);
        self.out.packets.push_owned(buffer);
        self.out.groups.push(self.group);
        result
    }
}
