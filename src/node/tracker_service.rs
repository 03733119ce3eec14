//! `cepa tracker`, running: keys, HTTP door, controller, store, control socket, until it is stopped.
//!
//! In: settings. Out: a tracker in the directory. Called by: cli.
//!
//! ```text
//! exits -- POST / --> door --> state (one task) --> posts --> exits
//!                               |  ^
//!                     changes   v  | at the start
//!                              SQLite
//! ```

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::http::StatusCode;
use jiff::Timestamp;
use rand::{SeedableRng, rngs::StdRng};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};

use super::{
    NodeError,
    contact::{Contact, directory_status, follow_directory},
    door::{self, DoorAnswer, Doorkeeper},
    metrics,
    poster::{FailedOrder, PostJob, post_all},
};
use crate::{
    config::{Settings, TrackerConfig},
    directory::{
        Backoff, ClientError, ControllerClient, ControllerLink, DESCRIPTOR_VALIDITY, Descriptor,
        Directory, DirectoryCache, JoinToken, SignedDescriptor, WIRE_VERSION, check_probe,
    },
    keys::{Identity, OnionKey, OnionKeys, StateDir},
    model::{CELL_LEN, Cid, ExitPolicy, Role, Suite},
    telemetry::{
        NodeState, Status, TrackerStatus,
        control::{ControlServer, Refusal, RefusalKind, Request, command},
        service_manager::{self, Watchdog, ready, stop_signal},
    },
    tracker::{
        OrderKey, Quota, TrackerError, TrackerEvent, TrackerLimits, TrackerState, TrackerSummary,
        store::{TrackerStore, TrackerWriter},
    },
    wire::{Probe, share::Envelope},
};

/// How often the tracker says that it lives.
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// How often sessions and channels are looked at.
const TICK: Duration = Duration::from_millis(100);
/// Frames that wait for the state.
const MOST_FRAMES: usize = 4_096;
/// Posts that wait for the poster.
const MOST_POSTS: usize = 8_192;
/// Probes answered a second: each costs a signature check.
const PROBES_PER_SECOND: u32 = 10;

/// Runs a tracker until it is told to stop.
///
/// # Errors
/// Why it could not start, or had to end.
pub fn run_tracker(
    config: &TrackerConfig,
    link: &ControllerLink,
    name: &str,
) -> Result<(), NodeError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(NodeError::Thread)?;
    runtime.block_on(run(config, link, name))
}

async fn run(config: &TrackerConfig, link: &ControllerLink, name: &str) -> Result<(), NodeError> {
    let mut rng = StdRng::from_rng(&mut rand::rng());
    let now = Timestamp::now();
    let stopped = stop_signal();
    let dir = StateDir::open(&config.state)?;
    let control = ControlServer::bind(TrackerConfig::ROLE, &config.state)?;
    let identity = Arc::new(dir.identity("identity.pem")?);
    let onion = OnionKeys::open(&dir, now, &mut rng)?;
    let orders = OrderKey::open(&dir, identity.id(), &mut rng)?;
    let order_key = orders.public();
    let store = TrackerStore::open(&dir)?;
    let limits = TrackerLimits {
        quota: Quota { files: config.files_per_circuit as usize, ..Quota::default() },
        expiry: config.expire_after.into(),
        ..TrackerLimits::default()
    };
    let mut state = TrackerState::new(Instant::now(), orders, limits);
    state.restore(Instant::now(), store.load()?);
    let cache = DirectoryCache::open(&dir, link, now)?;
    let local = (!config.listen.ip().is_unspecified()).then_some(config.listen.ip());
    let client = ControllerClient::new(link, local)?;
    let contact = Contact::new(link);
    let (newest, directories) = watch::channel(cache.newest().cloned());
    let listener = door::bind(config.listen).await.map_err(NodeError::Door)?;
    let probes = tokio::net::UdpSocket::bind(config.listen).await.map_err(NodeError::Door)?;

    let (frames, frame_queue) = mpsc::channel(MOST_FRAMES);
    let (posts, post_queue) = mpsc::channel(MOST_POSTS);
    let (failed, failed_queue) = mpsc::channel(256);
    let (keys, key_watch) = watch::channel(accepted(&onion, now)?);
    let (states, state_watch) = watch::channel(State::default());
    let mut tasks = JoinSet::new();
    tasks.spawn(follow_directory(client.clone(), contact.clone(), cache, newest));
    tasks.spawn(post_all(post_queue, directories.clone(), Some(failed)));
    tasks.spawn(door::serve(listener, Desk { frames }));
    tasks.spawn(answer_probes(probes, Arc::clone(&identity), directories.clone()));
    let status = StatusSource {
        config: config.clone(),
        name: name.to_owned(),
        id: identity.id().to_string(),
        started: Instant::now(),
        states: state_watch,
        directories,
        contact: contact.clone(),
    };
    let source = status.clone();
    let page = move || std::future::ready(metrics::tracker_page(status_of(&source)));
    metrics::start(&mut tasks, config.metrics, page).await?;
    tasks.spawn(control.serve(move |request| std::future::ready(answer(&status, &request))));
    let writer = store.into_writer().map_err(NodeError::Thread)?;
    let book = Book { state, writer, posts, keys: key_watch, summaries: states.clone(), rng };
    let book = tokio::spawn(book.keep(frame_queue, failed_queue));
    let registration = Registration {
        config: config.clone(),
        name: name.to_owned(),
        identity,
        onion,
        order_key,
        client,
        contact,
        state: states,
        keys,
    };
    service_manager::status("asking the controller to list it");
    ready();
    let end = tokio::select! {
        Err(error) = registration.keep() => Err(error),
        () = stopped => Ok(()),
    };
    // The door closes first; what waits is then kept.
    tasks.shutdown().await;
    book.await.map_err(|_| NodeError::DataPath)?;
    end
}

/// A frame that came through the door, and where its answer goes.
struct Incoming {
    cid: Cid,
    frame: Vec<u8>,
    reply: oneshot::Sender<Result<(), TrackerError>>,
}

/// Answers the door for the state.
#[derive(Clone)]
struct Desk {
    frames: mpsc::Sender<Incoming>,
}

impl Doorkeeper for Desk {
    async fn answer(&self, _from: SocketAddr, _polls: bool, envelope: Envelope) -> DoorAnswer {
        let Envelope::Bytes { cid, payload } = envelope else {
            let detail = "expected the CID of a leg, got \"control\": only exits take orders";
            return DoorAnswer::Refused(StatusCode::FORBIDDEN, "not-for-me", detail.to_owned());
        };
        let (reply, answer) = oneshot::channel();
        if self.frames.try_send(Incoming { cid, frame: payload, reply }).is_err() {
            let detail = "expected fewer messages at once; try again in a moment".to_owned();
            return DoorAnswer::Refused(StatusCode::SERVICE_UNAVAILABLE, "busy", detail);
        }
        match answer.await {
            Ok(Ok(())) => DoorAnswer::Ok(Vec::new()),
            Ok(Err(error @ TrackerError::NoRoom)) => {
                DoorAnswer::Refused(StatusCode::SERVICE_UNAVAILABLE, "no-room", error.to_string())
            }
            Ok(Err(error)) => {
                DoorAnswer::Refused(StatusCode::BAD_REQUEST, "bad-frame", error.to_string())
            }
            Err(_) => DoorAnswer::Refused(
                StatusCode::SERVICE_UNAVAILABLE,
                "ending",
                "the tracker is ending".to_owned(),
            ),
        }
    }
}

/// The state and everything that it moves: one task, no locks.
struct Book {
    state: TrackerState,
    writer: TrackerWriter,
    posts: mpsc::Sender<PostJob>,
    keys: watch::Receiver<Arc<Vec<OnionKey>>>,
    summaries: watch::Sender<State>,
    rng: StdRng,
}

impl Book {
    /// Runs until the door is closed.
    async fn keep(
        mut self,
        mut frames: mpsc::Receiver<Incoming>,
        mut failed: mpsc::Receiver<FailedOrder>,
    ) {
        // The book is the loop that must not hang; the runtime's pulse is beside it.
        let mut watchdog = Watchdog::of_process(Instant::now());
        if let Some(watchdog) = &watchdog {
            tokio::spawn(watchdog.pulse().keep());
        }
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                incoming = frames.recv() => {
                    let Some(incoming) = incoming else { return };
                    self.handle_frame(incoming);
                }
                Some((order, why)) = failed.recv() => {
                    self.state.handle_order_failed(Instant::now(), unix_us(), &order, &why);
                }
                _ = ticks.tick() => {
                    self.state.handle_timeout(Instant::now(), unix_us());
                    let summary = self.state.summary();
                    self.summaries.send_if_modified(|state| {
                        std::mem::replace(&mut state.summary, summary) != summary
                    });
                }
            }
            self.act();
            if let Some(watchdog) = &mut watchdog {
                watchdog.beat(Instant::now());
            }
        }
    }

    fn handle_frame(&mut self, incoming: Incoming) {
        let keys = Arc::clone(&self.keys.borrow());
        let Incoming { cid, frame, reply } = incoming;
        let rng = &mut self.rng;
        let result = self.state.handle_frame(Instant::now(), unix_us(), cid, &frame, &keys, rng);
        // Whoever asked may have gone.
        let _ = reply.send(result);
    }

    fn act(&mut self) {
        while let Some(event) = self.state.poll_event() {
            let job = match event {
                TrackerEvent::Post { exit, leg, frame } => {
                    PostJob { to: exit, body: Envelope::emit_bytes(leg, &frame), order: None }
                }
                TrackerEvent::Order(order) => PostJob {
                    to: order.node,
                    body: Envelope::emit_order(&order),
                    order: Some(order),
                },
                TrackerEvent::Keep(change) => {
                    self.writer.keep(change);
                    continue;
                }
            };
            if self.posts.try_send(job).is_err() {
                log::debug!("a post was dropped: too many wait");
            }
        }
    }
}

/// What the tasks tell the control socket.
#[derive(Clone, Default)]
struct State {
    node: NodeState,
    public_address: Option<SocketAddr>,
    summary: TrackerSummary,
}

/// Keeps the tracker listed.
struct Registration {
    config: TrackerConfig,
    name: String,
    identity: Arc<Identity>,
    onion: OnionKeys,
    order_key: [u8; 32],
    client: ControllerClient,
    contact: Contact,
    state: watch::Sender<State>,
    keys: watch::Sender<Arc<Vec<OnionKey>>>,
}

impl Registration {
    /// Registers and renews for ever; comes back only when the tracker is not admitted at its
    /// start.
    async fn keep(mut self) -> Result<(), NodeError> {
        let mut rng = StdRng::from_rng(&mut rand::rng());
        let mut backoff = Backoff::default();
        let mut admitted = false;
        self.state.send_modify(|state| state.node = NodeState::Registering);
        loop {
            if self.onion.rotate_if_due(Timestamp::now(), &mut rng)? {
                log::info!(event = "onion_key"; "a new onion key is in use");
            }
            self.keys.send_replace(accepted(&self.onion, Timestamp::now())?);
            let pause = match self.renew(admitted).await {
                Ok(pause) => {
                    self.contact.answered();
                    admitted = true;
                    backoff.reset();
                    pause
                }
                Err(NodeError::Client(error @ ClientError::NotAdmitted { .. })) if !admitted => {
                    return Err(error.into());
                }
                Err(NodeError::Client(error)) => {
                    let pause = error.retry_after().unwrap_or_else(|| backoff.next_delay(&mut rng));
                    self.contact.failed(&error, pause);
                    pause
                }
                Err(error) => return Err(error),
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn renew(&self, admitted: bool) -> Result<Duration, NodeError> {
        let ip = match self.config.address {
            Some(address) => address,
            None => self.client.whoami().await?,
        };
        let addr = SocketAddr::new(ip, self.config.listen.port());
        let signed = SignedDescriptor::sign(&self.descriptor(addr), &self.identity)?;
        let registered = match self.client.register(&signed, None).await {
            Err(ClientError::NotAdmitted { .. }) if !admitted && self.config.join.is_some() => {
                let token =
                    self.config.join.as_ref().map(|join| join.reveal().parse::<JoinToken>());
                self.client.register(&signed, token.transpose()?.as_ref()).await
            }
            other => other,
        }?;
        let was = self.state.borrow().node;
        self.state.send_modify(|state| {
            state.node =
                if registered.reachable { NodeState::Registered } else { NodeState::Registering };
            state.public_address = Some(addr);
        });
        if registered.reachable && was != NodeState::Registered {
            log::info!(event = "registered"; "{} is listed", self.name);
            service_manager::status("listed");
        }
        Ok(Duration::from_secs(registered.renew_in_s).clamp(Duration::from_secs(1), RENEW_EVERY))
    }

    fn descriptor(&self, addr: SocketAddr) -> Descriptor {
        let onion = self.onion.current();
        let now = Timestamp::now();
        Descriptor {
            name: self.name.clone(),
            addrs: vec![addr],
            spki: self.identity.spki_der().to_vec(),
            onion_key: *onion.public(),
            onion_key_id: onion.id(),
            roles: vec![Role::Tracker],
            exit_policy: ExitPolicy::default(),
            suites: vec![Suite::Aes128Gcm, Suite::ChaCha20Poly1305],
            operator: self.config.operator.clone(),
            order_key: Some(self.order_key),
            wire_version: WIRE_VERSION,
            valid_after: now,
            valid_until: now + DESCRIPTOR_VALIDITY,
        }
    }
}

/// Answers the controller's probes on UDP, so that it lists the tracker.
async fn answer_probes(
    socket: tokio::net::UdpSocket,
    identity: Arc<Identity>,
    directories: watch::Receiver<Option<Arc<Directory>>>,
) {
    let mut rng = StdRng::from_rng(&mut rand::rng());
    let mut buffer = [0; 2048];
    let (mut answered, mut since) = (0, Instant::now());
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                log::trace!("socket: {error}");
                continue;
            }
        };
        if since.elapsed() >= Duration::from_secs(1) {
            (answered, since) = (0, Instant::now());
        }
        let Ok(probe) = Probe::parse(&buffer[..length]) else { continue };
        let Some(directory) = directories.borrow().clone() else { continue };
        if answered >= PROBES_PER_SECOND {
            continue;
        }
        answered += 1;
        if check_probe(&probe, &identity.id(), directory.controller(), Timestamp::now()).is_err() {
            continue;
        }
        let mut cell = [0; CELL_LEN];
        probe.answer().emit(&mut cell, &mut rng);
        if let Err(error) = socket.send_to(&cell, from).await {
            log::debug!("a probe was not answered: {error}");
        }
    }
}

/// Everything a status is made of.
#[derive(Clone)]
struct StatusSource {
    config: TrackerConfig,
    name: String,
    id: String,
    started: Instant,
    states: watch::Receiver<State>,
    directories: watch::Receiver<Option<Arc<Directory>>>,
    contact: Contact,
}

fn answer(source: &StatusSource, request: &Request) -> Result<serde_json::Value, Refusal> {
    if request.command != command::STATUS {
        return Err(request.unknown(TrackerConfig::ROLE));
    }
    serde_json::to_value(Status::Tracker(status_of(source)))
        .map_err(|error| Refusal::new(RefusalKind::Failed, error.to_string()))
}

/// How the tracker stands.
fn status_of(source: &StatusSource) -> TrackerStatus {
    let state = source.states.borrow().clone();
    let controller = source.contact.status();
    let next_step = match state.node {
        _ if !controller.reachable => {
            Some("check the network and that the controller runs".to_owned())
        }
        NodeState::Registering if state.public_address.is_some() => {
            let port = source.config.listen.port();
            Some(format!("let port {port}, UDP and TCP, through to this machine"))
        }
        _ => None,
    };
    TrackerStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        name: source.name.clone(),
        id: source.id.clone(),
        state: state.node,
        listen: source.config.listen.to_string(),
        public_address: state.public_address.map(|address| address.to_string()),
        uptime_s: source.started.elapsed().as_secs(),
        circuits: state.summary.circuits,
        files: state.summary.files,
        sessions: state.summary.sessions,
        controller,
        directory: directory_status(source.directories.borrow().as_deref()),
        next_step,
    }
}

fn accepted(onion: &OnionKeys, now: Timestamp) -> Result<Arc<Vec<OnionKey>>, NodeError> {
    let copies = onion.accepted(now).map(|key| OnionKey::from_secret(*key.secret()));
    Ok(Arc::new(copies.collect::<Result<_, _>>()?))
}

/// Microseconds since 1970.
fn unix_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}
