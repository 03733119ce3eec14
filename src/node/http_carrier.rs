//! The HTTP carrier (source 001): cells in `POST /`, and long polls for whoever cannot be reached.
//!
//! In: cells for stand-in addresses, polls, the directory. Out: requests, answers, cells.
//! Called by: the services of nodes and clients.
//!
//! ```text
//! node    cells for a member -> POST to it        cells for a poller -> wait for its poll
//! client  cells for its guard -> POST to it, and a poll per circuit that brings cells back
//! ```

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
};

use crate::{
    directory::Directory,
    model::{CELL_LEN, CID_LEN, Cid, HttpPeer},
    wire::share::{Envelope, MAX_PAYLOAD_LEN},
};

/// A sender says with this header that it polls for what comes back.
pub(crate) const POLL_HEADER: &str = "cepa-poll";
/// How long a poll waits.
const POLL_FOR: Duration = Duration::from_secs(25);
/// Runs of cells that wait to be posted.
const MOST_RUNS: usize = 1_024;
/// Cells that wait for one poller.
const MOST_CELLS: usize = 1_024;
/// Pollers at once.
const MOST_POLLERS: usize = 16_384;
/// A poller that says nothing for this long is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(90);
/// How long a member may take to answer a post.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long last words may take after the data path has ended.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(1);
/// Cells of a message, without their circuit ids.
const PART: usize = CELL_LEN - CID_LEN;

/// Cells on their way to stand-in addresses.
pub(crate) type HttpRuns = mpsc::Sender<(HttpPeer, Vec<u8>)>;

/// A bounded queue of such cells.
pub(crate) fn runs() -> (HttpRuns, mpsc::Receiver<(HttpPeer, Vec<u8>)>) {
    mpsc::channel(MOST_RUNS)
}

/// Cells that wait for pollers.
#[derive(Clone, Default)]
pub(crate) struct Polls(Arc<Mutex<HashMap<[u8; 8], Waiting>>>);

struct Waiting {
    cid: Cid,
    cells: VecDeque<u8>,
    arrived: Arc<Notify>,
    used: Instant,
}

impl Polls {
    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 8], Waiting>> {
        // Every change under the lock is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody who polls has sent on this circuit; says whether there is room for it.
    pub(crate) fn admit(&self, cid: Cid) -> bool {
        let HttpPeer::Poller(key) = HttpPeer::poller(cid) else { return false };
        let (now, mut waiting) = (Instant::now(), self.lock());
        if waiting.len() >= MOST_POLLERS {
            waiting.retain(|_, row| now.duration_since(row.used) < FORGET_AFTER);
        }
        if waiting.len() >= MOST_POLLERS && !waiting.contains_key(&key) {
            return false;
        }
        let row = waiting.entry(key).or_insert_with(|| Waiting {
            cid,
            cells: VecDeque::new(),
            arrived: Arc::default(),
            used: now,
        });
        row.used = now;
        true
    }

    /// Keeps cells for a poller; the oldest go when there is no room.
    fn push(&self, key: [u8; 8], cells: &[u8]) {
        let mut waiting = self.lock();
        let Some(row) = waiting.get_mut(&key) else { return };
        for cell in cells.chunks_exact(CELL_LEN) {
            if row.cells.len() >= MOST_CELLS * PART {
                row.cells.drain(..PART);
            }
            row.cells.extend(&cell[CID_LEN..]);
        }
        row.arrived.notify_one();
    }

    /// Answers a poll: cells as soon as there are some, nothing after a while; none if nobody has
    /// sent on this circuit.
    pub(crate) async fn poll(&self, cid: Cid) -> Option<Vec<u8>> {
        let HttpPeer::Poller(key) = HttpPeer::poller(cid) else { return None };
        let deadline = tokio::time::Instant::now() + POLL_FOR;
        loop {
            let arrived = {
                let mut waiting = self.lock();
                let row = waiting.get_mut(&key).filter(|row| row.cid == cid)?;
                // Only what a circuit sends keeps it: an open one sends echoes.
                if row.used.elapsed() > FORGET_AFTER {
                    waiting.remove(&key);
                    return None;
                }
                if !row.cells.is_empty() {
                    let length = row.cells.len().min(MAX_PAYLOAD_LEN);
                    return Some(row.cells.drain(..length).collect());
                }
                Arc::clone(&row.arrived)
            };
            if tokio::time::timeout_at(deadline, arrived.notified()).await.is_err() {
                return Some(Vec::new());
            }
        }
    }
}

/// The cells of a message, each behind its circuit id; none if the length is off.
pub(crate) fn cells_of(cid: Cid, payload: &[u8]) -> Option<Vec<u8>> {
    let parts = payload.chunks_exact(PART);
    if payload.is_empty() || payload.len() > MAX_PAYLOAD_LEN || !parts.remainder().is_empty() {
        return None;
    }
    Some(parts.flat_map(|part| cid.as_bytes().iter().chain(part)).copied().collect())
}

/// Messages of up to 32 cells, each of one circuit.
fn messages(cells: &[u8]) -> Vec<(Cid, Vec<u8>)> {
    let mut messages: Vec<(Cid, Vec<u8>)> = Vec::new();
    for cell in cells.chunks_exact(CELL_LEN) {
        let (cid, part) = cell.split_at(CID_LEN);
        let cid = Cid::from_bytes(std::array::from_fn(|at| cid[at]));
        match messages.last_mut() {
            Some((last, parts)) if *last == cid && parts.len() < MAX_PAYLOAD_LEN => {
                parts.extend_from_slice(part);
            }
            _ => messages.push((cid, part.to_vec())),
        }
    }
    messages
}

/// What a client does with the cells that its polls bring.
pub(crate) type OnCells = Arc<dyn Fn(SocketAddr, Vec<u8>) + Send + Sync>;

/// Runs of cells that wait for one member.
type RunQueue = mpsc::Sender<(Cid, Vec<u8>)>;

/// Carries cells until the data path drops its end of `out`, then posts what still waits; give it
/// [`LAST_WORDS`] for that. A client gives `on_cells`, a node the polls that its door answers.
pub(crate) async fn carry(
    mut out: mpsc::Receiver<(HttpPeer, Vec<u8>)>,
    directories: watch::Receiver<Option<Arc<Directory>>>,
    polls: Polls,
    on_cells: Option<OnCells>,
) {
    let client = reqwest::Client::builder().connect_timeout(PATIENCE).no_proxy().build();
    let client = match client {
        Ok(client) => client,
        Err(error) => return log::error!(event = "http"; "no HTTP client: {error}"),
    };
    let mut members: HashMap<[u8; 8], (SocketAddr, RunQueue)> = HashMap::new();
    let (mut posts, mut polling) = (JoinSet::new(), JoinSet::new());
    let mut polled: HashMap<Cid, Instant> = HashMap::new();
    while let Some((peer, cells)) = out.recv().await {
        while posts.try_join_next().is_some() || polling.try_join_next().is_some() {}
        let key = match peer {
            HttpPeer::Poller(key) => {
                polls.push(key, &cells);
                continue;
            }
            HttpPeer::Member(key) => key,
        };
        let Some(addr) = address(&directories, peer) else {
            log::debug!("cells for a member were dropped: it is not in the directory");
            continue;
        };
        let is_stale =
            members.get(&key).is_none_or(|(known, queue)| *known != addr || queue.is_closed());
        if is_stale {
            let (queue, waiting) = mpsc::channel(MOST_RUNS);
            posts.spawn(post_cells(client.clone(), addr, waiting, on_cells.is_some()));
            members.insert(key, (addr, queue));
        }
        let Some((_, queue)) = members.get(&key) else { continue };
        for (cid, parts) in messages(&cells) {
            if let Some(on_cells) = &on_cells {
                let now = Instant::now();
                polled.retain(|_, since| now.duration_since(*since) < FORGET_AFTER);
                if polled.insert(cid, now).is_none() {
                    let (from, client) = (peer.addr(), client.clone());
                    polling.spawn(poll_cells(client, addr, from, cid, Arc::clone(on_cells)));
                }
            }
            // What does not fit is lost like a datagram.
            let _ = queue.try_send((cid, parts));
        }
    }
    drop((members, polling));
    while posts.join_next().await.is_some() {}
}

async fn post_cells(
    client: reqwest::Client,
    addr: SocketAddr,
    mut waiting: mpsc::Receiver<(Cid, Vec<u8>)>,
    polls: bool,
) {
    let url = format!("http://{addr}/");
    let mut next = None;
    loop {
        let first = match next.take() {
            Some(message) => Some(message),
            None => waiting.recv().await,
        };
        let Some((cid, mut parts)) = first else { return };
        // What waits for the same circuit goes along.
        while let Ok((other, more)) = waiting.try_recv() {
            if other != cid || parts.len() + more.len() > MAX_PAYLOAD_LEN {
                next = Some((other, more));
                break;
            }
            parts.extend(more);
        }
        let mut request = client
            .post(&url)
            .timeout(PATIENCE)
            .header("content-type", "application/json")
            .body(Envelope::emit_bytes(cid, &parts));
        if polls {
            request = request.header(POLL_HEADER, "1");
        }
        match request.send().await {
            Ok(answer) if answer.status().is_success() => {}
            Ok(answer) => log::debug!("cells were refused: {}", answer.status()),
            Err(error) => log::debug!("cells were not posted: {}", error.without_url()),
        }
    }
}

/// Polls for the cells of a circuit until nobody there knows it any more.
async fn poll_cells(
    client: reqwest::Client,
    addr: SocketAddr,
    from: SocketAddr,
    cid: Cid,
    on_cells: OnCells,
) {
    let url = format!("http://{addr}/");
    let body = Envelope::emit_bytes(cid, &[]);
    let mut failures = 0;
    while failures < 20 {
        let request = client
            .post(&url)
            .timeout(POLL_FOR + PATIENCE)
            .header("content-type", "application/json")
            .header(POLL_HEADER, "1")
            .body(body.clone());
        let bytes = match request.send().await {
            Ok(answer) if answer.status().is_success() => answer.bytes().await.ok(),
            _ => None,
        };
        match bytes.and_then(|bytes| Envelope::parse(&bytes).ok()) {
            Some(Envelope::Bytes { payload, .. }) => {
                failures = 0;
                if let Some(cells) = cells_of(cid, &payload) {
                    on_cells(from, cells);
                }
            }
            _ => {
                // The first post may still be on its way.
                failures += 1;
                tokio::time::sleep(Duration::from_millis(50 * failures)).await;
            }
        }
    }
}

fn address(
    directories: &watch::Receiver<Option<Arc<Directory>>>,
    peer: HttpPeer,
) -> Option<SocketAddr> {
    let directory = directories.borrow().clone()?;
    directory.nodes().iter().find(|member| peer.is_member(&member.id)).map(|member| member.addr())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_hold_one_circuit_and_at_most_32_cells() {
        let (one, other) = (Cid::from_bytes([1; 16]), Cid::from_bytes([2; 16]));
        let cell = |cid: Cid, mark: u8| [cid.as_bytes().as_slice(), &[mark; PART]].concat();
        let cells: Vec<u8> = (0..40)
            .map(|mark| cell(one, mark))
            .chain([cell(other, 50), cell(one, 51)])
            .flatten()
            .collect();
        let messages = messages(&cells);
        let counts: Vec<_> =
            messages.iter().map(|(cid, parts)| (*cid, parts.len() / PART)).collect();
        assert_eq!(counts, [(one, 32), (one, 8), (other, 1), (one, 1)]);
        let back: Vec<u8> =
            messages.iter().flat_map(|(cid, parts)| cells_of(*cid, parts).unwrap()).collect();
        assert_eq!(back, cells);
        assert!(cells_of(one, &[0; PART - 1]).is_none() && cells_of(one, &[]).is_none());
    }

    #[tokio::test]
    async fn a_poll_waits_for_cells_and_an_unknown_circuit_has_none() {
        let polls = Polls::default();
        let cid = Cid::from_bytes([3; 16]);
        assert_eq!(polls.poll(cid).await, None);
        assert!(polls.admit(cid));
        let HttpPeer::Poller(key) = HttpPeer::poller(cid) else { panic!() };
        let waiting = tokio::spawn({
            let polls = polls.clone();
            async move { polls.poll(cid).await }
        });
        tokio::task::yield_now().await;
        let cell = [cid.as_bytes().as_slice(), &[9; PART]].concat();
        polls.push(key, &cell);
        assert_eq!(waiting.await.unwrap(), Some(vec![9; PART]));
        for _ in 0..MOST_CELLS + 10 {
            polls.push(key, &cell);
        }
        assert_eq!(polls.lock()[&key].cells.len(), MOST_CELLS * PART, "bounded");
    }
}
