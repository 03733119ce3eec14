//! An authenticated, encrypted link between the relay and a party.
//!
//! In: a TCP connection, static keys. Out: plaintext batches of messages in both directions.
//! Called by: the relay, client and trustee programs.
//!
//! Noise_IK_25519_ChaChaPoly_SHA256: a party knows the relay's key from `system.json`, the relay
//! learns the party's in the first message, whose payload is `nonce 16 | session 32`.
//! On TCP each Noise message has its length in 2 bytes before it.

use std::{
    cell::{Cell, RefCell},
    io::{self, Read},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use snow::{Builder, TransportState};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::TcpStream,
    sync::Notify,
    time::timeout,
};

use crate::dcnet::identity::{Identity, PublicKey};

const PATTERN: &str = "Noise_IK_25519_ChaChaPoly_SHA256";
const PROLOGUE: &[u8] = b"cepa dcnet link 1";
/// The handshake's payload.
pub const HELLO: usize = 48;
const TAG: usize = 16;
const PLAIN_MAX: usize = 65_535 - TAG;
/// Ciphertext that may wait for a link that does not read; then it is closed.
const PENDING_MAX: usize = 32 * 1024 * 1024;
/// Room for one read.
const READ: usize = 8 * 1024;
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What was read and is not a whole message yet; its room stays, so that no read has to clear it.
#[derive(Default)]
struct Inbox {
    room: Vec<u8>,
    filled: usize,
}

/// A link after its handshake.
pub struct Link {
    stream: TcpStream,
    transport: RefCell<TransportState>,
    pending: RefCell<Vec<u8>>,
    inbox: RefCell<Inbox>,
    wake: Notify,
    closed: Cell<bool>,
    /// Bytes received and sent.
    pub bytes: Cell<[u64; 2]>,
}

fn builder<'a>() -> anyhow::Result<Builder<'a>> {
    Ok(Builder::new(PATTERN.parse()?).prologue(PROLOGUE)?)
}

async fn write_block(stream: &mut TcpStream, block: &[u8]) -> anyhow::Result<()> {
    let mut bytes = u16::try_from(block.len())?.to_be_bytes().to_vec();
    bytes.extend_from_slice(block);
    Ok(stream.write_all(&bytes).await?)
}

async fn read_block(stream: &mut TcpStream) -> anyhow::Result<Vec<u8>> {
    let len = stream.read_u16().await?;
    ensure!(len <= 512, "expected a handshake of at most 512 bytes, got {len}");
    let mut block = vec![0; usize::from(len)];
    stream.read_exact(&mut block).await?;
    Ok(block)
}

impl Link {
    fn new(stream: TcpStream, transport: TransportState) -> Self {
        Self {
            stream,
            transport: RefCell::new(transport),
            pending: RefCell::default(),
            inbox: RefCell::default(),
            wake: Notify::new(),
            closed: Cell::new(false),
            bytes: Cell::default(),
        }
    }

    /// A party's side: proves its identity and checks the relay's.
    ///
    /// # Errors
    /// When the relay is another one, or does not answer.
    pub async fn open(
        mut stream: TcpStream,
        identity: &Identity,
        relay: PublicKey,
        hello: &[u8; HELLO],
    ) -> anyhow::Result<Self> {
        let secret = identity.link_secret();
        let relay = relay.link_public();
        let mut state =
            builder()?.local_private_key(&*secret)?.remote_public_key(&relay)?.build_initiator()?;
        let mut buffer = [0; 512];
        let len = state.write_message(hello, &mut buffer)?;
        write_block(&mut stream, &buffer[..len]).await?;
        let answer = timeout(HANDSHAKE, read_block(&mut stream)).await.context("the handshake")?;
        let answer = answer.context("the relay refuses this party; its log says why")?;
        state
            .read_message(&answer, &mut buffer)
            .context("the relay has another key than relay.key in system.json")?;
        Ok(Self::new(stream, state.into_transport_mode()?))
    }

    /// The relay's side: gives the party's link key and its hello.
    ///
    /// # Errors
    /// When the handshake is malformed, late, or for another relay.
    pub async fn accept(
        mut stream: TcpStream,
        identity: &Identity,
        known: impl FnOnce(&[u8], &[u8; HELLO]) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let secret = identity.link_secret();
        let mut state = builder()?.local_private_key(&*secret)?.build_responder()?;
        let first =
            timeout(HANDSHAKE, read_block(&mut stream)).await.context("the handshake")??;
        let mut buffer = [0; 512];
        let len = state.read_message(&first, &mut buffer).context("not a link for this relay")?;
        let hello: &[u8; HELLO] =
            buffer[..len].try_into().context("expected a nonce and a session")?;
        let Some(key) = state.get_remote_static() else { bail!("the party has no key") };
        known(key, hello)?;
        let len = state.write_message(&[], &mut buffer)?;
        write_block(&mut stream, &buffer[..len]).await?;
        Ok(Self::new(stream, state.into_transport_mode()?))
    }

    /// Sends a batch of messages; what the socket does not take waits.
    pub fn send(&self, mut plain: &[u8]) {
        if self.closed.get() || plain.is_empty() {
            return;
        }
        let mut pending = self.pending.borrow_mut();
        let was_empty = pending.is_empty();
        let mut transport = self.transport.borrow_mut();
        while !plain.is_empty() {
            let (chunk, rest) = plain.split_at(plain.len().min(PLAIN_MAX));
            plain = rest;
            let at = pending.len();
            pending.resize(at + 2 + chunk.len() + TAG, 0);
            let Ok(len) = transport.write_message(chunk, &mut pending[at + 2..]) else {
                self.closed.set(true);
                self.wake.notify_one();
                return;
            };
            let prefix = u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes();
            pending[at..at + 2].copy_from_slice(&prefix);
        }
        drop((transport, pending));
        if was_empty {
            self.write_pending();
        }
        if !self.pending.borrow().is_empty() {
            self.wake.notify_one();
        }
    }

    fn write_pending(&self) {
        let mut pending = self.pending.borrow_mut();
        let mut at = 0;
        while at < pending.len() {
            match self.stream.try_write(&pending[at..]) {
                Ok(count) => at += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.closed.set(true);
                    self.wake.notify_one();
                    break;
                }
            }
        }
        let [received, sent] = self.bytes.get();
        self.bytes.set([received, sent + at as u64]);
        pending.drain(..at);
        if pending.len() > PENDING_MAX {
            self.closed.set(true);
            self.wake.notify_one();
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
            let waiting = !self.pending.borrow().is_empty();
            tokio::select! {
                ready = self.stream.readable() => {
                    ready?;
                    match self.read_some() {
                        Ok(0) => bail!("the peer closed the link"),
                        Ok(count) => {
                            let [received, sent] = self.bytes.get();
                            self.bytes.set([received + count as u64, sent]);
                            if self.open_inbox(plain)? {
                                return Ok(());
                            }
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                ready = self.stream.writable(), if waiting => {
                    ready?;
                    self.write_pending();
                }
                () = self.wake.notified() => {}
            }
        }
    }

    /// Straight into the inbox, which keeps its room. A read that leaves room has emptied the socket:
    /// the runtime is told so, and does not ask again until more came.
    fn read_some(&self) -> io::Result<usize> {
        let mut inbox = self.inbox.borrow_mut();
        let Inbox { room, filled } = &mut *inbox;
        if room.len() < *filled + READ {
            room.resize(*filled + READ, 0);
        }
        let free = &mut room[*filled..*filled + READ];
        let mut count = Err(io::ErrorKind::WouldBlock.into());
        let _ = self.stream.try_io(Interest::READABLE, || {
            count = (&*SockRef::from(&self.stream)).read(free);
            match count {
                Ok(READ) => Ok(()),
                _ => Err(io::ErrorKind::WouldBlock.into()),
            }
        });
        *filled += *count.as_ref().unwrap_or(&0);
        count
    }

    /// Decrypts whole Noise messages; whether there was one.
    fn open_inbox(&self, plain: &mut Vec<u8>) -> anyhow::Result<bool> {
        let mut inbox = self.inbox.borrow_mut();
        let Inbox { room, filled } = &mut *inbox;
        let (mut at, mut any) = (0, false);
        let mut transport = self.transport.borrow_mut();
        while let Some((head, rest)) = room[at..*filled].split_first_chunk() {
            let len = usize::from(u16::from_be_bytes(*head));
            let Some(sealed) = rest.get(..len) else { break };
            let start = plain.len();
            plain.resize(start + len, 0);
            let count = transport
                .read_message(sealed, &mut plain[start..])
                .context("a message that is not the peer's")?;
            plain.truncate(start + count);
            at += 2 + len;
            any = true;
        }
        room.copy_within(at..*filled, 0);
        *filled -= at;
        Ok(any)
    }
}
