//! A TCP connection at either end of the DC-net: a local one at a client, an exit's at the relay.
//!
//! In: a socket, its share of a mux behind [`Hooks`]. Out: bytes both ways, never more than there
//! is room for. Called by: the client and relay programs.

use std::{
    collections::VecDeque,
    io,
    net::Shutdown,
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
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

/// The core's side of a pipe, which may be in another thread than the socket's.
#[derive(Default)]
pub struct Pipe {
    waiting: Mutex<Waiting>,
    ended: AtomicBool,
    stopped: AtomicBool,
    wake: Notify,
}

#[derive(Default)]
struct Waiting {
    stream: Weak<TcpStream>,
    queue: VecDeque<u8>,
}

impl Pipe {
    /// Bytes for the socket; credit bounds how many wait. Returns how many it took at once, of which
    /// [`Hooks::consumed`] is not told.
    #[must_use]
    pub fn push(&self, bytes: &[u8]) -> usize {
        let mut waiting = self.lock();
        // What waits goes first; an error shows when the connection is looked at.
        let stream = waiting.stream.upgrade().filter(|_| waiting.queue.is_empty());
        let taken = stream.map_or(0, |stream| stream.try_write(bytes).unwrap_or(0));
        if taken < bytes.len() {
            waiting.queue.extend(&bytes[taken..]);
            self.wake.notify_one();
        }
        taken
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No more bytes will come.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// The other end is gone: what waits is dropped.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Room may have grown.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    fn write(&self, stream: &TcpStream, hooks: &dyn Hooks) -> io::Result<()> {
        loop {
            let mut waiting = self.lock();
            let (first, _) = waiting.queue.as_slices();
            if first.is_empty() {
                return Ok(());
            }
            match stream.try_write(first) {
                Ok(count) => {
                    waiting.queue.drain(..count);
                    // The core may hold its own lock while it pushes.
                    drop(waiting);
                    hooks.consumed(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Runs a connection until both directions have ended.
pub async fn run(stream: TcpStream, pipe: Arc<Pipe>, hooks: Rc<dyn Hooks>) {
    let _ = stream.set_nodelay(true);
    let stream = Arc::new(stream);
    pipe.lock().stream = Arc::downgrade(&stream);
    let mut buffer = vec![0; 16 * 1024];
    let (mut reading, mut writing) = (true, true);
    while (reading || writing) && !pipe.stopped.load(Ordering::Acquire) {
        let room = hooks.room().min(buffer.len());
        // Asked first: what was pushed before the end is seen to wait.
        let ended = pipe.ended.load(Ordering::Acquire);
        let waiting = writing && !pipe.lock().queue.is_empty();
        if writing && !waiting && ended {
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
