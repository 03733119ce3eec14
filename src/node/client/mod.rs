//! A client's data path: one thread that owns the socket, the TUN and every circuit.
//!
//! In: packets of this machine and of the proxies, cells of guards, commands. Out: the same, wrapped or opened.
//! Called by: the client's service.
//!
//! ```text
//! turn: TUN, stack -> packets -> flow -> circuit -> cells
//!       socket -> cells -> bodies -> packets -> TUN or stack
//!       commands, timers -> events -> flush -> sleep
//! ```

mod bench;
mod circuits;
mod commands;
mod packets;
mod share;
mod targets;
mod traces;

use std::{
    sync::{Arc, mpsc::Receiver},
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::StdRng};

use self::{bench::Bench, commands::Reply, targets::Targets, traces::Trace};
pub(crate) use self::{
    commands::{ClientCommand, ClientSnapshot},
    share::{ShareCommand, ShareData, ShareNotice},
};
use super::{
    NodeError, crew::Workers, device_queue::DeviceQueue, http_carrier::HttpRuns, link::Link,
    reactor::Reactor,
};
use crate::{
    capture::{
        PacketDevice,
        udp::{RecvBatch, UdpSocket},
    },
    circuit::{ClientCircuits, ClientTimers, Isolation, Pool, PoolSettings},
    directory::{Directory, LinkTimes},
    forward::{ClientTable, Opened, Outbox, SharedQueue, flow::FlowMap, inside::Inside},
    model::{BODY_LEN, Carrier, CircuitKey, DropReason, Hop, NodeId, PacketBatch, Suite},
    stack::{DataSide, GroupedPackets},
    telemetry::CircuitInfo,
};

/// Reads of the socket before the other kinds get their turn.
const READS_PER_TURN: usize = 8;
/// Cells of the device's packets before the socket gets its turn: three full calls.
const CELLS_PER_TURN: usize = 138;
/// The longest sleep.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// How often flows are looked at.
const FLOW_TICK: Duration = Duration::from_secs(1);
/// Flows remembered at once.
const MOST_FLOWS: usize = 65_536;

/// What every path of this client must be like.
#[derive(Clone, Debug)]
pub(crate) struct PathWish {
    pub(crate) hops: usize,
    pub(crate) lab: bool,
    /// Names or ids, chosen by a person.
    pub(crate) fixed: Vec<String>,
    pub(crate) suite: Option<Suite>,
    /// How cells travel, on every link.
    pub(crate) carrier: Carrier,
}

/// Keeps a chosen guard.
pub(crate) type OnGuard = Box<dyn Fn(&Hop) + Send>;

/// What a client starts with.
pub(crate) struct ClientSettings {
    pub(crate) socket: UdpSocket,
    pub(crate) device: Option<Box<dyn PacketDevice>>,
    /// The way to the user-space stack of the proxies.
    pub(crate) stack: Option<DataSide>,
    pub(crate) wish: PathWish,
    pub(crate) timers: ClientTimers,
    pub(crate) pool: PoolSettings,
    /// The suite this machine is good at.
    pub(crate) own_suite: Suite,
    /// Threads that work on cells, this one included.
    pub(crate) workers: usize,
    /// The pinned guard, if there is one.
    pub(crate) guard: Option<NodeId>,
    /// Cells for a guard over HTTP.
    pub(crate) http: Option<HttpRuns>,
    /// Told of the guard once one is chosen and has proved itself.
    pub(crate) on_guard: OnGuard,
}

/// The data path of a client.
pub(crate) struct Client {
    reactor: Reactor,
    commands: Receiver<ClientCommand>,
    link: Link,
    device: Option<Box<dyn PacketDevice>>,
    stack: Option<DataSide>,
    directory: Option<Arc<Directory>>,
    wish: PathWish,
    guard: Option<NodeId>,
    /// The first node of the last path, until a guard has proved itself.
    trial_guard: Option<NodeId>,
    /// The first node of paths in which the guard cannot be first.
    stand_in: Option<NodeId>,
    on_guard: OnGuard,
    circuits: ClientCircuits,
    table: ClientTable,
    pool: Pool,
    isolation: Isolation,
    inside: Inside,
    flows: FlowMap<CircuitKey>,
    targets: Targets,
    links: LinkTimes,
    /// Who waits for a circuit that is being built for them.
    asked: Vec<(CircuitKey, Reply<CircuitInfo>)>,
    /// The number people know a circuit by.
    numbers: Vec<(CircuitKey, u32)>,
    next_number: u32,
    /// Nodes that failed of late, and until when they are left out.
    avoided: Vec<(NodeId, Instant)>,
    /// Why there is no circuit.
    reason: Option<String>,
    traces: Vec<Trace>,
    share: Option<Box<ShareData>>,
    bench: Option<Bench>,
    outbox: Outbox,
    body: Box<[u8; BODY_LEN]>,
    from_device: DeviceQueue,
    /// What waits in the socket.
    inbox: SharedQueue,
    to_device: PacketBatch,
    from_stack: GroupedPackets,
    to_stack: PacketBatch,
    /// How many threads are to work on cells; they are there once the data path runs.
    workers: usize,
    crew: Workers,
    /// What came of one message's cells; kept for the next.
    opened: Vec<Opened>,
    rng: StdRng,
    next_flow_tick: Instant,
    stopping: bool,
}

impl Client {
    /// Prepares the data path; [`Self::run`] drives it on the calling thread.
    ///
    /// # Errors
    /// When the system refuses its notification of events.
    pub(crate) fn new(
        settings: ClientSettings,
        commands: Receiver<ClientCommand>,
        mut reactor: Reactor,
    ) -> Result<Self, NodeError> {
        let ClientSettings { mut socket, device, stack, .. } = settings;
        reactor.add_socket(&mut socket).map_err(NodeError::Wait)?;
        match &device {
            Some(device) => reactor.add_device(device.raw_fd()).map_err(NodeError::Wait)?,
            None => reactor.device_ready = false,
        }
        if let Some(stack) = &stack {
            stack.set_waker(reactor.waker());
        }
        Ok(Self {
            reactor,
            commands,
            link: Link { http: settings.http, ..Link::new(socket) },
            device,
            stack,
            directory: None,
            targets: Targets::new(settings.pool.rotate_every, !settings.wish.fixed.is_empty()),
            links: LinkTimes::default(),
            asked: Vec::new(),
            wish: settings.wish,
            guard: settings.guard,
            trial_guard: None,
            stand_in: None,
            on_guard: settings.on_guard,
            circuits: ClientCircuits::new(settings.timers, settings.own_suite),
            table: ClientTable::default(),
            pool: Pool::new(settings.pool),
            isolation: Isolation::default(),
            inside: Inside::default(),
            flows: FlowMap::new(MOST_FLOWS),
            numbers: Vec::new(),
            next_number: 1,
            avoided: Vec::new(),
            reason: Some("waiting for the directory".to_owned()),
            traces: Vec::new(),
            share: None,
            bench: None,
            outbox: Outbox::default(),
            body: Box::new([0; BODY_LEN]),
            from_device: DeviceQueue::default(),
            inbox: SharedQueue::default(),
            to_device: PacketBatch::default(),
            from_stack: GroupedPackets::default(),
            to_stack: PacketBatch::default(),
            workers: settings.workers,
            crew: Workers::default(),
            opened: Vec::new(),
            rng: StdRng::from_rng(&mut rand::rng()),
            next_flow_tick: Instant::now(),
            stopping: false,
        })
    }

    /// The same, sharing files.
    pub(crate) fn with_share(self, share: ShareData) -> Self {
        Self { share: Some(Box::new(share)), ..self }
    }

    /// Turns until told to stop.
    ///
    /// # Errors
    /// When the system's notification of events fails.
    pub(crate) fn run(mut self) -> Result<(), NodeError> {
        self.crew = Workers::start(self.workers);
        let mut batch = RecvBatch::new();
        while !self.stopping {
            let sleep = if self.from_device.is_empty() {
                self.until_deadline(Instant::now())
            } else {
                Duration::ZERO
            };
            self.reactor.wait(sleep).map_err(NodeError::Wait)?;
            self.turn(&mut batch);
        }
        let keys: Vec<_> = self.circuits.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.circuits.close(key);
        }
        self.act(Instant::now());
        Ok(())
    }

    fn turn(&mut self, batch: &mut RecvBatch) {
        let now = Instant::now();
        self.read_device(now);
        self.read_stack(now);
        self.read_socket(now, batch);
        self.handle_commands(now);
        self.send_bridges();
        self.handle_timers(now);
        self.act(now);
        self.watch_active();
    }

    fn handle_timers(&mut self, now: Instant) {
        let table = &self.table;
        self.circuits.handle_timeout(now, |key| table.last_heard(key), &mut self.rng);
        if now >= self.next_flow_tick {
            self.next_flow_tick = now + FLOW_TICK;
            self.flows.handle_timeout(now);
            let (flows, share) = (&self.flows, &self.share);
            let in_use = |key| {
                let bridges = share.as_ref().map_or(0, |share| share.bridges_of(key));
                flows.flows_of(now, key) + bridges
            };
            self.isolation.handle_timeout(now, &mut self.pool, in_use);
            let closing = self.pool.handle_timeout(now, in_use, &mut self.rng);
            let idle = self.targets.idle(now, |key| flows.flows_of(now, key));
            for key in closing.into_iter().chain(idle) {
                self.circuits.close(key);
            }
            let late = self.targets.drop_late(now);
            (0..late).for_each(|_| self.link.drops.count(DropReason::NoCircuit));
        }
        self.handle_traces(now);
        self.handle_bench(now);
        self.build_wanted(now);
    }

    fn until_deadline(&self, now: Instant) -> Duration {
        if self.share.as_ref().is_some_and(|share| share.has_more()) {
            return Duration::ZERO;
        }
        let circuits = self.circuits.poll_timeout();
        let pool = self.pool.poll_timeout(now);
        let bench = self.bench_deadline(now).map(|at| (at, "bench"));
        let trace = self.traces.iter().map(|trace| (trace.deadline(), "trace")).min();
        circuits
            .into_iter()
            .chain(pool)
            .chain(trace)
            .chain(bench)
            .map(|(at, _)| at.saturating_duration_since(now))
            .min()
            .unwrap_or(LONGEST_SLEEP)
            .min(LONGEST_SLEEP)
    }
}
