//! Every frame of an interface, both directions (AF_PACKET, through pnet).
//!
//! In: an interface's name. Out: whole Ethernet frames, and how many the kernel had to drop.
//! Called by: the rig's captures. It blocks: give it a thread of its own.

#![expect(unsafe_code, reason = "the kernel's drop counter has no safe wrapper here")]

use std::{
    io,
    os::fd::{AsRawFd, IntoRawFd},
    time::Duration,
};

use pnet_datalink::{Channel, Config, DataLinkReceiver};
use socket2::{Domain, Socket, Type};

use super::{CaptureError, Result};

/// Unsegmented frames are this long; pnet's own default cuts them to 4096.
const FRAME_LEN: usize = 65_536 + 64;
/// What may wait in the kernel while the disk is busy.
const BUFFER_LEN: libc::c_int = 64 << 20;

/// An interface that is listened to.
pub struct Sniffer {
    receiver: Box<dyn DataLinkReceiver>,
    socket: Socket,
}

impl std::fmt::Debug for Sniffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sniffer").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl Sniffer {
    /// Listens from now on.
    ///
    /// # Errors
    /// When there is no such interface or the privilege is missing.
    pub fn open(interface: &str) -> Result<Self> {
        let what = || format!("capture on {interface}");
        let step = |source| CaptureError::step(what(), "CAP_NET_RAW", source);
        let found = pnet_datalink::interfaces()
            .into_iter()
            .find(|candidate| candidate.name == interface)
            .ok_or_else(|| CaptureError::NoInterface { name: interface.to_owned() })?;
        // No protocol yet: until it is bound to the interface it must not hear the others.
        let socket = Socket::new(Domain::PACKET, Type::RAW, None).map_err(step)?;
        grow_buffer(&socket);
        let kept = socket.try_clone().map_err(step)?;
        let config = Config {
            read_buffer_size: FRAME_LEN,
            read_timeout: Some(Duration::from_millis(100)),
            socket_fd: Some(socket.into_raw_fd()),
            ..Config::default()
        };
        match pnet_datalink::channel(&found, config).map_err(step)? {
            Channel::Ethernet(_, receiver) => Ok(Self { receiver, socket: kept }),
            _ => Err(CaptureError::Io { what: what(), source: io::ErrorKind::Unsupported.into() }),
        }
    }

    /// The next frame; none if there was none for a tenth of a second.
    ///
    /// # Errors
    /// When the interface is gone.
    pub fn next_frame(&mut self) -> io::Result<Option<&[u8]>> {
        match self.receiver.next() {
            Ok(frame) => Ok(Some(frame)),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::Interrupted) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// How many frames the kernel dropped since the last call because nobody took them in time.
    pub fn lost(&self) -> u32 {
        let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut len = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: the descriptor is open for the call, and the two pointers are to locals of the
        // sizes that are given.
        let got = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut stats).cast(),
                &raw mut len,
            )
        };
        if got == 0 { stats.tp_drops } else { 0 }
    }
}

fn grow_buffer(socket: &Socket) {
    let len = BUFFER_LEN;
    // SAFETY: the descriptor is open for the call, and the value is a c_int that outlives it.
    let forced = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const len).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if forced != 0 {
        let _ = socket.set_recv_buffer_size(BUFFER_LEN as usize);
    }
}
