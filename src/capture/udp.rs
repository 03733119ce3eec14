//! A UDP socket that reads and writes many datagrams a call (quinn-udp: GSO, GRO, recvmmsg).
//!
//! In: datagrams of peers; cells to send. Out: buffers of equal datagrams; datagrams.
//! Called by: node's event loop, the rig's agents.

#![expect(unsafe_code, reason = "socket options that no safe wrapper has")]

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{SocketAddr, SocketAddrV6},
    os::fd::{AsRawFd, RawFd},
    time::{Duration, SystemTime},
};

use mio::{Interest, Registry, Token, event::Source, unix::SourceFd};
use quinn_udp::{EcnCodepoint, RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use socket2::{Domain, MsgHdr, Protocol, Socket, Type};

use super::{CaptureError, Result};

/// Buffers of one read.
pub const MESSAGES: usize = 16;
/// What one buffer holds: the largest train of datagrams that the kernel joins.
const MESSAGE_LEN: usize = 65_536;
/// The largest UDP payload of one call.
const MOST_BYTES: usize = 65_507;
/// Pieces of one call of [`UdpSocket::send_pieces`].
pub const PIECES: usize = 16;
/// Asked of the kernel for each direction; without privilege it may give less.
const BUFFER_LEN: usize = 8 << 20;

/// A send that stopped before its end.
#[derive(Debug, thiserror::Error)]
#[error("{sent} bytes were sent, then: {source}")]
pub struct SendError {
    /// Bytes of the datagrams that were sent.
    pub sent: usize,
    /// Why the next one was not. `WouldBlock`: try again when the socket is writable.
    pub source: io::Error,
}

impl SendError {
    /// Whether the socket's buffer is full.
    pub fn would_block(&self) -> bool {
        self.source.kind() == io::ErrorKind::WouldBlock
    }
}

/// A bound, non-blocking UDP socket that forbids IP fragmentation.
#[derive(Debug)]
pub struct UdpSocket {
    socket: Socket,
    state: UdpSocketState,
    v6: bool,
    local: SocketAddr,
}

impl UdpSocket {
    /// Binds to an address; `[::]` takes IPv4 too.
    ///
    /// # Errors
    /// When the port is taken or the address is not this machine's.
    pub fn bind(addr: SocketAddr) -> Result<Self> {
        let step = |source: io::Error| match source.raw_os_error() {
            Some(libc::EADDRINUSE) => CaptureError::PortTaken { addr },
            Some(libc::EADDRNOTAVAIL) => CaptureError::NotOurAddress { addr, source },
            _ => {
                CaptureError::step(format!("listen on UDP {addr}"), "CAP_NET_BIND_SERVICE", source)
            }
        };
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))
            .map_err(step)?;
        if let SocketAddr::V6(v6) = addr {
            socket.set_only_v6(!v6.ip().is_unspecified()).map_err(step)?;
        }
        socket.bind(&addr.into()).map_err(step)?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket)).map_err(step)?;
        grow_buffers(&socket);
        forget_destinations(&socket);
        let local = socket
            .local_addr()
            .map_err(step)?
            .as_socket()
            .ok_or_else(|| step(io::Error::other("expected an Internet address")))?;
        Ok(Self { socket, state, v6: addr.is_ipv6(), local })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// What the kernel granted for receiving and for sending, in bytes.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn buffer_lens(&self) -> io::Result<(usize, usize)> {
        Ok((self.socket.recv_buffer_size()?, self.socket.send_buffer_size()?))
    }

    /// How many datagrams of `segment` bytes one call sends.
    pub fn most_segments(&self, segment: usize) -> usize {
        self.state.max_gso_segments().min(MOST_BYTES / segment.max(1)).max(1)
    }

    /// Fills `batch` with what has arrived and says how many buffers hold something.
    ///
    /// # Errors
    /// `WouldBlock` when nothing has arrived; otherwise what the kernel reports.
    pub fn recv(&self, batch: &mut RecvBatch) -> io::Result<usize> {
        batch.filled = 0;
        let mut pieces = batch.bytes.chunks_exact_mut(MESSAGE_LEN);
        let mut buffers: [IoSliceMut<'_>; MESSAGES] =
            std::array::from_fn(|_| IoSliceMut::new(pieces.next().unwrap_or_default()));
        batch.filled =
            self.state.recv(UdpSockRef::from(&self.socket), &mut buffers, &mut batch.metas)?;
        batch.read_at =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Ok(batch.filled)
    }

    /// Sends `bytes` as datagrams of `segment` bytes each (the last may be shorter), as many a
    /// call as the kernel takes.
    ///
    /// # Errors
    /// [`SendError`] says how much went out before; on anything but `WouldBlock` the datagrams
    /// of the failed call are lost, and the caller may go on after them.
    pub fn send(&self, to: SocketAddr, bytes: &[u8], segment: usize) -> Result<(), SendError> {
        self.send_with(to, bytes, segment, 0)
    }

    /// As [`Self::send`], with the two ECN bits of the IP header.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn send_with(
        &self,
        to: SocketAddr,
        bytes: &[u8],
        segment: usize,
        ecn: u8,
    ) -> Result<(), SendError> {
        let destination = self.address_for_socket(to);
        let mut sent = 0;
        while sent < bytes.len() {
            let most = self.most_segments(segment) * segment;
            let piece = &bytes[sent..bytes.len().min(sent + most)];
            let transmit = Transmit {
                destination,
                ecn: EcnCodepoint::from_bits(ecn),
                contents: piece,
                segment_size: (piece.len() > segment).then_some(segment),
                src_ip: None,
            };
            match self.state.try_send(UdpSockRef::from(&self.socket), &transmit) {
                Ok(()) => sent += piece.len(),
                // The device refuses segmentation: quinn-udp has turned it off, one by one works.
                Err(_) if piece.len() > segment && self.state.max_gso_segments() == 1 => {}
                Err(source) => return Err(SendError { sent, source }),
            }
        }
        Ok(())
    }

    /// Sends pieces, each of whole datagrams of `segment` bytes, as one train of one call: at most
    /// [`PIECES`] of them and [`Self::most_segments`] datagrams.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn send_pieces(
        &self,
        to: SocketAddr,
        pieces: &[&[u8]],
        segment: usize,
        ecn: u8,
    ) -> Result<(), SendError> {
        if pieces.len() > 1 && self.state.max_gso_segments() > 1 {
            let mut buffers = [IoSlice::new(&[]); PIECES];
            for (buffer, piece) in buffers.iter_mut().zip(pieces) {
                *buffer = IoSlice::new(piece);
            }
            let addr = self.address_for_socket(to).into();
            let control = train_control(to.is_ipv4(), segment, ecn);
            let message = MsgHdr::new()
                .with_addr(&addr)
                .with_buffers(&buffers[..pieces.len().min(PIECES)])
                .with_control(&control);
            match self.socket.sendmsg(&message, libc::MSG_DONTWAIT) {
                Ok(_) => return Ok(()),
                Err(source) if source.kind() == io::ErrorKind::WouldBlock => {
                    return Err(SendError { sent: 0, source });
                }
                // A device that refuses segmentation is found out, and gone around, below.
                Err(_) => {}
            }
        }
        let mut before = 0;
        for piece in pieces {
            self.send_with(to, piece, segment, ecn)
                .map_err(|error| SendError { sent: before + error.sent, ..error })?;
            before += piece.len();
        }
        Ok(())
    }

    fn address_for_socket(&self, to: SocketAddr) -> SocketAddr {
        match to {
            SocketAddr::V4(v4) if self.v6 => {
                SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
            }
            other => other,
        }
    }
}

/// Room for two control messages of at most a word each.
const CONTROL_LEN: usize = 2 * (CONTROL_HEADER + 8);
/// `struct cmsghdr`: its length, level and type.
const CONTROL_HEADER: usize = size_of::<usize>() + 8;

/// The control messages of a train: how long its datagrams are, and their ECN bits (cmsg(3)).
fn train_control(is_v4: bool, segment: usize, ecn: u8) -> [u8; CONTROL_LEN] {
    let (level, kind) = match is_v4 {
        true => (libc::IPPROTO_IP, libc::IP_TOS),
        false => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
    };
    let mut control = [0u8; CONTROL_LEN];
    let (first, second) = control.split_at_mut(CONTROL_HEADER + 8);
    write_control(first, level, kind, &libc::c_int::from(ecn).to_ne_bytes());
    // A train has at most 65,507 bytes.
    let segment = u16::try_from(segment).unwrap_or(u16::MAX);
    write_control(second, libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
    control
}

fn write_control(out: &mut [u8], level: libc::c_int, kind: libc::c_int, data: &[u8]) {
    let word = size_of::<usize>();
    out[..word].copy_from_slice(&(CONTROL_HEADER + data.len()).to_ne_bytes());
    out[word..word + 4].copy_from_slice(&level.to_ne_bytes());
    out[word + 4..CONTROL_HEADER].copy_from_slice(&kind.to_ne_bytes());
    out[CONTROL_HEADER..CONTROL_HEADER + data.len()].copy_from_slice(data);
}

/// Does without the address that a datagram was sent to. quinn-udp asks for it, and its buffer for
/// what the kernel tells of a datagram then has no room left for a train's ECN bits, which come last.
fn forget_destinations(socket: &Socket) {
    let no: libc::c_int = 0;
    for (level, option) in
        [(libc::IPPROTO_IP, libc::IP_PKTINFO), (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)]
    {
        // SAFETY: the descriptor is open for the call, and the option's value is one c_int that
        // outlives it. A socket that does not know the option tells nothing to begin with.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                level,
                option,
                (&raw const no).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            );
        }
    }
}

/// Asks the kernel for large buffers, past its usual limit where this process may.
pub fn grow_buffers(socket: &Socket) {
    for option in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
        let len = BUFFER_LEN as libc::c_int;
        // SAFETY: the descriptor is open for the call, and the option's value is one c_int that
        // outlives it.
        let forced = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const len).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if forced != 0 {
            // Without CAP_NET_ADMIN the kernel's own limit (net.core.rmem_max) applies.
            let _ = if option == libc::SO_RCVBUFFORCE {
                socket.set_recv_buffer_size(BUFFER_LEN)
            } else {
                socket.set_send_buffer_size(BUFFER_LEN)
            };
        }
    }
}

impl AsRawFd for UdpSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Source for UdpSocket {
    fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        SourceFd(&self.as_raw_fd()).register(registry, token, interests)
    }

    fn reregister(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        SourceFd(&self.as_raw_fd()).reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        SourceFd(&self.as_raw_fd()).deregister(registry)
    }
}

/// The buffers of one read, made once and reused.
#[derive(Debug)]
pub struct RecvBatch {
    bytes: Box<[u8]>,
    metas: [RecvMeta; MESSAGES],
    filled: usize,
    /// When, since the epoch: what the kernel's stamps count from.
    read_at: Duration,
}

impl Default for RecvBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl RecvBatch {
    /// Empty buffers; the system gives their memory when it is first written.
    pub fn new() -> Self {
        Self {
            bytes: vec![0; MESSAGES * MESSAGE_LEN].into_boxed_slice(),
            metas: [RecvMeta::default(); MESSAGES],
            filled: 0,
            read_at: Duration::ZERO,
        }
    }

    /// What the last read brought.
    pub fn messages_mut(&mut self) -> impl Iterator<Item = Message<'_>> {
        let read_at = self.read_at;
        self.bytes.chunks_exact_mut(MESSAGE_LEN).zip(&self.metas[..self.filled]).map(
            move |(bytes, meta)| Message {
                from: unmap(meta.addr),
                stride: meta.stride,
                ecn: meta.ecn.map_or(0, |ecn: EcnCodepoint| ecn as u8),
                waited: waited(meta.timestamp, read_at),
                bytes: &mut bytes[..meta.len],
            },
        )
    }
}

/// One or more datagrams of one sender: each `stride` bytes, the last one possibly shorter.
#[derive(Debug)]
pub struct Message<'a> {
    /// Who sent them; an IPv4 address is written as one.
    pub from: SocketAddr,
    /// The bytes of each datagram.
    pub stride: usize,
    /// The ECN bits of the IP header.
    pub ecn: u8,
    /// How long they lay in the socket; zero where the kernel does not say.
    pub waited: Duration,
    /// The datagrams, back to back.
    pub bytes: &'a mut [u8],
}

impl Message<'_> {
    /// The datagrams one by one.
    pub fn datagrams(&mut self) -> impl ExactSizeIterator<Item = &mut [u8]> {
        self.bytes.chunks_mut(self.stride.max(1))
    }
}

/// A clock that was set meanwhile would show absurd waits: those count as none.
fn waited(stamp: Option<Duration>, read_at: Duration) -> Duration {
    stamp
        .and_then(|stamp| read_at.checked_sub(stamp))
        .filter(|waited| *waited < Duration::from_secs(1))
        .unwrap_or_default()
}

fn unmap(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn bound(addr: &str) -> UdpSocket {
        UdpSocket::bind(addr.parse().unwrap()).unwrap()
    }

    fn receive(
        socket: &UdpSocket,
        batch: &mut RecvBatch,
        want: usize,
    ) -> Vec<(SocketAddr, Vec<u8>)> {
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut got = Vec::new();
        while got.len() < want && Instant::now() < deadline {
            match socket.recv(batch) {
                Ok(_) => got.extend(batch.messages_mut().flat_map(|mut message| {
                    let from = message.from;
                    message.datagrams().map(|bytes| (from, bytes.to_vec())).collect::<Vec<_>>()
                })),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
        got
    }

    #[test]
    fn trains_of_datagrams_arrive_whole_and_in_order() {
        let (a, b) = (bound("127.0.0.1:0"), bound("127.0.0.1:0"));
        let bytes: Vec<u8> = (0..100 * 1408).map(|at| (at / 1408) as u8).collect();
        a.send(b.local_addr(), &bytes, 1408).unwrap();
        let got = receive(&b, &mut RecvBatch::new(), 100);
        assert_eq!(got.len(), 100);
        for (number, (from, datagram)) in got.iter().enumerate() {
            assert_eq!(*from, a.local_addr());
            assert_eq!(*datagram, [number as u8; 1408]);
        }
    }

    #[test]
    fn pieces_become_one_marked_train_in_either_family() {
        for (from, at, ip) in [
            ("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1"),
            ("[::1]:0", "[::1]:0", "::1"),
            ("127.0.0.1:0", "[::]:0", "127.0.0.1"),
            ("[::]:0", "127.0.0.1:0", "127.0.0.1"),
            ("[::]:0", "[::]:0", "::1"),
        ] {
            let (a, b) = (bound(from), bound(at));
            let to = SocketAddr::new(ip.parse().unwrap(), b.local_addr().port());
            let (one, two) = ([1u8; 3 * 1408], [2u8; 1408]);
            a.send_pieces(to, &[&one, &two, &one], 1408, 3).unwrap();
            let mut batch = RecvBatch::new();
            let got = receive(&b, &mut batch, 7);
            let numbers: Vec<u8> = got.iter().map(|(_, bytes)| bytes[0]).collect();
            assert_eq!(numbers, [1, 1, 1, 2, 1, 1, 1], "{from} to {at}");
            let message = batch.messages_mut().next().unwrap();
            assert_eq!((message.ecn, message.stride), (3, 1408), "{from} to {at}");
            assert_eq!(message.bytes.len(), 7 * 1408, "one train");
        }
    }

    #[test]
    fn a_dual_stack_socket_shows_ipv4_addresses_as_such() {
        let a = bound("[::]:0");
        let b = bound("127.0.0.1:0");
        let to = SocketAddr::new("127.0.0.1".parse().unwrap(), a.local_addr().port());
        b.send(to, &[1; 10], 1408).unwrap();
        let mut batch = RecvBatch::new();
        assert_eq!(receive(&a, &mut batch, 1), [(b.local_addr(), vec![1; 10])]);
        a.send(b.local_addr(), &[2; 20], 1408).unwrap();
        assert_eq!(receive(&b, &mut batch, 1)[0].1, vec![2; 20]);
    }

    #[test]
    fn nothing_there_is_would_block() {
        let error = bound("127.0.0.1:0").recv(&mut RecvBatch::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn errors_say_what_to_do() {
        let taken = bound("127.0.0.1:0");
        let error = UdpSocket::bind(taken.local_addr()).unwrap_err();
        assert!(matches!(error, CaptureError::PortTaken { .. }), "{error}");
        let error = UdpSocket::bind("203.0.113.77:5000".parse().unwrap()).unwrap_err();
        assert!(matches!(error, CaptureError::NotOurAddress { .. }), "{error}");
    }
}
