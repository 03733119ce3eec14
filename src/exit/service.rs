//! The thread of an exit's engine, and the data path's way to it.
//!
//! In: packets of circuits, addresses of circuits that ended. Out: packets for circuits.
//! Called by: the node's data path.

use std::{net::IpAddr, sync::Arc, thread};

use tokio::{
    sync::{mpsc, oneshot},
    task::LocalSet,
};

use super::{Engine, EngineSettings, ExitError};
use crate::{
    model::PacketBatch,
    stack::{DataSide, GroupedPackets, lanes},
};

/// Circuits that may end before the engine looks.
const MOST_ENDED: usize = 1024;

/// A running engine; it ends when this is dropped.
pub struct Service {
    lane: DataSide,
    ended: mpsc::Sender<IpAddr>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Service {
    /// Starts the engine on a thread of its own.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn start(settings: EngineSettings) -> Result<Self, ExitError> {
        let (lane, side) = lanes();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ExitError::Start)?;
        let (ended, circuits) = mpsc::channel(MOST_ENDED);
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("exit".to_owned())
            .spawn(move || {
                LocalSet::new().block_on(&runtime, async {
                    tokio::select! {
                        () = Engine::run(settings, side, circuits) => {}
                        // Ends with the sender, too.
                        _ = stopped => {}
                    }
                });
            })
            .map_err(ExitError::Start)?;
        Ok(Self { lane, ended, stop: Some(stop), thread: Some(thread) })
    }

    /// Names the waker that interrupts the data path's sleep.
    pub fn set_waker(&self, waker: Arc<mio::Waker>) {
        self.lane.set_waker(waker);
    }

    /// Gives packets to the engine and says how many it took.
    pub fn give(&self, batch: &PacketBatch) -> usize {
        self.lane.give(batch)
    }

    /// Takes the engine's packets; `into` must be empty.
    pub fn take(&self, into: &mut GroupedPackets) {
        self.lane.take(into);
    }

    /// A circuit with this address ended: so do its connections. Says whether the engine heard it;
    /// if not, ask again later.
    pub fn forget(&self, address: IpAddr) -> bool {
        self.ended.try_send(address).is_ok()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was already told.
            let _ = thread.join();
        }
    }
}
