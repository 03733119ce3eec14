//! The relay program of the modern wire.
//!
//! In: links of parties, exit connections. Out: a running relay, verdict files, `interval.json`.
//! Called by: `cepa dcnet relay`.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::spawn_local,
};

use crate::{
    dcnet::{
        blame::VerdictFile,
        group::Group,
        identity::Identity,
        member::PartyRef,
        mux::MuxEvent,
        relay::{Pace, Relay, RelayEvent, RelayStatus, Transmit},
        store,
    },
    dcnet_run::{
        alarm::Alarm,
        dial::accept,
        far::Far,
        link::Link,
        noise::HELLO,
        party::each_message,
        pipe::{self, Hooks, Pipe},
    },
};

/// What a relay needs to run.
pub struct Setup {
    /// The group.
    pub group: Arc<Group>,
    /// The relay's identity.
    pub identity: Identity,
    /// Where `interval.json` and verdicts are written.
    pub dir: PathBuf,
    /// The interval to count on from.
    pub last_number: u32,
    /// Where connections leave.
    pub exit: String,
    /// Its pace.
    pub pace: Pace,
    /// What it judged before.
    pub verdicts: Vec<VerdictFile>,
    /// How far its parties are, beyond the network: for benches of distant groups.
    pub far: Duration,
}

/// A running relay.
pub struct Hub {
    relay: Relay,
    group: Arc<Group>,
    dir: PathBuf,
    exit: String,
    links: BTreeMap<PartyRef, Rc<Link>>,
    clients: Vec<PartyRef>,
    pending: BTreeMap<PartyRef, Vec<u8>>,
    pipes: HashMap<(u16, u32), Arc<Pipe>>,
    /// Holds back what parties say, in benches of distant groups.
    far: Option<Rc<Far>>,
    timer: Rc<Notify>,
    started: Instant,
    /// The running interval, as signed.
    interval: Vec<u8>,
}

type Shared = Rc<RefCell<Hub>>;

/// Links at once, of parties and of those that have yet to prove they are one.
const LINKS_MAX: usize = 1024;

/// Runs the relay for ever.
///
/// # Errors
/// When the system gives it no alarms.
pub async fn run(
    setup: Setup,
    listener: TcpListener,
    started: impl FnOnce(Shared),
) -> io::Result<()> {
    let identity = Rc::new(Identity::from_secret(&setup.identity.secret()));
    let timer = Rc::new(Notify::new());
    let mut relay =
        Relay::new(Arc::clone(&setup.group), setup.identity, setup.last_number, setup.pace);
    for verdict in setup.verdicts {
        if let Err(error) = relay.recall(verdict) {
            log::warn!("a verdict of an earlier start is not taken: {error}");
        }
    }
    let far = (!setup.far.is_zero()).then(|| Far::new(setup.far)).transpose()?.map(Rc::new);
    let hub = Rc::new(RefCell::new(Hub {
        relay,
        group: setup.group,
        dir: setup.dir,
        exit: setup.exit,
        links: BTreeMap::new(),
        clients: Vec::new(),
        pending: BTreeMap::new(),
        pipes: HashMap::new(),
        far: far.clone(),
        timer: Rc::clone(&timer),
        started: Instant::now(),
        interval: Vec::new(),
    }));
    started(Rc::clone(&hub));
    let late = async {
        match far {
            Some(far) => hear_late(&hub, &far).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        ended = keep_time(&hub, &timer, Alarm::new()?) => ended,
        ended = late => ended,
        () = accept_parties(&hub, &listener, &identity) => Ok(()),
    }
}

async fn accept_parties(hub: &Shared, listener: &TcpListener, identity: &Rc<Identity>) {
    loop {
        let (stream, from) = accept(listener, "a party").await;
        if Rc::strong_count(identity) > LINKS_MAX {
            log::warn!("more than {LINKS_MAX} links; the one from {from} is refused");
            continue;
        }
        let (hub, identity) = (Rc::clone(hub), Rc::clone(identity));
        spawn_local(async move {
            if let Err(error) = serve(hub, stream, &identity).await {
                log::debug!("the link from {from} ended: {error:#}");
            }
        });
    }
}

/// Lets the core know what time it is, when it wants to.
async fn keep_time(hub: &Shared, timer: &Notify, alarm: Alarm) -> io::Result<()> {
    loop {
        let due = hub.borrow().relay.poll_timeout();
        let Some(due) = due else {
            timer.notified().await;
            continue;
        };
        tokio::select! {
            rung = alarm.wait_until(due) => rung?,
            () = timer.notified() => continue,
        }
        let mut borrowed = hub.borrow_mut();
        borrowed.relay.handle_timeout(Instant::now());
        borrowed.drain(hub);
    }
}

fn party_of(group: &Group, key: &[u8]) -> Option<PartyRef> {
    let place = |keys: &[crate::dcnet::identity::PublicKey]| {
        keys.iter()
            .position(|party| party.link_public() == key)
            .and_then(|at| u16::try_from(at).ok())
    };
    place(&group.clients)
        .map(PartyRef::Client)
        .or_else(|| place(&group.trustees).map(PartyRef::Trustee))
}

async fn serve(hub: Shared, stream: TcpStream, identity: &Identity) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let group = Arc::clone(&hub.borrow().group);
    let mut joined = None;
    let link = Link::accept(stream, identity, |key, hello: &[u8; HELLO]| {
        let party = party_of(&group, key).context("the key is of no party of this group")?;
        if hello[16..] != group.session.session_id.0 {
            bail!("{party} is of another session; give it this session's files");
        }
        let mut nonce = [0; 16];
        nonce.copy_from_slice(&hello[..16]);
        joined = Some((party, nonce));
        Ok(())
    })
    .await;
    let link = Rc::new(link.inspect_err(|error| log::warn!("a link was refused: {error:#}"))?);
    let Some((party, nonce)) = joined else { return Ok(()) };
    {
        let mut borrowed = hub.borrow_mut();
        if let Err(error) = borrowed.relay.handle_join(Instant::now(), party, nonce) {
            log::warn!("{error}");
            bail!(error);
        }
        log::info!("{party} joined");
        borrowed.links.insert(party, Rc::clone(&link));
        borrowed.drain(&hub);
    }
    let ended = read_messages(&hub, &link, party).await;
    let mut borrowed = hub.borrow_mut();
    if borrowed.has_link(party, &link) {
        borrowed.links.remove(&party);
        borrowed.relay.handle_leave(Instant::now(), party);
        if let Err(error) = &ended {
            log::info!("{party} left: {error:#}");
        }
        borrowed.drain(&hub);
    }
    ended
}

async fn read_messages(hub: &Shared, link: &Rc<Link>, party: PartyRef) -> anyhow::Result<()> {
    let far = hub.borrow().far.clone();
    let mut plain = Vec::new();
    loop {
        link.receive(&mut plain).await?;
        match &far {
            None => handle_batch(hub, party, &plain)?,
            Some(far) => far.push(party, link, std::mem::take(&mut plain)),
        }
        plain.clear();
    }
}

/// Hands over what distant parties said.
async fn hear_late(hub: &Shared, far: &Far) -> io::Result<()> {
    loop {
        let (party, link, plain) = far.next().await?;
        if !hub.borrow().has_link(party, &link) {
            continue;
        }
        if let Err(error) = handle_batch(hub, party, &plain) {
            log::info!("{party} is left out: {error:#}");
            link.close();
        }
    }
}

/// Handles whole messages of a party.
fn handle_batch(hub: &Shared, party: PartyRef, plain: &[u8]) -> anyhow::Result<()> {
    let mut borrowed = hub.borrow_mut();
    let now = Instant::now();
    let handled = each_message(plain, |kind, body| {
        borrowed.relay.handle_message(now, party, kind, body, &mut rand::rng())
    });
    borrowed.drain(hub);
    Ok(handled?)
}

struct ExitHooks {
    hub: Shared,
    slot: u16,
    conn: u32,
}

impl Hooks for ExitHooks {
    fn room(&self) -> usize {
        self.hub.borrow().relay.exit_room(self.slot, self.conn)
    }

    fn data(&self, bytes: &[u8]) {
        let mut hub = self.hub.borrow_mut();
        hub.relay.handle_exit_data(Instant::now(), self.slot, self.conn, bytes);
        hub.drain(&self.hub);
    }

    fn close(&self) {
        let mut hub = self.hub.borrow_mut();
        hub.relay.handle_exit_close(Instant::now(), self.slot, self.conn);
        hub.drain(&self.hub);
    }

    fn stop(&self) {
        let mut hub = self.hub.borrow_mut();
        hub.relay.handle_exit_stop(Instant::now(), self.slot, self.conn);
        hub.drain(&self.hub);
    }

    fn consumed(&self, bytes: usize) {
        self.hub.borrow_mut().relay.handle_exit_consumed(self.slot, self.conn, bytes);
    }
}

/// One connection behind the relay.
async fn exit_connection(hub: Shared, slot: u16, conn: u32, pipe: Arc<Pipe>, exit: String) {
    let hooks = Rc::new(ExitHooks { hub: Rc::clone(&hub), slot, conn });
    match TcpStream::connect(&exit).await {
        Ok(stream) => pipe::run(stream, Arc::clone(&pipe), hooks).await,
        Err(error) => {
            log::warn!("the exit {exit} cannot be reached: {error}");
            hooks.stop();
        }
    }
    let mut hub = hub.borrow_mut();
    if hub.pipes.get(&(slot, conn)).is_some_and(|current| Arc::ptr_eq(current, &pipe)) {
        hub.pipes.remove(&(slot, conn));
    }
}

impl Hub {
    /// What `status` shows, and for how long the relay has run.
    pub fn status(&self) -> (RelayStatus, Duration) {
        (self.relay.status(), self.started.elapsed())
    }

    /// Clients and trustees of the group.
    pub fn group_size(&self) -> (usize, usize) {
        (self.group.clients.len(), self.group.trustees.len())
    }

    /// Whether this is the party's link, and not one that it had before.
    fn has_link(&self, party: PartyRef, link: &Rc<Link>) -> bool {
        self.links.get(&party).is_some_and(|current| Rc::ptr_eq(current, link))
    }

    /// Bytes received and sent on the links there are: of clients, of trustees.
    pub fn link_bytes(&self) -> [[u64; 2]; 2] {
        let mut sums = [[0, 0]; 2];
        for (party, link) in &self.links {
            let [received, sent] = link.bytes.get();
            let sum = &mut sums[usize::from(matches!(party, PartyRef::Trustee(_)))];
            *sum = [sum[0] + received, sum[1] + sent];
        }
        sums
    }

    /// Hands over what the core has for links and exits.
    fn drain(&mut self, shared: &Shared) {
        let mut dirty: BTreeSet<PartyRef> = BTreeSet::new();
        while let Some(transmit) = self.relay.poll_transmit() {
            match transmit {
                Transmit::To(party, bytes) => {
                    self.pending.entry(party).or_default().extend(bytes);
                    dirty.insert(party);
                }
                Transmit::Clients(bytes) => {
                    for party in &self.clients {
                        self.pending.entry(*party).or_default().extend_from_slice(&bytes);
                        dirty.insert(*party);
                    }
                }
                Transmit::Set(clients) => self.clients = clients,
                Transmit::Disconnect(party, why) => {
                    log::warn!("{party} is left out: {why}");
                    if let Some(link) = self.links.get(&party) {
                        link.close();
                    }
                }
            }
        }
        while let Some(event) = self.relay.poll_event() {
            self.handle_event(event, shared);
        }
        for party in dirty {
            if let Some(pending) = self.pending.get_mut(&party) {
                if let Some(link) = self.links.get(&party) {
                    link.send(pending);
                }
                pending.clear();
            }
        }
        self.timer.notify_one();
    }

    fn handle_event(&mut self, event: RelayEvent, shared: &Shared) {
        match event {
            RelayEvent::Exit(slot, MuxEvent::Open(conn)) => {
                let pipe = Arc::new(Pipe::default());
                self.pipes.insert((slot, conn), Arc::clone(&pipe));
                let (hub, exit) = (Rc::clone(shared), self.exit.clone());
                spawn_local(exit_connection(hub, slot, conn, pipe, exit));
            }
            RelayEvent::Exit(slot, MuxEvent::Data(conn, bytes)) => {
                let pipe = self.pipes.get(&(slot, conn));
                let taken = pipe.map_or(bytes.len(), |pipe| pipe.push(&bytes));
                self.relay.handle_exit_consumed(slot, conn, taken);
            }
            RelayEvent::Exit(slot, MuxEvent::Stop(conn)) => {
                if let Some(pipe) = self.pipes.get(&(slot, conn)) {
                    pipe.stop();
                }
            }
            RelayEvent::Exit(slot, MuxEvent::Close(conn)) => {
                if let Some(pipe) = self.pipes.get(&(slot, conn)) {
                    pipe.end();
                }
            }
            RelayEvent::Exit(slot, MuxEvent::Room(conn)) => {
                if let Some(pipe) = self.pipes.get(&(slot, conn)) {
                    pipe.wake();
                }
            }
            RelayEvent::Interval(signed) => {
                let count = signed.interval.clients.len();
                self.interval = signed.to_bytes();
                log::info!("interval {} begins with {count} clients", signed.interval.number);
                if let Err(error) = store::save_interval(&self.dir, &signed) {
                    log::warn!("{error}");
                }
            }
            RelayEvent::Verdict(blamed, case) => {
                let number = self.relay.status().interval.map_or(0, |(number, _)| number);
                let path = self.dir.join(format!("verdict-{number}.json"));
                log::warn!("a trial ended: {blamed}; its case is {}", path.display());
                let interval = self.interval.clone();
                if let Err(error) = store::save(&path, &VerdictFile { interval, case }, 0o644) {
                    log::warn!("{error}");
                }
            }
        }
    }
}
