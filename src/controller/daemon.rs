//! The running controller: its start, its tasks, its end.
//!
//! In: settings. Out: a served address until it is told to stop. Called by: cli, tests, rig.

use std::{io::ErrorKind, net::SocketAddr, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::net::TcpListener;

use super::{
    ControllerError, admin,
    app::App,
    keyring::{self, Keyring},
    probe::Prober,
    publish::{keep_published, publish},
    router, server,
    settings::Settings,
    sqlite::{Database, SqliteStore},
    store::{Remembered, Store},
};
use crate::{
    config::Admission,
    directory::{ControllerLink, DirectoryError, SignedDirectory},
    keys::StateDir,
    model::NodeId,
    telemetry::{
        ControllerStatus, DirectoryStatus, Status,
        control::{ControlServer, Refusal, Request, command},
        service_manager::feed_watchdog,
    },
};

/// How often changes by commands are looked for.
const WATCH_EVERY: Duration = Duration::from_millis(500);
/// The longest life of a directory: descriptors live a day longer.
const MAX_VALID_FOR: Duration = Duration::from_secs(6 * 24 * 3600);

/// Runs the controller until `stop`.
///
/// # Errors
/// Why it cannot start. Once it runs, trouble is logged and retried.
pub async fn run(
    settings: Settings,
    stop: impl Future<Output = ()>,
) -> Result<(), ControllerError> {
    Controller::start(settings).await?.serve(stop).await;
    Ok(())
}

/// A controller that listens, and answers once it is served.
pub struct Controller {
    app: Arc<App>,
    listener: TcpListener,
    metrics: Option<TcpListener>,
    control: ControlServer,
    link: ControllerLink,
    version: u64,
}

impl Controller {
    /// Takes the state directory, opens the database, loads or makes the key, and listens.
    ///
    /// # Errors
    /// Why it cannot start.
    pub async fn start(settings: Settings) -> Result<Self, ControllerError> {
        if settings.valid_for > MAX_VALID_FOR {
            return Err(ControllerError::Setting {
                setting: "valid_for",
                expected: "to be at most 6d, so that no descriptor ends before its directory",
                got: format!(
                    "{:#}",
                    SignedDuration::try_from(settings.valid_for).unwrap_or_default()
                ),
            });
        }
        let control = ControlServer::bind("controller", &settings.state)?;
        let dir = StateDir::open(&settings.state)?;
        let opened = tokio::task::spawn_blocking({
            let dir = dir.clone();
            move || {
                let mut database = Database::open(&dir)?;
                let identity = keyring::current(&dir, &mut database)?;
                Ok::<_, ControllerError>((SqliteStore::start(database)?, Arc::new(identity)))
            }
        });
        let (store, identity) = opened.await.map_err(|error| ControllerError::Io {
            action: "open the state",
            cause: std::io::Error::other(error),
        })??;
        let listener = listen(settings.listen).await?;
        let metrics = match settings.metrics {
            Some(addr) => Some(listen(addr).await?),
            None => None,
        };
        let addr = listener
            .local_addr()
            .map_err(|cause| ControllerError::Io { action: "read the listening address", cause })?;
        let link = admin::link_to(settings.public.as_deref(), addr, identity.id())?;
        store.set_authority(link.authority()).await?;
        let prober = Prober::bind(settings.listen.ip()).await;
        let remembered = store.load().await?;
        let keyring = Keyring { identity, changes: remembered.key_changes.clone() };
        let app = App::new(settings, dir, Box::new(store), keyring, prober, addr);
        let version = restore(&app, remembered);
        let app = Arc::new(app);
        let now = app.now();
        let version = publish(&app, super::publish::next_version(version, now.wall), now).await?;
        Ok(Self { app, listener, metrics, control, link, version })
    }

    /// Where it answers.
    pub fn addr(&self) -> SocketAddr {
        self.app.addr
    }

    /// What nodes and clients are given.
    pub const fn link(&self) -> &ControllerLink {
        &self.link
    }

    /// Answers until `stop`, and writes down who was seen last.
    pub async fn serve(self, stop: impl Future<Output = ()>) {
        let Self { app, listener, metrics, control, link, version } = self;
        log::info!(event = "started"; "the controller answers");
        log::debug!("its address is {}", link.authority());
        if app.settings.admission == Admission::Open {
            log::warn!(event = "admission"; "anyone may register a node here: admission is open");
        }
        let main = server::serve(Arc::clone(&app), listener, router::routes(&app));
        let side = async {
            if let Some(listener) = metrics {
                server::serve(Arc::clone(&app), listener, router::metrics_only(&app)).await;
            }
        };
        let answer = {
            let app = Arc::clone(&app);
            move |request: Request| {
                let app = Arc::clone(&app);
                async move { answer_command(&app, &request) }
            }
        };
        let background = async {
            tokio::join!(
                app.prober.receive(),
                keep_published(&app, version),
                watch_for_commands(&app),
                remember_seen(&app),
                control.serve(answer),
                feed_watchdog(),
            )
        };
        // The front ends by itself once everyone knows of the stop.
        let told = async {
            stop.await;
            app.stopping.send_replace(true);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = async { tokio::join!(main, side) } => {}
            _ = background => {}
            () = told => {}
        }
        let records = app.registry().records();
        if let Err(error) = app.store.update(records).await {
            log::warn!(event = "store"; "who was seen last was not written down: {error}");
        }
        if let Err(error) = app.store.close().await {
            log::warn!(event = "store"; "the database was not closed: {error}");
        }
        log::info!(event = "stopped"; "the controller stopped");
    }
}

async fn listen(addr: SocketAddr) -> Result<TcpListener, ControllerError> {
    TcpListener::bind(addr).await.map_err(|cause| {
        let hint = match cause.kind() {
            ErrorKind::AddrInUse => {
                "another program has this port (ss -ltnp shows it); stop it, or choose another \
                 with --listen"
            }
            ErrorKind::AddrNotAvailable => {
                "this machine has no such address (ip address shows them); choose one with --listen"
            }
            ErrorKind::PermissionDenied => {
                "ports below 1024 need a privilege; choose another with --listen"
            }
            _ => "choose another address with --listen",
        };
        ControllerError::Listen { addr, cause, hint }
    })
}

/// Takes over what is remembered. Returns the version of the last directory.
fn restore(app: &App, remembered: Remembered) -> u64 {
    let Remembered { nodes, directory, .. } = remembered;
    let mut registry = app.registry();
    registry.load(nodes);
    let Some((version, signed)) = directory else { return 0 };
    match listed_in(&signed) {
        Ok(ids) => registry.restore_listed(ids.into_iter(), app.now()),
        Err(error) => log::warn!(event = "directory"; "the last directory cannot be read: {error}"),
    }
    version
}

/// The nodes of a directory that this controller signed and remembered itself.
fn listed_in(signed: &SignedDirectory) -> Result<Vec<NodeId>, DirectoryError> {
    let nodes = signed.remembered_nodes()?;
    nodes.iter().map(|node| Ok(node.verify()?.1.id())).collect()
}

/// Takes over changes that commands made in the database, until this future is dropped.
async fn watch_for_commands(app: &Arc<App>) {
    let mut seen = None;
    loop {
        match app.store.changes_by_others().await {
            Ok(number) if seen.is_some_and(|seen| seen != number) => match app.reload().await {
                Ok(()) => {
                    seen = Some(number);
                    app.changed.notify_one();
                }
                Err(error) => {
                    log::error!(event = "store"; "a change by command was not taken over: {error}")
                }
            },
            Ok(number) => seen = Some(number),
            Err(error) => log::error!(event = "store"; "the database cannot be read: {error}"),
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

/// Writes down who was seen, seldom, because memory cards wear out.
async fn remember_seen(app: &Arc<App>) {
    loop {
        tokio::time::sleep(app.settings.sign_every.max(Duration::from_secs(60))).await;
        app.registry().forget_entries();
        let records = app.registry().records();
        if let Err(error) = app.store.update(records).await {
            log::warn!(event = "store"; "who was seen last was not written down: {error}");
        }
    }
}

fn answer_command(app: &App, request: &Request) -> Result<serde_json::Value, Refusal> {
    if request.command != command::STATUS {
        return Err(request.unknown("controller"));
    }
    let published = app.published.borrow().clone();
    let directory = published.map(|published| DirectoryStatus {
        version: published.version,
        nodes: published.nodes,
        exits: published.exits,
        expires_in_s: u64::try_from(
            published.valid_until.duration_since(Timestamp::now()).as_secs(),
        )
        .unwrap_or(0),
    });
    let registered = app.registry().len();
    let next_step = match app.settings.admission {
        _ if registered > 0 => None,
        Admission::Open => Some("start nodes with this controller's link: cepa controller link"),
        Admission::Token => Some("make a join token for the first node: cepa controller token new"),
    };
    let status = Status::Controller(ControllerStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        listen: app.addr.to_string(),
        admission: match app.settings.admission {
            Admission::Open => "open".to_owned(),
            Admission::Token => "token".to_owned(),
        },
        uptime_s: app.started.elapsed().as_secs(),
        directory: directory.unwrap_or_default(),
        registered,
        next_step: next_step.map(str::to_owned),
    });
    Ok(serde_json::to_value(status).unwrap_or_default())
}
