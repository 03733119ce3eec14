//! The engine's loop: channels to the tracker over each circuit, announcements, questions.
//!
//! In: commands of the peer, notices of the data path, the time. Out: frames, answers, events.
//! Called by: the engine's start.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot, watch};

use super::{
    FileRequest, RequestTicket, ShareError, ShareEvent, ShareStatus, sessions::SessionRow,
};
use crate::{
    directory::Directory,
    model::{CircuitKey, NodeId, Role},
    node::{
        client::{ClientCommand, ShareCommand, ShareNotice},
        contact::Contact,
        data_thread::Handle,
    },
    tracker::PeerChannel,
    wire::share::{CatalogueEntry, FileId, ListedFile, Session, ToPeer, ToTracker},
};

/// How long a question may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// Catalogue entries that are asked for, at most.
const MOST_ENTRIES: usize = 100_000;
/// The longest sleep.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// What a handle asks for.
pub(super) enum Command {
    Announce(Vec<ListedFile>),
    Catalogue { filter: String, reply: oneshot::Sender<Result<Vec<CatalogueEntry>, ShareError>> },
    Request { request: FileRequest, reply: oneshot::Sender<Result<RequestTicket, ShareError>> },
    Accept { session: Session, key: [u8; 32], note: Vec<u8> },
    Refuse { session: Session },
}

/// A circuit and its channel.
pub(super) struct CircuitRow {
    pub(super) number: u32,
    pub(super) exit: NodeId,
    pub(super) channel: PeerChannel,
    tracker: NodeId,
    /// What waits for the channel to open, or for room in it.
    pub(super) outgoing: VecDeque<Vec<u8>>,
    /// The generation of the list that was announced here; zero: nothing.
    pub(super) announced: u64,
    pub(super) announce_at: Instant,
}

enum Question {
    Catalogue {
        filter: String,
        entries: Vec<CatalogueEntry>,
        reply: oneshot::Sender<Result<Vec<CatalogueEntry>, ShareError>>,
    },
    Request(oneshot::Sender<Result<RequestTicket, ShareError>>),
}

/// Everything a peer's engine knows.
pub(super) struct Engine {
    tracker: Option<String>,
    directories: watch::Receiver<Option<Arc<Directory>>>,
    contact: Contact,
    pub(super) data: Handle<ClientCommand>,
    events: mpsc::Sender<ShareEvent>,
    status: watch::Sender<ShareStatus>,
    pub(super) circuits: HashMap<CircuitKey, CircuitRow>,
    /// Circuits that wait until the directory lists the tracker: number and exit.
    unopened: HashMap<CircuitKey, (u32, NodeId)>,
    pub(super) active: Option<CircuitKey>,
    pub(super) files: Vec<ListedFile>,
    pub(super) generation: u64,
    next_ask: u32,
    questions: HashMap<u32, (Question, Instant)>,
    /// Messages that wait for a circuit.
    homeless: Vec<ToTracker>,
    /// The file of each request, for the offers that come.
    pub(super) requested: HashMap<u32, FileId>,
    pub(super) sessions: HashMap<Session, SessionRow>,
}

impl Engine {
    pub(super) fn new(
        tracker: Option<String>,
        directories: watch::Receiver<Option<Arc<Directory>>>,
        contact: Contact,
        data: Handle<ClientCommand>,
        events: mpsc::Sender<ShareEvent>,
        status: watch::Sender<ShareStatus>,
    ) -> Self {
        Self {
            tracker,
            directories,
            contact,
            data,
            events,
            status,
            circuits: HashMap::new(),
            unopened: HashMap::new(),
            active: None,
            files: Vec::new(),
            generation: 1,
            next_ask: 1,
            questions: HashMap::new(),
            homeless: Vec::new(),
            requested: HashMap::new(),
            sessions: HashMap::new(),
        }
    }

    /// Runs until every handle is gone.
    pub(super) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut notices: mpsc::Receiver<ShareNotice>,
    ) {
        loop {
            let sleep = self.until_deadline(Instant::now());
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.handle_command(command).await,
                    None => return,
                },
                notice = notices.recv() => match notice {
                    Some(notice) => self.handle_notice(notice).await,
                    None => return,
                },
                () = tokio::time::sleep(sleep) => {}
            }
            while let Ok(notice) = notices.try_recv() {
                self.handle_notice(notice).await;
            }
            self.handle_timeout(Instant::now());
            self.transmit(Instant::now());
        }
    }

    fn until_deadline(&self, now: Instant) -> Duration {
        self.circuits
            .values()
            .filter_map(|row| row.channel.poll_timeout())
            .map(|at| at.saturating_duration_since(now).max(Duration::from_millis(5)))
            .min()
            .unwrap_or(LONGEST_SLEEP)
            .min(LONGEST_SLEEP)
    }

    async fn handle_command(&mut self, command: Command) {
        match command {
            Command::Announce(files) => {
                self.files = files;
                self.generation += 1;
            }
            Command::Catalogue { filter, reply } => {
                let ask = self.take_ask();
                let message = ToTracker::Catalogue { ask, filter: filter.clone(), skip: 0 };
                let question = Question::Catalogue { filter, entries: Vec::new(), reply };
                self.questions.insert(ask, (question, Instant::now() + ANSWER_WITHIN));
                self.tell_tracker(self.active, message);
            }
            Command::Request { request, reply } => {
                let ask = self.take_ask();
                self.requested.insert(ask, request.file);
                let question = Question::Request(reply);
                self.questions.insert(ask, (question, Instant::now() + ANSWER_WITHIN));
                let FileRequest { file, key, sources, avoid, via, note } = request;
                let message = ToTracker::Request { ask, file, key, sources, avoid, via, note };
                self.tell_tracker(self.active, message);
            }
            Command::Accept { session, key, note } => self.accept(session, key, note).await,
            Command::Refuse { session } => self.forget(session),
        }
    }

    fn take_ask(&mut self) -> u32 {
        let ask = self.next_ask;
        self.next_ask = self.next_ask.wrapping_add(1).max(1);
        ask
    }

    /// Queues a message on a circuit, or for the next one that stands.
    pub(super) fn tell_tracker(&mut self, circuit: Option<CircuitKey>, message: ToTracker) {
        match circuit.and_then(|circuit| self.circuits.get_mut(&circuit)) {
            Some(row) => row.outgoing.push_back(message.emit()),
            None if self.homeless.len() < 256 => self.homeless.push(message),
            None => log::debug!("a message to the tracker was dropped: no circuit stands"),
        }
    }

    async fn handle_notice(&mut self, notice: ShareNotice) {
        let now = Instant::now();
        match notice {
            ShareNotice::Ready { circuit, number, exit } => {
                self.unopened.insert(circuit, (number, exit));
                self.open_channels(now);
            }
            ShareNotice::Gone { circuit } => {
                self.unopened.remove(&circuit);
                self.circuits.remove(&circuit);
                self.end_sessions_of(circuit);
            }
            ShareNotice::Active { circuit } => {
                self.active = circuit;
                self.greet_active();
            }
            ShareNotice::Frame { circuit, tracker, frame } => {
                self.handle_frame(now, circuit, tracker, &frame).await;
            }
            ShareNotice::Bridge { circuit, notice } => self.handle_bridge(circuit, notice),
            ShareNotice::SocketClosed { session } => self.forget(session),
        }
    }

    fn number(&self, circuit: CircuitKey) -> Option<u32> {
        self.circuits.get(&circuit).map(|row| row.number)
    }

    /// The tracker of the settings, or the only one of the directory.
    fn find_tracker(&self) -> Result<(NodeId, [u8; 32]), String> {
        let directory = self.directories.borrow().clone();
        let directory = directory.ok_or_else(|| "waiting for the directory".to_owned())?;
        let mut trackers =
            directory.nodes().iter().filter(|member| member.descriptor.has(Role::Tracker));
        let found = match &self.tracker {
            Some(name) => directory
                .find(name)
                .filter(|member| member.descriptor.has(Role::Tracker))
                .ok_or_else(|| format!("the directory lists no tracker named {name:?}"))?,
            None => {
                let first = trackers.next().ok_or("the directory lists no tracker")?;
                if trackers.next().is_some() {
                    return Err("the directory lists several trackers: name one".to_owned());
                }
                first
            }
        };
        Ok((found.id, found.descriptor.onion_key))
    }

    /// The active circuit has a channel: what waited for one goes there.
    fn greet_active(&mut self) {
        let Some(number) = self.active.and_then(|key| self.number(key)) else { return };
        self.emit(ShareEvent::CircuitChanged { number });
        for message in std::mem::take(&mut self.homeless) {
            self.tell_tracker(self.active, message);
        }
    }

    /// Opens a channel on every circuit that has none, as soon as the directory lists the tracker.
    fn open_channels(&mut self, now: Instant) {
        if self.unopened.is_empty() {
            return;
        }
        let (tracker, key) = match self.find_tracker() {
            Ok(found) => found,
            Err(reason) => return self.set_tracker(false, &reason),
        };
        for (circuit, (number, exit)) in std::mem::take(&mut self.unopened) {
            let channel = match PeerChannel::open(now, key, exit) {
                Ok(channel) => channel,
                Err(error) => {
                    self.set_tracker(false, &error.to_string());
                    continue;
                }
            };
            let row = CircuitRow {
                number,
                exit,
                channel,
                tracker,
                outgoing: VecDeque::new(),
                announced: 0,
                announce_at: now,
            };
            self.circuits.insert(circuit, row);
            if self.active == Some(circuit) {
                self.greet_active();
            }
        }
    }

    async fn handle_frame(
        &mut self,
        now: Instant,
        circuit: CircuitKey,
        tracker: NodeId,
        frame: &[u8],
    ) {
        let Some(row) = self.circuits.get_mut(&circuit).filter(|row| row.tracker == tracker) else {
            return;
        };
        let was_open = row.channel.conversation().is_some();
        match row.channel.handle_frame(now, frame) {
            Ok(true) => {
                row.announced = 0;
                row.announce_at = now;
            }
            Ok(false) if was_open && row.channel.conversation().is_none() => {
                log::info!(event = "tracker"; "the tracker started anew; greeting it again");
            }
            Ok(false) => {}
            Err(error) => log::debug!("a frame of the tracker was dropped: {error}"),
        }
        while let Some(message) = self
            .circuits
            .get_mut(&circuit)
            .and_then(|row| row.channel.conversation()?.poll_message())
        {
            match ToPeer::parse(&message) {
                Ok(message) => self.handle_message(now, circuit, message).await,
                Err(error) => log::debug!("a message of the tracker was dropped: {error}"),
            }
        }
    }

    async fn handle_message(&mut self, now: Instant, circuit: CircuitKey, message: ToPeer) {
        match message {
            ToPeer::Listed { files, refused, again_s } => {
                let is_active = self.active == Some(circuit);
                if let Some(row) = self.circuits.get_mut(&circuit) {
                    row.announce_at = now + Duration::from_secs(u64::from(again_s.max(5)));
                }
                if is_active {
                    self.set_tracker(true, "the tracker answers");
                    self.status.send_modify(|status| {
                        (status.listed, status.refused) = (files, refused);
                    });
                }
            }
            ToPeer::Catalogue { ask, entries: more, total } => {
                let Some((Question::Catalogue { filter, mut entries, reply }, _)) =
                    self.questions.remove(&ask)
                else {
                    return;
                };
                let is_done = more.is_empty();
                entries.extend(more);
                if is_done || entries.len() >= (total as usize).min(MOST_ENTRIES) {
                    // Whoever asked may be gone; here and below.
                    let _ = reply.send(Ok(entries));
                    return;
                }
                let skip = entries.len() as u32;
                let message = ToTracker::Catalogue { ask, filter: filter.clone(), skip };
                let question = Question::Catalogue { filter, entries, reply };
                self.questions.insert(ask, (question, now + ANSWER_WITHIN));
                self.tell_tracker(Some(circuit), message);
            }
            ToPeer::Asked { ask, sources } => {
                if let Some((Question::Request(reply), _)) = self.questions.remove(&ask) {
                    let _ = reply.send(Ok(RequestTicket { ask, asked: sources }));
                }
            }
            ToPeer::Request { session, file, key, note, bridge } => {
                self.handle_asked(circuit, session, file, key, note, bridge);
            }
            ToPeer::Offer { ask, session, key, note, bridge } => {
                self.handle_offer(circuit, ask, session, key, note, bridge).await;
            }
            ToPeer::Dropped { session, reason } => self.handle_dropped(session, &reason),
            ToPeer::Refused { ask, reason } => {
                log::info!(event = "tracker_refused"; "the tracker refused: {reason}");
                let question = ask.and_then(|ask| self.questions.remove(&ask));
                if let Some((question, _)) = question {
                    question.fail(ShareError::Refused(reason));
                }
            }
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.open_channels(now);
        let reason = self.why_no_tracker();
        let late: Vec<u32> = self
            .questions
            .iter()
            .filter(|(_, (_, until))| now >= *until)
            .map(|(ask, _)| *ask)
            .collect();
        for ask in late {
            if let Some((question, _)) = self.questions.remove(&ask) {
                question.fail(ShareError::NoAnswer(reason.clone()));
            }
        }
        let is_open = self
            .active
            .and_then(|key| self.circuits.get_mut(&key))
            .is_some_and(|row| row.channel.conversation().is_some());
        if !is_open {
            self.set_tracker(false, &reason);
        }
        let bridges = self.sessions.values().filter(|row| row.is_open()).count();
        self.status
            .send_if_modified(|status| std::mem::replace(&mut status.bridges, bridges) != bridges);
        self.announce_where_due(now);
    }

    fn why_no_tracker(&self) -> String {
        let contact = self.contact.status();
        if self.directories.borrow().is_none() {
            let error = contact.last_error.unwrap_or_default();
            return format!("waiting for the directory of the controller {error}");
        }
        if let Err(reason) = self.find_tracker() {
            return reason;
        }
        match self.active.and_then(|key| self.circuits.get(&key)) {
            None => "building a circuit".to_owned(),
            Some(row) if row.channel.attempts() > 2 => {
                "the tracker does not answer through the exit".to_owned()
            }
            Some(_) => "greeting the tracker".to_owned(),
        }
    }

    /// Sends what every channel has to say.
    fn transmit(&mut self, now: Instant) {
        for (key, row) in &mut self.circuits {
            if let Some(conversation) = row.channel.conversation() {
                while let Some(message) = row.outgoing.front()
                    && conversation.has_room_for(message.len())
                {
                    if let Err(error) = conversation.send(message) {
                        log::debug!("a message to the tracker was dropped: {error}");
                    }
                    row.outgoing.pop_front();
                }
            }
            while let Some(frame) = row.channel.poll_transmit(now) {
                let (circuit, tracker) = (*key, row.tracker);
                let command = ShareCommand::Up { circuit, tracker, frame };
                if self.data.send(ClientCommand::Share(command)).is_err() {
                    // Sent again later.
                    break;
                }
            }
        }
    }

    fn set_tracker(&self, reachable: bool, reason: &str) {
        let changed = self.status.send_if_modified(|status| {
            let is_new = status.tracker != reachable || status.reason != reason;
            if is_new {
                status.tracker = reachable;
                reason.clone_into(&mut status.reason);
            }
            is_new
        });
        if changed {
            self.emit(ShareEvent::Tracker { reachable, reason: reason.to_owned() });
        }
    }

    pub(super) fn emit(&self, event: ShareEvent) {
        if self.events.try_send(event).is_err() {
            log::debug!("an event was dropped: the peer does not read them");
        }
    }
}

impl Question {
    fn fail(self, error: ShareError) {
        match self {
            // Whoever asked may be gone.
            Self::Catalogue { reply, .. } => drop(reply.send(Err(error))),
            Self::Request(reply) => drop(reply.send(Err(error))),
        }
    }
}
