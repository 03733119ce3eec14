//! An inside captured raw: Ethernet frames of an interface that has no address (AF_PACKET, opened by
//! pnet), carried into a TUN interface that has it, and back.
//!
//! In: frames for the gateway; packets that the kernel routes to the TUN. Out: the same on the other
//! side, answers to ARP and neighbour discovery. Called by: node's raw capture.
//!
//! The kernel hears of the devices by the TUN only. Unsegmented packets are carried as they are, up
//! to 64 KiB each: both sides put the same header before them (virtio_net_hdr), which differs by the
//! length of the Ethernet header.

#![expect(unsafe_code, reason = "the packet socket's offload header has no safe wrapper here")]

use std::{
    io::{self, IoSlice, Read},
    net::IpAddr,
    os::fd::{AsRawFd, IntoRawFd},
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, unix::SourceFd};
use pnet_datalink::{Channel, Config};
use socket2::{Domain, Socket, Type};
use tun_rs::{DeviceBuilder, SyncDevice};

use super::{
    CaptureError, Result, offload,
    tun::{TunOptions, configure, creation_error},
};
use crate::{
    forward::neighbours::{ETHERNET, FrameVerdict, Neighbours},
    model::INNER_MTU,
};

/// One read at most: the offload header, an Ethernet header and an unsegmented packet.
const FRAME_LEN: usize = offload::HEADER_LEN + ETHERNET + 65_535;
/// Reads of one side before the other gets its turn.
const READS_PER_TURN: usize = 64;
/// How often devices are told of this router.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(200);
const PORT: Token = Token(0);
const TUN: Token = Token(1);

/// What has passed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Carried {
    /// Frames of devices that went into the TUN.
    pub inwards: u64,
    /// Packets that went to devices.
    pub outwards: u64,
    /// Questions for addresses and routers that were answered.
    pub answers: u64,
    /// Frames and packets that were lost: no such device, or the other side did not take them.
    pub lost: u64,
}

/// A captured inside.
pub struct RawInside {
    /// Keeps the interface promiscuous and the socket bound.
    _channel: Channel,
    port: Socket,
    tun: SyncDevice,
    neighbours: Neighbours,
    frame: Box<[u8]>,
    packet: Box<[u8]>,
    poll: Poll,
    carried: Carried,
}

impl std::fmt::Debug for RawInside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawInside").field("carried", &self.carried).finish_non_exhaustive()
    }
}

impl RawInside {
    /// Captures `interface` and makes a TUN of the name `tun` with the gateway's addresses.
    ///
    /// # Errors
    /// When there is no such interface, it has a hardware address of another kind, or a privilege is
    /// missing.
    pub fn open(interface: &str, tun: &str, networks: &[(IpAddr, u8)]) -> Result<Self> {
        let what = || format!("capture on {interface}");
        let step = |source| CaptureError::step(what(), "CAP_NET_RAW", source);
        let other = |text: &str| CaptureError::Io { what: what(), source: io::Error::other(text) };
        let found = pnet_datalink::interfaces()
            .into_iter()
            .find(|candidate| candidate.name == interface)
            .ok_or_else(|| CaptureError::NoInterface { name: interface.to_owned() })?;
        let hardware = found.mac.ok_or_else(|| other("expected an Ethernet interface"))?.octets();
        // No protocol yet: until it is bound to the interface it must not hear the others.
        let socket = Socket::new(Domain::PACKET, Type::RAW, None).map_err(step)?;
        offload_header(&socket).map_err(step)?;
        let port = socket.try_clone().map_err(step)?;
        let config = Config { socket_fd: Some(socket.into_raw_fd()), ..Config::default() };
        let channel = pnet_datalink::channel(&found, config).map_err(step)?;
        let device = DeviceBuilder::new()
            .name(tun)
            .offload(true)
            .packet_information(false)
            .enable(false)
            .build_sync()
            .map_err(|source| creation_error(tun, source))?;
        device.set_nonblocking(true).map_err(step)?;
        configure(&TunOptions { mtu: INNER_MTU as u16, ..TunOptions::new(tun, networks) })?;
        let poll = Poll::new().map_err(step)?;
        for (fd, token) in [(port.as_raw_fd(), PORT), (device.as_raw_fd(), TUN)] {
            poll.registry()
                .register(&mut SourceFd(&fd), token, Interest::READABLE)
                .map_err(step)?;
        }
        Ok(Self {
            _channel: channel,
            port,
            tun: device,
            neighbours: Neighbours::new(hardware, networks),
            frame: vec![0; FRAME_LEN].into_boxed_slice(),
            packet: vec![0; FRAME_LEN].into_boxed_slice(),
            poll,
            carried: Carried::default(),
        })
    }

    /// Carries until `is_over` says so, which is asked at least once a second.
    ///
    /// # Errors
    /// When the interface or the TUN is gone.
    pub fn run(&mut self, is_over: impl Fn() -> bool) -> io::Result<()> {
        let mut events = Events::with_capacity(4);
        let mut announce = Instant::now();
        // Readiness is told once; both sides may have something from before.
        let (mut port_ready, mut tun_ready) = (true, true);
        while !is_over() {
            if Instant::now() >= announce {
                announce = Instant::now() + ANNOUNCE_EVERY;
                let frame = self.neighbours.advertisement();
                self.send_frame(&frame);
            }
            let sleep =
                if port_ready || tun_ready { Duration::ZERO } else { Duration::from_secs(1) };
            match self.poll.poll(&mut events, Some(sleep)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            }
            for event in &events {
                match event.token() {
                    PORT => port_ready = true,
                    _ => tun_ready = true,
                }
            }
            if port_ready {
                port_ready = self.inwards()?;
            }
            if tun_ready {
                tun_ready = self.outwards()?;
            }
        }
        Ok(())
    }

    /// What has passed so far.
    pub fn carried(&self) -> Carried {
        self.carried
    }

    /// Frames of the cable. Says whether there may be more.
    fn inwards(&mut self) -> io::Result<bool> {
        for _ in 0..READS_PER_TURN {
            let len = match (&self.port).read(&mut self.frame) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => return Ok(false),
                // Segments of a kind that the header has no name for; the kernel has dropped them.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    self.carried.lost += 1;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let Some((header, frame)) = offload::Header::parse(&self.frame[..len]) else {
                continue;
            };
            match self.neighbours.handle_frame(frame) {
                FrameVerdict::Packet => {
                    let header = header.moved_back(ETHERNET as u16).emit();
                    let slices = [IoSlice::new(&header), IoSlice::new(&frame[ETHERNET..])];
                    match self.tun.send_vectored(&slices) {
                        Ok(_) => self.carried.inwards += 1,
                        Err(_) => self.carried.lost += 1,
                    }
                }
                FrameVerdict::Answer(answer) => {
                    self.carried.answers += 1;
                    self.send_frame(&answer);
                }
                FrameVerdict::Ignore => {}
            }
        }
        Ok(true)
    }

    /// Packets for devices. Says whether there may be more.
    fn outwards(&mut self) -> io::Result<bool> {
        for _ in 0..READS_PER_TURN {
            let len = match self.tun.recv(&mut self.packet) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            };
            let Some((header, packet)) = offload::Header::parse(&self.packet[..len]) else {
                continue;
            };
            let Some(ethernet) = self.neighbours.header_for(packet) else {
                self.carried.lost += 1;
                continue;
            };
            let header = header.moved_on(ETHERNET as u16).emit();
            let slices = [IoSlice::new(&header), IoSlice::new(&ethernet), IoSlice::new(packet)];
            match self.port.send_vectored(&slices) {
                Ok(_) => self.carried.outwards += 1,
                Err(_) => self.carried.lost += 1,
            }
        }
        Ok(true)
    }

    fn send_frame(&self, frame: &[u8]) {
        let header = [0; offload::HEADER_LEN];
        if let Err(error) = self.port.send_vectored(&[IoSlice::new(&header), IoSlice::new(frame)]) {
            log::debug!("a frame does not leave: {error}");
        }
    }
}

/// Asks for virtio_net_hdr before each frame, in both directions.
fn offload_header(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open for the call, and the value is a c_int that outlives it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_VNET_HDR,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
