//! `cepa node`, running: keys, socket, exit, controller, control socket, until it is stopped.
//!
//! In: settings. Out: a node in the directory. Called by: cli.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
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
    crew::Workers,
    data_thread::{DataThread, Handle},
    door::{self, DoorAnswer, Doorkeeper},
    exit_setup,
    http_carrier::{self, LAST_WORDS, Polls, carry},
    metrics,
    poster::post_all,
    registration::{Listing, Registration, Standing, accepted},
    relay::{DoorMessage, DoorRefusal, Relay, RelayCommand, RelaySettings},
    relay_status::{self, StatusSource},
};
use crate::{
    capture::{route, udp::UdpSocket},
    circuit::NodeLimits,
    config::{NodeConfig, Settings},
    directory::{ControllerClient, ControllerLink, Directory, DirectoryCache},
    keys::{OnionKeys, StateDir},
    model::{HttpPeer, Role, Suite},
    telemetry::{
        NodeState,
        control::ControlServer,
        service_manager::{self, ready, stop_signal},
    },
    wire::share::Envelope,
};

/// Posts to trackers that wait.
const MOST_POSTS: usize = 1_024;

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
        workers: Workers::count(config.workers, has_aes()),
        posts,
        http,
    };
    let data =
        DataThread::start(|commands, reactor| Relay::new(settings, commands, reactor), Relay::run)?;
    let local = (!config.listen.ip().is_unspecified()).then_some(config.listen.ip());
    let client = ControllerClient::new(link, local)?;
    let contact = Contact::new(link);
    let (newest, directories) = watch::channel(cache.newest().cloned());
    let first = Standing { onion_key_since: Some(onion.since()), ..Standing::default() };
    let (standing, standings) = watch::channel(first);
    let (rotate, rotations) = mpsc::channel(1);

    let mut tasks = JoinSet::new();
    tasks.spawn(post_all(post_queue, directories.clone(), None));
    let carrying = tokio::spawn(carry(http_queue, directories.clone(), polls.clone(), None));
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
        standings,
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
    let keys_to = data.handle.clone();
    let roles = if config.exit { vec![Role::Relay, Role::Exit] } else { vec![Role::Relay] };
    let registration = Registration {
        listing: Listing {
            name: name.to_owned(),
            port: config.listen.port(),
            address: config.address,
            join: config.join.clone(),
            operator: config.operator.clone(),
            roles,
            exit_policy: policy,
            suites: suites(&config.suites),
            order_key: None,
        },
        identity,
        onion,
        client,
        contact,
        standing: standing.clone(),
        on_keys: move |keys| drop(keys_to.send(RelayCommand::OnionKeys(keys))),
        rotations,
    };
    service_manager::status("asking the controller to list it");
    ready();
    let end = tokio::select! {
        ended = data.ended => ended.unwrap_or(Err(NodeError::DataPath)),
        Err(error) = registration.keep() => Err(error),
        () = stopped => Ok(()),
    };
    standing.send_modify(|standing| standing.state = NodeState::Stopping);
    // A data path that ended by itself no longer listens.
    let _ = data.handle.send(RelayCommand::Stop);
    data.thread.join().map_err(|_| NodeError::DataPath)?;
    // Neighbours over HTTP are told, too, if they listen.
    let _ = tokio::time::timeout(LAST_WORDS, carrying).await;
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
pub(super) fn has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes")
}

#[cfg(target_arch = "aarch64")]
pub(super) fn has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
}

#[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
pub(super) fn has_aes() -> bool {
    false
}
