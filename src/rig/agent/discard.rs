//! A socket that throws away what it gets, read as a node reads its own.
//!
//! In: datagrams. Out: nothing. Called by: rig::agent.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;

use crate::capture::udp::{RecvBatch, UdpSocket};

pub(super) fn discard(port: u16, ready: impl FnOnce() -> Result<()>) -> Result<()> {
    let mut socket = UdpSocket::bind(SocketAddr::from(([0, 0, 0, 0], port)))?;
    let mut poll = mio::Poll::new()?;
    poll.registry().register(&mut socket, mio::Token(0), mio::Interest::READABLE)?;
    let (mut events, mut batch) = (mio::Events::with_capacity(1), RecvBatch::new());
    ready()?;
    loop {
        poll.poll(&mut events, Some(Duration::from_secs(1)))?;
        while socket.recv(&mut batch).is_ok() {}
    }
}
