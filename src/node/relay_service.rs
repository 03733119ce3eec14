//! `cepa node`, running: keys, socket, exit, controller, control socket, until it is stopped.
//!
//! In: settings. Out: a node in the directory. Called by: cli.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
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
    contact::{Contact, follow_directory, pass_directories},
    data_thread::{DataThread, Handle},
    door::{self, DoorAnswer, Doorkeeper},
    exit_setup,
    http_carrier::{self, Polls, carry},
    metrics,
    poster::post_all,
    relay::{DoorMessage, DoorRefusal, Relay, RelayCommand, RelaySettings},
    relay_status::{self, Rotated, State, StatusSource},
};
use crate::{
    capture::{route, udp::UdpSocket},
    circuit::NodeLimits,
    config::{NodeConfig, Settings},
    directory::{
        Backoff, ClientError, ControllerClient, ControllerLink, DESCRIPTOR_VALIDITY, Descriptor,
        Directory, DirectoryCache, JoinToken, SignedDescriptor, WIRE_VERSION,
    },
    keys::{Identity, OnionKey, OnionKeys, StateDir},
    model::{ExitPolicy, HttpPeer, Role, Suite},
    telemetry::{
        NodeState,
        control::{ControlServer, Refusal, RefusalKind},
        service_manager::{self, ready, stop_signal},
    },
    wire::share::Envelope,
};

/// How often the node says that it lives.
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// Posts to trackers that wait.
const MOST_POSTS: usize = 1_024;
/// How often onion keys are looked at.
const ROTATION_CHECK: Duration = Duration::from_secs(60);

/// Runs a node until it is told to stop.
///
/// # Errors
/// Why it could not start, or had to end.
pub fn run_node(config: &NodeConfig, link: &ControllerLink, name: &str) -> Result<(), NodeError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(NodeError::Thread)?;
    runtime.block_on(run(config, link, name))
}

/// Runs a node until it is told to stop.
async fn run(config: &NodeConfig, link: &ControllerLink, name: &str) -> Result<(), NodeError> {
    let mut rng = StdRng::from_rng(&mut rand::rng());
    let now = Timestamp::now();
    let stopped = stop_signal();
    let dir = StateDir::open(&config.state)?;
    let control = ControlServer::bind(NodeConfig::ROLE, &config.state)?;
    let identity = Arc::new(dir.identity("identity.pem")?);
    let onion = OnionKeys::open(&dir, now, &mut rng)?;
    let cache = DirectoryCache::open(&dir, link, now)?;
    let socket = UdpSocket::bind(config.listen)?;
    let own: Vec<IpAddr> = route::addresses()?.into_iter().map(|(_, address)| address).collect();
    let policy = exit_setup::policy(config, &own);
    let listener = door::bind(config.listen).await.map_err(NodeError::Door)?;
    let (posts, post_queue) = mpsc::channel(MOST_POSTS);
    let (http, http_queue) = http_carrier::runs();
    let polls = Polls::default();
    let exit = if config.exit { Some(exit_setup::start(config, &dir, &policy)?) } else { None };
    let settings = RelaySettings {
        identity: Arc::clone(&identity),
        onion_keys: accepted(&onion, now)?,
        limits: limits(config),
        socket,
        exit,
        own_suite: suites(&config.suites)[0],
        posts,
        http,
    };
    let data =
        DataThread::start(|commands, reactor| Relay::new(settings, commands, reactor), Relay::run)?;
    let local = (!config.listen.ip().is_unspecified()).then_some(config.listen.ip());
    let client = ControllerClient::new(link, local)?;
    let contact = Contact::new(link);
    let (newest, directories) = watch::channel(cache.newest().cloned());
    let since = Some(onion.since());
    let (state, states) = watch::channel(State { onion_key_since: since, ..State::default() });
    let (rotate, rotations) = mpsc::channel(1);

    let mut tasks = JoinSet::new();
    tasks.spawn(post_all(post_queue, directories.clone(), None));
    tasks.spawn(carry(http_queue, directories.clone(), polls.clone(), None));
    let doorman = Doorman { data: data.handle.clone(), directories: directories.clone(), polls };
    tasks.spawn(door::serve(listener, doorman));
    tasks.spawn(follow_directory(client.clone(), contact.clone(), cache, newest));
    tasks.spawn(pass_directories(
        directories.clone(),
        data.handle.clone(),
        RelayCommand::Directory,
    ));
    let status = StatusSource {
        config: config.clone(),
        name: name.to_owned(),
        id: identity.id().to_string(),
        started: Instant::now(),
        states,
        directories,
        contact: contact.clone(),
        data: data.handle.clone(),
        rotate,
    };
    let source = status.clone();
    let page = move || {
        let source = source.clone();
        async move { relay_status::of(&source).await.ok().and_then(metrics::node_page) }
    };
    metrics::start(&mut tasks, config.metrics, page).await?;
    tasks.spawn(relay_status::tell_drops(data.handle.clone()));
    tasks.spawn(control.serve(move |request| relay_status::answer(status.clone(), request)));
    let registration = Registration {
        config: config.clone(),
        name: name.to_owned(),
        identity,
        onion,
        policy,
        client,
        contact,
        state: state.clone(),
        data: data.handle.clone(),
        rotations,
    };
    service_manager::status("asking the controller to list it");
    ready();
    let end = tokio::select! {
        ended = data.ended => ended.unwrap_or(Err(NodeError::DataPath)),
        Err(error) = registration.keep() => Err(error),
        () = stopped => Ok(()),
    };
    state.send_modify(|state| state.node = NodeState::Stopping);
    // A data path that ended by itself no longer listens.
    let _ = data.handle.send(RelayCommand::Stop);
    data.thread.join().map_err(|_| NodeError::DataPath)?;
    end
}

/// Answers the HTTP door for the data path.
#[derive(Clone)]
struct Doorman {
    data: Handle<RelayCommand>,
    directories: watch::Receiver<Option<Arc<Directory>>>,
    polls: Polls,
}

impl Doorman {
    /// The stand-in of a sender of cells: itself if it polls, else the member at its address.
    fn sender(&self, from: SocketAddr, polls: bool, envelope: &Envelope) -> Option<SocketAddr> {
        let Envelope::Bytes { cid, .. } = envelope else { return None };
        if polls {
            return self.polls.admit(*cid).then(|| HttpPeer::poller(*cid).addr());
        }
        let directory = self.directories.borrow();
        let ip = from.ip().to_canonical();
        let mut members = directory.as_ref()?.nodes().iter();
        let member = members.find(|member| member.is_relay() && member.addr().ip() == ip)?;
        Some(HttpPeer::member(&member.id).addr())
    }
}

impl Doorkeeper for Doorman {
    async fn answer(&self, from: SocketAddr, polls: bool, envelope: Envelope) -> DoorAnswer {
        if let Envelope::Bytes { cid, payload } = &envelope
            && polls
            && payload.is_empty()
        {
            return match self.polls.poll(*cid).await {
                Some(cells) => DoorAnswer::Ok(Envelope::emit_bytes(*cid, &cells)),
                None => DoorAnswer::Refused(
                    StatusCode::NOT_FOUND,
                    "unknown-cid",
                    "expected the CID of a circuit that has sent cells here, got an unknown one"
                        .to_owned(),
                ),
            };
        }
        let from = self.sender(from, polls, &envelope);
        let (reply, answer) = oneshot::channel();
        let busy =
            |detail: String| DoorAnswer::Refused(StatusCode::SERVICE_UNAVAILABLE, "busy", detail);
        if let Err(refusal) =
            self.data.send(RelayCommand::Door(DoorMessage { from, envelope, reply }))
        {
            return busy(refusal.message);
        }
        match answer.await {
            Ok(Ok(())) => DoorAnswer::Ok(Vec::new()),
            Ok(Err(error @ DoorRefusal::NoCells)) => {
                DoorAnswer::Refused(StatusCode::NOT_FOUND, "unknown-cid", error.to_string())
            }
            Ok(Err(error @ DoorRefusal::Order(_))) => {
                DoorAnswer::Refused(StatusCode::FORBIDDEN, "order-refused", error.to_string())
            }
            Err(_) => busy("the node is ending".to_owned()),
        }
    }
}

/// Keeps the node listed.
struct Registration {
    config: NodeConfig,
    name: String,
    identity: Arc<Identity>,
    onion: OnionKeys,
    policy: ExitPolicy,
    client: ControllerClient,
    contact: Contact,
    state: watch::Sender<State>,
    data: Handle<RelayCommand>,
    rotations: mpsc::Receiver<Rotated>,
}

impl Registration {
    /// Registers and renews for ever; comes back only when the node is not admitted at its start.
    async fn keep(mut self) -> Result<(), NodeError> {
        let mut rng = StdRng::from_rng(&mut rand::rng());
        let mut backoff = Backoff::default();
        let mut admitted = false;
        let mut next_rotation = Instant::now() + ROTATION_CHECK;
        self.state.send_modify(|state| state.node = NodeState::Registering);
        loop {
            if Instant::now() >= next_rotation {
                next_rotation = Instant::now() + ROTATION_CHECK;
                self.rotate(&mut rng)?;
            }
            let pause = match self.renew(admitted).await {
                Ok(pause) => {
                    self.contact.answered();
                    admitted = true;
                    backoff.reset();
                    pause
                }
                Err(NodeError::Client(error @ ClientError::NotAdmitted { .. })) if !admitted => {
                    self.state.send_modify(|state| state.node = NodeState::NotAdmitted);
                    return Err(error.into());
                }
                Err(NodeError::Client(error)) => {
                    if matches!(error, ClientError::NotAdmitted { .. }) {
                        self.state.send_modify(|state| state.node = NodeState::NotAdmitted);
                    }
                    let pause = error.retry_after().unwrap_or_else(|| backoff.next_delay(&mut rng));
                    self.contact.failed(&error, pause);
                    pause
                }
                Err(error) => return Err(error),
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                Some(asked) = self.rotations.recv() => {
                    // The next renewal, which follows at once, carries the new key.
                    let result = self.rotate_now(&mut rng);
                    let refusal = |error: NodeError| {
                        Refusal::new(RefusalKind::Failed, error.to_string())
                    };
                    let _ = asked.send(result.map_err(refusal));
                }
            }
        }
    }

    /// One registration or renewal; returns when the next one is due. Each is signed anew: the
    /// same bytes again are no sign of life, for anyone could send them.
    async fn renew(&mut self, admitted: bool) -> Result<Duration, NodeError> {
        let ip = match self.config.address {
            Some(address) => address,
            None => self.client.whoami().await?,
        };
        let addr = SocketAddr::new(ip, self.config.listen.port());
        let descriptor = self.descriptor(addr, Timestamp::now());
        let descriptor = &SignedDescriptor::sign(&descriptor, &self.identity)?;
        let registered = match self.client.register(descriptor, None).await {
            Err(ClientError::NotAdmitted { .. }) if !admitted && self.config.join.is_some() => {
                let token =
                    self.config.join.as_ref().map(|join| join.reveal().parse::<JoinToken>());
                let token = token.transpose()?;
                self.client.register(descriptor, token.as_ref()).await
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

    fn descriptor(&self, addr: SocketAddr, now: Timestamp) -> Descriptor {
        let roles =
            if self.config.exit { vec![Role::Relay, Role::Exit] } else { vec![Role::Relay] };
        let onion = self.onion.current();
        Descriptor {
            name: self.name.clone(),
            addrs: vec![addr],
            spki: self.identity.spki_der().to_vec(),
            onion_key: *onion.public(),
            onion_key_id: onion.id(),
            roles,
            exit_policy: self.policy.clone(),
            suites: suites(&self.config.suites),
            operator: self.config.operator.clone(),
            order_key: None,
            wire_version: WIRE_VERSION,
            valid_after: now,
            valid_until: now + DESCRIPTOR_VALIDITY,
        }
    }

    fn rotate_now(&mut self, rng: &mut StdRng) -> Result<(), NodeError> {
        let now = Timestamp::now();
        self.onion.rotate(now, rng)?;
        self.state.send_modify(|state| state.onion_key_since = Some(now));
        log::info!(event = "onion_key"; "a new onion key is in use, because somebody asked for it");
        let _ = self.data.send(RelayCommand::OnionKeys(accepted(&self.onion, now)?));
        Ok(())
    }

    fn rotate(&mut self, rng: &mut StdRng) -> Result<(), NodeError> {
        let now = Timestamp::now();
        if self.onion.rotate_if_due(now, rng)? {
            self.state.send_modify(|state| state.onion_key_since = Some(now));
            log::info!(event = "onion_key"; "a new onion key is in use");
        }
        // The previous key's hour may also be over; a busy data path gets the keys next time.
        let _ = self.data.send(RelayCommand::OnionKeys(accepted(&self.onion, now)?));
        Ok(())
    }
}

fn limits(config: &NodeConfig) -> NodeLimits {
    NodeLimits {
        max_circuits: config.max_circuits as usize,
        idle: config.circuit_idle.into(),
        creates_per_second: config.create_rate,
        create_burst: config.create_rate.saturating_mul(2),
        ..NodeLimits::default()
    }
}

/// The suites of the settings, or what this CPU is good at first.
pub(super) fn suites(configured: &[Suite]) -> Vec<Suite> {
    if !configured.is_empty() {
        return configured.to_vec();
    }
    if has_aes() {
        vec![Suite::Aes128Gcm, Suite::ChaCha20Poly1305]
    } else {
        vec![Suite::ChaCha20Poly1305, Suite::Aes128Gcm]
    }
}

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
fn has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes")
}

#[cfg(target_arch = "aarch64")]
fn has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
}

#[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
fn has_aes() -> bool {
    false
}

fn accepted(onion: &OnionKeys, now: Timestamp) -> Result<Arc<Vec<OnionKey>>, NodeError> {
    let copies = onion.accepted(now).map(|key| OnionKey::from_secret(*key.secret()));
    Ok(Arc::new(copies.collect::<Result<_, _>>()?))
}
