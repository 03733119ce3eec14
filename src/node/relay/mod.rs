//! A node's data path: one thread that owns the socket, the exit's device and every table.
//!
//! In: cells, packets from outside, finished handshakes, commands. Out: cells, packets, snapshots.
//! Called by: the node's service.
//!
//! ```text
//! turn: socket -> cells -> relay in place | local | control
//!       device -> packets -> cells back to clients
//!       handshakes, commands, timers -> events -> flush -> sleep
//! ```

mod bridges;
mod cells;
mod events;
mod exit;

use std::{
    io,
    sync::{
        Arc,
        mpsc::{Receiver, TryRecvError},
    },
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::StdRng};

pub(crate) use self::{
    bridges::{DoorMessage, DoorRefusal, Posts},
    exit::{Exit, KernelExit},
};
use super::{
    NodeError,
    crew::Workers,
    handshakes::{Handshakes, OnionKeys},
    http_carrier::HttpRuns,
    link::Link,
    onward::Onward,
    reactor::Reactor,
};
use crate::{
    capture::udp::{RecvBatch, UdpSocket},
    circuit::{NodeCircuits, NodeLimits},
    directory::Directory,
    forward::{Outbox, RelayTable, SharedQueue, Verdict, bridge::ExitBridges},
    keys::Identity,
    model::{Carrier, DestroyReason, HttpPeer, Suite},
    telemetry::{Drops, ExitStatus, Traffic},
};

/// Reads of one kind before the other kinds get their turn.
const READS_PER_TURN: usize = 8;
/// Cells of the device's packets before the socket gets its turn: three full calls.
const CELLS_PER_TURN: usize = 138;
/// How often circuits are looked at for idleness.
const TICK: Duration = Duration::from_secs(1);

/// What the tokio side tells the data path.
pub(crate) enum RelayCommand {
    /// A newer directory.
    Directory(Arc<Directory>),
    /// The onion keys rotated.
    OnionKeys(OnionKeys),
    /// A message of the HTTP door.
    Door(DoorMessage),
    /// Say how things stand.
    Snapshot(tokio::sync::oneshot::Sender<RelaySnapshot>),
    /// Tell all neighbours and end.
    Stop,
}

/// How things stand in the data path.
#[derive(Clone, Debug, Default)]
pub(crate) struct RelaySnapshot {
    pub(crate) circuits: usize,
    pub(crate) creates_waiting: usize,
    pub(crate) refused: u64,
    pub(crate) exit: Option<ExitStatus>,
    pub(crate) traffic: Traffic,
    pub(crate) drops: Drops,
}

/// What a relay starts with.
pub(crate) struct RelaySettings {
    pub(crate) identity: Arc<Identity>,
    pub(crate) onion_keys: OnionKeys,
    pub(crate) limits: NodeLimits,
    pub(crate) socket: UdpSocket,
    pub(crate) exit: Option<Exit>,
    /// The suite this machine is good at.
    pub(crate) own_suite: Suite,
    /// Threads that work on cells, this one included.
    pub(crate) workers: usize,
    pub(crate) posts: Posts,
    /// Cells for neighbours over HTTP.
    pub(crate) http: HttpRuns,
}

/// The data path of a node.
pub(crate) struct Relay {
    reactor: Reactor,
    commands: Receiver<RelayCommand>,
    link: Link,
    identity: Arc<Identity>,
    onion_keys: OnionKeys,
    handshakes: Handshakes,
    circuits: NodeCircuits,
    table: RelayTable,
    /// What waits in the socket.
    inbox: SharedQueue,
    exit: Option<Exit>,
    bridges: ExitBridges,
    posts: Posts,
    /// Cells that the socket had refused at the last tick of the bridges.
    full_before: u64,
    directory: Option<Arc<Directory>>,
    outbox: Outbox,
    /// How many threads are to work on cells; they are there once the data path runs.
    workers: usize,
    crew: Workers,
    /// What one message's cells are; kept for the next.
    verdicts: Vec<Verdict>,
    rng: StdRng,
    next_tick: Instant,
    probes: u32,
    stopping: bool,
}

impl Relay {
    /// Prepares the data path; [`Self::run`] drives it on the calling thread.
    ///
    /// # Errors
    /// When the system refuses a thread or its notification of events.
    pub(crate) fn new(
        settings: RelaySettings,
        commands: Receiver<RelayCommand>,
        mut reactor: Reactor,
    ) -> Result<Self, NodeError> {
        let RelaySettings {
            identity,
            onion_keys,
            limits,
            mut socket,
            exit,
            own_suite,
            workers,
            posts,
            http,
        } = settings;
        reactor.add_socket(&mut socket).map_err(NodeError::Wait)?;
        match exit.as_ref().and_then(Exit::raw_fd) {
            Some(fd) => reactor.add_device(fd).map_err(NodeError::Wait)?,
            None => reactor.device_ready = false,
        }
        if let Some(exit) = &exit {
            exit.set_waker(reactor.waker());
        }
        let identity_id = identity.id();
        let now = Instant::now();
        let mut rng = StdRng::from_rng(&mut rand::rng());
        let handshakes = Handshakes::start(&identity, limits.max_handshakes, &reactor.waker())?;
        let ids = onion_keys.iter().map(crate::keys::OnionKey::id).collect();
        let circuits = NodeCircuits::new(identity.id(), ids, limits, now, &mut rng);
        Ok(Self {
            reactor,
            commands,
            link: Link { http: Some(http), ..Link::new(socket) },
            identity,
            onion_keys,
            handshakes,
            circuits,
            table: RelayTable::default(),
            inbox: SharedQueue::default(),
            exit,
            bridges: ExitBridges::new(identity_id, own_suite),
            posts,
            full_before: 0,
            directory: None,
            outbox: Outbox::default(),
            workers,
            crew: Workers::default(),
            verdicts: Vec::new(),
            rng,
            next_tick: now + TICK,
            probes: 0,
            stopping: false,
        })
    }

    /// Turns until told to stop.
    ///
    /// # Errors
    /// When the system's notification of events fails.
    pub(crate) fn run(mut self) -> Result<(), NodeError> {
        self.crew = Workers::start(self.workers);
        let mut batch = RecvBatch::new();
        while !self.stopping {
            let sleep = match &self.exit {
                Some(exit) if exit.has_waiting() => Duration::ZERO,
                _ => self.next_deadline().saturating_duration_since(Instant::now()),
            };
            self.reactor.wait(sleep).map_err(NodeError::Wait)?;
            self.turn(&mut batch);
        }
        self.circuits.destroy_all(DestroyReason::ShuttingDown);
        self.act(Instant::now());
        Ok(())
    }

    fn next_deadline(&self) -> Instant {
        self.bridges.poll_timeout().map_or(self.next_tick, |at| at.min(self.next_tick))
    }

    fn turn(&mut self, batch: &mut RecvBatch) {
        let now = Instant::now();
        self.read_socket(now, batch);
        self.read_device(now);
        self.read_service();
        while let Some((job, done)) = self.handshakes.poll() {
            let result = self.circuits.handle_handshake(now, &job, done, &mut self.rng);
            if let Err(reason) = result {
                self.link.drops.count(reason);
            }
        }
        self.handle_commands(now);
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            self.probes = 0;
            let table = &self.table;
            self.circuits.handle_timeout(now, |key| table.last_active(key));
            self.tick_exit(now);
        }
        self.tick_bridges(now);
        self.act(now);
        self.act_on_bridges();
    }

    fn read_socket(&mut self, now: Instant, batch: &mut RecvBatch) {
        for _ in 0..READS_PER_TURN {
            if !self.reactor.socket_ready {
                return;
            }
            match self.link.socket.recv(batch) {
                Ok(_) => {
                    let mut onward = Onward::default();
                    for message in batch.messages_mut() {
                        self.handle_message(now, message, &mut onward);
                    }
                    onward.flush(&mut self.link);
                    self.write_device();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.reactor.socket_ready = false;
                }
                // An ICMP error of an earlier send, reported here; the next read goes on.
                Err(error) => log::trace!("socket: {error}"),
            }
        }
    }

    fn handle_commands(&mut self, now: Instant) {
        loop {
            match self.commands.try_recv() {
                Ok(RelayCommand::Directory(directory)) => {
                    self.directory = Some(directory);
                    self.bridges.on_directory();
                }
                Ok(RelayCommand::Door(message)) => self.handle_door(now, message),
                Ok(RelayCommand::OnionKeys(keys)) => {
                    self.circuits
                        .set_onion_keys(keys.iter().map(crate::keys::OnionKey::id).collect());
                    self.onion_keys = keys;
                }
                Ok(RelayCommand::Snapshot(answer)) => {
                    // Whoever asked may have gone.
                    let _ = answer.send(self.snapshot());
                }
                Ok(RelayCommand::Stop) | Err(TryRecvError::Disconnected) => {
                    self.stopping = true;
                    return;
                }
                Err(TryRecvError::Empty) => return,
            }
        }
    }

    fn snapshot(&self) -> RelaySnapshot {
        RelaySnapshot {
            circuits: self.circuits.len(),
            creates_waiting: self.circuits.waiting(),
            refused: self.circuits.refused(),
            exit: self.exit.as_ref().map(Exit::status),
            traffic: self.link.traffic,
            drops: Drops::from(&self.link.drops),
        }
    }

    /// The address of a member that circuits may be extended to, by node id or `ip:port`;
    /// behind `http://` it is reached over HTTP.
    fn member(directory: Option<&Directory>, to: &str) -> Option<std::net::SocketAddr> {
        let directory = directory?;
        let (to, carrier) = match to.strip_prefix("http://") {
            Some(to) => (to, Carrier::Http),
            None => (to, Carrier::Udp),
        };
        let member = match to.parse() {
            Ok(id) => directory.get(&id),
            Err(_) => to.parse().ok().and_then(|addr| directory.by_addr(addr)),
        };
        member.filter(|member| member.is_relay()).map(|member| match carrier {
            Carrier::Udp => member.addr(),
            Carrier::Http => HttpPeer::member(&member.id).addr(),
        })
    }
}
