//! The RSA operations of CREATEs, on threads of their own.
//!
//! In: handshake jobs. Out: the same jobs with their results, and a wake-up. Called by: the node's
//! event loop.

use std::{
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use rand::{SeedableRng, rngs::StdRng};

use super::{NodeError, reactor::Waker};
use crate::{
    circuit::{HandshakeJob, NodeHandshake, respond},
    keys::{Identity, OnionKey, seed_randomness},
};

/// The onion keys a node accepts, the current one first.
pub(crate) type OnionKeys = Arc<Vec<OnionKey>>;

/// Threads that answer CREATEs. Jobs in flight are bounded by the circuits' own limit.
pub(super) struct Handshakes {
    jobs: Option<SyncSender<(HandshakeJob, OnionKeys)>>,
    done: Receiver<(HandshakeJob, Option<NodeHandshake>)>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Handshakes {
    /// Starts the threads: all cores but the one of the data path, at least one.
    pub(super) fn start(
        identity: &Arc<Identity>,
        most: usize,
        waker: &Arc<Waker>,
    ) -> Result<Self, NodeError> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let (jobs, queue) = sync_channel(most);
        let (results, done) = sync_channel(most);
        let queue = Arc::new(Mutex::new(queue));
        let threads = (0..cores.saturating_sub(1).max(1))
            .map(|number| {
                let work = Work {
                    identity: Arc::clone(identity),
                    queue: Arc::clone(&queue),
                    results: results.clone(),
                    waker: Arc::clone(waker),
                };
                thread::Builder::new()
                    .name(format!("handshake-{number}"))
                    .spawn(move || work.run())
                    .map_err(NodeError::Thread)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { jobs: Some(jobs), done, threads })
    }

    /// Queues a job; false when the queue is full.
    pub(super) fn push(&self, job: HandshakeJob, onion_keys: &OnionKeys) -> bool {
        self.jobs.as_ref().is_some_and(|jobs| jobs.try_send((job, Arc::clone(onion_keys))).is_ok())
    }

    /// A finished job, if there is one.
    pub(super) fn poll(&self) -> Option<(HandshakeJob, Option<NodeHandshake>)> {
        self.done.try_recv().ok()
    }
}

impl Drop for Handshakes {
    fn drop(&mut self) {
        self.jobs = None;
        // A thread blocked on a full result queue ends when the receiver is drained.
        while self.threads.iter().any(|thread| !thread.is_finished()) {
            while self.poll().is_some() {}
            thread::yield_now();
        }
    }
}

struct Work {
    identity: Arc<Identity>,
    queue: Arc<Mutex<Receiver<(HandshakeJob, OnionKeys)>>>,
    results: SyncSender<(HandshakeJob, Option<NodeHandshake>)>,
    waker: Arc<Waker>,
}

impl Work {
    fn run(self) {
        seed_randomness();
        let mut rng = StdRng::from_rng(&mut rand::rng());
        loop {
            let next = match self.queue.lock() {
                Ok(queue) => queue.recv(),
                Err(_) => return,
            };
            let Ok((job, onion_keys)) = next else { return };
            let key = onion_keys.iter().find(|key| key.id() == job.prefix.onion_key_id());
            let done = key.and_then(|key| {
                respond(&self.identity, key, &job.prefix, job.status, &mut rng)
                    .inspect_err(|error| log::debug!("a CREATE did not open: {error}"))
                    .ok()
            });
            if self.results.send((job, done)).is_err() || self.waker.wake().is_err() {
                return;
            }
        }
    }
}
