//! `cepa client`, running: socket, TUN, routes, controller, control socket, until it is stopped.
//!
//! In: settings. Out: packets of this machine through circuits. Called by: cli.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};

use super::{
    NodeError,
    client::{Client, ClientCommand, ClientSettings, PathWish},
    contact::{Contact, directory_status, follow_directory, pass_directories},
    crew::Workers,
    data_thread::{DataThread, Handle},
    drop_log::{self, DropLog},
    gateway,
    http_carrier::{self, LAST_WORDS, OnCells, Polls, carry},
    lock, metrics, phases, raw_gateway,
    relay_service::{has_aes, suites},
    routes::Routes,
};
use crate::{
    capture::{
        CaptureError, PacketDevice,
        tun::{Tun, TunOptions},
        udp::UdpSocket,
    },
    circuit::{ClientTimers, PoolSettings},
    client::{Proxies, ProxyError, ProxySettings},
    config::{ClientConfig, Settings},
    directory::{ControllerClient, ControllerLink, Directory, DirectoryCache, Guard},
    keys::StateDir,
    model::{CLIENT_INNER_V4, CLIENT_INNER_V6, Hop},
    stack::{DataSide, lanes},
    telemetry::{
        CircuitsStatus, ClientState, ClientStatus, Status,
        control::{
            BenchArgs, CloseArgs, ControlServer, PingArgs, Refusal, RefusalKind, Request,
            TraceArgs, command,
        },
        service_manager::{ready, stop_signal},
    },
};

/// How long flows outlive their way to the guard: an interface that goes down and up, a train in a
/// tunnel.
const HOLD_FOR: Duration = Duration::from_secs(60);

/// Runs a client until it is told to stop.
///
/// # Errors
/// Why it could not start, or had to end.
pub fn run_client(config: &ClientConfig, link: &ControllerLink) -> Result<(), NodeError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(NodeError::Thread)?;
    runtime.block_on(run(config, link))
}

async fn run(config: &ClientConfig, link: &ControllerLink) -> Result<(), NodeError> {
    let stopped = stop_signal();
    let dir = StateDir::open(&config.state)?;
    let control = ControlServer::bind(ClientConfig::ROLE, &config.state)?;
    let cache = DirectoryCache::open(&dir, link, Timestamp::now())?;
    let guard = Guard::load(&dir)?.map(|guard| guard.id);
    let client = ControllerClient::new(link, None)?;
    let contact = Contact::new(link);
    let addresses = [(CLIENT_INNER_V4.into(), 32), (CLIENT_INNER_V6.into(), 128)];
    let tun = config.tun_name().map(|name| Tun::create(&TunOptions::new(name, &addresses)));
    let tun = tun.transpose()?;
    let _inside = raw_gateway::start(config)?;
    let _gateway = gateway::start(config, &dir)?;
    let routes = match &tun {
        Some(tun) => Some(Routes::start(tun.name(), &config.route, link)?),
        None => None,
    };
    let (stack, proxies) = start_proxies(config)?;
    let (http, http_queue) = http_carrier::runs();
    let settings = ClientSettings {
        socket: bind(config.listen)?,
        device: tun.map(|tun| Box::new(tun) as Box<dyn PacketDevice>),
        stack,
        wish: PathWish {
            hops: if config.path.is_empty() { config.hops.into() } else { config.path.len() },
            lab: config.lab,
            fixed: config.path.clone(),
            suite: config.suites.first().copied(),
            carrier: config.carrier,
        },
        timers: ClientTimers { hold_for: HOLD_FOR, ..ClientTimers::default() },
        pool: PoolSettings { rotate_every: config.rotate_every.into(), ..PoolSettings::default() },
        own_suite: suites(&config.suites)[0],
        workers: Workers::count(config.workers, has_aes()),
        guard,
        http: Some(http),
        on_guard: Box::new(move |hop| keep_guard(&dir, hop)),
    };
    let data = DataThread::start(
        |commands, reactor| Client::new(settings, commands, reactor),
        Client::run,
    )?;

    let (newest, directories) = watch::channel(cache.newest().cloned());
    let mut tasks = JoinSet::new();
    let cells_to = data.handle.clone();
    let on_cells: OnCells = Arc::new(move |from, cells| {
        // A data path that is too busy loses cells, as a full socket would.
        let _ = cells_to.send(ClientCommand::Cells(from, cells));
    });
    let carrying =
        tokio::spawn(carry(http_queue, directories.clone(), Polls::default(), Some(on_cells)));
    tasks.spawn(follow_directory(client, contact.clone(), cache, newest));
    if let Some(routes) = routes {
        tasks.spawn(routes.follow(directories.clone()));
    }
    let (allow, allowed) = watch::channel(None);
    tasks.spawn(lock::follow(link.clone(), directories.clone(), allow));
    tasks.spawn(pass_directories(allowed, data.handle.clone(), ClientCommand::Directory));
    let stop = Arc::new(Notify::new());
    let status = StatusSource {
        stop: Arc::clone(&stop),
        config: config.clone(),
        started: Instant::now(),
        directories,
        contact,
        proxies,
        data: data.handle.clone(),
    };
    if config.metrics.is_some() {
        let builds = metrics::BuildTimes::default();
        tasks.spawn(metrics::follow(builds.clone(), data.handle.clone()));
        let source = status.clone();
        let page = move || {
            let (source, builds) = (source.clone(), builds.clone());
            async move { status_of(&source).await.ok().and_then(|status| builds.page(status)) }
        };
        metrics::start(&mut tasks, config.metrics, page).await?;
    }
    tasks.spawn(tell_drops(status.clone()));
    tasks.spawn(phases::tell(
        config.clone(),
        status.directories.clone(),
        status.contact.clone(),
        data.handle.clone(),
    ));
    tasks.spawn(control.serve(move |request| answer(status.clone(), request)));
    ready();
    let end = tokio::select! {
        ended = data.ended => ended.unwrap_or(Err(NodeError::DataPath)),
        () = stopped => Ok(()),
        () = stop.notified() => Ok(()),
    };
    // A data path that ended by itself no longer listens.
    let _ = data.handle.send(ClientCommand::Stop);
    data.thread.join().map_err(|_| NodeError::DataPath)?;
    // Neighbours over HTTP are told, too, if they listen.
    let _ = tokio::time::timeout(LAST_WORDS, carrying).await;
    end
}

/// The proxies of the settings, and the data path's way to them.
fn start_proxies(
    config: &ClientConfig,
) -> Result<(Option<DataSide>, Option<Arc<Proxies>>), ProxyError> {
    let settings = ProxySettings {
        socks: config.socks,
        http: config.http,
        dns: config.dns,
        connections: config.proxy_connections as usize,
        connections_per_source: config.proxy_connections_per_source as usize,
    };
    if !settings.any() {
        return Ok((None, None));
    }
    let (data, stack) = lanes();
    Ok((Some(data), Some(Arc::new(Proxies::start(&settings, stack)?))))
}

/// The socket of the settings; otherwise one for both families, or for IPv4 where IPv6 is off.
fn bind(listen: Option<SocketAddr>) -> Result<UdpSocket, CaptureError> {
    match listen {
        Some(addr) => UdpSocket::bind(addr),
        None => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0).into())
            .or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0).into())),
    }
}

fn keep_guard(dir: &StateDir, hop: &Hop) {
    if let Err(error) = Guard::new(hop.id, &hop.name, Timestamp::now()).save(dir) {
        log::warn!(event = "guard"; "the guard is not kept for the next start: {error}");
    }
}

/// Everything a status is made of.
#[derive(Clone)]
struct StatusSource {
    /// Told to end.
    stop: Arc<Notify>,
    config: ClientConfig,
    started: Instant,
    directories: watch::Receiver<Option<Arc<Directory>>>,
    contact: Contact,
    proxies: Option<Arc<Proxies>>,
    data: Handle<ClientCommand>,
}

async fn answer(source: StatusSource, request: Request) -> Result<serde_json::Value, Refusal> {
    let data = &source.data;
    match request.command.as_str() {
        command::STATUS => to_json(Status::Client(status_of(&source).await?)),
        command::CIRCUITS => {
            let circuits = data.ask(ClientCommand::Snapshot).await?.circuits;
            to_json(CircuitsStatus { circuits })
        }
        command::CIRCUIT_NEW => to_json(data.ask(ClientCommand::NewCircuit).await??),
        command::CIRCUIT_CLOSE => {
            let args: CloseArgs = request.parse_args()?;
            to_json(data.ask(|reply| ClientCommand::CloseCircuit(args.number, reply)).await??)
        }
        command::PING => {
            let args: PingArgs = request.parse_args()?;
            to_json(data.ask(|reply| ClientCommand::Ping(args, reply)).await??)
        }
        command::TRACE => {
            let args: TraceArgs = request.parse_args()?;
            to_json(data.ask(|reply| ClientCommand::Trace(args, reply)).await??)
        }
        command::STOP => {
            source.stop.notify_one();
            to_json(())
        }
        command::BENCH => {
            let args: BenchArgs = request.parse_args()?;
            to_json(data.ask(|reply| ClientCommand::Bench(args, reply)).await??)
        }
        _ => Err(request.unknown(ClientConfig::ROLE)),
    }
}

async fn status_of(source: &StatusSource) -> Result<ClientStatus, Refusal> {
    let data = source.data.ask(ClientCommand::Snapshot).await?;
    let config = &source.config;
    let directory = source.directories.borrow().clone();
    let controller = source.contact.status();
    let state = match (&directory, data.connected, data.circuits.is_empty()) {
        (_, true, _) => ClientState::Connected,
        (None, ..) => ClientState::Starting,
        (_, _, false) => ClientState::Building,
        (_, _, true) => ClientState::Blocked,
    };
    let next_step = match state {
        ClientState::Connected => None,
        _ if !controller.reachable => {
            Some("check the network and that the controller runs".to_owned())
        }
        ClientState::Blocked => Some("see which nodes are live: cepa nodes".to_owned()),
        _ => None,
    };
    // Without nft or the privilege to ask there is nothing to say.
    let lockdown = tokio::task::spawn_blocking(lock::status).await.ok().and_then(Result::ok);
    Ok(ClientStatus {
        lockdown,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        state,
        reason: data.reason,
        lab: config.lab,
        hops: if config.path.is_empty() { config.hops } else { config.path.len() as u8 },
        uptime_s: source.started.elapsed().as_secs(),
        tun: config.tun_name().unwrap_or_default().to_owned(),
        routes: config.route.iter().map(ToString::to_string).collect(),
        proxies: source.proxies.as_ref().map(|proxies| proxies.status()).unwrap_or_default(),
        circuits: data.circuits,
        controller,
        directory: directory_status(directory.as_deref()),
        traffic: data.traffic,
        drops: data.drops,
        next_step,
    })
}

/// Tells the log what is dropped, and what left in clear, for as long as the data path lives.
async fn tell_drops(source: StatusSource) {
    let mut log = DropLog::default();
    let mut leaked = None;
    while let Ok(status) = status_of(&source).await {
        log.tell(&status.drops);
        if let Some(lockdown) = &status.lockdown {
            let before = leaked.replace(lockdown.leaked_packets).unwrap_or_default();
            if lockdown.leaked_packets > before {
                log::warn!(
                    event = "leak", count = lockdown.leaked_packets - before;
                    "packets left in clear; see what is unlocked: cepa lockdown status"
                );
            }
        }
        drop_log::pause().await;
    }
}

fn to_json(value: impl serde::Serialize) -> Result<serde_json::Value, Refusal> {
    serde_json::to_value(value)
        .map_err(|error| Refusal::new(RefusalKind::Failed, error.to_string()))
}
