//! The way out without privileges: one socket of this machine for each connection and UDP flow.
//!
//! In: connections and datagrams of circuits that the policy lets out. Out: the same on sockets;
//! refusals and errors as the destination gives them. Called by: the engine.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use tokio::{
    net::{TcpStream, UdpSocket},
    sync::mpsc,
    time::timeout,
};

use super::{engine::inner_address, flows::Flows};
use crate::stack::{Ends, Opening, Stack, Undeliverable, splice};

/// How long a destination may take to answer. Whoever opened the connection gives up earlier.
const CONNECT: Duration = Duration::from_secs(120);
/// A UDP flow without a datagram ends after this (RFC 4787: two minutes at least).
const UDP_IDLE: Duration = Duration::from_secs(120);
/// Names are asked once.
const DNS_IDLE: Duration = Duration::from_secs(15);
/// No inner packet carries more.
const MOST_BYTES: usize = 1500;

/// Opens a connection to where a circuit wants, and only then accepts the circuit's.
pub(super) async fn connect(stack: Stack, flows: Rc<Flows>, opening: Opening) {
    let to = opening.ends.local;
    let connected = timeout(CONNECT, TcpStream::connect(to)).await;
    flows.end_opening(&opening.ends);
    match connected {
        Ok(Ok(outside)) => {
            let _ = outside.set_nodelay(true);
            match stack.accept(&opening).await {
                Ok(circuit) => {
                    if let Err(error) = splice(outside, circuit).await {
                        log::trace!("a connection broke: {error}");
                    }
                }
                Err(error) => log::debug!("a connection is not accepted: {error}"),
            }
        }
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            stack.refuse(&opening);
        }
        Ok(Err(error)) => {
            log::trace!("a connection was not opened: {error}");
            stack.tell_opening(inner_address(to.ip()), &opening, why(&error));
        }
        // The destination said nothing, and so does the exit.
        Err(_) => {}
    }
}

fn why(error: &io::Error) -> Undeliverable {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Undeliverable::Port,
        io::ErrorKind::PermissionDenied => Undeliverable::Prohibited,
        _ => Undeliverable::Host,
    }
}

/// Serves one UDP flow until it is silent or its circuit ends.
pub(super) async fn datagrams(
    stack: Stack,
    flows: Rc<Flows>,
    ends: Ends,
    first: Vec<u8>,
    mut arriving: mpsc::Receiver<Vec<u8>>,
) {
    if let Err(error) = exchange(&stack, ends, first, &mut arriving).await {
        log::trace!("a UDP flow ended: {error}");
    }
    // A queue that closed belongs to a circuit that ended, and the next one may use its ends.
    if !arriving.is_closed() {
        flows.end_datagrams(&ends);
    }
}

async fn exchange(
    stack: &Stack,
    ends: Ends,
    first: Vec<u8>,
    arriving: &mut mpsc::Receiver<Vec<u8>>,
) -> io::Result<()> {
    let to = ends.local;
    let any: IpAddr =
        if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    if let Err(error) = socket.connect(to).await {
        stack.tell_datagram(ends, &first, why(&error));
        return Err(error);
    }
    let idle = if to.port() == 53 { DNS_IDLE } else { UDP_IDLE };
    let mut sent = first;
    // An error of an earlier datagram may be told here; the next one tells its own.
    let _ = socket.send(&sent).await;
    let mut bytes = vec![0; MOST_BYTES];
    loop {
        let next = async {
            tokio::select! {
                came = arriving.recv() => came.map(Ok),
                received = socket.recv(&mut bytes) => Some(Err(received)),
            }
        };
        let Ok(Some(event)) = timeout(idle, next).await else { return Ok(()) };
        match event {
            Ok(payload) => {
                sent = payload;
                let _ = socket.send(&sent).await;
            }
            Err(Ok(len)) => stack.send_datagram(ends, &bytes[..len]),
            Err(Err(error)) => stack.tell_datagram(ends, &sent, why(&error)),
        }
    }
}
