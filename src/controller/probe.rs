//! Whether a node's UDP port can be reached: asks it, up to three times.
//!
//! In: a node and its address. Out: yes or no. Called by: the app, for nodes that are not listed.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use rand::Rng;
use tokio::{
    net::UdpSocket,
    sync::{Semaphore, oneshot},
};

use super::metrics::{Metrics, count};
use crate::{
    directory::sign_probe,
    keys::Identity,
    model::{CELL_LEN, NodeId},
    wire::ProbeAnswer,
};

/// How long each attempt waits for its answer.
const PATIENCE: [Duration; 3] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];
/// Probes that are out at once.
const AT_ONCE: usize = 32;

struct Waiting {
    node: NodeId,
    addr: SocketAddr,
    answered: oneshot::Sender<()>,
}

/// Asks nodes over UDP.
pub(crate) struct Prober {
    v4: Option<Arc<UdpSocket>>,
    v6: Option<Arc<UdpSocket>>,
    waiting: Arc<Mutex<HashMap<[u8; 32], Waiting>>>,
    places: Semaphore,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Prober {
    /// Asks from the address that the controller listens on, and from any of the other family.
    pub(crate) async fn bind(listen: IpAddr) -> Self {
        let own = |any: IpAddr| if listen.is_ipv4() == any.is_ipv4() { listen } else { any };
        let open = |ip: IpAddr| async move {
            match UdpSocket::bind((ip, 0)).await {
                Ok(socket) => Some(Arc::new(socket)),
                Err(error) => {
                    log::info!(
                        "no probes over {}: {error}",
                        if ip.is_ipv4() { "IPv4" } else { "IPv6" }
                    );
                    None
                }
            }
        };
        Self {
            v4: open(own(Ipv4Addr::UNSPECIFIED.into())).await,
            v6: open(own(Ipv6Addr::UNSPECIFIED.into())).await,
            waiting: Arc::default(),
            places: Semaphore::new(AT_ONCE),
        }
    }

    /// Takes answers, until this future is dropped.
    pub(crate) async fn receive(&self) {
        tokio::join!(self.receive_from(self.v4.as_ref()), self.receive_from(self.v6.as_ref()));
    }

    async fn receive_from(&self, socket: Option<&Arc<UdpSocket>>) {
        let Some(socket) = socket else { return };
        // One byte more, so that longer datagrams are seen as such.
        let mut buffer = [0; CELL_LEN + 1];
        loop {
            match socket.recv_from(&mut buffer).await {
                Ok((len, from)) => self.handle_answer(&buffer[..len], from),
                // An ICMP error about an earlier probe; the next receive goes on.
                Err(error) => {
                    log::debug!("probe answers: {error}");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }

    fn handle_answer(&self, datagram: &[u8], from: SocketAddr) {
        let Ok(answer) = ProbeAnswer::parse(datagram) else { return };
        let mut waiting = lock(&self.waiting);
        let fits = waiting.get(&answer.nonce).is_some_and(|waiting| {
            waiting.node == answer.node
                && waiting.addr.ip() == from.ip().to_canonical()
                && waiting.addr.port() == from.port()
        });
        if fits && let Some(waiting) = waiting.remove(&answer.nonce) {
            // Whoever asked may have given up at this very moment.
            let _ = waiting.answered.send(());
        }
    }

    /// Whether `node` answers at `addr`.
    pub(crate) async fn probe(
        &self,
        identity: Arc<Identity>,
        node: NodeId,
        addr: SocketAddr,
        metrics: &Metrics,
    ) -> bool {
        let socket = if addr.is_ipv4() { &self.v4 } else { &self.v6 };
        let Some(socket) = socket else { return false };
        let Ok(_place) = self.places.acquire().await else { return false };
        for patience in PATIENCE {
            let mut nonce = [0; 32];
            rand::rng().fill_bytes(&mut nonce);
            let signer = Arc::clone(&identity);
            let signed = tokio::task::spawn_blocking(move || {
                sign_probe(&signer, node, nonce, Timestamp::now())
            });
            let probe = match signed.await {
                Ok(Ok(probe)) => probe,
                Ok(Err(error)) => {
                    log::error!(event = "probe"; "a probe was not sent: {error}");
                    return false;
                }
                Err(_) => return false,
            };
            let mut cell = [0; CELL_LEN];
            probe.emit(&mut cell, &mut rand::rng());
            let (answered, answer) = oneshot::channel();
            lock(&self.waiting).insert(nonce, Waiting { node, addr, answered });
            count(&metrics.probes_sent);
            if let Err(error) = socket.send_to(&cell, addr).await {
                log::debug!("a probe was not sent: {error}");
            }
            let in_time = tokio::time::timeout(patience, answer).await;
            lock(&self.waiting).remove(&nonce);
            if matches!(in_time, Ok(Ok(()))) {
                count(&metrics.probes_answered);
                return true;
            }
        }
        false
    }
}
