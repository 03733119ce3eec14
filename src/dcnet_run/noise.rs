//! What both ends of a link have in common: the handshake, and sealed messages on a TCP stream.
//!
//! In: static keys, plaintexts, bytes as they come. Out: bytes to write, plaintexts.
//! Called by: the relay's and the parties' links.
//!
//! Noise_IK_25519_ChaChaPoly_SHA256: a party knows the relay's key from `system.json`, the relay
//! learns the party's in the first message, whose payload is `nonce 16 | session 32`.
//! On TCP each Noise message has its length in 2 bytes before it.

use std::{
    io::{self, Read},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use snow::{Builder, TransportState};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::dcnet::identity::{Identity, PublicKey};

const PATTERN: &str = "Noise_IK_25519_ChaChaPoly_SHA256";
const PROLOGUE: &[u8] = b"cepa dcnet link 2";
/// The handshake's payload.
pub(super) const HELLO: usize = 48;
const TAG: usize = 16;
const PLAIN_MAX: usize = 65_535 - TAG;
/// Room for one read.
const READ: usize = 8 * 1024;
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A link's ciphers and what waits for them, in both directions.
pub(super) struct Session {
    transport: TransportState,
    /// Sealed, to be written.
    pub(super) pending: Vec<u8>,
    /// What was read and is not a whole message yet; its room stays, so that no read has to clear it.
    room: Vec<u8>,
    filled: usize,
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

impl Session {
    fn new(transport: TransportState) -> Self {
        Self { transport, pending: Vec::new(), room: Vec::new(), filled: 0 }
    }

    /// A party's side: proves its identity and checks the relay's.
    ///
    /// # Errors
    /// When the relay is another one, or does not answer.
    pub(super) async fn initiate(
        stream: &mut TcpStream,
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
        write_block(stream, &buffer[..len]).await?;
        let answer = timeout(HANDSHAKE, read_block(stream)).await.context("the handshake")?;
        let answer = answer.context("the relay closed the link; if it runs, its log says why")?;
        state
            .read_message(&answer, &mut buffer)
            .context("the relay has another key than relay.key in system.json")?;
        Ok(Self::new(state.into_transport_mode()?))
    }

    /// The relay's side: gives the party's link key and its hello.
    ///
    /// # Errors
    /// When the handshake is malformed, late, or for another relay.
    pub(super) async fn respond(
        stream: &mut TcpStream,
        identity: &Identity,
        known: impl FnOnce(&[u8], &[u8; HELLO]) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let secret = identity.link_secret();
        let mut state = builder()?.local_private_key(&*secret)?.build_responder()?;
        let first = timeout(HANDSHAKE, read_block(stream)).await.context("the handshake")??;
        let mut buffer = [0; 512];
        let len = state.read_message(&first, &mut buffer).context("not a link for this relay")?;
        let hello: &[u8; HELLO] =
            buffer[..len].try_into().context("expected a nonce and a session")?;
        let Some(key) = state.get_remote_static() else { bail!("the party has no key") };
        known(key, hello)?;
        let len = state.write_message(&[], &mut buffer)?;
        write_block(stream, &buffer[..len]).await?;
        Ok(Self::new(state.into_transport_mode()?))
    }

    /// Appends a batch of messages to what is to be written.
    ///
    /// # Errors
    /// When the link has sent as much as one key may.
    pub(super) fn seal(&mut self, plain: &[u8]) -> Result<(), snow::Error> {
        for chunk in plain.chunks(PLAIN_MAX) {
            let at = self.pending.len();
            self.pending.resize(at + 2 + chunk.len() + TAG, 0);
            let len = self.transport.write_message(chunk, &mut self.pending[at + 2..])?;
            let prefix = u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes();
            self.pending[at..at + 2].copy_from_slice(&prefix);
        }
        Ok(())
    }

    /// Reads once; how much came.
    ///
    /// # Errors
    /// Those of the stream.
    pub(super) fn read_from(&mut self, mut stream: impl Read) -> io::Result<usize> {
        if self.room.len() < self.filled + READ {
            self.room.resize(self.filled + READ, 0);
        }
        let count = stream.read(&mut self.room[self.filled..self.filled + READ])?;
        self.filled += count;
        Ok(count)
    }

    /// Opens the whole messages that were read; whether there was one.
    ///
    /// # Errors
    /// When one is not the peer's.
    pub(super) fn open(&mut self, plain: &mut Vec<u8>) -> anyhow::Result<bool> {
        let (mut at, mut any) = (0, false);
        while let Some((head, rest)) = self.room[at..self.filled].split_first_chunk() {
            let len = usize::from(u16::from_be_bytes(*head));
            let Some(sealed) = rest.get(..len) else { break };
            let start = plain.len();
            plain.resize(start + len, 0);
            let count = self
                .transport
                .read_message(sealed, &mut plain[start..])
                .context("a message that is not the peer's")?;
            plain.truncate(start + count);
            at += 2 + len;
            any = true;
        }
        self.room.copy_within(at..self.filled, 0);
        self.filled -= at;
        Ok(any)
    }
}

/// Whether a read of so many bytes left the socket empty.
pub(super) fn has_emptied(count: usize) -> bool {
    count < READ
}
