//! Posts to members over HTTP (source 001), in order for each member.
//!
//! In: bodies and whom they are for, the directory. Out: requests; orders that failed, legs that are gone.
//! Called by: the services of nodes and of the tracker.
//!
//! One connection per member is kept open. A member that is slow or gone delays nobody but itself:
//! its queue is bounded, and what does not fit is dropped (frames are sent again by their ends).

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::http::StatusCode;
use tokio::sync::{mpsc, watch};

use crate::{
    directory::{Directory, Problem},
    model::{Cid, NodeId},
    wire::share::Order,
};

/// How long a member may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Posts that wait for one member.
const MOST_WAITING: usize = 256;
/// A member's queue ends after this long without a post.
const IDLE: Duration = Duration::from_secs(60);

/// A post to a member.
#[derive(Debug)]
pub(crate) struct PostJob {
    /// The member.
    pub(crate) to: NodeId,
    /// The body.
    pub(crate) body: Vec<u8>,
    /// What it carries, as far as its sender wants to know how that went.
    pub(crate) about: About,
}

/// What a post carries.
#[derive(Debug)]
pub(crate) enum About {
    /// A frame of a peer to its tracker: sent again until it is acknowledged.
    Frame,
    /// A frame of the tracker for this leg.
    Leg(Cid),
    /// An order.
    Order(Box<Order>),
}

/// What came of a post that failed.
#[derive(Debug)]
pub(crate) enum Failed {
    /// An order was refused or did not arrive, and why.
    Order(Box<Order>, String),
    /// The exit knows no such leg: its circuit is gone.
    LegGone(Cid),
}

/// Posts everything for as long as the returned future lives.
pub(crate) async fn post_all(
    mut jobs: mpsc::Receiver<PostJob>,
    directories: watch::Receiver<Option<Arc<Directory>>>,
    failed: Option<mpsc::Sender<Failed>>,
) {
    let client = match reqwest::Client::builder()
        .timeout(PATIENCE)
        .connect_timeout(PATIENCE)
        .no_proxy()
        .pool_max_idle_per_host(2)
        .build()
    {
        Ok(client) => client,
        Err(error) => return log::error!(event = "http"; "no HTTP client: {error}"),
    };
    let mut queues: HashMap<NodeId, (mpsc::Sender<PostJob>, Instant)> = HashMap::new();
    let mut members = tokio::task::JoinSet::new();
    while let Some(job) = jobs.recv().await {
        while members.try_join_next().is_some() {}
        let Some(addr) = address(&directories, &job.to) else {
            log::debug!("a post for {} was dropped: it is not in the directory", job.to.short());
            fail(&failed, job, "the directory does not list it");
            continue;
        };
        let now = Instant::now();
        queues.retain(|_, (_, used)| now.duration_since(*used) < IDLE);
        let (queue, used) = queues.entry(job.to).or_insert_with(|| {
            let (queue, waiting) = mpsc::channel(MOST_WAITING);
            members.spawn(post_to(client.clone(), addr, waiting, failed.clone()));
            (queue, now)
        });
        *used = now;
        if let Err(error) = queue.try_send(job) {
            log::debug!("a post to a member was dropped: {error}");
            fail(&failed, error.into_inner(), "too many posts wait for it");
        }
    }
}

async fn post_to(
    client: reqwest::Client,
    addr: SocketAddr,
    mut waiting: mpsc::Receiver<PostJob>,
    failed: Option<mpsc::Sender<Failed>>,
) {
    let url = format!("http://{addr}/");
    while let Some(mut job) = waiting.recv().await {
        let request = client
            .post(&url)
            .header("content-type", "application/json")
            .body(std::mem::take(&mut job.body));
        let why = match request.send().await {
            Ok(answer) if answer.status().is_success() => continue,
            Ok(answer) => {
                let status = answer.status();
                if let (About::Leg(leg), StatusCode::NOT_FOUND) = (&job.about, status) {
                    tell(&failed, Failed::LegGone(*leg));
                    continue;
                }
                let bytes = answer.bytes().await.unwrap_or_default();
                serde_json::from_slice::<Problem>(&bytes)
                    .map_or_else(|_| status.to_string(), |problem| problem.detail)
            }
            Err(error) => format!("it does not answer: {}", error.without_url()),
        };
        log::debug!("a post to a member failed: {why}");
        fail(&failed, job, &why);
    }
}

fn fail(failed: &Option<mpsc::Sender<Failed>>, job: PostJob, why: &str) {
    if let About::Order(order) = job.about {
        tell(failed, Failed::Order(order, why.to_owned()));
    }
}

fn tell(failed: &Option<mpsc::Sender<Failed>>, what: Failed) {
    if let Some(failed) = failed {
        // A full queue means that many fail; their sessions then expire.
        let _ = failed.try_send(what);
    }
}

fn address(
    directories: &watch::Receiver<Option<Arc<Directory>>>,
    to: &NodeId,
) -> Option<SocketAddr> {
    directories.borrow().as_ref()?.get(to).map(crate::directory::Member::addr)
}
