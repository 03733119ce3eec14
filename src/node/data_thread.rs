//! The thread of a data path, and the way to it.
//!
//! In: commands. Out: a running thread, its end. Called by: the services of nodes and clients.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
};

use tokio::sync::oneshot;

use super::{
    NodeError,
    reactor::{Reactor, Waker},
};
use crate::{
    keys::seed_randomness,
    telemetry::control::{Refusal, RefusalKind},
};

/// Commands that may wait for the data path.
const MOST_COMMANDS: usize = 64;

/// Sends commands to a data path and interrupts its sleep; cheap to clone.
pub(super) struct Handle<C> {
    commands: SyncSender<C>,
    waker: Arc<Waker>,
}

impl<C> Clone for Handle<C> {
    fn clone(&self) -> Self {
        Self { commands: self.commands.clone(), waker: Arc::clone(&self.waker) }
    }
}

impl<C> Handle<C> {
    /// Sends a command.
    ///
    /// # Errors
    /// When the data path has ended or is too busy to listen.
    pub(super) fn send(&self, command: C) -> Result<(), Refusal> {
        self.commands.try_send(command).map_err(|error| {
            let message = match error {
                TrySendError::Full(_) => "the daemon is busy; try again in a moment",
                TrySendError::Disconnected(_) => "the daemon is ending",
            };
            Refusal::new(RefusalKind::Failed, message)
        })?;
        // A waker fails only when its reactor is gone, and then so is who would answer.
        let _ = self.waker.wake();
        Ok(())
    }

    /// Sends a command that is answered.
    ///
    /// # Errors
    /// As [`Self::send`], and when the data path ends before it answers.
    pub(super) async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> C,
    ) -> Result<T, Refusal> {
        let (sender, answer) = oneshot::channel();
        self.send(command(sender))?;
        answer
            .await
            .map_err(|_| Refusal::new(RefusalKind::Failed, "the daemon ended before it answered"))
    }
}

/// A running data path. Its end, for whatever reason, is told once.
pub(super) struct DataThread<C> {
    pub(super) handle: Handle<C>,
    pub(super) ended: oneshot::Receiver<Result<(), NodeError>>,
    pub(super) thread: thread::JoinHandle<()>,
}

impl<C: Send + 'static> DataThread<C> {
    /// Makes a data path with `make` and runs it on a thread of its own. Called on a runtime, which
    /// the watchdog then covers as well.
    ///
    /// # Errors
    /// What `make` says, or when the system refuses a thread.
    pub(super) fn start<D: Send + 'static>(
        make: impl FnOnce(Receiver<C>, Reactor) -> Result<D, NodeError>,
        run: impl FnOnce(D) -> Result<(), NodeError> + Send + 'static,
    ) -> Result<Self, NodeError> {
        let reactor = Reactor::new().map_err(NodeError::Wait)?;
        let waker = reactor.waker();
        if let Some(pulse) = reactor.pulse() {
            tokio::spawn(pulse.keep());
        }
        let (commands, queue) = sync_channel(MOST_COMMANDS);
        let data = make(queue, reactor)?;
        let (tell, ended) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("data".to_owned())
            .spawn(move || {
                seed_randomness();
                // Nobody listens any more when the service ends first.
                let _ = tell.send(run(data));
            })
            .map_err(NodeError::Thread)?;
        Ok(Self { handle: Handle { commands, waker }, ended, thread })
    }
}
