//! A TCP connection at either end of the DC-net: a local one at a client, an exit's at the relay.
//!
//! In: a socket, its share of a mux behind [`Hooks`]. Out: bytes both ways, never more than there
//! is room for. Called by: the client and relay programs.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    net::Shutdown,
    rc::{Rc, Weak},
    time::Duration,
};

use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream, sync::Notify};

/// How long a connection whose other end is gone may stay silent.
const LINGER: Duration = Duration::from_secs(30);

/// What a pipe asks of the core that owns its connection.
pub trait Hooks {
    /// Bytes the core takes now.
    fn room(&self) -> usize;
    /// Bytes read from the socket.
    fn data(&self, bytes: &[u8]);
    /// The socket's end: its direction is over.
    fn close(&self);
    /// The socket is gone: both directions are over.
    fn stop(&self);
    /// Bytes the socket took.
    fn consumed(&self, bytes: usize);
}

/// The core's side of a pipe.
#[derive(Default)]
pub struct Pipe {
    stream: RefCell<Weak<TcpStream>>,
    queue: RefCell<VecDeque<u8>>,
    ended: Cell<bool>,
    stopped: Cell<bool>,
    wake: Notify,
}

impl Pipe {
    /// Bytes for the socket; credit bounds how many wait. Returns how many it took at once, of which
    /// [`Hooks::consumed`] is not told.
    #[must_use]
    pub fn push(&self, bytes: &[u8]) -> usize {
        let mut queue = self.queue.borrow_mut();
        // What waits goes first; an error shows when the connection is looked at.
        let stream = self.stream.borrow().upgrade().filter(|_| queue.is_empty());
        let taken = stream.map_or(0, |stream| stream.try_write(bytes).unwrap_or(0));
        if taken < bytes.len() {
            queue.extend(&bytes[taken..]);
            self.wake.notify_one();
        }
        taken
    }

    /// No more bytes will come.
    pub fn end(&self) {
        self.ended.set(true);
        self.wake.notify_one();
    }

    /// The other end is gone: what waits is dropped.
    pub fn stop(&self) {
        self.stopped.set(true);
        self.wake.notify_one();
    }

    /// Room may have grown.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    fn write(&self, stream: &TcpStream, hooks: &dyn Hooks) -> io::Result<()> {
        loop {
            let mut queue = self.queue.borrow_mut();
            let (first, _) = queue.as_slices();
            if first.is_empty() {
                return Ok(());
            }
            match stream.try_write(first) {
                Ok(count) => {
                    queue.drain(..count);
                    drop(queue);
                    hooks.consumed(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Runs a connection until both directions have ended.
pub async fn run(stream: TcpStream, pipe: Rc<Pipe>, hooks: Rc<dyn Hooks>) {
    let _ = stream.set_nodelay(true);
    let stream = Rc::new(stream);
    *pipe.stream.borrow_mut() = Rc::downgrade(&stream);
    let mut buffer = vec![0; 16 * 1024];
    let (mut reading, mut writing) = (true, true);
    while (reading || writing) && !pipe.stopped.get() {
        let room = hooks.room().min(buffer.len());
        let waiting = writing && !pipe.queue.borrow().is_empty();
        if writing && !waiting && pipe.ended.get() {
            writing = false;
            let _ = SockRef::from(&*stream).shutdown(Shutdown::Write);
            continue;
        }
        let interest = match (reading && room > 0, waiting) {
            (true, true) => Some(Interest::READABLE | Interest::WRITABLE),
            (true, false) => Some(Interest::READABLE),
            (false, true) => Some(Interest::WRITABLE),
            (false, false) => None,
        };
        let ready = async {
            match interest {
                Some(interest) => stream.ready(interest).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ready = ready => {
                let Ok(ready) = ready else { break };
                if reading && room > 0 && (ready.is_readable() || ready.is_read_closed()) {
                    match stream.try_read(&mut buffer[..room]) {
                        Ok(0) => {
                            reading = false;
                            hooks.close();
                        }
                        Ok(count) => hooks.data(&buffer[..count]),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(_) => break,
                    }
                }
                if waiting && pipe.write(&stream, &*hooks).is_err() {
                    break;
                }
            }
            () = pipe.wake.notified() => {
                if writing && pipe.write(&stream, &*hooks).is_err() {
                    break;
                }
            }
            () = tokio::time::sleep(LINGER), if !writing => break,
        }
    }
    if reading || writing {
        hooks.stop();
    }
}
