//! One TCP connection: a smoltcp socket on an interface of its own, so that a packet costs the
//! same however many connections there are.
//!
//! In: the packets of one connection, the time. Out: packets, a deadline. Called by: the stack.

use std::net::IpAddr;

use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    socket::tcp,
    time::{Duration, Instant},
    wire::{HardwareAddress, IpAddress, IpCidr, Ipv4Address, Ipv6Address},
};

use super::{device::Wire, packet::Ends, packet::Undeliverable, queue::GroupedPackets};
use crate::model::PacketBatch;

/// Bytes that wait for a slow reader on this side; then the sender is told to stop.
pub(super) const RECEIVE_BUFFER: usize = 512 << 10;
/// Bytes that were sent and not yet acknowledged.
pub(super) const SEND_BUFFER: usize = 256 << 10;
/// An acknowledgement may wait so long for something to go with it.
const ACK_DELAY: Duration = Duration::from_millis(10);
/// Data that nobody acknowledges for so long ends the connection (RFC 1122: at least 100 s).
const GIVE_UP: Duration = Duration::from_secs(300);
/// A connection whose owner is gone may take so long to end properly.
const FAREWELL: std::time::Duration = std::time::Duration::from_secs(60);

pub(super) struct Connection {
    pub(super) ends: Ends,
    /// The isolation group of its packets.
    pub(super) group: u32,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// Positions of its packets in the batch that just came.
    pub(super) arrived: Vec<u32>,
    pub(super) is_due: bool,
    /// The earliest deadline that the stack's timers know.
    pub(super) alarm: Option<Instant>,
    /// Since when nobody holds it, and until when it may end properly.
    pub(super) orphaned_until: Option<std::time::Instant>,
    /// An ICMP error said that it cannot be.
    pub(super) failure: Option<Undeliverable>,
    was_open: bool,
}

impl Connection {
    pub(super) fn new(ends: Ends, group: u32, now: Instant, seed: u64) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let (nothing, mut nowhere) = (PacketBatch::default(), GroupedPackets::default());
        let mut wire = Wire { arrived: &nothing, mine: [].iter(), leaving: &mut nowhere, group };
        let mut interface = Interface::new(config, &mut wire, now);
        let local: IpAddress = ends.local.ip().into();
        interface.update_ip_addrs(|addresses| {
            // An empty list has room for one.
            let _ = addresses.push(IpCidr::new(local, if ends.local.is_ipv4() { 32 } else { 128 }));
        });
        // A point-to-point line: whoever the router is, everything goes there.
        let routes = interface.routes_mut();
        let added = match ends.local.ip() {
            IpAddr::V4(_) => routes.add_default_ipv4_route(Ipv4Address::new(192, 0, 2, 1)),
            IpAddr::V6(_) => {
                routes.add_default_ipv6_route(Ipv6Address::new(0xfe80, 0, 0, 0, 0, 0, 0, 1))
            }
        };
        debug_assert!(added.is_ok(), "an empty table has room for one route");
        let mut socket = tcp::Socket::new(
            tcp::SocketBuffer::new(vec![0; RECEIVE_BUFFER]),
            tcp::SocketBuffer::new(vec![0; SEND_BUFFER]),
        );
        socket.set_congestion_control(tcp::CongestionControl::Cubic);
        socket.set_ack_delay(Some(ACK_DELAY));
        socket.set_nagle_enabled(false);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self {
            ends,
            group,
            interface,
            sockets,
            handle,
            arrived: Vec::new(),
            is_due: false,
            alarm: None,
            orphaned_until: None,
            failure: None,
            was_open: false,
        }
    }

    /// Sends the opening segment with the next [`Self::poll`].
    pub(super) fn connect(&mut self) -> Result<(), tcp::ConnectError> {
        let (local, remote) = (self.ends.local, self.ends.remote);
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.handle);
        socket.connect(self.interface.context(), remote, local)
    }

    /// Answers the opening segment that comes with the next [`Self::poll`].
    pub(super) fn listen(&mut self) -> Result<(), tcp::ListenError> {
        let local = self.ends.local;
        self.socket().listen(local)
    }

    pub(super) fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Lets the packets that came in, and writes what is to be sent. Returns when it wants to be
    /// polled again.
    pub(super) fn poll(
        &mut self,
        now: Instant,
        batch: &PacketBatch,
        leaving: &mut GroupedPackets,
    ) -> Option<Instant> {
        self.is_due = false;
        // The timeout of smoltcp also runs while there is nothing to acknowledge.
        let gives_up = !self.was_open || self.socket().send_queue() > 0;
        self.socket().set_timeout(gives_up.then_some(GIVE_UP));
        let mut wire =
            Wire { arrived: batch, mine: self.arrived.iter(), leaving, group: self.group };
        self.interface.poll(now, &mut wire, &mut self.sockets);
        self.arrived.clear();
        self.was_open |= self.socket().may_send();
        self.interface.poll_at(now, &self.sockets)
    }

    pub(super) fn was_open(&self) -> bool {
        self.was_open
    }

    /// Whether the stack can forget it: nobody holds it and nothing is left to say.
    pub(super) fn is_over(&mut self, now: std::time::Instant) -> bool {
        let Some(until) = self.orphaned_until else { return false };
        match self.socket().state() {
            tcp::State::Closed | tcp::State::TimeWait => true,
            _ if now >= until => {
                self.socket().abort();
                false
            }
            _ => false,
        }
    }

    /// The owner is gone: ends properly if it said its last word, abruptly otherwise.
    pub(super) fn orphan(&mut self, now: std::time::Instant) {
        use tcp::State::{Closed, Closing, FinWait1, FinWait2, LastAck, TimeWait};
        self.orphaned_until = Some(now + FAREWELL);
        let socket = self.socket();
        let said_goodbye =
            matches!(socket.state(), FinWait1 | FinWait2 | Closing | LastAck | TimeWait | Closed);
        let has_unread = socket.can_recv();
        if !said_goodbye || has_unread {
            socket.abort();
        }
    }
}
