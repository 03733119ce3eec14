//! ICMP echoes of an unprivileged exit, by the kernel's ping sockets.
//!
//! In: echo requests of circuits. Out: replies, if the destination gives one and the kernel lets
//! this user ping (`net.ipv4.ping_group_range`). Called by: the engine.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{net::UdpSocket, time::timeout};

use crate::stack::{EchoRequest, Stack};

/// How long a reply may take.
const PATIENCE: Duration = Duration::from_secs(10);
const HEADER_LEN: usize = 8;
const MOST_BYTES: usize = 1500;

/// Asks, and passes the reply on.
pub(super) async fn ask(stack: Stack, request: EchoRequest) {
    match timeout(PATIENCE, exchange(&request)).await {
        Ok(Ok(payload)) => stack.answer_echo(&request, &payload),
        Ok(Err(error)) => log::debug!("an echo was not sent: {error}"),
        Err(_) => {}
    }
}

async fn exchange(request: &EchoRequest) -> io::Result<Vec<u8>> {
    let (domain, protocol, asks, replies) = match request.to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
    socket.set_nonblocking(true)?;
    socket.connect(&SocketAddr::new(request.to, 0).into())?;
    let socket = UdpSocket::from_std(std::net::UdpSocket::from(socket))?;
    // The kernel fills in the identifier and the checksum.
    let mut bytes = vec![asks, 0, 0, 0, 0, 0];
    bytes.extend(request.seq.to_be_bytes());
    bytes.extend(&request.payload);
    socket.send(&bytes).await?;
    let mut reply = vec![0; MOST_BYTES];
    loop {
        let len = socket.recv(&mut reply).await?;
        let is_reply = len >= HEADER_LEN
            && reply[0] == replies
            && reply[6..HEADER_LEN] == request.seq.to_be_bytes();
        if is_reply {
            return Ok(reply[HEADER_LEN..len].to_vec());
        }
    }
}
