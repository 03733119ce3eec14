//! The stack itself: which packet is whose, what is due, what leaves.
//!
//! In: packets of the lanes, wishes of the tasks, the time. Out: polled connections, packets.
//! Called by: its handles, the thread that drives it.

use std::{
    cell::RefCell,
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    task::{Poll, Waker},
};

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use smoltcp::time::Instant;

use super::{
    connection::Connection,
    device::MOST_WAITING,
    packet::{self, Arrival, EchoRequest, Ends, Opening, Undeliverable},
    queue::{GroupedPackets, StackSide},
    tcp::TcpStream,
    udp::{UdpSocket, UdpState},
};
use crate::model::PacketBatch;

/// Connections at once, in every state.
const MOST_CONNECTIONS: usize = 8192;
/// What nobody has looked at yet, at most.
const MOST_INCOMING: usize = 1024;
/// Ports that are drawn (RFC 6335: the dynamic ones).
const PORTS: std::ops::RangeInclusive<u16> = 49_152..=65_535;
const DRAWS: usize = 64;
/// How long whoever opened a connection may take to say that it stands.
const ACCEPT: std::time::Duration = std::time::Duration::from_secs(30);

/// What comes from outside without having been asked for; only a stack that serves gets it.
#[derive(Debug)]
pub enum Incoming {
    /// A connection that may be accepted or refused.
    Opening(Opening),
    /// A datagram.
    Datagram {
        /// Where to and where from.
        ends: Ends,
        /// What it says.
        payload: Vec<u8>,
    },
    /// A question whether somebody is there.
    Echo(EchoRequest),
    /// A packet of a protocol that is not carried.
    Unknown(Vec<u8>),
}

/// A handle of the stack, for tasks of its thread.
#[derive(Clone)]
pub struct Stack(pub(super) Rc<RefCell<Inner>>);

/// Moves packets between the lanes and the stack.
pub struct Driver {
    inner: Rc<RefCell<Inner>>,
    arrived: PacketBatch,
}

pub(super) struct Inner {
    side: StackSide,
    start: std::time::Instant,
    /// The addresses that connections of this side come from.
    own: Vec<IpAddr>,
    serves: bool,
    connections: Vec<Option<Box<Connection>>>,
    free: Vec<u32>,
    by_ends: HashMap<Ends, u32, RandomState>,
    pub(super) datagrams: HashMap<SocketAddr, Rc<RefCell<UdpState>>, RandomState>,
    due: Vec<u32>,
    timers: BinaryHeap<Reverse<(Instant, u32)>>,
    pub(super) leaving: GroupedPackets,
    incoming: VecDeque<Incoming>,
    incoming_waker: Option<Waker>,
    rng: StdRng,
}

impl Stack {
    /// A stack whose connections come from `own` addresses. One that `serves` hands out what
    /// arrives unasked; others refuse it.
    pub fn new(side: StackSide, own: &[IpAddr], serves: bool) -> (Self, Driver) {
        let inner = Rc::new(RefCell::new(Inner {
            side,
            start: std::time::Instant::now(),
            own: own.to_vec(),
            serves,
            connections: Vec::new(),
            free: Vec::new(),
            by_ends: HashMap::with_hasher(RandomState::default()),
            datagrams: HashMap::with_hasher(RandomState::default()),
            due: Vec::new(),
            timers: BinaryHeap::new(),
            leaving: GroupedPackets::default(),
            incoming: VecDeque::new(),
            incoming_waker: None,
            rng: StdRng::from_rng(&mut rand::rng()),
        }));
        (Self(Rc::clone(&inner)), Driver { inner, arrived: PacketBatch::default() })
    }

    /// Opens a connection; `group` says with whom it may share a circuit. It waits until the
    /// other end answers: a limit of time is the caller's.
    ///
    /// # Errors
    /// `ConnectionRefused`, `HostUnreachable`, `PermissionDenied` as the other end or the exit
    /// says; `ResourceBusy` when there are too many.
    pub async fn connect(&self, to: SocketAddr, group: u32) -> io::Result<TcpStream> {
        let stream = {
            let mut inner = self.0.borrow_mut();
            let local = inner.draw_port(to)?;
            let index = inner.add(Ends { local, remote: to }, group)?;
            let connection = inner.connection(index).ok_or_else(gone)?;
            connection.connect().map_err(|error| io::Error::other(error.to_string()))?;
            inner.set_due(index);
            TcpStream::new(Rc::clone(&self.0), index)
        };
        stream.opened().await?;
        Ok(stream)
    }

    /// Accepts a connection and waits until it stands.
    ///
    /// # Errors
    /// `ResourceBusy` when there are too many; `AlreadyExists` for a copy of an opening that was
    /// accepted; `TimedOut` or `ConnectionRefused` when the other end gave up.
    pub async fn accept(&self, opening: &Opening) -> io::Result<TcpStream> {
        let stream = {
            let mut inner = self.0.borrow_mut();
            if inner.by_ends.contains_key(&opening.ends) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let index = inner.add(opening.ends, 0)?;
            let connection = inner.connection(index).ok_or_else(gone)?;
            connection.listen().map_err(|error| io::Error::other(error.to_string()))?;
            inner.poll_alone(index, &opening.packet);
            inner.side.wake();
            TcpStream::new(Rc::clone(&self.0), index)
        };
        tokio::time::timeout(ACCEPT, stream.opened()).await??;
        Ok(stream)
    }

    /// Refuses a connection with a reset.
    pub fn refuse(&self, opening: &Opening) {
        let mut inner = self.0.borrow_mut();
        inner.write(|out| packet::reset(&opening.packet, out));
    }

    /// Says that a connection cannot be opened.
    pub fn tell_opening(&self, from: IpAddr, opening: &Opening, why: Undeliverable) {
        self.tell(from, &opening.packet, why);
    }

    /// Says why a packet was not delivered.
    pub fn tell(&self, from: IpAddr, about: &[u8], why: Undeliverable) {
        let mut inner = self.0.borrow_mut();
        inner.write(|out| packet::undeliverable(from, about, why, out));
    }

    /// Says that nobody listens where a datagram went.
    pub fn tell_datagram(&self, ends: Ends, payload: &[u8], why: Undeliverable) {
        let mut about = PacketBatch::default();
        let back = Ends { local: ends.remote, remote: ends.local };
        if packet::datagram(back, payload, &mut about)
            && let Some(about) = about.get(0)
        {
            self.tell(ends.local.ip(), about, why);
        }
    }

    /// Sends a datagram from any end; lost if the lane is full.
    pub fn send_datagram(&self, ends: Ends, payload: &[u8]) {
        self.0.borrow_mut().write(|out| packet::datagram(ends, payload, out));
    }

    /// Answers an echo request.
    pub fn answer_echo(&self, request: &EchoRequest, payload: &[u8]) {
        self.0.borrow_mut().write(|out| packet::echo_reply(request, payload, out));
    }

    /// A socket for datagrams on a port of its own.
    ///
    /// # Errors
    /// `AddrInUse` when no port is free.
    pub fn datagrams(&self, group: u32) -> io::Result<UdpSocket> {
        UdpSocket::bind(&self.0, group)
    }

    /// What comes next without having been asked for.
    pub async fn incoming(&self) -> Incoming {
        std::future::poll_fn(|context| {
            let mut inner = self.0.borrow_mut();
            match inner.incoming.pop_front() {
                Some(incoming) => Poll::Ready(incoming),
                None => {
                    inner.incoming_waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Connections in every state.
    pub fn len(&self) -> usize {
        self.0.borrow().by_ends.len()
    }

    /// Whether there is no connection.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends every connection whose other end has this address.
    pub fn forget(&self, remote: IpAddr) {
        let mut inner = self.0.borrow_mut();
        let gone: Vec<u32> = inner
            .by_ends
            .iter()
            .filter(|(ends, _)| ends.remote.ip() == remote)
            .map(|(_, index)| *index)
            .collect();
        for index in gone {
            if let Some(connection) = inner.connection(index) {
                connection.socket().abort();
            }
            inner.set_due(index);
        }
    }
}

pub(super) fn gone() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl Inner {
    fn now(&self) -> Instant {
        Instant::from_micros(self.start.elapsed().as_micros() as i64)
    }

    /// The own address of the family of `to`.
    pub(super) fn own_address(&self, to: IpAddr) -> io::Result<IpAddr> {
        let same = |own: &&IpAddr| own.is_ipv4() == to.is_ipv4();
        self.own.iter().find(same).copied().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    pub(super) fn own_addresses(&self) -> &[IpAddr] {
        &self.own
    }

    pub(super) fn draw(&mut self) -> u16 {
        self.rng.random_range(PORTS)
    }

    fn draw_port(&mut self, to: SocketAddr) -> io::Result<SocketAddr> {
        let ip = self.own_address(to.ip())?;
        for _ in 0..DRAWS {
            let local = SocketAddr::new(ip, self.draw());
            if !self.by_ends.contains_key(&Ends { local, remote: to }) {
                return Ok(local);
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }

    fn add(&mut self, ends: Ends, group: u32) -> io::Result<u32> {
        if self.by_ends.len() >= MOST_CONNECTIONS {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let seed = self.rng.random();
        let connection = Some(Box::new(Connection::new(ends, group, self.now(), seed)));
        let index = match self.free.pop() {
            Some(index) => {
                self.connections[index as usize] = connection;
                index
            }
            None => {
                self.connections.push(connection);
                self.connections.len() as u32 - 1
            }
        };
        self.by_ends.insert(ends, index);
        Ok(index)
    }

    pub(super) fn connection(&mut self, index: u32) -> Option<&mut Connection> {
        self.connections.get_mut(index as usize)?.as_deref_mut()
    }

    fn set_due_quietly(&mut self, index: u32) {
        if let Some(connection) = self.connection(index)
            && !connection.is_due
        {
            connection.is_due = true;
            self.due.push(index);
        }
    }

    /// Has a connection polled soon.
    pub(super) fn set_due(&mut self, index: u32) {
        self.set_due_quietly(index);
        self.side.wake();
    }

    /// Writes a packet of the stack's own, unless too many wait.
    fn write(&mut self, write: impl FnOnce(&mut PacketBatch) -> bool) {
        if self.leaving.packets.len() < 2 * MOST_WAITING && write(&mut self.leaving.packets) {
            self.leaving.groups.push(0);
            self.side.wake();
        }
    }

    /// Writes a datagram of a group.
    pub(super) fn write_datagram(&mut self, ends: Ends, payload: &[u8], group: u32) -> bool {
        let fits = self.leaving.packets.len() < 2 * MOST_WAITING
            && packet::datagram(ends, payload, &mut self.leaving.packets);
        if fits {
            self.leaving.groups.push(group);
            self.side.wake();
        }
        fits
    }

    /// Polls one connection with one packet that is in no batch.
    fn poll_alone(&mut self, index: u32, packet: &[u8]) {
        let mut batch = PacketBatch::default();
        batch.push(&[packet]);
        if let Some(connection) = self.connection(index) {
            connection.arrived.push(0);
        }
        self.poll(index, &batch);
    }

    fn poll(&mut self, index: u32, batch: &PacketBatch) {
        let now = self.now();
        let Some(Some(connection)) = self.connections.get_mut(index as usize) else { return };
        let next = connection.poll(now, batch, &mut self.leaving);
        if connection.is_over(std::time::Instant::now()) {
            let ends = connection.ends;
            self.by_ends.remove(&ends);
            self.connections[index as usize] = None;
            self.free.push(index);
            return;
        }
        let Some(at) = next else { return };
        if at <= now {
            // It has more to say than there was room for.
            self.set_due_quietly(index);
        } else if connection.alarm.is_none_or(|alarm| at < alarm) {
            connection.alarm = Some(at);
            self.timers.push(Reverse((at, index)));
        }
    }

    fn ring_timers(&mut self) {
        let now = self.now();
        while let Some(Reverse((at, index))) = self.timers.peek().copied() {
            if at > now {
                return;
            }
            self.timers.pop();
            if let Some(connection) = self.connection(index)
                && connection.alarm.is_some_and(|alarm| alarm <= at)
            {
                connection.alarm = None;
                self.set_due_quietly(index);
            }
        }
    }

    fn until_timer(&self) -> Option<std::time::Duration> {
        let Reverse((at, _)) = self.timers.peek()?;
        let now = self.now();
        Some(((*at).max(now) - now).into())
    }

    /// Sorts one packet of the batch to whom it belongs.
    fn sort(&mut self, position: u32, packet: &[u8]) {
        match packet::parse(packet) {
            Some(Arrival::Tcp { ends, opens, resets }) => match self.by_ends.get(&ends).copied() {
                Some(index) => {
                    if let Some(connection) = self.connection(index) {
                        connection.arrived.push(position);
                    }
                    self.set_due_quietly(index);
                }
                None if opens && self.serves => {
                    self.arrive(Incoming::Opening(Opening { ends, packet: packet.to_vec() }));
                }
                None if !resets => self.write(|out| packet::reset(packet, out)),
                None => {}
            },
            Some(Arrival::Datagram { ends, payload }) => {
                match self.datagrams.get(&ends.local).cloned() {
                    Some(socket) => socket.borrow_mut().arrive(ends.remote, payload),
                    None if self.serves => {
                        self.arrive(Incoming::Datagram { ends, payload: payload.to_vec() });
                    }
                    None => {
                        let from = ends.local.ip();
                        self.write(|out| {
                            packet::undeliverable(from, packet, Undeliverable::Port, out)
                        });
                    }
                }
            }
            Some(Arrival::Echo(request)) if self.serves => self.arrive(Incoming::Echo(request)),
            Some(Arrival::Failure { ends, tcp: true, why }) => self.fail(ends, why),
            Some(Arrival::Other) if self.serves => {
                self.arrive(Incoming::Unknown(packet.to_vec()));
            }
            _ => {}
        }
    }

    /// An ICMP error ends a connection that is being opened; an open one waits (RFC 5461).
    fn fail(&mut self, ends: Ends, why: Undeliverable) {
        let Some(index) = self.by_ends.get(&ends).copied() else { return };
        if let Some(connection) = self.connection(index)
            && !connection.was_open()
        {
            connection.failure = Some(why);
            connection.socket().abort();
            self.set_due_quietly(index);
        }
    }

    fn arrive(&mut self, incoming: Incoming) {
        if self.incoming.len() < MOST_INCOMING {
            self.incoming.push_back(incoming);
            if let Some(waker) = self.incoming_waker.take() {
                waker.wake();
            }
        }
    }

    /// One round: everything that came, everything that is due. Says whether something waits for
    /// room in the lane.
    fn turn(&mut self, arrived: &mut PacketBatch) -> bool {
        self.side.take(arrived);
        for (position, packet) in arrived.iter().enumerate() {
            self.sort(position as u32, packet);
        }
        self.ring_timers();
        for index in std::mem::take(&mut self.due) {
            self.poll(index, arrived);
        }
        arrived.clear();
        self.side.give(&mut self.leaving)
    }
}

impl Driver {
    /// Runs until it is dropped.
    pub async fn run(mut self) {
        loop {
            let (held_up, sleep) = {
                let mut inner = self.inner.borrow_mut();
                let held_up = inner.turn(&mut self.arrived);
                let more = !held_up && !inner.due.is_empty();
                (held_up, if more { Some(std::time::Duration::ZERO) } else { inner.until_timer() })
            };
            match sleep {
                Some(time) if time.is_zero() => tokio::task::yield_now().await,
                sleep => self.sleep(if held_up { None } else { sleep }).await,
            }
        }
    }

    async fn sleep(&self, time: Option<std::time::Duration>) {
        let side = self.inner.borrow().side.clone();
        match time {
            Some(time) => drop(tokio::time::timeout(time, side.ready()).await),
            None => side.ready().await,
        }
    }
}
