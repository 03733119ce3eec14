//! Waits for the socket, the device, a command or a deadline.
//!
//! In: descriptors and a deadline. Out: what is ready. Called by: the event loops.

use std::{
    io,
    os::fd::RawFd,
    sync::Arc,
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, event::Source, unix::SourceFd};

pub(super) use mio::Waker;

use crate::telemetry::service_manager::{Pulse, Watchdog};

const SOCKET: Token = Token(0);
const DEVICE: Token = Token(1);
const WAKE: Token = Token(2);

/// Readiness is edge-triggered: what is ready stays marked until a read would have blocked.
pub(super) struct Reactor {
    poll: Poll,
    events: Events,
    waker: Arc<Waker>,
    /// Every wait is a turn of the loop that waits.
    watchdog: Option<Watchdog>,
    /// The socket may have cells.
    pub(super) socket_ready: bool,
    /// The device may have packets.
    pub(super) device_ready: bool,
}

impl Reactor {
    pub(super) fn new() -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        Ok(Self {
            poll,
            events: Events::with_capacity(8),
            waker,
            watchdog: Watchdog::of_process(Instant::now()),
            socket_ready: true,
            device_ready: true,
        })
    }

    pub(super) fn waker(&self) -> Arc<Waker> {
        Arc::clone(&self.waker)
    }

    /// What the runtime beside the loop has to keep up, if this process is watched.
    pub(super) fn pulse(&self) -> Option<Pulse> {
        self.watchdog.as_ref().map(Watchdog::pulse)
    }

    pub(super) fn add_socket(&mut self, socket: &mut impl Source) -> io::Result<()> {
        self.poll.registry().register(socket, SOCKET, Interest::READABLE)
    }

    pub(super) fn add_device(&mut self, fd: RawFd) -> io::Result<()> {
        self.poll.registry().register(&mut SourceFd(&fd), DEVICE, Interest::READABLE)
    }

    /// Sleeps until something is ready, a command comes or the time is over; not at all while
    /// something is still marked ready.
    pub(super) fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.beat(Instant::now());
        }
        let timeout = if self.socket_ready || self.device_ready { Duration::ZERO } else { timeout };
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            other => other?,
        }
        for event in &self.events {
            match event.token() {
                SOCKET => self.socket_ready = true,
                DEVICE => self.device_ready = true,
                _ => {}
            }
        }
        Ok(())
    }
}
