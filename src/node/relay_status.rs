//! What a node answers about itself: its status, its metrics' source, its drops in the log.
//!
//! In: snapshots of the data path, the state of the registration. Out: a status, log records.
//! Called by: the node's service.

use std::{sync::Arc, time::Instant};

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};

use super::{
    contact::{Contact, directory_status},
    data_thread::Handle,
    drop_log::{self, DropLog},
    registration::{Rotated, Standing, rotate_keys},
    relay::RelayCommand,
};
use crate::{
    circuit::NodeLimits,
    config::{NodeConfig, Settings},
    directory::Directory,
    keys::ONION_KEY_LIFE,
    telemetry::{
        NodeStatus, Status,
        control::{Refusal, RefusalKind, Request, command},
    },
};

/// Everything a status is made of.
#[derive(Clone)]
pub(super) struct StatusSource {
    pub(super) config: NodeConfig,
    pub(super) name: String,
    pub(super) id: String,
    pub(super) started: Instant,
    pub(super) standings: watch::Receiver<Standing>,
    pub(super) directories: watch::Receiver<Option<Arc<Directory>>>,
    pub(super) contact: Contact,
    pub(super) data: Handle<RelayCommand>,
    pub(super) rotate: mpsc::Sender<Rotated>,
}

/// Answers a request of the control socket.
pub(super) async fn answer(
    source: StatusSource,
    request: Request,
) -> Result<serde_json::Value, Refusal> {
    if request.command == command::KEYS_ROTATE {
        rotate_keys(&source.rotate).await?;
        return Ok(serde_json::Value::Null);
    }
    if request.command != command::STATUS {
        return Err(request.unknown(NodeConfig::ROLE));
    }
    serde_json::to_value(Status::Node(of(&source).await?))
        .map_err(|error| Refusal::new(RefusalKind::Failed, error.to_string()))
}

/// How the node stands.
pub(super) async fn of(source: &StatusSource) -> Result<NodeStatus, Refusal> {
    let data = source.data.ask(RelayCommand::Snapshot).await?;
    let standing = *source.standings.borrow();
    let directory = source.directories.borrow().clone();
    let controller = source.contact.status();
    let door = format!("UDP port {}", source.config.listen.port());
    let next_step = standing.next_step(controller.reachable, &door);
    let onion_key = standing.onion_key_since.map_or(0, |since| {
        let left = (since + ONION_KEY_LIFE).duration_since(Timestamp::now()).as_secs();
        u64::try_from(left).unwrap_or(0)
    });
    Ok(NodeStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        name: source.name.clone(),
        id: source.id.clone(),
        state: standing.state,
        listen: source.config.listen.to_string(),
        public_address: standing.public_address.map(|address| address.to_string()),
        lab: source.config.lab,
        uptime_s: source.started.elapsed().as_secs(),
        circuits: data.circuits,
        max_circuits: source.config.max_circuits as usize,
        creates_waiting: data.creates_waiting,
        max_creates_waiting: NodeLimits::default().max_handshakes,
        refused: data.refused,
        onion_key_expires_in_s: onion_key,
        exit: data.exit,
        controller,
        directory: directory_status(directory.as_deref()),
        traffic: data.traffic,
        drops: data.drops,
        next_step,
    })
}

/// Tells the log what is dropped, for as long as the data path lives.
pub(super) async fn tell_drops(data: Handle<RelayCommand>) {
    let mut log = DropLog::default();
    let mut refused = 0;
    while let Ok(snapshot) = data.ask(RelayCommand::Snapshot).await {
        log.tell(&snapshot.drops);
        if snapshot.refused > refused {
            log::warn!(
                event = "full", count = snapshot.refused - refused;
                "circuits were refused: the node holds as many as max_circuits allows"
            );
            refused = snapshot.refused;
        }
        drop_log::pause().await;
    }
}
