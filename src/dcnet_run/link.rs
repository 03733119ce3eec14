//! The relay's link to a party.
//!
//! In: an accepted TCP connection, the relay's identity. Out: plaintext batches of messages in both
//! directions; a party that does not read holds nobody up. Called by: the relay program.

use std::{
    cell::{Cell, RefCell},
    io,
};

use anyhow::bail;
use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream, sync::Notify};

use crate::{
    dcnet::identity::Identity,
    dcnet_run::noise::{HELLO, Session, has_emptied},
};

/// Ciphertext that may wait for a link that does not read; then it is closed.
const PENDING_MAX: usize = 32 * 1024 * 1024;

/// A link after its handshake.
pub struct Link {
    stream: TcpStream,
    session: RefCell<Session>,
    wake: Notify,
    closed: Cell<bool>,
    /// Bytes received and sent.
    pub bytes: Cell<[u64; 2]>,
}

impl Link {
    /// Takes a connection: `known` is given the party's link key and its hello.
    ///
    /// # Errors
    /// When the handshake is malformed, late, or for another relay.
    pub async fn accept(
        mut stream: TcpStream,
        identity: &Identity,
        known: impl FnOnce(&[u8], &[u8; HELLO]) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let session = Session::respond(&mut stream, identity, known).await?;
        Ok(Self {
            stream,
            session: RefCell::new(session),
            wake: Notify::new(),
            closed: Cell::new(false),
            bytes: Cell::default(),
        })
    }

    /// Sends a batch of messages; what the socket does not take waits.
    pub fn send(&self, plain: &[u8]) {
        if self.closed.get() || plain.is_empty() {
            return;
        }
        let mut session = self.session.borrow_mut();
        let was_empty = session.pending.is_empty();
        if session.seal(plain).is_err() {
            self.close();
            return;
        }
        if was_empty {
            self.write_pending(&mut session);
        }
        if !session.pending.is_empty() {
            self.wake.notify_one();
        }
    }

    fn write_pending(&self, session: &mut Session) {
        let pending = &mut session.pending;
        let mut at = 0;
        while at < pending.len() {
            match self.stream.try_write(&pending[at..]) {
                Ok(count) => at += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.close();
                    break;
                }
            }
        }
        let [received, sent] = self.bytes.get();
        self.bytes.set([received, sent + at as u64]);
        pending.drain(..at);
        if pending.len() > PENDING_MAX {
            self.close();
        }
    }

    /// Closes the link once its task looks.
    pub fn close(&self) {
        self.closed.set(true);
        self.wake.notify_one();
    }

    /// The next plaintext, one Noise message or several, while keeping the sending side going.
    ///
    /// # Errors
    /// When the link ended or its bytes are not the peer's.
    pub async fn receive(&self, plain: &mut Vec<u8>) -> anyhow::Result<()> {
        loop {
            if self.closed.get() {
                bail!("the link is closed");
            }
            let waiting = !self.session.borrow().pending.is_empty();
            tokio::select! {
                ready = self.stream.readable() => {
                    ready?;
                    match self.read_some() {
                        Ok(0) => bail!("the peer closed the link"),
                        Ok(count) => {
                            let [received, sent] = self.bytes.get();
                            self.bytes.set([received + count as u64, sent]);
                            if self.session.borrow_mut().open(plain)? {
                                return Ok(());
                            }
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                ready = self.stream.writable(), if waiting => {
                    ready?;
                    self.write_pending(&mut self.session.borrow_mut());
                }
                () = self.wake.notified() => {}
            }
        }
    }

    /// A read that leaves room has emptied the socket: the runtime is told so, and does not ask again
    /// until more came.
    fn read_some(&self) -> io::Result<usize> {
        let mut count = Err(io::ErrorKind::WouldBlock.into());
        let _ = self.stream.try_io(Interest::READABLE, || {
            count = self.session.borrow_mut().read_from(&*SockRef::from(&self.stream));
            match count {
                Ok(count) if !has_emptied(count) => Ok(()),
                _ => Err(io::ErrorKind::WouldBlock.into()),
            }
        });
        count
    }
}
