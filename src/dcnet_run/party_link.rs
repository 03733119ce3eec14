//! A party's link to the relay, of a thread of its own.
//!
//! In: a TCP connection, a party's identity. Out: plaintext batches of messages in both directions.
//! Called by: the client and trustee programs, the bench's jammer.
//!
//! A party only ever waits for its relay. That is what blocking reads are for: one system call per
//! round less than with a runtime in between, and with many parties on one machine much less code
//! that is cold whenever one of them wakes up.

use std::{
    io::{self, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::bail;
use socket2::{SockRef, TcpKeepalive};

use crate::{
    dcnet::identity::{Identity, PublicKey},
    dcnet_run::noise::{HELLO, Session},
};

/// For how long a relay may take nothing of what is sent.
const UNREAD: Duration = Duration::from_secs(30);
/// A relay that is silent is asked by the system whether it is still there: a machine that lost its
/// power does not say so.
const SILENT: Duration = Duration::from_secs(15);
const ASK_EVERY: Duration = Duration::from_secs(5);
const ASK_TIMES: u32 = 3;

/// A link after its handshake.
pub struct PartyLink {
    stream: TcpStream,
    session: Session,
}

impl PartyLink {
    /// Proves the party's identity and checks the relay's.
    ///
    /// # Errors
    /// When the relay is another one, or does not answer.
    pub(super) async fn open(
        mut stream: tokio::net::TcpStream,
        identity: &Identity,
        relay: PublicKey,
        hello: &[u8; HELLO],
    ) -> anyhow::Result<Self> {
        let session = Session::initiate(&mut stream, identity, relay, hello).await?;
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(UNREAD))?;
        let keepalive =
            TcpKeepalive::new().with_time(SILENT).with_interval(ASK_EVERY).with_retries(ASK_TIMES);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        Ok(Self { stream, session })
    }

    /// Sends a batch of messages, and waits until the system has taken it.
    ///
    /// # Errors
    /// When the link ended, or the relay has not read for long.
    pub fn send(&mut self, plain: &[u8]) -> anyhow::Result<()> {
        self.session.seal(plain)?;
        self.stream.write_all(&self.session.pending)?;
        self.session.pending.clear();
        Ok(())
    }

    /// Waits for the next plaintext, one Noise message or several.
    ///
    /// # Errors
    /// When the link ended or its bytes are not the relay's.
    pub fn receive(&mut self, plain: &mut Vec<u8>) -> anyhow::Result<()> {
        loop {
            match self.session.read_from(&self.stream) {
                Ok(0) => bail!("the peer closed the link"),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            }
            if self.session.open(plain)? {
                return Ok(());
            }
        }
    }
}
