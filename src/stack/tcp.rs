//! A TCP stream of the stack.
//!
//! In: bytes, wakers. Out: bytes, ends, errors. Called by: proxies, the resolver, exits.

use std::{
    cell::RefCell,
    io,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use smoltcp::socket::tcp::{RecvError, Socket, State};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    core::{Inner, gone},
    packet::Undeliverable,
};

/// A connection. Dropped after its last word it ends properly, before it with a reset.
pub struct TcpStream {
    inner: Rc<RefCell<Inner>>,
    index: u32,
}

impl TcpStream {
    pub(super) fn new(inner: Rc<RefCell<Inner>>, index: u32) -> Self {
        Self { inner, index }
    }

    /// Waits until it is open.
    pub(super) async fn opened(&self) -> io::Result<()> {
        std::future::poll_fn(|context| {
            let mut inner = self.inner.borrow_mut();
            let Some(connection) = inner.connection(self.index) else {
                return Poll::Ready(Err(gone()));
            };
            let failure = connection.failure;
            let socket = connection.socket();
            match socket.state() {
                State::SynSent | State::SynReceived | State::Listen => {
                    socket.register_send_waker(context.waker());
                    Poll::Pending
                }
                State::Closed => Poll::Ready(Err(match failure {
                    Some(Undeliverable::Prohibited) => io::ErrorKind::PermissionDenied.into(),
                    Some(Undeliverable::Host | Undeliverable::Protocol) => {
                        io::ErrorKind::HostUnreachable.into()
                    }
                    Some(Undeliverable::Port) | None => io::ErrorKind::ConnectionRefused.into(),
                })),
                _ => Poll::Ready(Ok(())),
            }
        })
        .await
    }

    /// The address of this end.
    pub fn local(&self) -> Option<SocketAddr> {
        self.inner.borrow_mut().connection(self.index).map(|connection| connection.ends.local)
    }

    /// Hands what was received to `take`, which says how much of it is done with; `Ok(0)` without
    /// a call is the end. Nothing is copied.
    pub(super) fn poll_take<R>(
        &self,
        context: &mut Context<'_>,
        take: impl FnOnce(&[u8]) -> (usize, R),
    ) -> Poll<io::Result<Option<R>>> {
        self.with(|socket| {
            if socket.can_recv() {
                return match socket.recv(|bytes| {
                    let (done, result) = take(bytes);
                    (done, result)
                }) {
                    Ok(result) => (Poll::Ready(Ok(Some(result))), true),
                    Err(_) => (Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())), false),
                };
            }
            let answer = match socket.recv(|_| (0, ())) {
                Ok(()) => {
                    socket.register_recv_waker(context.waker());
                    Poll::Pending
                }
                Err(RecvError::Finished) => Poll::Ready(Ok(None)),
                Err(RecvError::InvalidState) => {
                    Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
                }
            };
            (answer, false)
        })
        .unwrap_or_else(|| Poll::Ready(Err(gone())))
    }

    /// Has `fill` write into what room there is; it says how much it wrote.
    pub(super) fn poll_fill<R>(
        &self,
        context: &mut Context<'_>,
        fill: impl FnOnce(&mut [u8]) -> (usize, R),
    ) -> Poll<io::Result<R>> {
        self.with(|socket| {
            if !socket.may_send() {
                return (Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())), false);
            }
            if !socket.can_send() {
                socket.register_send_waker(context.waker());
                return (Poll::Pending, false);
            }
            match socket.send(fill) {
                Ok(result) => (Poll::Ready(Ok(result)), true),
                Err(_) => (Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())), false),
            }
        })
        .unwrap_or_else(|| Poll::Ready(Err(gone())))
    }

    /// Says the last word.
    pub(super) fn finish(&self) {
        self.with(|socket| {
            socket.close();
            ((), true)
        });
    }

    /// Whether the other end is gone for good, by a reset or a timeout; registers for it.
    pub(super) fn poll_reset(&self, context: &mut Context<'_>) -> Poll<()> {
        self.with(|socket| {
            if socket.state() == State::Closed {
                return (Poll::Ready(()), false);
            }
            socket.register_send_waker(context.waker());
            (Poll::Pending, false)
        })
        .unwrap_or(Poll::Ready(()))
    }

    /// Calls `act` with the socket; it also says whether the connection has something new to do.
    fn with<R>(&self, act: impl FnOnce(&mut Socket<'static>) -> (R, bool)) -> Option<R> {
        let mut inner = self.inner.borrow_mut();
        let (result, is_due) = act(inner.connection(self.index)?.socket());
        if is_due {
            inner.set_due(self.index);
        }
        Some(result)
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_take(context, |bytes| {
            let len = bytes.len().min(buffer.remaining());
            buffer.put_slice(&bytes[..len]);
            (len, ())
        })
        .map_ok(|_| ())
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_fill(context, |room| {
            let len = bytes.len().min(room.len());
            room[..len].copy_from_slice(&bytes[..len]);
            (len, len)
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish();
        Poll::Ready(Ok(()))
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        let mut inner = self.inner.borrow_mut();
        if let Some(connection) = inner.connection(self.index) {
            connection.orphan(std::time::Instant::now());
            inner.set_due(self.index);
        }
    }
}
