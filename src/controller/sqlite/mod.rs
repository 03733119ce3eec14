//! The store on SQLite: one thread owns the connection, everyone else asks it.
//!
//! In: requests through a bounded queue. Out: answers. Called by: the daemon, as a `Store`.

mod open;
mod records;
#[cfg(test)]
mod tests;

use std::sync::mpsc::{self, SyncSender, TrySendError};

use jiff::Timestamp;
use tokio::sync::oneshot;

pub(crate) use open::{DATABASE, Database};

use super::{
    ControllerError,
    store::{Admitted, Answer, NodeRecord, Remembered, Store, TokenRecord},
};
use crate::{
    directory::{DirectoryError, SignedDirectory, TokenId},
    model::NodeId,
};

/// Requests that wait for the thread at most; further ones are refused.
const QUEUE: usize = 256;

type Work = Box<dyn FnOnce(&mut Database) + Send>;

enum Job {
    Work(Work),
    Close(oneshot::Sender<()>),
}

/// The store on SQLite.
#[derive(Debug)]
pub(crate) struct SqliteStore {
    jobs: SyncSender<Job>,
}

impl SqliteStore {
    /// Starts the thread that owns the database; it ends with the store.
    pub(crate) fn start(mut database: Database) -> Result<Self, ControllerError> {
        let (jobs, queue) = mpsc::sync_channel::<Job>(QUEUE);
        std::thread::Builder::new()
            .name("cepa-store".to_owned())
            .spawn(move || {
                for job in queue {
                    match job {
                        Job::Work(work) => work(&mut database),
                        Job::Close(closed) => {
                            drop(database);
                            // Whoever asked may have gone away.
                            let _ = closed.send(());
                            return;
                        }
                    }
                }
            })
            .map_err(|cause| ControllerError::Io { action: "start a thread", cause })?;
        Ok(Self { jobs })
    }

    fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Database) -> Result<T, ControllerError> + Send + 'static,
    ) -> Answer<'_, T> {
        let (reply, answer) = oneshot::channel();
        let sent = self.send(Job::Work(Box::new(move |database| {
            // Whoever asked may have gone away.
            let _ = reply.send(work(database));
        })));
        Box::pin(async move {
            sent?;
            answer.await.unwrap_or(Err(ControllerError::Busy { state: "stopped thread" }))
        })
    }

    fn send(&self, job: Job) -> Result<(), ControllerError> {
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => ControllerError::Busy { state: "full queue" },
            TrySendError::Disconnected(_) => ControllerError::Busy { state: "stopped thread" },
        })
    }
}

impl Store for SqliteStore {
    fn load(&self) -> Answer<'_, Remembered> {
        self.ask(|database| database.load())
    }

    fn changes_by_others(&self) -> Answer<'_, i64> {
        self.ask(|database| database.data_version())
    }

    fn token(&self, id: TokenId) -> Answer<'_, Option<TokenRecord>> {
        self.ask(move |database| database.token(id))
    }

    fn admit(
        &self,
        node: NodeRecord,
        token: Option<TokenId>,
        now: Timestamp,
    ) -> Answer<'_, Admitted> {
        self.ask(move |database| database.admit(&node, token, now))
    }

    fn update(&self, nodes: Vec<NodeRecord>) -> Answer<'_, Option<NodeId>> {
        self.ask(move |database| database.update(&nodes))
    }

    fn publish(&self, version: u64, signed: SignedDirectory) -> Answer<'_, ()> {
        self.ask(move |database| {
            let json = serde_json::to_string(&signed).map_err(|error| {
                DirectoryError::Malformed { expected: "a directory", got: error.to_string() }
            })?;
            database.publish(version, &json)
        })
    }

    fn set_authority(&self, authority: String) -> Answer<'_, ()> {
        self.ask(move |database| database.set_authority(&authority))
    }

    fn close(&self) -> Answer<'_, ()> {
        let (closed, answer) = oneshot::channel();
        let sent = self.send(Job::Close(closed));
        Box::pin(async move {
            sent?;
            answer.await.map_err(|_| ControllerError::Busy { state: "stopped thread" })
        })
    }
}
