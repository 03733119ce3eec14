//! Starts a peer's engine: socket, directory, circuits, the tracker's channel.
//!
//! In: settings. Out: a handle and the engine's events. Called by: `peer_run`.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use jiff::Timestamp;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::{ShareEvent, ShareNet, ShareSettings, ShareStatus, engine::Engine};
use crate::{
    capture::{CaptureError, udp::UdpSocket},
    circuit::{ClientTimers, PoolSettings},
    directory::{ControllerClient, DirectoryCache, Guard},
    keys::StateDir,
    model::Hop,
    node::{
        NodeError,
        client::{Client, ClientCommand, ClientSettings, PathWish, ShareData},
        contact::{Contact, follow_directory, pass_directories},
        crew::Workers,
        data_thread::DataThread,
        http_carrier::{self, LAST_WORDS, OnCells, Polls, carry},
        relay_service::{has_aes, suites},
    },
};

/// Notices of the data path that may wait.
const MOST_NOTICES: usize = 4_096;
/// Commands that may wait.
const MOST_COMMANDS: usize = 256;
/// Events that may wait for the peer.
const MOST_EVENTS: usize = 1_024;

impl ShareNet {
    /// Starts everything, on the tokio runtime of the caller.
    ///
    /// # Errors
    /// Why it could not start.
    pub async fn start(
        settings: ShareSettings,
    ) -> Result<(Self, mpsc::Receiver<ShareEvent>), NodeError> {
        let dir = StateDir::open(&settings.state)?;
        let cache = DirectoryCache::open(&dir, &settings.link, Timestamp::now())?;
        let guard = Guard::load(&dir)?.map(|guard| guard.id);
        let controller = ControllerClient::new(&settings.link, None)?;
        let contact = Contact::new(&settings.link);
        let (http, http_queue) = http_carrier::runs();
        let (notices, notice_queue) = mpsc::channel(MOST_NOTICES);
        let client = ClientSettings {
            socket: bind(settings.listen)?,
            device: None,
            stack: None,
            wish: PathWish {
                hops: if settings.path.is_empty() {
                    settings.hops.into()
                } else {
                    settings.path.len()
                },
                lab: settings.lab,
                fixed: settings.path.clone(),
                suite: settings.suites.first().copied(),
                carrier: settings.carrier,
            },
            timers: ClientTimers::default(),
            pool: PoolSettings { rotate_every: settings.rotate_every, ..PoolSettings::default() },
            own_suite: suites(&settings.suites)[0],
            workers: Workers::count(settings.workers, has_aes()),
            guard,
            http: Some(http),
            on_guard: Box::new(move |hop| keep_guard(&dir, hop)),
        };
        let data = DataThread::start(
            |commands, reactor| {
                let share = ShareData::new(notices, reactor.waker());
                Ok(Client::new(client, commands, reactor)?.with_share(share))
            },
            Client::run,
        )?;
        let (newest, directories) = watch::channel(cache.newest().cloned());
        let mut tasks = JoinSet::new();
        tasks.spawn(follow_directory(controller, contact.clone(), cache, newest));
        tasks.spawn(pass_directories(
            directories.clone(),
            data.handle.clone(),
            ClientCommand::Directory,
        ));
        let cells_to = data.handle.clone();
        let on_cells: OnCells = Arc::new(move |from, cells| {
            // A data path that is too busy loses cells, as a full socket would.
            let _ = cells_to.send(ClientCommand::Cells(from, cells));
        });
        let carrying =
            tokio::spawn(carry(http_queue, directories.clone(), Polls::default(), Some(on_cells)));
        let (commands, command_queue) = mpsc::channel(MOST_COMMANDS);
        let (events, event_queue) = mpsc::channel(MOST_EVENTS);
        let (status, statuses) = watch::channel(ShareStatus::default());
        let (ended, is_ended) = watch::channel(());
        let net = Self { commands, status: statuses, data: data.handle.clone(), is_ended };
        let engine = Engine::new(
            settings.tracker,
            directories,
            contact,
            data.handle.clone(),
            events,
            status,
        );
        tokio::spawn(async move {
            tokio::select! {
                () = engine.run(command_queue, notice_queue) => {}
                ended = data.ended => {
                    if let Ok(Err(error)) = ended {
                        log::error!(event = "data_path"; "the data path ended: {error}");
                    }
                }
            }
            // A data path that ended by itself no longer listens.
            let _ = data.handle.send(ClientCommand::Stop);
            let _ = tokio::task::spawn_blocking(|| data.thread.join()).await;
            let _ = tokio::time::timeout(LAST_WORDS, carrying).await;
            drop((tasks, ended));
        });
        Ok((net, event_queue))
    }
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
