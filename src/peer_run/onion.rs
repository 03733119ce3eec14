//! The onion network as the peer's network: circuits to the tracker, bridges through exits.
//!
//! In: settings of the node's share engine. Out: a [`Network`] and its events. Called by: cli.

use std::{
    io::{self, IoSliceMut},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use tokio::sync::mpsc;

use super::{
    network::{
        CatalogueEntry, FileRequest, Later, Listing, Network, NetworkError, NetworkEvent,
        OpenBridge, SessionId, Ticket,
    },
    quic::Datagrams,
};
use crate::{
    capture::BridgeSocket,
    node::{self, Bridge, NodeError, ShareError, ShareEvent, ShareNet, ShareSettings},
    peer::{transfer::Stage, view::CircuitView},
    telemetry::{CircuitInfo, CircuitState},
    wire::share::{BridgeEnd, FileId, ListedFile, MAX_AVOIDED, Session, Via},
};

/// How often circuits are looked at.
const LOOK: Duration = Duration::from_millis(300);
/// Events that may wait.
const EVENTS: usize = 1024;

/// What is told to the engine in order.
enum Order {
    Announce(Vec<Listing>),
    Accept(SessionId, [u8; 32], Vec<u8>),
    Refuse(SessionId),
    Rotate,
}

#[derive(Default)]
struct Seen {
    stage: Stage,
    circuits: Vec<CircuitView>,
}

/// The peer's handle on the onion network.
pub struct OnionNetwork {
    net: ShareNet,
    orders: mpsc::UnboundedSender<Order>,
    seen: Arc<Mutex<Seen>>,
}

impl Datagrams for BridgeSocket {
    fn try_send(&self, bytes: &[u8], segment: usize) -> io::Result<()> {
        Self::try_send(self, bytes, segment)
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_writable(self, cx)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        strides: &mut [(usize, usize)],
    ) -> Poll<io::Result<usize>> {
        Self::poll_recv(self, cx, bufs, strides)
    }
}

impl OnionNetwork {
    /// Starts circuits, on the caller's runtime.
    ///
    /// # Errors
    /// Why it could not start.
    pub async fn start(
        settings: ShareSettings,
    ) -> Result<(Arc<Self>, mpsc::Receiver<NetworkEvent>), NodeError> {
        let (net, mut told) = ShareNet::start(settings).await?;
        let (orders, mut ordered) = mpsc::unbounded_channel();
        let (events, received) = mpsc::channel(EVENTS);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let engine = net.clone();
        tokio::spawn(async move {
            while let Some(order) = ordered.recv().await {
                carry_out(&engine, order).await;
            }
        });
        tokio::spawn(async move {
            while let Some(event) = told.recv().await {
                let Some(event) = event_of(event) else { continue };
                if events.send(event).await.is_err() {
                    return;
                }
            }
        });
        let (looking, looked) = (net.clone(), Arc::downgrade(&seen));
        tokio::spawn(async move {
            loop {
                let circuits = looking.circuits().await;
                let Some(seen) = looked.upgrade() else { return };
                let stage = stage_of(&looking, &circuits);
                let circuits = circuits.into_iter().map(view_of).collect();
                *seen.lock().unwrap_or_else(PoisonError::into_inner) = Seen { stage, circuits };
                drop(seen);
                tokio::time::sleep(LOOK).await;
            }
        });
        Ok((Arc::new(Self { net, orders, seen }), received))
    }

    /// Ends circuits and bridges, and tells their nodes; over HTTP that may take a second.
    pub async fn end(&self) {
        self.net.stop();
        self.net.ended().await;
    }

    fn order(&self, order: Order) {
        // An engine that has ended needs no orders.
        let _ = self.orders.send(order);
    }
}

async fn carry_out(net: &ShareNet, order: Order) {
    match order {
        Order::Announce(files) => {
            let files = files
                .into_iter()
                .map(|file| ListedFile {
                    id: FileId(file.id),
                    name: file.name,
                    size: file.size,
                    key: file.key,
                })
                .collect();
            net.announce(files).await;
        }
        Order::Accept(session, key, note) => net.accept(Session(session), key, note).await,
        Order::Refuse(session) => net.refuse(Session(session)).await,
        Order::Rotate => {
            net.rotate().await;
        }
    }
}

fn stage_of(net: &ShareNet, circuits: &[CircuitInfo]) -> Stage {
    let status = net.status();
    if status.tracker {
        return Stage::Ready;
    }
    let is_open = circuits.iter().any(|circuit| circuit.state != CircuitState::Building);
    match circuits.iter().max_by_key(|circuit| circuit.built) {
        Some(building) if !is_open => Stage::BuildingHop {
            // A path is at most a few hops.
            hop: (building.built + 1).min(building.hops.len()) as u8,
            of: building.hops.len() as u8,
        },
        _ => Stage::TrackerUnreachable { why: status.reason },
    }
}

fn view_of(circuit: CircuitInfo) -> CircuitView {
    CircuitView {
        number: circuit.number,
        built: circuit.built,
        rtt_ms: circuit.hops.last().and_then(|hop| hop.rtt_ms),
        hops: circuit.hops.into_iter().map(|hop| hop.name).collect(),
        age_s: circuit.age_s,
        sessions: 0,
        is_active: circuit.state == CircuitState::Active,
    }
}

fn event_of(event: ShareEvent) -> Option<NetworkEvent> {
    Some(match event {
        ShareEvent::Asked { session, file, key, note } => {
            NetworkEvent::Asked { session: session.0, id: file.0, key, note }
        }
        ShareEvent::Opened(bridge) => NetworkEvent::Opened(opened(bridge)),
        ShareEvent::Closed { session, reason, .. } => NetworkEvent::Closed {
            session: session.0,
            is_exit_lost: matches!(reason, BridgeEnd::ExitLost | BridgeEnd::CircuitLost),
        },
        ShareEvent::CircuitChanged { .. } | ShareEvent::Tracker { .. } => return None,
    })
}

fn opened(bridge: Bridge) -> OpenBridge {
    let answer = bridge.ask.map(|ask| (Ticket(ask.into()), bridge.peer_key, bridge.note));
    OpenBridge {
        session: bridge.session.0,
        id: bridge.file.0,
        answer,
        circuit: bridge.circuit,
        datagrams: bridge.socket,
    }
}

fn error_of(error: ShareError) -> NetworkError {
    match error {
        ShareError::Refused(why) => NetworkError::Refused(why),
        other => NetworkError::Unreachable(other.to_string()),
    }
}

impl Network for OnionNetwork {
    fn announce(&self, files: Vec<Listing>) {
        self.order(Order::Announce(files));
    }

    fn catalogue(&self, filter: String) -> Later<Result<Vec<CatalogueEntry>, NetworkError>> {
        let net = self.net.clone();
        Box::pin(async move {
            let entries = net.catalogue(&filter).await.map_err(error_of)?;
            Ok(entries
                .into_iter()
                .map(|entry| CatalogueEntry {
                    id: entry.id.0,
                    name: entry.name,
                    size: entry.size,
                    key: entry.key,
                    sources: entry.sources,
                })
                .collect())
        })
    }

    fn request(&self, request: FileRequest) -> Later<Result<(Ticket, usize), NetworkError>> {
        let net = self.net.clone();
        Box::pin(async move {
            let request = node::FileRequest {
                file: FileId(request.id),
                key: request.key,
                sources: request.sources,
                avoid: request.avoid.into_iter().map(Session).take(MAX_AVOIDED).collect(),
                via: if request.via_code { Via::Code } else { Via::Bridge },
                note: request.note,
            };
            let ticket = net.request(request).await.map_err(error_of)?;
            if ticket.asked == 0 {
                return Err(NetworkError::NoSource);
            }
            Ok((Ticket(ticket.ask.into()), usize::from(ticket.asked)))
        })
    }

    fn accept(&self, session: SessionId, key: [u8; 32], note: Vec<u8>) {
        self.order(Order::Accept(session, key, note));
    }

    fn refuse(&self, session: SessionId) {
        self.order(Order::Refuse(session));
    }

    fn rotate(&self) {
        self.order(Order::Rotate);
    }

    fn stage(&self) -> Stage {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).stage.clone()
    }

    fn circuits(&self) -> Vec<CircuitView> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).circuits.clone()
    }
}
