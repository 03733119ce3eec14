//! Runs one download: finds sources, asks them, writes what they send, until it is whole.
//!
//! In: what is wanted, bridges from the engine. Out: a file, a view that changes.
//! Called by: engine.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, oneshot},
    task::AbortHandle,
};

use super::{
    error::PeerError,
    network::{FileRequest, Network, NetworkError, OpenBridge, SessionId, Ticket},
    part::Part,
    source::{self, Order, Orders, Report},
    wish::{Board, Outcome, Tell, Wish},
};
use crate::peer::{
    agreement::Asking,
    link::Content,
    transfer::{CloseReason, Loss, SourceId, Stall, Transfer, TransferConfig, TransferEvent},
    view::{DownloadState, SourceView},
};

/// How often the view is brought up to date.
const REFRESH: Duration = Duration::from_millis(250);
/// A source that was silent is not asked again for so long, if there are others.
const FORGIVE: Duration = Duration::from_secs(60);
/// Reports of sources that may wait.
const REPORTS: usize = 256;

/// A source as the driver knows it.
struct Running {
    session: SessionId,
    circuit: u32,
    orders: Option<Orders>,
    part: Option<oneshot::Sender<Arc<Part>>>,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Driver {
    wish: Wish,
    config: TransferConfig,
    network: Arc<dyn Network>,
    board: Board,
    began: Instant,
    transfer: Option<Transfer>,
    part: Option<Arc<Part>>,
    sources: BTreeMap<SourceId, Running>,
    next: u64,
    asked: HashMap<Ticket, Asking>,
    early: Vec<OpenBridge>,
    /// Uploaders that are not wanted again: liars for good, silent ones until then.
    avoid: Vec<(SessionId, Option<Instant>)>,
    reports: mpsc::Sender<(SourceId, Report)>,
    answers: mpsc::Sender<Answer>,
    is_searching: bool,
    next_search: Instant,
    nobody: bool,
    refused: Option<NetworkError>,
}

/// How a request went.
type Answer = (Asking, Result<(Ticket, usize), NetworkError>);

/// Downloads what is wished for.
pub(super) async fn run(
    wish: Wish,
    config: TransferConfig,
    network: Arc<dyn Network>,
    board: Board,
    mut told: mpsc::Receiver<Tell>,
) -> Outcome {
    let (reports, mut reported) = mpsc::channel(REPORTS);
    let (answers, mut answered) = mpsc::channel(8);
    let now = Instant::now();
    let mut driver = Driver {
        config,
        network,
        board,
        began: now,
        transfer: None,
        part: None,
        sources: BTreeMap::new(),
        next: 1,
        asked: HashMap::new(),
        early: Vec::new(),
        avoid: Vec::new(),
        reports,
        answers,
        is_searching: false,
        next_search: now,
        nobody: false,
        refused: None,
        wish,
    };
    if let Some(content) = driver.wish.content
        && let Err(error) = driver.begin(content).await
    {
        return Outcome::Failed(error);
    }
    let mut refresh = tokio::time::interval(REFRESH);
    loop {
        if let Err(error) = driver.step() {
            return driver.fail(error);
        }
        if driver.transfer.as_ref().is_some_and(Transfer::is_done) {
            return driver.finish().await;
        }
        let wake = driver.deadline();
        let report = tokio::select! {
            biased;
            Some(report) = reported.recv() => Some(report),
            Some(tell) = told.recv() => {
                driver.handle_tell(tell);
                None
            }
            Some((asking, result)) = answered.recv() => {
                driver.handle_answer(asking, result);
                None
            }
            _ = refresh.tick() => {
                driver.show();
                None
            }
            () = tokio::time::sleep_until(wake.into()) => None,
        };
        if let Some((id, report)) = report
            && let Err(error) = driver.handle_report(id, report).await
        {
            return driver.fail(error);
        }
    }
}

impl Driver {
    /// Shows how far it came, for the last time.
    fn fail(&self, error: PeerError) -> Outcome {
        self.show();
        Outcome::Failed(error)
    }

    /// Opens what is on disk and checks it.
    async fn begin(&mut self, content: Content) -> Result<(), PeerError> {
        let Wish { state, dest, name, id, .. } = self.wish.clone();
        let board = self.board.clone();
        let part = tokio::task::spawn_blocking(move || {
            let id = crate::peer::tree::Root(id).to_string();
            let part = Part::open(&state, &dest, &id, name, content)?;
            board.change(|view| {
                view.size = content.size.bytes();
                view.is_dir = content.dir.is_some();
                view.root = Some(content.root.to_string());
                view.path = part.path().display().to_string();
            });
            part.check(|_| true)?;
            Ok::<_, PeerError>(Arc::new(part))
        })
        .await
        .map_err(|_| PeerError::WrongRoot)??;
        let now = Instant::now();
        let (have, front) = (part.have(), part.front());
        let mut transfer = Transfer::new(now, self.config, content.size, have, front);
        if !self.sources.is_empty() {
            // The search that found the first source may bring more.
            transfer.handle_found(now, self.config.sources);
        }
        self.transfer = Some(transfer);
        self.part = Some(part);
        self.board.change(|view| view.state = DownloadState::Running);
        self.show();
        Ok(())
    }

    fn deadline(&self) -> Instant {
        let soon = match &self.transfer {
            Some(transfer) => transfer.poll_timeout(),
            None if self.is_searching || !self.sources.is_empty() => None,
            None => Some(self.next_search),
        };
        let latest = Instant::now() + Duration::from_secs(1);
        soon.map_or(latest, |soon| soon.min(latest))
    }

    /// Does what time and the transfer ask for.
    fn step(&mut self) -> Result<(), PeerError> {
        if let Some(error) = self.refused.take() {
            return Err(error.into());
        }
        let now = Instant::now();
        let Some(transfer) = &mut self.transfer else {
            if !self.is_searching && self.sources.is_empty() && now >= self.next_search {
                self.search(self.config.sources)?;
            }
            return Ok(());
        };
        transfer.handle_stage(self.network.stage());
        if transfer.poll_timeout().is_some_and(|at| at <= now) {
            transfer.handle_timeout(now, &mut rand::rng());
        }
        while let Some(event) = self.transfer.as_mut().and_then(Transfer::poll_event) {
            match event {
                TransferEvent::Want(id, chunk) => self.order(id, Order::Want(chunk)),
                TransferEvent::Cancel(id, chunk) => self.order(id, Order::Cancel(chunk)),
                TransferEvent::Close(id, why) => self.close(id, why),
                TransferEvent::Find { wanted, is_fresh } => {
                    if is_fresh {
                        self.network.rotate();
                    }
                    self.search(wanted)?;
                }
                TransferEvent::Done => {}
            }
        }
        Ok(())
    }

    fn order(&self, id: SourceId, order: Order) {
        if let Some(orders) = self.sources.get(&id).and_then(|source| source.orders.as_ref()) {
            // A source that is gone says so itself.
            let _ = orders.send(order);
        }
    }

    fn close(&mut self, id: SourceId, why: CloseReason) {
        let Some(source) = self.sources.remove(&id) else { return };
        if matches!(why, CloseReason::Lied | CloseReason::Stalled) {
            let until = (why == CloseReason::Stalled).then(|| Instant::now() + FORGIVE);
            self.avoid.push((source.session, until));
            self.board.change(|view| match why {
                CloseReason::Lied => view.liars += 1,
                _ => view.replaced += 1,
            });
        }
    }

    fn search(&mut self, wanted: usize) -> Result<(), PeerError> {
        let asking = Asking::new(self.wish.id, self.wish.secret.clone(), &mut rand::rng())
            .map_err(|error| PeerError::Agreement(error.into()))?;
        let now = Instant::now();
        self.avoid.retain(|(_, until)| until.is_none_or(|until| until > now));
        // Who is a source already has nothing to add by a second session, silent or not. The latest
        // come first: a request has room for so many.
        let running = self.sources.values().map(|source| source.session);
        let avoid = running.chain(self.avoid.iter().rev().map(|(session, _)| *session)).collect();
        let request = FileRequest {
            id: self.wish.id,
            key: asking.public(),
            note: asking.note(),
            sources: wanted.clamp(1, 4) as u8,
            avoid,
            via_code: self.wish.via_code,
        };
        self.is_searching = true;
        let answer = self.network.request(request);
        let answers = self.answers.clone();
        tokio::spawn(async move {
            let result = answer.await;
            // The download may be over.
            let _ = answers.send((asking, result)).await;
        });
        Ok(())
    }

    fn handle_answer(&mut self, asking: Asking, result: Result<(Ticket, usize), NetworkError>) {
        let now = Instant::now();
        self.is_searching = false;
        self.next_search = now + Duration::from_secs(2);
        let count = match result {
            Ok((ticket, count)) => {
                self.asked.insert(ticket, asking);
                count
            }
            Err(error) => {
                log::debug!("looking for sources: {error}");
                // Bridges are asked for again; a code that the network does not do is final.
                if self.wish.via_code && matches!(error, NetworkError::Refused(_)) {
                    self.refused = Some(error);
                }
                0
            }
        };
        self.nobody = count == 0;
        if self.nobody && self.sources.is_empty() {
            // Better one that was silent than none.
            self.avoid.retain(|(_, until)| until.is_none());
        }
        match &mut self.transfer {
            Some(transfer) if count == 0 => transfer.handle_nobody(now),
            Some(transfer) => transfer.handle_found(now, count),
            None => {}
        }
        for bridge in std::mem::take(&mut self.early) {
            self.handle_opened(bridge);
        }
    }

    fn handle_tell(&mut self, tell: Tell) {
        match tell {
            Tell::Opened(bridge) => self.handle_opened(bridge),
            Tell::Closed { session, is_exit_lost } => {
                let found = self.sources.iter().find(|(_, source)| source.session == session);
                if let Some(id) = found.map(|(id, _)| *id) {
                    let loss = if is_exit_lost { Loss::Exit } else { Loss::Left };
                    self.lose(id, loss);
                }
            }
        }
    }

    fn lose(&mut self, id: SourceId, loss: Loss) {
        if self.sources.remove(&id).is_none() {
            return;
        }
        self.board.change(|view| view.replaced += 1);
        if let Some(transfer) = &mut self.transfer {
            transfer.handle_gone(Instant::now(), id, loss);
        }
    }

    fn handle_opened(&mut self, bridge: OpenBridge) {
        let Some((ticket, key, note)) = bridge.answer.clone() else { return };
        let Some(asking) = self.asked.get(&ticket) else {
            // The bridge was faster than the answer to the request.
            self.early.push(bridge);
            return;
        };
        let secrets = match asking.agree(&key, &note) {
            Ok((secrets, _)) => secrets,
            Err(error) => {
                log::warn!("a source is refused: {error}");
                self.avoid.push((bridge.session, None));
                self.board.change(|view| view.liars += 1);
                return;
            }
        };
        let id = SourceId(self.next);
        self.next += 1;
        let (part, awaited) = oneshot::channel();
        let run = source::run(id, bridge.datagrams, secrets, awaited, self.reports.clone());
        let running = Running {
            session: bridge.session,
            circuit: bridge.circuit,
            orders: None,
            part: Some(part),
            task: tokio::spawn(run).abort_handle(),
        };
        self.sources.insert(id, running);
    }

    async fn handle_report(&mut self, id: SourceId, report: Report) -> Result<(), PeerError> {
        let now = Instant::now();
        match report {
            Report::Ready(content, have, orders) => {
                return self.handle_ready(id, content, have, orders).await;
            }
            Report::Disk(error) => return Err(error),
            Report::Lied(why) => {
                log::warn!("a source is left: {why}");
                if let Some(transfer) = &mut self.transfer {
                    transfer.handle_lie(now, id);
                }
                if self.sources.contains_key(&id) {
                    self.close(id, CloseReason::Lied);
                }
                return Ok(());
            }
            Report::Gone(why) => {
                log::info!("a source is gone: {why}");
                self.lose(id, Loss::Left);
                return Ok(());
            }
            _ => {}
        }
        let Some(transfer) = &mut self.transfer else { return Ok(()) };
        match report {
            Report::Gained(chunk) => transfer.handle_gained(now, id, chunk),
            Report::Group(bytes) => {
                transfer.handle_group(now, id, bytes);
                let took = now.duration_since(self.began).as_millis() as u64;
                let mut view = self.board.view.lock().unwrap_or_else(PoisonError::into_inner);
                view.fetched += bytes as u64;
                view.first_byte_ms.get_or_insert(took);
            }
            Report::Chunk(chunk) => {
                let is_new = transfer.handle_chunk(now, id, chunk);
                let len = self.part.as_ref().map_or(0, |part| part.len_of(chunk));
                let again = if is_new { 0 } else { len };
                self.board.change(|view| view.fetched_again += again);
            }
            Report::Skipped(chunk) => transfer.handle_skipped(now, id, chunk),
            Report::Withdrawn => {
                transfer.handle_gone(now, id, Loss::Left);
                self.close(id, CloseReason::Stalled);
            }
            _ => {}
        }
        Ok(())
    }

    async fn handle_ready(
        &mut self,
        id: SourceId,
        content: Content,
        have: Option<crate::peer::bitmap::Bitmap>,
        orders: Orders,
    ) -> Result<(), PeerError> {
        let is_ours = content.id(self.wish.secret.as_ref()) == self.wish.id;
        if !is_ours {
            log::warn!("a source is left: it offers another content");
            if let Some(transfer) = &mut self.transfer {
                transfer.handle_lie(Instant::now(), id);
            }
            self.close(id, CloseReason::Lied);
            return Ok(());
        }
        if self.transfer.is_none() {
            self.begin(content).await?;
        }
        let (Some(transfer), Some(part)) = (&mut self.transfer, &self.part) else { return Ok(()) };
        let Some(source) = self.sources.get_mut(&id) else { return Ok(()) };
        source.orders = Some(orders);
        if let Some(told) = source.part.take() {
            // A source that is gone says so itself.
            let _ = told.send(Arc::clone(part));
        }
        transfer.handle_source(Instant::now(), id, have, &mut rand::rng());
        Ok(())
    }

    /// Brings the view up to date.
    fn show(&self) {
        let now = Instant::now();
        let stall = match &self.transfer {
            Some(transfer) => transfer.stall(now),
            None if !self.sources.is_empty() => Some(Stall::Connecting),
            None => Some(Stall::without_sources(&self.network.stage(), !self.nobody)),
        };
        let sources = self
            .sources
            .iter()
            .filter(|(_, source)| source.orders.is_some())
            .map(|(id, source)| SourceView {
                number: id.0,
                circuit: source.circuit,
                rate: self.transfer.as_ref().map_or(0.0, |transfer| transfer.rate_of(now, *id)),
            })
            .collect();
        let rate = self.transfer.as_ref().map_or(0.0, |transfer| transfer.rate(now));
        let have = self.part.as_ref().map_or(0, |part| part.have_bytes());
        self.board.change(|view| {
            view.have = have;
            view.rate = rate;
            let left = view.size.saturating_sub(have);
            view.eta_s = (rate >= 1.0).then(|| (left as f64 / rate).ceil() as u64);
            view.reason = stall.as_ref().map(ToString::to_string);
            view.stall = stall;
            view.sources = sources;
        });
    }

    async fn finish(&mut self) -> Outcome {
        self.sources.clear();
        self.show();
        let Some(part) = self.part.clone() else { return Outcome::Failed(PeerError::WrongRoot) };
        match tokio::task::spawn_blocking(move || part.finish()).await {
            Ok(Ok(path)) => Outcome::Done(path),
            Ok(Err(error)) => Outcome::Failed(error),
            Err(_) => Outcome::Failed(PeerError::WrongRoot),
        }
    }
}
