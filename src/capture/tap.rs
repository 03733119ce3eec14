//! A TAP interface: Ethernet frames to and from the kernel, one a call.
//!
//! In: frames. Out: frames. Called by: the rig's cable with delay.

#![expect(unsafe_code, reason = "poll with a timeout in nanoseconds has no safe wrapper here")]

use std::{io, os::fd::AsRawFd, time::Duration};

use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use super::{Result, tun};

/// A TAP interface; it vanishes when dropped.
pub struct Tap {
    device: SyncDevice,
}

impl Tap {
    /// Makes the interface in this thread's network namespace; it is down.
    ///
    /// # Errors
    /// When `/dev/net/tun` cannot be opened, the privilege is missing or the name is in use.
    pub fn create(name: &str) -> Result<Self> {
        let failed = |source| tun::creation_error(name, source);
        let device = DeviceBuilder::new()
            .name(name)
            .layer(Layer::L2)
            .packet_information(false)
            .enable(false)
            .build_sync()
            .map_err(failed)?;
        device.set_nonblocking(true).map_err(failed)?;
        Ok(Self { device })
    }

    /// Waits until a frame can be read, at most `timeout` (none: for ever); says whether one can.
    ///
    /// # Errors
    /// When the interface is gone.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<bool> {
        let mut poll =
            libc::pollfd { fd: self.device.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let time = timeout.map(|timeout| libc::timespec {
            tv_sec: timeout.as_secs() as libc::time_t,
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: both pointers are to locals that outlive the call; the third is null by contract.
        match unsafe { libc::ppoll(&raw mut poll, 1, time, std::ptr::null()) } {
            -1 => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
                error => Err(error),
            },
            ready => Ok(ready > 0),
        }
    }

    /// Reads a frame; none if there is none.
    ///
    /// # Errors
    /// When the interface is gone.
    pub fn recv(&self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        match self.device.recv(frame) {
            Ok(len) => Ok(Some(len)),
            // A cable whose end is down carries nothing and stays plugged in.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a frame; one that the interface does not take is lost.
    pub fn send(&self, frame: &[u8]) {
        let _ = self.device.send(frame);
    }
}
