//! Names for circuits: questions to this machine's name server, answers that the policy allows.
//!
//! In: DNS questions of circuits, UDP and TCP. Out: answers. Called by: the engine.
//!
//! | a circuit cannot | because |
//! |---|---|
//! | reach other name servers than this machine's, or send them anything but one plain question | the question is written anew |
//! | learn names of the local network | addresses the policy rejects are taken out, reverse questions about them are not asked |
//! | flood a name server or get more bytes than it asked for | questions are limited by rate and at once; answers go back into the circuit, in packets of at most 1400 bytes |
//! | learn what others asked | nothing is kept |

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, ResponseCode},
    rr::{Name, RData, RecordType},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use crate::{model::ExitPolicy, stack};

/// Questions of one circuit per second, and at once.
const PER_SECOND: f64 = 50.0;
const AT_ONCE: f64 = 200.0;
/// Questions of all circuits under way.
const MOST_UNDER_WAY: usize = 1024;
/// How long a name server may take, before the next one is asked.
const PATIENCE: Duration = Duration::from_secs(2);
const PATIENCE_TCP: Duration = Duration::from_secs(4);
/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// The longest answer in one packet.
const MOST_UDP: u16 = 1400;
const PLAIN_UDP: u16 = 512;
const MOST_QUESTION: usize = 1024;
/// How long the list of name servers is believed.
const SERVERS_KEPT: Duration = Duration::from_secs(30);
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The resolver of one exit.
pub(super) struct Resolver {
    fixed: Option<SocketAddr>,
    policy: ExitPolicy,
    servers: RefCell<Option<(Instant, Vec<SocketAddr>)>>,
    circuits: RefCell<HashMap<IpAddr, Allowance>>,
    under_way: Cell<usize>,
}

struct Allowance {
    questions: f64,
    since: Instant,
}

impl Resolver {
    /// A resolver that asks `fixed`, or the servers of `/etc/resolv.conf`.
    pub(super) fn new(fixed: Option<SocketAddr>, policy: ExitPolicy) -> Self {
        Self {
            fixed,
            policy,
            servers: RefCell::default(),
            circuits: RefCell::default(),
            under_way: Cell::new(0),
        }
    }

    /// A circuit ended.
    pub(super) fn forget(&self, circuit: IpAddr) {
        self.circuits.borrow_mut().remove(&circuit);
    }

    /// The answer to a datagram; none if it is no question.
    pub(super) async fn answer_udp(&self, bytes: &[u8], circuit: IpAddr) -> Option<Vec<u8>> {
        let question = parse(bytes)?;
        let room = question
            .edns
            .as_ref()
            .map_or(PLAIN_UDP, |edns| edns.max_payload().clamp(PLAIN_UDP, MOST_UDP));
        let answer = self.answer(&question, circuit).await;
        let fits = |bytes: &Vec<u8>| bytes.len() <= usize::from(room);
        answer.to_vec().ok().filter(fits).or_else(|| answer.truncate().to_vec().ok())
    }

    /// Answers the questions of one connection.
    pub(super) async fn serve_tcp(&self, mut stream: stack::TcpStream, circuit: IpAddr) {
        loop {
            let question = timeout(IDLE, async {
                let len = stream.read_u16().await.ok()?;
                let mut bytes = vec![0; usize::from(len).min(MOST_QUESTION)];
                stream.read_exact(&mut bytes).await.ok()?;
                parse(&bytes)
            });
            let Ok(Some(question)) = question.await else { break };
            let Ok(bytes) = self.answer(&question, circuit).await.to_vec() else { break };
            let Ok(len) = u16::try_from(bytes.len()) else { break };
            let written = async {
                stream.write_all(&len.to_be_bytes()).await?;
                stream.write_all(&bytes).await
            };
            if !matches!(timeout(IDLE, written).await, Ok(Ok(()))) {
                return;
            }
        }
        // The other end may be gone.
        let _ = stream.shutdown().await;
    }

    async fn answer(&self, question: &Message, circuit: IpAddr) -> Message {
        let mut refusal = Message::error_msg(
            question.metadata.id,
            question.metadata.op_code,
            ResponseCode::NoError,
        );
        refusal.metadata.recursion_desired = question.metadata.recursion_desired;
        refusal.metadata.recursion_available = true;
        refusal.add_queries(question.queries.iter().cloned());
        let code = match self.check(question, circuit) {
            Err(code) => code,
            Ok(()) => {
                self.under_way.set(self.under_way.get() + 1);
                let answer = self.ask_servers(question).await;
                self.under_way.set(self.under_way.get() - 1);
                match answer {
                    Some(answer) => return self.allowed(answer, question),
                    None => ResponseCode::ServFail,
                }
            }
        };
        refusal.metadata.response_code = code;
        refusal
    }

    /// Whether a question is asked at all.
    fn check(&self, question: &Message, circuit: IpAddr) -> Result<(), ResponseCode> {
        let [asked] = &question.queries[..] else { return Err(ResponseCode::FormErr) };
        if question.metadata.op_code != OpCode::Query {
            return Err(ResponseCode::NotImp);
        }
        if matches!(asked.query_type(), RecordType::ANY | RecordType::AXFR | RecordType::IXFR) {
            return Err(ResponseCode::Refused);
        }
        if !self.is_of_the_world(asked.name()) {
            return Err(ResponseCode::NXDomain);
        }
        if self.under_way.get() >= MOST_UNDER_WAY || !self.take_allowance(circuit) {
            return Err(ResponseCode::Refused);
        }
        Ok(())
    }

    /// Whether a name means the same everywhere: none of this machine, of its network, of onion
    /// services, or of an address that the policy keeps to itself.
    fn is_of_the_world(&self, name: &Name) -> bool {
        if name.num_labels() == 0 {
            return true;
        }
        let text = name.to_ascii().to_ascii_lowercase();
        let text = text.trim_end_matches('.');
        let last = text.rsplit('.').next().unwrap_or_default();
        let is_local =
            matches!(last, "localhost" | "local" | "onion" | "internal" | "lan" | "home")
                || text.ends_with("home.arpa");
        if is_local {
            return false;
        }
        match name.parse_arpa_name() {
            Ok(network) => self.policy.allows_some_port(network.addr()),
            Err(_) => true,
        }
    }

    fn take_allowance(&self, circuit: IpAddr) -> bool {
        let now = Instant::now();
        let mut circuits = self.circuits.borrow_mut();
        let own = circuits.entry(circuit).or_insert(Allowance { questions: AT_ONCE, since: now });
        let gained = now.saturating_duration_since(own.since).as_secs_f64() * PER_SECOND;
        own.questions = (own.questions + gained).min(AT_ONCE);
        own.since = now;
        let enough = own.questions >= 1.0;
        if enough {
            own.questions -= 1.0;
        }
        enough
    }

    fn servers(&self) -> Vec<SocketAddr> {
        if let Some(fixed) = self.fixed {
            return vec![fixed];
        }
        let now = Instant::now();
        let mut known = self.servers.borrow_mut();
        match &*known {
            Some((since, servers)) if now < *since + SERVERS_KEPT => servers.clone(),
            _ => {
                let servers = read_servers();
                if servers.is_empty() {
                    log::warn!(
                        event = "no_resolver";
                        "expected a nameserver in {RESOLV_CONF}, got none: names do not resolve at \
                         this exit; name one with --exit-resolver IP:PORT"
                    );
                }
                *known = Some((now, servers.clone()));
                servers
            }
        }
    }

    async fn ask_servers(&self, question: &Message) -> Option<Message> {
        let mut ours = Message::query();
        ours.metadata.recursion_desired = true;
        ours.metadata.checking_disabled = question.metadata.checking_disabled;
        ours.add_queries(question.queries.iter().cloned());
        let mut edns = Edns::new();
        edns.set_max_payload(1232);
        edns.set_dnssec_ok(question.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok));
        ours.set_edns(edns);
        let bytes = ours.to_vec().ok()?;
        let mut last = None;
        for server in self.servers() {
            let answer = match timeout(PATIENCE, over_udp(server, &ours, &bytes)).await {
                Ok(Some(answer)) if answer.metadata.truncation => {
                    timeout(PATIENCE_TCP, over_tcp(server, &ours, &bytes)).await.ok().flatten()
                }
                answered => answered.ok().flatten(),
            };
            match answer {
                Some(answer) if answer.metadata.response_code == ResponseCode::ServFail => {
                    last = Some(answer);
                }
                Some(answer) => return Some(answer),
                None => {}
            }
        }
        last
    }

    /// The answer without addresses that nobody could reach through this exit.
    fn allowed(&self, mut answer: Message, question: &Message) -> Message {
        let reaches = |ip: IpAddr| self.policy.allows_some_port(ip) && has_route(ip);
        for section in [&mut answer.answers, &mut answer.authorities, &mut answer.additionals] {
            section.retain(|record| match &record.data {
                RData::A(v4) => reaches(v4.0.into()),
                RData::AAAA(v6) => reaches(v6.0.into()),
                _ => true,
            });
        }
        answer.metadata.id = question.metadata.id;
        answer.metadata.authoritative = false;
        answer.queries.clone_from(&question.queries);
        if question.edns.is_none() {
            answer.edns = None;
        }
        answer
    }
}

fn parse(bytes: &[u8]) -> Option<Message> {
    Message::from_vec(bytes)
        .ok()
        .filter(|message| message.metadata.message_type == MessageType::Query)
}

fn answer_to(ours: &Message, bytes: &[u8]) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let is_answer = answer.metadata.message_type == MessageType::Response
        && answer.metadata.id == ours.metadata.id
        && answer.queries == ours.queries;
    is_answer.then_some(answer)
}

fn any_like(ip: IpAddr) -> SocketAddr {
    let any: IpAddr =
        if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    SocketAddr::new(any, 0)
}

async fn over_udp(server: SocketAddr, ours: &Message, bytes: &[u8]) -> Option<Message> {
    let socket = UdpSocket::bind(any_like(server.ip())).await.ok()?;
    socket.connect(server).await.ok()?;
    socket.send(bytes).await.ok()?;
    let mut buffer = vec![0; 4096];
    loop {
        let len = socket.recv(&mut buffer).await.ok()?;
        if let Some(answer) = answer_to(ours, &buffer[..len]) {
            return Some(answer);
        }
    }
}

async fn over_tcp(server: SocketAddr, ours: &Message, bytes: &[u8]) -> Option<Message> {
    let mut stream = TcpStream::connect(server).await.ok()?;
    let mut framed = u16::try_from(bytes.len()).ok()?.to_be_bytes().to_vec();
    framed.extend(bytes);
    stream.write_all(&framed).await.ok()?;
    let len = stream.read_u16().await.ok()?;
    let mut buffer = vec![0; len.into()];
    stream.read_exact(&mut buffer).await.ok()?;
    answer_to(ours, &buffer)
}

/// Whether this machine knows a way to an address; nothing is sent.
fn has_route(ip: IpAddr) -> bool {
    std::net::UdpSocket::bind(any_like(ip)).and_then(|socket| socket.connect((ip, 53))).is_ok()
}

fn read_servers() -> Vec<SocketAddr> {
    std::fs::read(RESOLV_CONF)
        .ok()
        .and_then(|text| resolv_conf::Config::parse(text).ok())
        .map(|config| config.nameservers)
        .unwrap_or_default()
        .iter()
        .map(|server| SocketAddr::new(server.into(), 53))
        .collect()
}
