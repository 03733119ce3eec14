//! A TUN interface whose reads and writes carry up to 64 KiB each (tun-rs, with offload).
//!
//! In: packets that the kernel routes to the interface; batches to deliver.
//! Out: batches; packets for the kernel. Called by: node's event loop.
//!
//! With offload the kernel hands over unsegmented packets, which `segment.rs`
//! splits, and takes joined ones, which `coalesce.rs` lays out without copying
//! payloads. Where the kernel refuses either, the device goes on without.

use std::{
    io::{self, IoSlice},
    net::IpAddr,
    os::fd::{AsRawFd, RawFd},
};

use mio::{Interest, Registry, Token, event::Source, unix::SourceFd};
use tun_rs::{DeviceBuilder, SyncDevice};

use super::{CaptureError, PacketDevice, Result, coalesce::Coalescer, offload, route, segment};
use crate::model::{INNER_MTU, PacketBatch};

/// One read at most: the offload header and an unsegmented packet.
const FRAME_LEN: usize = offload::HEADER_LEN + 65_535;

/// How an interface is made.
#[derive(Clone, Debug)]
pub struct TunOptions {
    /// Its name, at most 15 bytes.
    pub name: String,
    /// Its addresses with prefix lengths.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Its MTU in bytes.
    pub mtu: u16,
    /// Ask for segmentation offload; where the kernel lacks it, the device works without.
    pub offload: bool,
    /// Join UDP datagrams in writes too, where the kernel splits them (Linux 6.2). It raised what
    /// a flooded receiver got three- to fivefold, with and without GRO on its socket.
    pub join_udp: bool,
    /// Packets that the kernel queues towards us; unsegmented ones count once.
    pub queue_len: u32,
}

impl TunOptions {
    /// An interface with offload and the inner MTU.
    pub fn new(name: impl Into<String>, addresses: &[(IpAddr, u8)]) -> Self {
        Self {
            name: name.into(),
            addresses: addresses.to_vec(),
            mtu: INNER_MTU as u16,
            offload: true,
            join_udp: true,
            queue_len: 1000,
        }
    }
}

/// A TUN interface; it vanishes when dropped.
pub struct Tun {
    device: SyncDevice,
    name: String,
    frame: Box<[u8]>,
    offload: bool,
    join_tcp: bool,
    join_udp: bool,
    coalescer: Coalescer,
}

impl std::fmt::Debug for Tun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tun")
            .field("name", &self.name)
            .field("offload", &self.offload)
            .field("join_tcp", &self.join_tcp)
            .field("join_udp", &self.join_udp)
            .finish_non_exhaustive()
    }
}

impl Tun {
    /// Makes the interface, gives it its addresses and brings it up.
    ///
    /// # Errors
    /// When `/dev/net/tun` cannot be opened, the privilege is missing or the name is in use.
    pub fn create(options: &TunOptions) -> Result<Self> {
        let device = match Self::build(options, options.offload) {
            Err(error) if options.offload && error.raw_os_error() == Some(libc::EINVAL) => {
                log::warn!(event = "device"; "this kernel's TUN driver refuses offload; going on without");
                Self::build(options, false)
            }
            other => other,
        }
        .map_err(|source| creation_error(&options.name, source))?;
        device.set_nonblocking(true).map_err(|source| CaptureError::Io {
            what: "making the TUN non-blocking".into(),
            source,
        })?;
        configure(options)?;
        let offload = device.tcp_gso();
        let join_udp = offload && options.join_udp && device.udp_gso();
        Ok(Self {
            device,
            name: options.name.clone(),
            frame: vec![0; FRAME_LEN].into_boxed_slice(),
            offload,
            join_tcp: offload,
            join_udp,
            coalescer: Coalescer::default(),
        })
    }

    fn build(options: &TunOptions, offload: bool) -> io::Result<SyncDevice> {
        DeviceBuilder::new()
            .name(&options.name)
            .offload(offload)
            .packet_information(false)
            .enable(false)
            .build_sync()
    }

    /// Whether reads and writes carry unsegmented packets.
    pub fn offload(&self) -> bool {
        self.offload
    }

    /// Whether the kernel hands over unsegmented UDP too.
    pub fn udp_offload(&self) -> bool {
        self.offload && self.device.udp_gso()
    }

    fn send_joined(&mut self, batch: &PacketBatch) -> io::Result<usize> {
        self.coalescer.plan(batch, self.join_udp);
        let device = &self.device;
        let (mut taken, mut refused, mut fatal) = (0, false, None);
        self.coalescer.for_each(batch, |slices, packets| match device.send_vectored(slices) {
            Ok(_) => taken += packets.len(),
            Err(error) if packets.len() > 1 && error.raw_os_error() == Some(libc::EINVAL) => {
                refused = true;
                taken += packets
                    .filter_map(|index| batch.get(index))
                    .filter(|packet| send_one(device, true, packet).is_ok())
                    .count();
            }
            Err(error) if is_fatal(&error) => fatal = Some(error),
            Err(_) => {}
        });
        if refused {
            log::warn!(
                "the kernel refuses joined packets on {}; writing them one by one",
                self.name
            );
            self.join_tcp = false;
            self.join_udp = false;
        }
        fatal.map_or(Ok(taken), Err)
    }
}

/// Sets MTU, queue and addresses and brings the interface up.
pub(super) fn configure(options: &TunOptions) -> Result<()> {
    let interface = route::interface(&options.name)?;
    route::bring_up(interface.index, u32::from(options.mtu), options.queue_len)?;
    for (address, prefix) in &options.addresses {
        route::add_address(interface.index, *address, *prefix)?;
    }
    Ok(())
}

fn send_one(device: &SyncDevice, offload: bool, packet: &[u8]) -> io::Result<usize> {
    if offload {
        let header = [0; offload::HEADER_LEN];
        device.send_vectored(&[IoSlice::new(&header), IoSlice::new(packet)])
    } else {
        device.send(packet)
    }
}

/// The interface is gone (`EBADFD`) or down (`EIO`).
pub(super) fn is_fatal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EIO | libc::EBADF))
}

pub(super) fn creation_error(name: &str, source: io::Error) -> CaptureError {
    let file_is_closed =
        || std::fs::File::options().read(true).write(true).open("/dev/net/tun").err();
    match source.raw_os_error() {
        Some(libc::EBUSY) => CaptureError::InterfaceBusy { name: name.to_owned() },
        Some(libc::ENOENT | libc::ENODEV | libc::EACCES | libc::EPERM | libc::ENXIO) => {
            match file_is_closed() {
                Some(source) => CaptureError::TunFile { source },
                None => CaptureError::step(
                    format!("create the interface {name}"),
                    "CAP_NET_ADMIN",
                    source,
                ),
            }
        }
        _ => CaptureError::Io { what: format!("creating the interface {name}"), source },
    }
}

impl PacketDevice for Tun {
    fn recv(&mut self, batch: &mut PacketBatch) -> io::Result<usize> {
        let len = self.device.recv(&mut self.frame)?;
        let frame = &self.frame[..len];
        if !self.offload {
            batch.push(&[frame]);
            return Ok(1);
        }
        Ok(segment::split(frame, batch).unwrap_or_else(|| {
            log::debug!("a read of {len} bytes from {} holds no packet", self.name);
            0
        }))
    }

    fn send(&mut self, batch: &PacketBatch) -> io::Result<usize> {
        if self.join_tcp {
            return self.send_joined(batch);
        }
        let mut taken = 0;
        for packet in batch.iter() {
            match send_one(&self.device, self.offload, packet) {
                Ok(_) => taken += 1,
                Err(error) if is_fatal(&error) => return Err(error),
                Err(_) => {}
            }
        }
        Ok(taken)
    }

    fn raw_fd(&self) -> RawFd {
        self.device.as_raw_fd()
    }

    fn name(&self) -> &str {
        &self.name
    }
}

impl Source for Tun {
    fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        SourceFd(&self.raw_fd()).register(registry, token, interests)
    }

    fn reregister(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        SourceFd(&self.raw_fd()).reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        SourceFd(&self.raw_fd()).deregister(registry)
    }
}
