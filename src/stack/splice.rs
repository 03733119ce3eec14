//! A socket of this machine joined to a stream of the stack, without a buffer between them.
//!
//! In: both. Out: bytes in both directions until both ended, or a reset. Called by: proxies, exits.

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll, ready},
};

use tokio::net::TcpStream as LocalStream;

use super::TcpStream;

/// Moves bytes both ways until both sides have said their last word. What one side closes is
/// closed towards the other; a reset of one becomes a reset of the other. Returns the bytes moved
/// towards the stream and from it.
///
/// # Errors
/// When one side was reset; the other then is, too.
pub async fn splice(local: LocalStream, remote: TcpStream) -> io::Result<(u64, u64)> {
    let mut up = Way::default();
    let mut down = Way::default();
    let result = poll_fn(|context| {
        let up_ends = poll_up(context, &local, &remote, &mut up);
        let down_ends = poll_down(context, &local, &remote, &mut down);
        match (up_ends, down_ends) {
            (Poll::Ready(Err(error)), _) | (_, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Ok(())),
            (Poll::Pending, _) if remote.poll_reset(context).is_ready() => {
                Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
            }
            _ => Poll::Pending,
        }
    })
    .await;
    if let Err(error) = result {
        // The last word of a connection that broke is a reset, so that nobody takes it for an end.
        let _ = local.set_zero_linger();
        drop(local);
        return Err(error);
    }
    Ok((up.bytes, down.bytes))
}

#[derive(Default)]
struct Way {
    bytes: u64,
    is_over: bool,
}

/// What the local side writes.
fn poll_up(
    context: &mut Context<'_>,
    local: &LocalStream,
    remote: &TcpStream,
    way: &mut Way,
) -> Poll<io::Result<()>> {
    while !way.is_over {
        ready!(local.poll_read_ready(context))?;
        let read = ready!(remote.poll_fill(context, |room| match local.try_read(room) {
            Ok(len) => (len, Ok(len)),
            Err(error) => (0, Err(error)),
        }))?;
        match read {
            Ok(0) => {
                way.is_over = true;
                remote.finish();
            }
            Ok(len) => way.bytes += len as u64,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
    Poll::Ready(Ok(()))
}

/// What the other end writes.
fn poll_down(
    context: &mut Context<'_>,
    local: &LocalStream,
    remote: &TcpStream,
    way: &mut Way,
) -> Poll<io::Result<()>> {
    while !way.is_over {
        ready!(local.poll_write_ready(context))?;
        let written = ready!(remote.poll_take(context, |bytes| match local.try_write(bytes) {
            Ok(len) => (len, Ok(len)),
            Err(error) => (0, Err(error)),
        }))?;
        match written {
            None => {
                way.is_over = true;
                // A socket that is gone already says so when it is read.
                let _ = socket2::SockRef::from(local).shutdown(std::net::Shutdown::Write);
            }
            Some(Ok(len)) => way.bytes += len as u64,
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            Some(Err(error)) => return Poll::Ready(Err(error)),
        }
    }
    Poll::Ready(Ok(()))
}
