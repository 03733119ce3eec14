//! UDP ASSOCIATE: datagrams of one client through the circuit, while its connection stands.
//!
//! In: wrapped datagrams of the client, datagrams from outside. Out: the same, unwrapped and
//! wrapped. Called by: the SOCKS server.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UdpSocket,
};

use super::{
    super::{Dialer, Host, listener::Guest},
    message::{Refusal, Reply, emit_datagram, parse_datagram},
};
use crate::stack;

/// The longest datagram of a client: its own header and an inner packet.
const MOST_BYTES: usize = 2048;
/// Names that one association keeps resolved.
const MOST_NAMES: usize = 64;

/// Serves an association until the client's connection ends.
pub(super) async fn serve(mut guest: Guest, dialer: Dialer, port: u16, group: u32) {
    let bound = match open(&guest, &dialer, group).await {
        Ok(bound) => bound,
        Err(error) => {
            log::debug!("SOCKS: no datagrams: {error}");
            guest.counters.refuse();
            // The client may be gone.
            let _ = guest.stream.write_all(&Refusal::Reply(Reply::Failure).emit()).await;
            return;
        }
    };
    let (local, remote, address) = bound;
    if guest.stream.write_all(&Reply::Succeeded.emit(address)).await.is_err() {
        return;
    }
    let relay = relay(&local, &remote, &dialer, (guest.from.ip(), port), group);
    let mut nothing = [0; 64];
    tokio::select! {
        () = relay => {}
        // Nothing is to come here but the end.
        () = async { while matches!(guest.stream.read(&mut nothing).await, Ok(1..)) {} } => {}
    }
}

async fn open(
    guest: &Guest,
    dialer: &Dialer,
    group: u32,
) -> std::io::Result<(UdpSocket, stack::UdpSocket, SocketAddr)> {
    let local = UdpSocket::bind((guest.stream.local_addr()?.ip(), 0)).await?;
    let address = local.local_addr()?;
    Ok((local, dialer.stack().datagrams(group)?, address))
}

async fn relay(
    local: &UdpSocket,
    remote: &stack::UdpSocket,
    dialer: &Dialer,
    (client, mut port): (IpAddr, u16),
    group: u32,
) {
    let mut names: HashMap<String, Rc<Vec<IpAddr>>> = HashMap::new();
    let mut bytes = vec![0; MOST_BYTES];
    loop {
        tokio::select! {
            received = local.recv_from(&mut bytes) => {
                // An ICMP error of an earlier send; the next read goes on.
                let Ok((len, from)) = received else { continue };
                if from.ip() != client || (port != 0 && from.port() != port) {
                    continue;
                }
                port = from.port();
                let Some((target, payload)) = parse_datagram(&bytes[..len]) else { continue };
                let addresses = match &target.host {
                    Host::Address(ip) => Rc::new(vec![*ip]),
                    Host::Name(name) => match names.get(name) {
                        Some(known) => Rc::clone(known),
                        None => {
                            let found = dialer.addresses(&target.host, group).await;
                            let found = Rc::new(found.unwrap_or_default());
                            if names.len() < MOST_NAMES {
                                names.insert(name.clone(), Rc::clone(&found));
                            }
                            found
                        }
                    },
                };
                if let Some(ip) = addresses.first() {
                    // A datagram too long for a packet is lost, as one too long for a path is.
                    let _ = remote.send_to(payload, SocketAddr::new(*ip, target.port));
                }
            }
            (from, payload) = remote.recv_from() => {
                if port != 0 {
                    // A client that is gone ends the association by its connection.
                    let _ = local.send_to(&emit_datagram(from, &payload), (client, port)).await;
                }
            }
        }
    }
}
