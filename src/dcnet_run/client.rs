//! The client's program.
//!
//! In: a party's secrets, local connections. Out: bytes for them, through the DC-net; a link that is
//! opened again when it breaks. Called by: `cepa dcnet client`.

use std::{
    collections::HashMap,
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use curve25519_dalek::Scalar;
use tokio::{
    net::TcpListener,
    task::{spawn_blocking, spawn_local},
    time::sleep,
};
use zeroize::Zeroizing;

use crate::{
    dcnet::{
        client::{Client, ClientEvent},
        error::DcnetError,
        member::Member,
        mux::{CONNECTIONS_MAX, MuxEvent},
    },
    dcnet_run::{
        dial::accept,
        keeper::Keeper,
        party::{PAUSE, Secrets, each_message, in_thread, receive_loop, report_end},
        party_link::PartyLink,
        pipe::{self, Hooks, Pipe},
    },
};

struct ClientHub {
    client: Client,
    keeper: Arc<Keeper>,
    /// What is in the keeper's file, or on its way there.
    state: u64,
    /// The file says that the pseudonym may speak in the sets there are now.
    may_speak: bool,
    pipes: HashMap<u32, Arc<Pipe>>,
    joined: Instant,
}

/// Of the thread that has the link, and of the one with the local connections.
#[derive(Clone)]
struct Shared(Arc<Mutex<ClientHub>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, ClientHub> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientHub {
    /// Connections that were sent through the old link end with it.
    fn rejoin(&mut self, member: Member) {
        if self.client.has_joined() {
            self.pipes.drain().for_each(|(_, pipe)| pipe.stop());
        }
        self.client.rejoin(member, &mut rand::rng());
    }

    /// Hands over what only this client has, once what the core has for the link has left: how
    /// long that takes depends on whose slot it was, and the relay must not see it.
    ///
    /// Gives the pipes that may send more, to be told so once the lock is free.
    fn settle(&mut self) -> Result<Vec<Arc<Pipe>>, DcnetError> {
        let mut roomy = Vec::new();
        let me = self.client.me();
        self.client.settle(&mut rand::rng());
        while let Some(event) = self.client.poll_event() {
            match event {
                ClientEvent::Mux(MuxEvent::Data(conn, bytes)) => {
                    let pipe = self.pipes.get(&conn);
                    let taken = pipe.map_or(bytes.len(), |pipe| pipe.push(&bytes));
                    self.client.mux.consumed(conn, taken);
                }
                ClientEvent::Mux(MuxEvent::Close(conn)) => {
                    if let Some(pipe) = self.pipes.get(&conn) {
                        pipe.end();
                    }
                }
                ClientEvent::Mux(MuxEvent::Stop(conn)) => {
                    if let Some(pipe) = self.pipes.get(&conn) {
                        pipe.stop();
                    }
                }
                ClientEvent::Mux(MuxEvent::Room(conn)) => {
                    roomy.extend(self.pipes.get(&conn).cloned());
                }
                // Only a client opens connections.
                ClientEvent::Mux(MuxEvent::Open(_)) => {}
                ClientEvent::Interval(number, members) => {
                    log::info!("{me}: interval {number} began with {members} members");
                }
                ClientEvent::Paused(left) => log::error!(
                    "{me}: of the members this pseudonym has spoken among, {left} are left: it \
                     pauses until more of them are back"
                ),
                ClientEvent::Resumed(left) => {
                    log::info!("{me}: {left} members are back: the pseudonym speaks again");
                }
                ClientEvent::Remember => {
                    self.may_speak = !self.pipes.is_empty();
                    self.state += 1;
                    let memory = self.client.memory(self.may_speak);
                    self.keeper.keep(self.state, &memory)?;
                }
                ClientEvent::Garbled => {
                    log::error!(
                        "{me}: the relay sent this pseudonym what no honest relay sends; its \
                         connections are closed"
                    );
                    self.pipes.drain().for_each(|(_, pipe)| pipe.stop());
                }
                ClientEvent::FirstSlot => {
                    log::info!(
                        "{me}: first own slot {:.3} s after joining",
                        self.joined.elapsed().as_secs_f64()
                    );
                }
                ClientEvent::Verdict(blamed) => {
                    log::warn!("{me}: checked the verdict of a trial: {blamed}");
                }
            }
        }
        Ok(roomy)
    }
}

struct LocalHooks {
    hub: Shared,
    conn: u32,
}

impl Hooks for LocalHooks {
    fn room(&self) -> usize {
        self.hub.lock().client.mux.room(self.conn)
    }

    fn data(&self, bytes: &[u8]) {
        let mut hub = self.hub.lock();
        hub.client.mux.write(self.conn, bytes);
        hub.client.settle(&mut rand::rng());
    }

    fn close(&self) {
        let mut hub = self.hub.lock();
        hub.client.mux.close(self.conn);
        hub.client.settle(&mut rand::rng());
    }

    fn stop(&self) {
        let mut hub = self.hub.lock();
        hub.client.mux.stop(self.conn);
        hub.client.settle(&mut rand::rng());
    }

    fn consumed(&self, bytes: usize) {
        self.hub.lock().client.mux.consumed(self.conn, bytes);
    }
}

/// Opens a connection, if there is room for one. Before, the file says in which sets it may speak;
/// another thread writes it, as the relay is not to see from late answers who does that.
async fn open(hub: &Shared, pipe: &Arc<Pipe>) -> anyhow::Result<Option<u32>> {
    loop {
        let (keeper, state, memory) = {
            let mut hub = hub.lock();
            if hub.may_speak {
                let conn = hub.client.open();
                hub.pipes.extend(conn.map(|conn| (conn, Arc::clone(pipe))));
                return Ok(conn);
            }
            hub.state += 1;
            (Arc::clone(&hub.keeper), hub.state, hub.client.memory(true))
        };
        spawn_blocking(move || keeper.keep(state, &memory)).await??;
        let mut hub = hub.lock();
        // An interval may have begun meanwhile.
        hub.may_speak |= hub.state == state;
    }
}

async fn accept_locals(listener: TcpListener, hub: Shared) {
    loop {
        let (stream, _) = accept(&listener, "a local connection").await;
        let pipe = Arc::new(Pipe::default());
        let conn = match open(&hub, &pipe).await {
            Ok(Some(conn)) => conn,
            Ok(None) => {
                log::warn!("{CONNECTIONS_MAX} local connections are open; one more was closed");
                continue;
            }
            Err(error) => {
                log::error!("a local connection was closed: {error:#}");
                continue;
            }
        };
        let hooks = Rc::new(LocalHooks { hub: hub.clone(), conn });
        let hub = hub.clone();
        spawn_local(async move {
            pipe::run(stream, pipe, hooks).await;
            hub.lock().pipes.remove(&conn);
        });
    }
}

/// Answers the relay until the link ends. Waits: for [`in_thread`]. The lock is free while the
/// answer leaves: a relay that does not read holds up everybody's link alike.
fn serve(hub: &Shared, link: PartyLink) -> anyhow::Result<()> {
    let mut out = Vec::new();
    receive_loop(link, |link, plain| {
        {
            let client = &mut hub.lock().client;
            each_message(plain, |kind, body| client.handle_message(kind, body, &mut rand::rng()))?;
            client.poll_transmit(&mut out);
        }
        link.send(&out)?;
        out.clear();
        let roomy = hub.lock().settle()?;
        roomy.iter().for_each(|pipe| pipe.wake());
        Ok(())
    })
}

/// Runs a client; links that break are opened again, with new connections.
///
/// # Errors
/// When the relay cannot be reached.
pub async fn run_client(
    secrets: Secrets,
    slot: u16,
    pseudonym: Zeroizing<Scalar>,
    listener: TcpListener,
    keeper: Keeper,
) -> anyhow::Result<()> {
    let mut client = Client::new(secrets.member(), slot, pseudonym, &mut rand::rng());
    client.recall(keeper.load()?);
    let hub = Shared(Arc::new(Mutex::new(ClientHub {
        client,
        keeper: Arc::new(keeper),
        state: 0,
        may_speak: false,
        pipes: HashMap::new(),
        joined: Instant::now(),
    })));
    spawn_local(accept_locals(listener, hub.clone()));
    loop {
        let nonce = hub.lock().client.member.nonce;
        let link = secrets.link(nonce).await?;
        hub.lock().joined = Instant::now();
        log::info!("{} has its link to the relay", secrets.me);
        let serving = hub.clone();
        report_end(in_thread(move || serve(&serving, link)).await?)?;
        hub.lock().rejoin(secrets.member());
        sleep(PAUSE).await;
    }
}
