//! What the programs of client and trustee have in common, and the trustee's.
//!
//! In: the group, a party's secrets. Out: a running party that opens its link again when it breaks.
//! Called by: `cepa dcnet trustee`, the client's program, the bench's jammer.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use curve25519_dalek::Scalar;
use rand::Rng;
use tokio::{sync::oneshot, time::sleep};
use zeroize::Zeroizing;

use crate::{
    dcnet::{
        error::DcnetError,
        group::Group,
        identity::Identity,
        interval::Nonce,
        member::{Member, PartyRef},
        message,
        trustee::Trustee,
    },
    dcnet_run::{
        dial::dial,
        keeper::{Keeper, unix_time},
        noise::HELLO,
        party_link::PartyLink,
    },
    directory::Backoff,
};

/// Before a broken link is opened again.
pub(super) const PAUSE: Duration = Duration::from_millis(300);

/// A party's secrets.
pub struct Secrets {
    /// The group.
    pub group: Arc<Group>,
    /// Its role and place.
    pub me: PartyRef,
    /// Its identity.
    pub identity: Arc<Identity>,
    /// Its session secret.
    pub secret: Zeroizing<Scalar>,
}

impl Secrets {
    /// The party's state for a link that is about to be opened.
    pub fn member(&self) -> Member {
        let mut nonce = [0; 16];
        rand::rng().fill_bytes(&mut nonce);
        Member::new(
            Arc::clone(&self.group),
            self.me,
            Arc::clone(&self.identity),
            self.secret.clone(),
            nonce,
        )
    }

    /// A link to the relay. A handshake that fails is tried again, after growing pauses: the relay
    /// may have been ended in the middle of it.
    ///
    /// # Errors
    /// When nothing listens at the relay's address for a minute.
    pub(super) async fn link(&self, nonce: Nonce) -> anyhow::Result<PartyLink> {
        let relay = &self.group.system.relay;
        let address = format!("{}:{}", relay.host, relay.port);
        let mut hello = [0; HELLO];
        hello[..16].copy_from_slice(&nonce);
        hello[16..].copy_from_slice(&self.group.session.session_id.0);
        let mut backoff = Backoff::default();
        loop {
            let stream = dial(&address).await?;
            match PartyLink::open(stream, &self.identity, self.group.relay, &hello).await {
                Ok(link) => return Ok(link),
                Err(error) => {
                    let pause = backoff.next_delay(&mut rand::rng());
                    let seconds = pause.as_secs_f32();
                    log::warn!("{} has no link: {error:#}; again in {seconds:.1} s", self.me);
                    sleep(pause).await;
                }
            }
        }
    }
}

/// Hands each plaintext over, until the link ends. Waits: for [`in_thread`].
pub(super) fn receive_loop(
    mut link: PartyLink,
    mut handle: impl FnMut(&mut PartyLink, &[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut plain = Vec::new();
    loop {
        link.receive(&mut plain)?;
        handle(&mut link, &plain)?;
        plain.clear();
    }
}

pub(super) fn each_message(
    mut plain: &[u8],
    mut handle: impl FnMut(u8, &[u8]) -> Result<(), DcnetError>,
) -> Result<(), DcnetError> {
    while let Some((kind, body, used)) = message::next_frame(plain)? {
        handle(kind, body)?;
        plain = &plain[used..];
    }
    if plain.is_empty() {
        return Ok(());
    }
    Err(DcnetError::malformed("batch", "whole messages", format!("{} bytes more", plain.len())))
}

/// Does what waits for the relay in a thread of its own, of which a program that ends takes no
/// notice.
///
/// # Errors
/// When the system has no room for a thread.
pub(super) async fn in_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<T> {
    let (tell, told) = oneshot::channel();
    let thread = thread::Builder::new().name("link".into());
    let working = move || {
        // Whoever asked may have gone.
        let _ = tell.send(work());
    };
    thread.spawn(working).context("a thread for the link")?;
    told.await.context("the thread of the link failed")
}

/// Runs a trustee; links that break are opened again.
///
/// # Errors
/// When the relay cannot be reached.
pub async fn run_trustee(secrets: Secrets, keeper: Keeper) -> anyhow::Result<()> {
    let mut trustee = Trustee::new(secrets.member());
    trustee.recall(keeper.load()?, Instant::now(), unix_time());
    let mut program = TrusteeProgram { trustee, keeper, state: 0 };
    loop {
        let link = secrets.link(program.trustee.member.nonce).await?;
        log::info!("{} has its link to the relay", secrets.me);
        let serving = move || {
            let ended = program.serve(link);
            (program, ended)
        };
        let ended;
        (program, ended) = in_thread(serving).await?;
        report_end(ended)?;
        sleep(PAUSE).await;
        program.trustee.rejoin(secrets.member());
    }
}

struct TrusteeProgram {
    trustee: Trustee,
    keeper: Keeper,
    /// What is in the keeper's file.
    state: u64,
}

impl TrusteeProgram {
    fn serve(&mut self, link: PartyLink) -> anyhow::Result<()> {
        let trustee = &mut self.trustee;
        let mut out = Vec::new();
        receive_loop(link, |link, plain| {
            each_message(plain, |kind, body| {
                trustee.handle_message(Instant::now(), kind, body, &mut rand::rng())
            })?;
            if let Some(memory) = trustee.poll_memory(Instant::now(), unix_time()) {
                self.state += 1;
                self.keeper.keep(self.state, &memory)?;
            }
            trustee.poll_transmit(&mut out);
            link.send(&out)?;
            out.clear();
            while let Some(blamed) = trustee.poll_verdict() {
                log::warn!("checked the verdict of a trial: {blamed}");
            }
            Ok(())
        })
    }
}

/// Why a link ended, for the log.
///
/// # Errors
/// A party does not go back to a relay that equivocates, and does not go on without its memory.
pub(super) fn report_end(ended: anyhow::Result<()>) -> anyhow::Result<()> {
    let Err(error) = ended else { return Ok(()) };
    let why = match error.downcast_ref() {
        Some(DcnetError::Equivocation { .. }) => "this party does not go back to such a relay",
        Some(DcnetError::Config { .. }) => "this party must not forget what it has seen",
        _ => {
            log::warn!("the link to the relay ended: {error:#}");
            return Ok(());
        }
    };
    Err(error.context(why))
}
