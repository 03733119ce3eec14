//! Datagrams of the stack: a port, and a bounded queue of what came to it.
//!
//! In: datagrams. Out: the same. Called by: proxies, the resolver.

use std::{
    cell::RefCell,
    collections::VecDeque,
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    task::{Poll, Waker},
};

use super::{core::Inner, packet::Ends};

/// Datagrams that wait for their reader.
const MOST_WAITING: usize = 256;
/// Bytes that do.
const MOST_BYTES: usize = 256 << 10;
const DRAWS: usize = 64;

#[derive(Default)]
pub(super) struct UdpState {
    arrived: VecDeque<(SocketAddr, Vec<u8>)>,
    bytes: usize,
    reader: Option<Waker>,
}

impl UdpState {
    /// Takes a datagram in; what a slow reader has no room for is lost.
    pub(super) fn arrive(&mut self, from: SocketAddr, payload: &[u8]) {
        if self.arrived.len() >= MOST_WAITING || self.bytes + payload.len() > MOST_BYTES {
            return;
        }
        self.bytes += payload.len();
        self.arrived.push_back((from, payload.to_vec()));
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// A port for datagrams, the same one in both families.
pub struct UdpSocket {
    inner: Rc<RefCell<Inner>>,
    state: Rc<RefCell<UdpState>>,
    own: Vec<IpAddr>,
    port: u16,
    group: u32,
}

impl UdpSocket {
    pub(super) fn bind(inner: &Rc<RefCell<Inner>>, group: u32) -> io::Result<Self> {
        let state = Rc::new(RefCell::new(UdpState::default()));
        let mut shared = inner.borrow_mut();
        let own = shared.own_addresses().to_vec();
        for _ in 0..DRAWS {
            let port = shared.draw();
            if own.iter().any(|ip| shared.datagrams.contains_key(&SocketAddr::new(*ip, port))) {
                continue;
            }
            for ip in &own {
                shared.datagrams.insert(SocketAddr::new(*ip, port), Rc::clone(&state));
            }
            return Ok(Self { inner: Rc::clone(inner), state, own, port, group });
        }
        Err(io::ErrorKind::AddrInUse.into())
    }

    /// Sends a datagram.
    ///
    /// # Errors
    /// `Unsupported` for a family this side has no address of; `InvalidInput` for one too long
    /// for a packet, or when the stack is too busy to take it.
    pub fn send_to(&self, payload: &[u8], to: SocketAddr) -> io::Result<()> {
        let mut inner = self.inner.borrow_mut();
        let local = SocketAddr::new(inner.own_address(to.ip())?, self.port);
        if inner.write_datagram(Ends { local, remote: to }, payload, self.group) {
            Ok(())
        } else {
            Err(io::ErrorKind::InvalidInput.into())
        }
    }

    /// The next datagram.
    pub async fn recv_from(&self) -> (SocketAddr, Vec<u8>) {
        std::future::poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            match state.arrived.pop_front() {
                Some((from, payload)) => {
                    state.bytes -= payload.len();
                    Poll::Ready((from, payload))
                }
                None => {
                    state.reader = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        let mut inner = self.inner.borrow_mut();
        for ip in &self.own {
            inner.datagrams.remove(&SocketAddr::new(*ip, self.port));
        }
    }
}
