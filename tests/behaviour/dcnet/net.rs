//! A whole DC-net in virtual time: links are queues with a delay, time jumps to the next event,
//! and any party may be replaced by one that lies.

#![allow(unreachable_pub, reason = "a module of one test")]

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use cepa::dcnet::{
    blame::{Answer, Blamed, Content, View},
    ceremony::{self, Plan},
    client::{Client, ClientEvent},
    error::DcnetError,
    group::{Group, Settings},
    identity::Identity,
    interval::SignedInterval,
    member::{self, CHECK_EVERY, Chain, Member, PartyRef},
    memory::{ClientMemory, TrusteeMemory},
    message::{self, Share, kind},
    mux::MuxEvent,
    relay::{Pace, Relay, RelayEvent, Transmit},
    trustee::Trustee,
};
use curve25519_dalek::Scalar;
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Changes a message of the relay on its way to a party.
pub type Bend = Box<dyn FnMut(PartyRef, u8, &mut Vec<u8>)>;

/// How a party lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// Flips bits of its cell share in rounds with a slot, and then tells the truth.
    Bits,
    /// The same, and answers with a false bit for one counterpart.
    BitsThenOneFalse,
    /// Changes its share of the key.
    Key,
    /// The same, and claims the share it should have sent.
    KeyThenHonest,
    /// The same, and claims another commitment for one counterpart.
    KeyThenOneFalse,
    /// The same, and claims what it has sent, which its proof does not cover.
    KeyThenClaimed,
}

/// What [`Lie::KeyThenClaimed`] adds.
const CLAIMED: Scalar = Scalar::ONE;

pub struct Liar {
    lie: Lie,
    from: u64,
    interval: Option<SignedInterval>,
    chain: Chain,
}

enum Core {
    Client(Box<Client>),
    Trustee(Box<Trustee>),
}

pub struct Node {
    core: Core,
    identity: Arc<Identity>,
    pub liar: Option<Liar>,
    pub error: Option<DcnetError>,
    pub got: BTreeMap<u32, Vec<u8>>,
    pub closed: Vec<u32>,
    pub events: Vec<ClientEvent>,
    pub verdicts: Vec<Blamed>,
    /// What it would find in its file if its program were started again.
    memory: (ClientMemory, TrusteeMemory),
}

pub struct Net {
    pub now: Instant,
    pub group: Arc<Group>,
    pub relay: Relay,
    pub nodes: BTreeMap<PartyRef, Node>,
    files: ceremony::Files,
    wire: VecDeque<(Instant, PartyRef, bool, Vec<u8>)>,
    pub delay: Duration,
    pub rng: StdRng,
    /// What came out at the exit, by slot and connection.
    pub exits: BTreeMap<(u16, u32), Vec<u8>>,
    pub echo: bool,
    /// Exit connections that are not read.
    pub stuck: Vec<(u16, u32)>,
    pub verdicts: Vec<(Blamed, Vec<u8>)>,
    pub disconnected: Vec<(PartyRef, String)>,
    interval_clients: Vec<PartyRef>,
    /// Sizes and virtual times of every message from a party.
    pub transcript: Vec<(Duration, PartyRef, usize)>,
    start: Instant,
    liar: Option<(PartyRef, Lie, u64)>,
    /// Changes what the relay says.
    pub bend: Option<Bend>,
    /// The XOR of all cells of a round, as the relay sees it.
    pub cells: BTreeMap<(u32, u64), Vec<u8>>,
    pub clients_heard: BTreeMap<PartyRef, Vec<Vec<u8>>>,
    /// Parties that are stopped, with what waits for them.
    hung: BTreeMap<PartyRef, Vec<Vec<u8>>>,
}

/// Where the clock of all programs stands.
const UNIX: u64 = 1_800_000_000;

pub fn settings() -> Settings {
    Settings { cell_size: 128, client_window: 8, trustee_window: 32, ..Settings::default() }
}

impl Net {
    pub fn new(clients: usize, trustees: usize, settings: Settings, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let plan = Plan { clients, trustees, host: "relay".into(), port: 1, settings };
        let files = ceremony::generate(&plan, &mut rng).unwrap();
        let group = Group::check(files.system.clone(), files.session.clone(), &files.pseudonyms);
        let group = Arc::new(group.unwrap());
        let relay = Relay::new(
            Arc::clone(&group),
            Identity::from_secret(&files.relay.secret.0),
            0,
            Pace::default(),
        );
        let start = Instant::now();
        Self {
            now: start,
            group,
            relay,
            nodes: BTreeMap::new(),
            files,
            wire: VecDeque::new(),
            delay: Duration::from_micros(100),
            rng,
            exits: BTreeMap::new(),
            echo: false,
            stuck: Vec::new(),
            verdicts: Vec::new(),
            disconnected: Vec::new(),
            interval_clients: Vec::new(),
            transcript: Vec::new(),
            start,
            liar: None,
            bend: None,
            cells: BTreeMap::new(),
            clients_heard: BTreeMap::new(),
            hung: BTreeMap::new(),
        }
    }

    /// All parties join.
    pub fn full(clients: usize, trustees: usize, seed: u64) -> Self {
        Self::with_liar(clients, trustees, seed, None)
    }

    /// All parties join, one of which may lie from a round on.
    pub fn with_liar(
        clients: usize,
        trustees: usize,
        seed: u64,
        liar: Option<(PartyRef, Lie, u64)>,
    ) -> Self {
        let mut net = Self::new(clients, trustees, settings(), seed);
        net.liar = liar;
        net.join_all();
        net.run(Duration::from_millis(100));
        net
    }

    /// From a round on, this party lies once it has joined.
    pub fn lies(&mut self, party: PartyRef, lie: Lie, from: u64) {
        self.liar = Some((party, lie, from));
    }

    pub fn join_all(&mut self) {
        for at in 0..self.group.trustees.len() {
            self.join(PartyRef::Trustee(at as u16));
        }
        for at in 0..self.group.clients.len() {
            self.join(PartyRef::Client(at as u16));
        }
    }

    pub fn join(&mut self, party: PartyRef) {
        let nonce = self.nonce();
        let (core, identity) = self.core(party, nonce);
        let node = Node {
            core,
            identity,
            liar: self.liar.filter(|(liar, ..)| *liar == party).map(|(_, lie, from)| Liar {
                lie,
                from,
                interval: None,
                chain: Chain([0; 32]),
            }),
            error: None,
            got: BTreeMap::new(),
            closed: Vec::new(),
            events: Vec::new(),
            verdicts: Vec::new(),
            memory: Default::default(),
        };
        self.nodes.insert(party, node);
        if self.relay.handle_join(self.now, party, nonce).is_err() {
            self.nodes.remove(&party);
        }
        self.drain();
    }

    fn nonce(&mut self) -> [u8; 16] {
        let mut nonce = [0; 16];
        self.rng.fill_bytes(&mut nonce);
        nonce
    }

    /// A party's program, just started.
    fn core(&mut self, party: PartyRef, nonce: [u8; 16]) -> (Core, Arc<Identity>) {
        let member = self.member(party, nonce);
        let identity = Arc::clone(&member.identity);
        let core = match party {
            PartyRef::Client(at) => {
                let pseudonym = self.files.sessions[usize::from(at)].pseudonym().unwrap();
                let slot = self.slot(at);
                Core::Client(Box::new(Client::new(member, slot, pseudonym, &mut self.rng)))
            }
            PartyRef::Trustee(_) => Core::Trustee(Box::new(Trustee::new(member))),
        };
        (core, identity)
    }

    /// The party's program ends and is started again, with what its file says.
    pub fn restart(&mut self, party: PartyRef) {
        self.wire.retain(|(_, to, ..)| *to != party);
        self.relay.handle_leave(self.now, party);
        let nonce = self.nonce();
        let mut core = self.core(party, nonce).0;
        let node = self.nodes.get_mut(&party).unwrap();
        match &mut core {
            Core::Client(client) => client.recall(node.memory.0.clone()),
            Core::Trustee(trustee) => trustee.recall(node.memory.1.clone(), self.now, UNIX),
        }
        (node.core, node.error) = (core, None);
        self.relay.handle_join(self.now, party, nonce).unwrap();
        self.drain();
    }

    /// Stops a party: what comes for it waits.
    pub fn hang(&mut self, party: PartyRef) {
        self.hung.insert(party, Vec::new());
    }

    /// It goes on.
    pub fn resume(&mut self, party: PartyRef) {
        for bytes in self.hung.remove(&party).unwrap_or_default() {
            self.at_party(party, &bytes);
            self.drain();
        }
    }

    pub fn leave(&mut self, party: PartyRef) {
        self.nodes.remove(&party);
        self.wire.retain(|(_, to, ..)| *to != party);
        self.relay.handle_leave(self.now, party);
        self.drain();
    }

    pub fn client(&mut self, at: u16) -> &mut Client {
        match &mut self.nodes.get_mut(&PartyRef::Client(at)).unwrap().core {
            Core::Client(client) => client,
            Core::Trustee(_) => unreachable!(),
        }
    }

    pub fn node(&self, party: PartyRef) -> &Node {
        &self.nodes[&party]
    }

    /// Opens a connection at a client and queues bytes.
    pub fn say(&mut self, at: u16, bytes: &[u8]) -> u32 {
        let node = self.nodes.get_mut(&PartyRef::Client(at)).unwrap();
        let Core::Client(client) = &mut node.core else { panic!("{at} is a client") };
        node.memory.0 = client.memory(true);
        let conn = client.open().unwrap();
        client.mux.write(conn, bytes);
        client.settle(&mut self.rng);
        conn
    }

    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
        self.now = end;
    }

    /// Runs until `done`, at most `time`; whether it was done.
    pub fn run_until(&mut self, time: Duration, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let end = self.now + time;
        loop {
            if done(self) {
                return true;
            }
            if !self.step(end) {
                return false;
            }
        }
    }

    fn step(&mut self, end: Instant) -> bool {
        let message = self.wire.front().map(|(at, ..)| *at);
        let timer = self.relay.poll_timeout();
        let Some(next) = [message, timer].into_iter().flatten().min().filter(|at| *at <= end)
        else {
            return false;
        };
        self.now = self.now.max(next);
        if message.is_some_and(|at| at <= self.now) {
            let (_, party, to_relay, bytes) = self.wire.pop_front().unwrap();
            if to_relay { self.at_relay(party, &bytes) } else { self.at_party(party, &bytes) }
        } else {
            self.relay.handle_timeout(self.now);
        }
        self.drain();
        true
    }

    /// The party's link breaks and is opened again; its program runs on.
    pub fn relink(&mut self, party: PartyRef) {
        self.wire.retain(|(_, to, ..)| *to != party);
        self.relay.handle_leave(self.now, party);
        let nonce = self.nonce();
        let member = self.member(party, nonce);
        match &mut self.nodes.get_mut(&party).unwrap().core {
            Core::Client(client) => client.rejoin(member, &mut self.rng),
            Core::Trustee(trustee) => trustee.rejoin(member),
        }
        self.relay.handle_join(self.now, party, nonce).unwrap();
        self.drain();
    }

    /// As [`Net::relink`], after an error ended the link.
    pub fn revive(&mut self, party: PartyRef) {
        self.nodes.get_mut(&party).unwrap().error = None;
        self.relink(party);
    }

    fn member(&self, party: PartyRef, nonce: [u8; 16]) -> Member {
        let at = self.place(party);
        let identity = Arc::new(Identity::from_secret(&self.files.parties[at].secret.0));
        let secret = self.files.sessions[at].scalar().unwrap();
        Member::new(Arc::clone(&self.group), party, identity, secret, nonce)
    }

    fn place(&self, party: PartyRef) -> usize {
        match party {
            PartyRef::Client(at) => usize::from(at),
            PartyRef::Trustee(at) => self.group.clients.len() + usize::from(at),
        }
    }

    /// The slot of a client.
    pub fn slot(&self, at: u16) -> u16 {
        let pseudonym = self.files.sessions[usize::from(at)].pseudonym().unwrap();
        self.group.own_slot(&pseudonym).unwrap() as u16
    }

    fn at_relay(&mut self, party: PartyRef, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some((kind, body, used)) = message::next_frame(rest).unwrap() {
            if let (kind::UP | kind::PAD, Ok(share)) =
                (kind, Share::parse(body, settings().cell_size))
                && let Some((_, cell)) = share.slot
            {
                let sum = self.cells.entry((share.number, share.round)).or_default();
                sum.resize(cell.len(), 0);
                sum.iter_mut().zip(cell).for_each(|(sum, byte)| *sum ^= byte);
            }
            let result = self.relay.handle_message(self.now, party, kind, body, &mut self.rng);
            if let Err(error) = result {
                self.disconnected.push((party, error.to_string()));
                self.leave(party);
                return;
            }
            rest = &rest[used..];
        }
    }

    fn at_party(&mut self, party: PartyRef, bytes: &[u8]) {
        if let Some(waiting) = self.hung.get_mut(&party) {
            waiting.push(bytes.to_vec());
            return;
        }
        let Some(node) = self.nodes.get_mut(&party) else { return };
        let mut rest = bytes;
        while let Some((kind, body, used)) = message::next_frame(rest).unwrap() {
            rest = &rest[used..];
            if node.error.is_some() {
                return;
            }
            let mut body = body.to_vec();
            if let Some(bend) = &mut self.bend {
                bend(party, kind, &mut body);
            }
            if kind == kind::INTERVAL
                && let Some(liar) = &mut node.liar
            {
                let (_, signed) = member::parse_interval(&body).unwrap();
                liar.chain = Chain::new(&signed.interval.hash());
                liar.interval = Some(signed);
            }
            self.clients_heard.entry(party).or_default().push(body.clone());
            let result = match &mut node.core {
                Core::Client(client) => client.handle_message(kind, &body, &mut self.rng),
                Core::Trustee(trustee) => {
                    trustee.handle_message(self.now, kind, &body, &mut self.rng)
                }
            };
            if let Err(error) = result {
                node.error = Some(error);
                self.relay.handle_leave(self.now, party);
                return;
            }
        }
    }

    fn drain(&mut self) {
        loop {
            let mut any = false;
            while let Some(event) = self.relay.poll_event() {
                any = true;
                self.handle_relay_event(event);
            }
            while let Some(transmit) = self.relay.poll_transmit() {
                any = true;
                let at = self.now + self.delay;
                match transmit {
                    Transmit::To(party, bytes) => self.wire.push_back((at, party, false, bytes)),
                    Transmit::Clients(bytes) => {
                        for party in self.interval_clients.clone() {
                            self.wire.push_back((at, party, false, bytes.to_vec()));
                        }
                    }
                    Transmit::Set(clients) => self.interval_clients = clients,
                    Transmit::Disconnect(party, why) => {
                        self.disconnected.push((party, why));
                        self.leave(party);
                    }
                }
            }
            if !any {
                break;
            }
        }
        let parties: Vec<PartyRef> = self.nodes.keys().copied().collect();
        for party in parties {
            self.drain_node(party);
        }
    }

    fn drain_node(&mut self, party: PartyRef) {
        let Some(node) = self.nodes.get_mut(&party) else { return };
        let mut out = Vec::new();
        match &mut node.core {
            Core::Client(client) => {
                client.poll_transmit(&mut out);
                client.settle(&mut self.rng);
                while let Some(event) = client.poll_event() {
                    match &event {
                        ClientEvent::Mux(MuxEvent::Data(conn, bytes)) => {
                            client.mux.consumed(*conn, bytes.len());
                            node.got.entry(*conn).or_default().extend(bytes);
                        }
                        ClientEvent::Mux(MuxEvent::Close(conn)) => {
                            client.mux.close(*conn);
                            node.closed.push(*conn);
                        }
                        ClientEvent::Remember => node.memory.0 = client.memory(false),
                        ClientEvent::Verdict(blamed) => node.verdicts.push(*blamed),
                        ClientEvent::Mux(_) => {}
                        _ => node.events.push(event),
                    }
                }
            }
            Core::Trustee(trustee) => {
                if let Some(memory) = trustee.poll_memory(self.now, UNIX) {
                    node.memory.1 = memory;
                }
                trustee.poll_transmit(&mut out);
                while let Some(blamed) = trustee.poll_verdict() {
                    node.verdicts.push(blamed);
                }
            }
        }
        if out.is_empty() {
            return;
        }
        if node.liar.is_some() {
            out = lie(node, &self.group, party, &out, &mut self.rng);
        }
        self.transcript.push((self.now - self.start, party, out.len()));
        self.wire.push_back((self.now + self.delay, party, true, out));
    }

    fn handle_relay_event(&mut self, event: RelayEvent) {
        match event {
            RelayEvent::Exit(slot, MuxEvent::Data(conn, bytes)) => {
                if self.stuck.contains(&(slot, conn)) {
                    return;
                }
                self.exits.entry((slot, conn)).or_default().extend(&bytes);
                self.relay.handle_exit_consumed(slot, conn, bytes.len());
                if self.echo {
                    self.relay.handle_exit_data(self.now, slot, conn, &bytes);
                }
            }
            RelayEvent::Exit(slot, MuxEvent::Close(conn)) => {
                self.relay.handle_exit_close(self.now, slot, conn);
            }
            RelayEvent::Exit(..) => {}
            RelayEvent::Interval(_) => {}
            RelayEvent::Verdict(blamed, case) => self.verdicts.push((blamed, case)),
        }
    }
}

/// Rewrites what a liar sends, with checkpoints that fit its lies.
fn lie(node: &mut Node, group: &Group, party: PartyRef, bytes: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let liar = node.liar.as_mut().unwrap();
    let mut out = Vec::new();
    let mut rest = bytes;
    let cell_size = group.system.settings.cell_size;
    while let Some((kind, body, used)) = message::next_frame(rest).unwrap() {
        rest = &rest[used..];
        let Some(signed) = &liar.interval else {
            message::frame(&mut out, kind, &[body]);
            continue;
        };
        let hash = signed.interval.hash();
        if kind == kind::UP || kind == kind::PAD {
            let share = Share::parse(body, cell_size).unwrap();
            let mut cell = share.slot.as_ref().map(|(_, cell)| cell.to_vec());
            let mut key = share.slot.as_ref().map(|(key, _)| *key);
            if share.round >= liar.from {
                match liar.lie {
                    Lie::Bits | Lie::BitsThenOneFalse => {
                        if let Some(cell) = &mut cell {
                            let at = rng.next_u32() as usize % cell.len();
                            cell[at] ^= (rng.next_u32() as u8) | 1;
                        }
                    }
                    Lie::KeyThenClaimed => key = key.map(|key| key + CLAIMED),
                    _ => {
                        if let Some(key) = &mut key {
                            *key += Scalar::from(rng.next_u64() | 1);
                        }
                    }
                }
            }
            let slot = key.zip(cell.as_deref());
            let bent = Share { slot, ..share.clone() }.to_bytes();
            message::frame(&mut out, kind, &[&bent]);
            liar.chain.push(&bent);
            if share.round % CHECK_EVERY == CHECK_EVERY - 1 {
                let signature = node.identity.sign("check", &liar.chain.signed(&hash, share.round));
                let parts: [&[u8]; 3] =
                    [&share.number.to_be_bytes(), &share.round.to_be_bytes(), &signature.0];
                message::frame(&mut out, kind::CHECK, &parts);
            }
        } else if kind == kind::CHECK {
            // Replaced above by one over the bent shares.
        } else if kind == kind::ANSWER {
            let view = View::of_trustee(group, &signed.interval, &hash);
            let mut answer = Answer::parse(body, &view).unwrap();
            assert_eq!(answer.party, party);
            match (liar.lie, &mut answer.content) {
                (Lie::BitsThenOneFalse, Content::Bits(bits)) => bits[0] ^= true,
                (Lie::KeyThenOneFalse, Content::Key(_, points, _)) => {
                    let shift = curve25519_dalek::RistrettoPoint::mul_base(&Scalar::ONE);
                    points[0] += shift;
                }
                (Lie::Key, Content::Key(share, ..)) => *share += Scalar::ONE,
                (Lie::KeyThenClaimed, Content::Key(share, ..)) => *share += CLAIMED,
                _ => {}
            }
            message::frame(&mut out, kind, &[&answer.to_bytes(&node.identity)]);
        } else {
            message::frame(&mut out, kind, &[body]);
        }
    }
    out
}
