//! A daemon's dealings with its controller: the directory, followed; how it went, remembered.
//!
//! In: the controller's link, a state directory. Out: newer directories, a contact report.
//! Called by: the services of nodes and clients.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rand::{SeedableRng, rngs::StdRng};
use tokio::sync::watch;

use super::data_thread::Handle;
use crate::{
    directory::{
        Backoff, ClientError, ControllerClient, ControllerLink, Directory, DirectoryCache,
    },
    telemetry::{ControllerContact, DirectoryStatus},
};

/// What is known of the controller, shared by the tasks that ask it.
#[derive(Clone)]
pub(super) struct Contact {
    report: Arc<Mutex<Report>>,
}

struct Report {
    address: String,
    reachable: bool,
    last_answer: Option<Instant>,
    last_error: Option<String>,
    retry_at: Option<Instant>,
}

impl Contact {
    pub(super) fn new(link: &ControllerLink) -> Self {
        let report = Report {
            address: link.authority(),
            reachable: false,
            last_answer: None,
            last_error: None,
            retry_at: None,
        };
        Self { report: Arc::new(Mutex::new(report)) }
    }

    /// The controller answered.
    pub(super) fn answered(&self) {
        let mut report = self.lock();
        if !report.reachable {
            log::info!(event = "controller"; "the controller answers");
        }
        report.reachable = true;
        report.last_answer = Some(Instant::now());
        report.last_error = None;
        report.retry_at = None;
    }

    /// A request failed, and is tried again after `pause`.
    pub(super) fn failed(&self, error: &ClientError, pause: Duration) {
        let text = error.to_string();
        let mut report = self.lock();
        if report.last_error.as_ref() != Some(&text) {
            log::warn!(event = "controller"; "{text}; trying again");
        }
        report.reachable = !matches!(error, ClientError::Unreachable { .. });
        report.last_error = Some(text);
        report.retry_at = Some(Instant::now() + pause);
    }

    /// The report, for status.
    pub(super) fn status(&self) -> ControllerContact {
        let (report, now) = (self.lock(), Instant::now());
        ControllerContact {
            address: report.address.clone(),
            reachable: report.reachable,
            last_answer_s: report.last_answer.map(|at| now.duration_since(at).as_secs()),
            last_error: report.last_error.clone(),
            retry_in_s: report.retry_at.map(|at| at.saturating_duration_since(now).as_secs()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Report> {
        // A report is written whole; a panic elsewhere leaves it readable.
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the directory fresh for as long as the returned future lives: each newer one is cached and
/// sent to `newest`. While the controller is away the cached one stays in use.
pub(super) async fn follow_directory(
    client: ControllerClient,
    contact: Contact,
    mut cache: DirectoryCache,
    newest: watch::Sender<Option<Arc<Directory>>>,
) {
    let mut rng = StdRng::from_rng(&mut rand::rng());
    let mut backoff = Backoff::default();
    // The first question is answered at once, so that status soon knows whether anybody is there.
    let mut may_wait = false;
    loop {
        let have = cache.version();
        let result = client.directory(have, may_wait && have.is_some()).await.and_then(|signed| {
            signed
                .map(|signed| cache.accept(signed, Timestamp::now()))
                .transpose()
                .map_err(Into::into)
        });
        match result {
            Ok(directory) => {
                contact.answered();
                backoff.reset();
                may_wait = true;
                if let Some(directory) = directory {
                    log::debug!("directory version {}", directory.version());
                    newest.send_replace(Some(directory));
                }
            }
            Err(error) => {
                let pause = error.retry_after().unwrap_or_else(|| backoff.next_delay(&mut rng));
                contact.failed(&error, pause);
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// Hands every newer directory to a data path, for as long as the returned future lives.
pub(super) async fn pass_directories<C: Send + 'static>(
    mut directories: watch::Receiver<Option<Arc<Directory>>>,
    data: Handle<C>,
    command: impl Fn(Arc<Directory>) -> C,
) {
    loop {
        let directory = directories.borrow_and_update().clone();
        if let Some(directory) = directory {
            while data.send(command(Arc::clone(&directory))).is_err() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        if directories.changed().await.is_err() {
            return;
        }
    }
}

/// The directory in use, for status.
pub(super) fn directory_status(directory: Option<&Directory>) -> DirectoryStatus {
    directory.map_or_else(DirectoryStatus::default, |directory| DirectoryStatus {
        version: directory.version(),
        nodes: directory.nodes().len(),
        exits: directory.nodes().iter().filter(|member| member.is_exit()).count(),
        expires_in_s: directory
            .valid_until()
            .duration_since(Timestamp::now())
            .as_secs()
            .try_into()
            .unwrap_or(0),
    })
}
