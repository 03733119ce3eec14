//! The client's program.
//!
//! In: a party's secrets, local connections. Out: bytes for them, through the DC-net; a link that is
//! opened again when it breaks. Called by: `cepa dcnet client`.

use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc, time::Instant};

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
        link::Link,
        party::{PAUSE, Secrets, each_message, receive_loop, report_end},
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
    link: Option<Rc<Link>>,
    pipes: HashMap<u32, Rc<Pipe>>,
    joined: Instant,
    out: Vec<u8>,
}

impl ClientHub {
    /// Connections that were sent through the old link end with it.
    fn rejoin(&mut self, member: Member) {
        if self.client.has_joined() {
            self.pipes.drain().for_each(|(_, pipe)| pipe.stop());
        }
        self.client.rejoin(member, &mut rand::rng());
    }

    /// Hands over what the core has for the link first, and then what only this client has: how
    /// long that takes depends on whose slot it was, and the relay must not see it.
    fn drain(&mut self) -> Result<(), DcnetError> {
        self.client.poll_transmit(&mut self.out);
        if let Some(link) = &self.link {
            link.send(&self.out);
        }
        self.out.clear();
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
                    if let Some(pipe) = self.pipes.get(&conn) {
                        pipe.wake();
                    }
                }
                // Only a client opens connections.
                ClientEvent::Mux(MuxEvent::Open(_)) => {}
                ClientEvent::Interval(number, members) => {
                    log::info!("interval {number} began with {members} members");
                }
                ClientEvent::Paused(left) => log::error!(
                    "of the members this pseudonym has spoken among, {left} are left: it pauses \
                     until more of them are back"
                ),
                ClientEvent::Resumed(left) => {
                    log::info!("{left} members are back: the pseudonym speaks again");
                }
                ClientEvent::Remember => {
                    self.may_speak = !self.pipes.is_empty();
                    self.state += 1;
                    let memory = self.client.memory(self.may_speak);
                    self.keeper.keep(self.state, &memory)?;
                }
                ClientEvent::Garbled => {
                    log::error!(
                        "the relay sent this pseudonym what no honest relay sends; its connections \
                         are closed"
                    );
                    self.pipes.drain().for_each(|(_, pipe)| pipe.stop());
                }
                ClientEvent::FirstSlot => {
                    log::info!(
                        "first own slot {:.3} s after joining",
                        self.joined.elapsed().as_secs_f64()
                    );
                }
                ClientEvent::Verdict(blamed) => {
                    log::warn!("checked the verdict of a trial: {blamed}")
                }
            }
        }
        Ok(())
    }
}

struct LocalHooks {
    hub: Rc<RefCell<ClientHub>>,
    conn: u32,
}

impl Hooks for LocalHooks {
    fn room(&self) -> usize {
        self.hub.borrow().client.mux.room(self.conn)
    }

    fn data(&self, bytes: &[u8]) {
        let mut hub = self.hub.borrow_mut();
        hub.client.mux.write(self.conn, bytes);
        hub.client.settle(&mut rand::rng());
    }

    fn close(&self) {
        let mut hub = self.hub.borrow_mut();
        hub.client.mux.close(self.conn);
        hub.client.settle(&mut rand::rng());
    }

    fn stop(&self) {
        let mut hub = self.hub.borrow_mut();
        hub.client.mux.stop(self.conn);
        hub.client.settle(&mut rand::rng());
    }

    fn consumed(&self, bytes: usize) {
        self.hub.borrow_mut().client.mux.consumed(self.conn, bytes);
    }
}

/// Before a connection is opened, the file says in which sets it may speak. Another thread writes
/// it, as the relay is not to see from late answers who does that.
async fn may_speak(hub: &Rc<RefCell<ClientHub>>) -> anyhow::Result<()> {
    loop {
        let (keeper, state, memory) = {
            let mut hub = hub.borrow_mut();
            if hub.may_speak {
                return Ok(());
            }
            hub.state += 1;
            (Arc::clone(&hub.keeper), hub.state, hub.client.memory(true))
        };
        spawn_blocking(move || keeper.keep(state, &memory)).await??;
        let mut hub = hub.borrow_mut();
        // An interval may have begun meanwhile.
        hub.may_speak |= hub.state == state;
    }
}

async fn accept_locals(listener: TcpListener, hub: Rc<RefCell<ClientHub>>) {
    loop {
        let (stream, _) = accept(&listener, "a local connection").await;
        if let Err(error) = may_speak(&hub).await {
            log::error!("a local connection was closed: {error:#}");
            continue;
        }
        let Some(conn) = hub.borrow_mut().client.open() else {
            log::warn!("{CONNECTIONS_MAX} local connections are open; one more was closed");
            continue;
        };
        let pipe = Rc::new(Pipe::default());
        hub.borrow_mut().pipes.insert(conn, Rc::clone(&pipe));
        let hooks = Rc::new(LocalHooks { hub: Rc::clone(&hub), conn });
        let hub = Rc::clone(&hub);
        spawn_local(async move {
            pipe::run(stream, pipe, hooks).await;
            hub.borrow_mut().pipes.remove(&conn);
        });
    }
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
    let hub = Rc::new(RefCell::new(ClientHub {
        client,
        keeper: Arc::new(keeper),
        state: 0,
        may_speak: false,
        link: None,
        pipes: HashMap::new(),
        joined: Instant::now(),
        out: Vec::new(),
    }));
    spawn_local(accept_locals(listener, Rc::clone(&hub)));
    loop {
        let nonce = hub.borrow().client.member.nonce;
        let link = secrets.link(nonce).await?;
        {
            let mut hub = hub.borrow_mut();
            hub.link = Some(Rc::clone(&link));
            hub.joined = Instant::now();
        }
        log::info!("{} has its link to the relay", secrets.me);
        let ended = receive_loop(link, |plain| {
            let mut hub = hub.borrow_mut();
            each_message(plain, |kind, body| {
                hub.client.handle_message(kind, body, &mut rand::rng())
            })?;
            hub.drain()
        })
        .await;
        report_end(ended)?;
        {
            let mut hub = hub.borrow_mut();
            hub.link = None;
            hub.rejoin(secrets.member());
        }
        sleep(PAUSE).await;
    }
}
