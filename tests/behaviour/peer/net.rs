//! A network in memory for real peers: a tracker without disk, and bridges with weather.

#![allow(dead_code, reason = "each test uses its part")]

use std::{
    collections::{HashMap, VecDeque},
    io::{self, IoSliceMut},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use cepa::{
    peer::{transfer::Stage, view::CircuitView},
    peer_run::{
        network::{
            CatalogueEntry, FileId, FileRequest, Later, Listing, Network, NetworkError,
            NetworkEvent, OpenBridge, SessionId, Ticket,
        },
        quic::Datagrams,
    },
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::sync::mpsc;

/// Datagrams that wait at one side, at most.
const QUEUE: usize = 1024;

/// What happens to datagrams on the way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    /// The part that is lost.
    pub(crate) loss: f64,
    /// Bytes a second; 0: as fast as memory.
    pub(crate) per_second: u64,
    /// One way.
    pub(crate) delay: Duration,
}

pub(crate) const CALM: Weather = Weather { loss: 0.0, per_second: 0, delay: Duration::ZERO };

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Vec<u8>>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// One way of a bridge: what was sent, and what has arrived.
#[derive(Debug)]
struct Way {
    sent: Mutex<Queue>,
    arrived: Mutex<Queue>,
    is_direct: bool,
}

#[derive(Debug)]
pub(crate) struct End {
    out: Arc<Way>,
    back: Arc<Way>,
    is_cut: Arc<AtomicBool>,
    loss: Mutex<(f64, StdRng)>,
    pub(crate) received: AtomicU64,
}

impl End {
    pub(crate) fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
        for way in [&self.out, &self.back] {
            for queue in [&way.sent, &way.arrived] {
                let mut queue = queue.lock().unwrap();
                queue.reader.take().into_iter().chain(queue.writer.take()).for_each(Waker::wake);
            }
        }
    }

    fn check(&self) -> io::Result<()> {
        if self.is_cut.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.cut();
    }
}

fn into(way: &Way) -> &Mutex<Queue> {
    if way.is_direct { &way.arrived } else { &way.sent }
}

impl Datagrams for End {
    fn try_send(&self, bytes: &[u8], segment: usize) -> io::Result<()> {
        self.check()?;
        let mut queue = into(&self.out).lock().unwrap();
        if queue.waiting.len() >= QUEUE {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut loss = self.loss.lock().unwrap();
        for datagram in bytes.chunks(segment) {
            assert!(datagram.len() <= 1284, "{} bytes do not fit a bridge", datagram.len());
            let (part, rng) = &mut *loss;
            if !rng.random_bool(*part) {
                queue.waiting.push_back(datagram.to_vec());
            }
        }
        queue.reader.take().into_iter().for_each(Waker::wake);
        Ok(())
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        let mut queue = into(&self.out).lock().unwrap();
        if queue.waiting.len() < QUEUE {
            return Poll::Ready(Ok(()));
        }
        queue.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        strides: &mut [(usize, usize)],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        let mut queue = self.back.arrived.lock().unwrap();
        let mut filled = 0;
        for (buf, stride) in bufs.iter_mut().zip(strides) {
            let Some(first) = queue.waiting.pop_front() else { break };
            let length = first.len();
            buf[..length].copy_from_slice(&first);
            let mut end = length;
            while let Some(next) = queue.waiting.front()
                && next.len() == length
                && end + length <= buf.len()
            {
                buf[end..end + length].copy_from_slice(next);
                end += length;
                queue.waiting.pop_front();
            }
            *stride = (end, length);
            self.received.fetch_add(end as u64, Ordering::Relaxed);
            filled += 1;
        }
        if filled == 0 {
            queue.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        queue.writer.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(filled))
    }
}

/// Moves datagrams of one way at a rate, after a delay.
async fn pump(way: Arc<Way>, weather: Weather, is_cut: Arc<AtomicBool>) {
    let tick = Duration::from_millis(2);
    let mut timer = tokio::time::interval(tick);
    let mut flying: VecDeque<(tokio::time::Instant, Vec<u8>)> = VecDeque::new();
    let mut credit = 0.0f64;
    while !is_cut.load(Ordering::SeqCst) {
        let now = timer.tick().await;
        let per_tick = weather.per_second as f64 * tick.as_secs_f64();
        credit = (credit + per_tick).min(per_tick * 4.0);
        {
            let mut sent = way.sent.lock().unwrap();
            while let Some(front) = sent.waiting.front()
                && (weather.per_second == 0 || credit >= front.len() as f64)
            {
                credit -= front.len() as f64;
                let datagram = sent.waiting.pop_front().unwrap();
                flying.push_back((now + weather.delay, datagram));
            }
            sent.writer.take().into_iter().for_each(Waker::wake);
        }
        let mut arrived = way.arrived.lock().unwrap();
        while flying.front().is_some_and(|(at, _)| *at <= now) {
            let (_, datagram) = flying.pop_front().unwrap();
            arrived.waiting.push_back(datagram);
        }
        if !arrived.waiting.is_empty() {
            arrived.reader.take().into_iter().for_each(Waker::wake);
        }
    }
}

/// Both ends of a bridge.
pub(crate) fn bridge(weather: Weather, seed: u64) -> (Arc<End>, Arc<End>) {
    let is_direct = weather.per_second == 0 && weather.delay.is_zero();
    let way = || {
        let (sent, arrived) = (Mutex::default(), Mutex::default());
        Arc::new(Way { sent, arrived, is_direct })
    };
    let (there, back, is_cut) = (way(), way(), Arc::new(AtomicBool::new(false)));
    if !is_direct {
        tokio::spawn(pump(Arc::clone(&there), weather, Arc::clone(&is_cut)));
        tokio::spawn(pump(Arc::clone(&back), weather, Arc::clone(&is_cut)));
    }
    let end = |out: &Arc<Way>, back: &Arc<Way>, seed| {
        Arc::new(End {
            out: Arc::clone(out),
            back: Arc::clone(back),
            is_cut: Arc::clone(&is_cut),
            loss: Mutex::new((weather.loss, StdRng::seed_from_u64(seed))),
            received: AtomicU64::new(0),
        })
    };
    (end(&there, &back, seed), end(&back, &there, seed + 1))
}

struct Pending {
    request: FileRequest,
    ticket: Ticket,
    downloader: usize,
    uploader: usize,
}

#[derive(Default)]
struct Hub {
    peers: Vec<(mpsc::Sender<NetworkEvent>, Vec<Listing>)>,
    weather: Vec<Weather>,
    pending: HashMap<SessionId, Pending>,
    history: HashMap<SessionId, usize>,
    bridges: Vec<(SessionId, usize, usize, Weak<End>)>,
    next: u64,
    seen: Vec<String>,
}

/// The tracker, exits and circuits of a test.
#[derive(Clone, Default)]
pub(crate) struct World(Arc<Mutex<Hub>>);

impl World {
    /// A peer's access to the world.
    pub(crate) fn join(&self, weather: Weather) -> (Arc<Member>, mpsc::Receiver<NetworkEvent>) {
        let (events, received) = mpsc::channel(256);
        let mut hub = self.0.lock().unwrap();
        hub.peers.push((events, Vec::new()));
        hub.weather.push(weather);
        (Arc::new(Member { world: self.clone(), me: hub.peers.len() - 1 }), received)
    }

    /// Cuts every bridge of an uploader, as a lost exit does.
    pub(crate) fn cut(&self, uploader: usize) {
        let mut hub = self.0.lock().unwrap();
        let (gone, left) =
            std::mem::take(&mut hub.bridges).into_iter().partition(|(_, up, ..)| *up == uploader);
        hub.bridges = left;
        for (session, up, down, end) in gone {
            end.upgrade().inspect(|end| end.cut());
            for peer in [up, down] {
                let event = NetworkEvent::Closed { session, is_exit_lost: true };
                let _ = hub.peers[peer].0.try_send(event);
            }
        }
    }

    /// Everything the tracker was told, as text.
    pub(crate) fn seen(&self) -> String {
        self.0.lock().unwrap().seen.join("\n")
    }

    /// How many bridges an uploader was given.
    pub(crate) fn bridges_of(&self, uploader: usize) -> usize {
        self.0.lock().unwrap().history.values().filter(|up| **up == uploader).count()
    }
}

pub(crate) struct Member {
    world: World,
    me: usize,
}

impl Network for Member {
    fn announce(&self, files: Vec<Listing>) {
        let mut hub = self.world.0.lock().unwrap();
        hub.seen.push(format!("{files:?}"));
        hub.peers[self.me].1 = files;
    }

    fn catalogue(&self, filter: String) -> Later<Result<Vec<CatalogueEntry>, NetworkError>> {
        let hub = self.world.0.lock().unwrap();
        let mut entries: Vec<CatalogueEntry> = Vec::new();
        for listing in hub.peers.iter().flat_map(|(_, files)| files) {
            if listing.name.is_empty() || !listing.name.contains(&filter) {
                continue;
            }
            match entries.iter_mut().find(|entry| entry.id == listing.id) {
                Some(entry) => entry.sources += 1,
                None => entries.push(CatalogueEntry {
                    id: listing.id,
                    name: listing.name.clone(),
                    size: listing.size,
                    key: listing.key,
                    sources: 1,
                }),
            }
        }
        Box::pin(async move { Ok(entries) })
    }

    fn request(&self, request: FileRequest) -> Later<Result<(Ticket, usize), NetworkError>> {
        let world = self.world.clone();
        let me = self.me;
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let mut hub = world.0.lock().unwrap();
            hub.seen.push(format!("{request:?}"));
            hub.next += 1;
            let ticket = Ticket(hub.next);
            let avoided: Vec<usize> =
                request.avoid.iter().filter_map(|s| hub.history.get(s).copied()).collect();
            let busy: Vec<usize> = hub
                .bridges
                .iter()
                .filter(|(_, _, down, end)| {
                    *down == me && end.upgrade().is_some_and(|end| end.check().is_ok())
                })
                .map(|(_, up, ..)| *up)
                .collect();
            let mut able: Vec<usize> = (0..hub.peers.len())
                .filter(|peer| {
                    *peer != me
                        && !avoided.contains(peer)
                        && hub.peers[*peer].1.iter().any(|l| l.id == request.id)
                })
                .collect();
            able.retain(|peer| !busy.contains(peer));
            able.truncate(usize::from(request.sources));
            if able.is_empty() {
                return Err(NetworkError::NoSource);
            }
            for uploader in &able {
                let session: SessionId = rand::random();
                let request = request.clone();
                let (id, key, note) = (request.id, request.key, request.note.clone());
                let pending = Pending { request, ticket, downloader: me, uploader: *uploader };
                hub.pending.insert(session, pending);
                hub.history.insert(session, *uploader);
                let asked = NetworkEvent::Asked { session, id, key, note };
                let _ = hub.peers[*uploader].0.try_send(asked);
            }
            Ok((ticket, able.len()))
        })
    }

    fn accept(&self, session: SessionId, key: [u8; 32], note: Vec<u8>) {
        let mut hub = self.world.0.lock().unwrap();
        let Some(pending) = hub.pending.remove(&session) else { return };
        hub.seen.push(format!("{key:?} {note:?}"));
        let (up, down) = bridge(hub.weather[pending.uploader], u64::from(session[0]));
        hub.bridges.push((session, pending.uploader, pending.downloader, Arc::downgrade(&down)));
        let id: FileId = pending.request.id;
        let circuit = pending.uploader as u32;
        let open = |answer, datagrams: Arc<End>| {
            NetworkEvent::Opened(OpenBridge { session, id, answer, circuit, datagrams })
        };
        let _ = hub.peers[pending.uploader].0.try_send(open(None, up));
        let answer = Some((pending.ticket, key, note));
        let _ = hub.peers[pending.downloader].0.try_send(open(answer, down));
    }

    fn refuse(&self, session: SessionId) {
        self.world.0.lock().unwrap().pending.remove(&session);
    }

    fn rotate(&self) {}

    fn stage(&self) -> Stage {
        Stage::Ready
    }

    fn circuits(&self) -> Vec<CircuitView> {
        let hub = self.world.0.lock().unwrap();
        let sessions = hub.bridges.iter().filter(|(_, _, down, _)| *down == self.me).count();
        let hops = ["otter", "heron", "lynx"].map(str::to_owned).to_vec();
        vec![CircuitView {
            number: 1,
            built: hops.len(),
            hops,
            age_s: 42,
            rtt_ms: Some(12.3),
            sessions,
            is_active: true,
        }]
    }
}
