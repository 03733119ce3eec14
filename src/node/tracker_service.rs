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
    poster::{About, Failed, PostJob, post_all},
    registration::{Listing, Registration, Rotated, Standing, accepted, rotate_keys},
};
use crate::{
    config::{Settings, TrackerConfig},
    directory::{ControllerClient, ControllerLink, Directory, DirectoryCache, check_probe},
    keys::{Identity, OnionKey, OnionKeys, StateDir},
    model::{CELL_LEN, Cid, ExitPolicy, Role, Suite},
    telemetry::{
        Status, TrackerStatus,
        control::{ControlServer, Refusal, RefusalKind, Request, command},
        service_manager::{self, Watchdog, ready, stop_signal},
    },
    tracker::{
        OrderKey, Quota, TrackerError, TrackerEvent, TrackerLimits, TrackerMember, TrackerState,
        TrackerSummary,
        store::{TrackerStore, TrackerWriter},
    },
    wire::{Probe, share::Envelope},
};

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
    let (summaries, summary_watch) = watch::channel(TrackerSummary::default());
    let (standing, standings) = watch::channel(Standing::default());
    let (rotate, rotations) = mpsc::channel(1);
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
        standings,
        summaries: summary_watch,
        directories: directories.clone(),
        contact: contact.clone(),
        rotate,
    };
    let source = status.clone();
    let page = move || std::future::ready(metrics::tracker_page(status_of(&source)));
    metrics::start(&mut tasks, config.metrics, page).await?;
    tasks.spawn(control.serve(move |request| answer(status.clone(), request)));
    let writer = store.into_writer().map_err(NodeError::Thread)?;
    let book = Book {
        state,
        writer,
        posts,
        keys: key_watch,
        summaries,
        directories: directories.clone(),
        rng,
    };
    let book = tokio::spawn(book.keep(frame_queue, failed_queue));
    let registration = Registration {
        listing: Listing {
            name: name.to_owned(),
            port: config.listen.port(),
            address: config.address,
            join: config.join.clone(),
            operator: config.operator.clone(),
            roles: vec![Role::Tracker],
            exit_policy: ExitPolicy::default(),
            suites: vec![Suite::Aes128Gcm, Suite::ChaCha20Poly1305],
            order_key: Some(order_key),
        },
        identity,
        onion,
        client,
        contact,
        standing,
        on_keys: move |accepted| drop(keys.send_replace(accepted)),
        rotations,
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
    summaries: watch::Sender<TrackerSummary>,
    directories: watch::Receiver<Option<Arc<Directory>>>,
    rng: StdRng,
}

impl Book {
    /// Runs until the door is closed.
    async fn keep(
        mut self,
        mut frames: mpsc::Receiver<Incoming>,
        mut failed: mpsc::Receiver<Failed>,
    ) {
        // The book is the loop that must not hang; the runtime's pulse is beside it.
        let mut watchdog = Watchdog::of_process(Instant::now());
        if let Some(watchdog) = &watchdog {
            tokio::spawn(watchdog.pulse().keep());
        }
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.read_directory();
        loop {
            tokio::select! {
                Ok(()) = self.directories.changed() => self.read_directory(),
                incoming = frames.recv() => {
                    let Some(incoming) = incoming else { return };
                    self.handle_frame(incoming);
                }
                Some(failed) = failed.recv() => self.handle_failed(failed),
                _ = ticks.tick() => {
                    self.state.handle_timeout(Instant::now(), unix_us());
                    let summary = self.state.summary();
                    self.summaries
                        .send_if_modified(|known| std::mem::replace(known, summary) != summary);
                }
            }
            self.act();
            if let Some(watchdog) = &mut watchdog {
                watchdog.beat(Instant::now());
            }
        }
    }

    /// The relays of the newest directory, for the routes of tracking codes.
    fn read_directory(&mut self) {
        let Some(directory) = self.directories.borrow_and_update().clone() else { return };
        let relays = directory.nodes().iter().filter(|member| member.is_relay());
        let relays = relays
            .map(|member| TrackerMember { id: member.id, onion_key: member.descriptor.onion_key });
        self.state.set_relays(relays.collect());
    }

    fn handle_frame(&mut self, incoming: Incoming) {
        let keys = Arc::clone(&self.keys.borrow());
        let Incoming { cid, frame, reply } = incoming;
        let rng = &mut self.rng;
        let result = self.state.handle_frame(Instant::now(), unix_us(), cid, &frame, &keys, rng);
        // Whoever asked may have gone.
        let _ = reply.send(result);
    }

    fn handle_failed(&mut self, failed: Failed) {
        let (now, unix_us) = (Instant::now(), unix_us());
        match failed {
            Failed::Order(order, why) => {
                self.state.handle_order_failed(now, unix_us, &order, &why);
            }
            Failed::LegGone(leg) => self.state.handle_leg_gone(now, unix_us, leg),
        }
    }

    fn act(&mut self) {
        while let Some(event) = self.state.poll_event() {
            let job = match event {
                TrackerEvent::Post { exit, leg, frame } => {
                    let body = Envelope::emit_bytes(leg, &frame);
                    PostJob { to: exit, body, about: About::Leg(leg) }
                }
                TrackerEvent::Order(order) => PostJob {
                    to: order.node,
                    body: Envelope::emit_order(&order),
                    about: About::Order(order),
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
    standings: watch::Receiver<Standing>,
    summaries: watch::Receiver<TrackerSummary>,
    directories: watch::Receiver<Option<Arc<Directory>>>,
    contact: Contact,
    rotate: mpsc::Sender<Rotated>,
}

async fn answer(source: StatusSource, request: Request) -> Result<serde_json::Value, Refusal> {
    if request.command == command::KEYS_ROTATE {
        rotate_keys(&source.rotate).await?;
        return Ok(serde_json::Value::Null);
    }
    if request.command != command::STATUS {
        return Err(request.unknown(TrackerConfig::ROLE));
    }
    serde_json::to_value(Status::Tracker(status_of(&source)))
        .map_err(|error| Refusal::new(RefusalKind::Failed, error.to_string()))
}

/// How the tracker stands.
fn status_of(source: &StatusSource) -> TrackerStatus {
    let standing = *source.standings.borrow();
    let summary = *source.summaries.borrow();
    let controller = source.contact.status();
    let door = format!("port {}, UDP and TCP,", source.config.listen.port());
    let next_step = standing.next_step(controller.reachable, &door);
    TrackerStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        name: source.name.clone(),
        id: source.id.clone(),
        state: standing.state,
        listen: source.config.listen.to_string(),
        public_address: standing.public_address.map(|address| address.to_string()),
        uptime_s: source.started.elapsed().as_secs(),
        circuits: summary.circuits,
        files: summary.files,
        sessions: summary.sessions,
        controller,
        directory: directory_status(source.directories.borrow().as_deref()),
        next_step,
    }
}

/// Microseconds since 1970.
fn unix_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}
