//! What all parts of the running controller share.
//!
//! In: settings, store, keys. Out: one value behind an `Arc`. Called by: every task and handler.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Instant,
};

use tokio::sync::{Notify, watch};

use super::{
    ControllerError,
    keyring::{self, Keyring},
    limit::Limiter,
    metrics::Metrics,
    probe::Prober,
    publish::Published,
    registry::{Moment, Registry},
    settings::Settings,
    store::{Remembered, Store},
};
use crate::{keys::StateDir, model::NodeId};

/// The address a request came from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// The running controller.
pub(crate) struct App {
    pub(crate) settings: Settings,
    pub(crate) store: Box<dyn Store>,
    pub(crate) metrics: Metrics,
    pub(crate) prober: Prober,
    /// Woken when the directory may have to change.
    pub(crate) changed: Notify,
    /// Woken when a node became reachable.
    pub(crate) reached: Notify,
    /// True from the moment the controller was told to stop.
    pub(crate) stopping: watch::Sender<bool>,
    /// The newest directory.
    pub(crate) published: watch::Sender<Option<Arc<Published>>>,
    pub(crate) started: Instant,
    pub(crate) addr: SocketAddr,
    dir: StateDir,
    registry: Mutex<Registry>,
    limiter: Mutex<Limiter>,
    keyring: RwLock<Arc<Keyring>>,
}

impl App {
    pub(crate) fn new(
        settings: Settings,
        dir: StateDir,
        store: Box<dyn Store>,
        keyring: Keyring,
        prober: Prober,
        addr: SocketAddr,
    ) -> Self {
        Self {
            metrics: Metrics::default(),
            prober,
            changed: Notify::new(),
            reached: Notify::new(),
            stopping: watch::Sender::new(false),
            published: watch::Sender::new(None),
            started: Instant::now(),
            addr,
            dir,
            registry: Mutex::new(Registry::new(settings.down_after)),
            limiter: Mutex::new(Limiter::new(&settings.limits)),
            keyring: RwLock::new(Arc::new(keyring)),
            store,
            settings,
        }
    }

    /// Who is known. Held for a look or a change, never while waiting.
    pub(crate) fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who may ask how much.
    pub(crate) fn limiter(&self) -> MutexGuard<'_, Limiter> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key that signs.
    pub(crate) fn keyring(&self) -> Arc<Keyring> {
        Arc::clone(&self.keyring.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The version of the newest directory; 0: none yet.
    pub(crate) fn version(&self) -> u64 {
        self.published.borrow().as_ref().map_or(0, |published| published.version)
    }

    /// Takes over what another process changed in the database.
    pub(crate) async fn reload(&self) -> Result<(), ControllerError> {
        let remembered = self.store.load().await?;
        self.take_key(&remembered)?;
        let mut registry = self.registry();
        let before = registry.len();
        registry.load(remembered.nodes);
        if registry.len() != before {
            log::info!(event = "nodes"; "nodes changed from {before} to {} by command", registry.len());
        }
        Ok(())
    }

    fn take_key(&self, remembered: &Remembered) -> Result<(), ControllerError> {
        let old = self.keyring().identity.id();
        if remembered.key == old {
            return Ok(());
        }
        let identity = Arc::new(keyring::load(&self.dir, remembered.key)?);
        let changes = remembered.key_changes.clone();
        *self.keyring.write().unwrap_or_else(PoisonError::into_inner) =
            Arc::new(Keyring { identity, changes });
        self.registry().forget_entries();
        log::info!(
            "the controller's key changed from {} to {}",
            old.short(),
            remembered.key.short()
        );
        Ok(())
    }

    /// Probes a node that is not known to be reachable, in the background.
    pub(crate) fn probe_if_needed(self: &Arc<Self>, id: NodeId) {
        let Some(addr) = self.registry().begin_probe(id) else { return };
        let app = Arc::clone(self);
        tokio::spawn(async move {
            let identity = Arc::clone(&app.keyring().identity);
            let answered = app.prober.probe(identity, id, addr, &app.metrics).await;
            if app.registry().end_probe(id, addr, answered) {
                app.reached.notify_waiters();
                app.changed.notify_one();
            } else if !answered {
                log::debug!("node {} did not answer at {addr}", id.short());
            }
        });
    }

    /// Waits until the controller is told to stop.
    pub(crate) async fn stopped(&self) {
        // A sender that is gone has stopped as well.
        let _ = self.stopping.subscribe().wait_for(|stopping| *stopping).await;
    }

    /// One instant on both clocks.
    pub(crate) fn now(&self) -> Moment {
        Moment::now()
    }
}
