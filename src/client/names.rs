//! Names, resolved by the exit of the circuit: questions to its inner address, and a cache.
//!
//! In: names, whole DNS questions. Out: addresses, whole answers. Called by: the dialer, the
//! resolver for programs of this machine.
//!
//! A question goes through the circuit of its isolation group and the cache keeps groups apart,
//! so one group cannot learn what another asked.

use std::{
    cell::RefCell,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use hashbrown::HashMap;
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use crate::{
    model::{EXIT_INNER_V4, EXIT_RESOLVER_PORT},
    stack::Stack,
};

/// How long to wait for the answer to each copy of a question. The first one covers a circuit
/// that is slow, the next ones a packet that was lost.
const PATIENCE: [Duration; 4] = [
    Duration::from_millis(1500),
    Duration::from_millis(1500),
    Duration::from_secs(2),
    Duration::from_secs(3),
];
/// How long an answer over TCP may take.
const PATIENCE_TCP: Duration = Duration::from_secs(8);
/// Answers up to this length come in one inner packet.
const MOST_UDP: u16 = 1400;
/// Answers kept.
const MOST_KEPT: usize = 2048;
/// An answer is kept for what it says, but no longer than this.
const KEPT_AT_MOST: Duration = Duration::from_secs(3600);
/// That there is no such name or record is kept for this long.
const NOTHING_KEPT: Duration = Duration::from_secs(30);

/// Why a name was not resolved.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LookupError {
    /// There is no such name, or it has no address.
    #[error("there is no such name")]
    NoSuchName,
    /// The exit's resolver refuses or fails.
    #[error("the exit's resolver says {0}")]
    Failed(String),
    /// No answer.
    #[error("the exit's resolver does not answer")]
    Silent,
    /// The question is none.
    #[error("expected one question")]
    BadQuestion,
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    group: u32,
    question: Query,
    wants_proofs: bool,
}

struct Kept {
    answer: Message,
    since: Instant,
    until: Instant,
}

/// The resolver of one client.
pub struct Names {
    stack: Stack,
    kept: RefCell<HashMap<Key, Kept>>,
}

impl Names {
    /// A resolver that asks through `stack`.
    pub fn new(stack: Stack) -> Self {
        Self { stack, kept: RefCell::default() }
    }

    /// The addresses of a name, IPv4 first.
    ///
    /// # Errors
    /// When there are none.
    pub async fn addresses(&self, name: &str, group: u32) -> Result<Vec<IpAddr>, LookupError> {
        let name = Name::from_ascii(format!("{name}.")).map_err(|_| LookupError::BadQuestion)?;
        let ask = |kind| {
            let mut question = Message::query();
            question.metadata.recursion_desired = true;
            question.add_query(Query::query(name.clone(), kind));
            self.ask(question, group)
        };
        let (v4, v6) = tokio::join!(ask(RecordType::A), ask(RecordType::AAAA));
        let mut found = Vec::new();
        for answer in [&v4, &v6].into_iter().flatten() {
            found.extend(answer.answers.iter().filter_map(|record| match &record.data {
                RData::A(v4) => Some(IpAddr::V4(v4.0)),
                RData::AAAA(v6) => Some(IpAddr::V6(v6.0)),
                _ => None,
            }));
        }
        if !found.is_empty() {
            return Ok(found);
        }
        let answer = v4?;
        match answer.metadata.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain => {
                v6?;
                Err(LookupError::NoSuchName)
            }
            code => Err(LookupError::Failed(code.to_string())),
        }
    }

    /// The answer to a question, with the question's id.
    ///
    /// # Errors
    /// When the question is none, or no answer comes.
    pub async fn ask(&self, question: Message, group: u32) -> Result<Message, LookupError> {
        let (id, asked) = (question.metadata.id, question.queries.first().cloned());
        let (Some(asked), 1, OpCode::Query, MessageType::Query) = (
            asked,
            question.queries.len(),
            question.metadata.op_code,
            question.metadata.message_type,
        ) else {
            return Err(LookupError::BadQuestion);
        };
        let wants_proofs = question.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok)
            || question.metadata.checking_disabled;
        let mut lowered = asked.clone();
        lowered.set_name(asked.name().to_lowercase());
        let key = Key { group, question: lowered, wants_proofs };
        let mut answer = match self.recall(&key) {
            Some(answer) => answer,
            None => {
                let answer = self.ask_exit(&question, group).await?;
                self.keep(key, &answer);
                answer
            }
        };
        answer.metadata.id = id;
        // The letters as they were asked: some programs compare them.
        answer.queries = vec![asked];
        Ok(answer)
    }

    /// One question to the exit, under an id and with a length of our own.
    async fn ask_exit(&self, question: &Message, group: u32) -> Result<Message, LookupError> {
        let mut ours = Message::query();
        ours.metadata.recursion_desired = true;
        ours.metadata.checking_disabled = question.metadata.checking_disabled;
        ours.add_queries(question.queries.iter().cloned());
        let mut edns = Edns::new();
        edns.set_max_payload(MOST_UDP);
        edns.set_dnssec_ok(question.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok));
        ours.set_edns(edns);
        let bytes = ours.to_vec().map_err(|_| LookupError::BadQuestion)?;
        let answer = self.over_udp(&ours, &bytes, group).await?;
        if answer.metadata.truncation {
            return timeout(PATIENCE_TCP, self.over_tcp(&ours, &bytes, group))
                .await
                .unwrap_or(Err(LookupError::Silent));
        }
        Ok(answer)
    }

    async fn over_udp(
        &self,
        ours: &Message,
        bytes: &[u8],
        group: u32,
    ) -> Result<Message, LookupError> {
        let socket = self.stack.datagrams(group).map_err(|_| LookupError::Silent)?;
        let resolver = resolver();
        for patience in PATIENCE {
            // What is lost here is asked again, as what is lost on the way.
            let _ = socket.send_to(bytes, resolver);
            let answered = timeout(patience, async {
                loop {
                    let (from, bytes) = socket.recv_from().await;
                    if from == resolver
                        && let Some(answer) = answer_to(ours, &bytes)
                    {
                        return answer;
                    }
                }
            });
            if let Ok(answer) = answered.await {
                return Ok(answer);
            }
        }
        Err(LookupError::Silent)
    }

    async fn over_tcp(
        &self,
        ours: &Message,
        bytes: &[u8],
        group: u32,
    ) -> Result<Message, LookupError> {
        let silent = |_| LookupError::Silent;
        let mut stream = self.stack.connect(resolver(), group).await.map_err(silent)?;
        let len = u16::try_from(bytes.len()).map_err(|_| LookupError::BadQuestion)?;
        stream.write_all(&len.to_be_bytes()).await.map_err(silent)?;
        stream.write_all(bytes).await.map_err(silent)?;
        let len = stream.read_u16().await.map_err(silent)?;
        let mut bytes = vec![0; len.into()];
        stream.read_exact(&mut bytes).await.map_err(silent)?;
        answer_to(ours, &bytes).ok_or(LookupError::Silent)
    }

    fn recall(&self, key: &Key) -> Option<Message> {
        let kept = self.kept.borrow();
        let found = kept.get(key)?;
        let now = Instant::now();
        if now >= found.until {
            return None;
        }
        let age = now.saturating_duration_since(found.since).as_secs() as u32;
        let mut answer = found.answer.clone();
        let sections = [&mut answer.answers, &mut answer.authorities, &mut answer.additionals];
        for record in sections.into_iter().flatten() {
            record.ttl = record.ttl.saturating_sub(age);
        }
        Some(answer)
    }

    fn keep(&self, key: Key, answer: &Message) {
        let until = match answer.metadata.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain => answer
                .answers
                .iter()
                .map(|record| Duration::from_secs(record.ttl.into()))
                .min()
                .unwrap_or(NOTHING_KEPT)
                .min(KEPT_AT_MOST),
            _ => return,
        };
        if until.is_zero() {
            return;
        }
        let now = Instant::now();
        let mut kept = self.kept.borrow_mut();
        if kept.len() >= MOST_KEPT {
            kept.retain(|_, kept| kept.until > now);
            if kept.len() >= MOST_KEPT {
                kept.clear();
            }
        }
        kept.insert(key, Kept { answer: answer.clone(), since: now, until: now + until });
    }
}

fn resolver() -> SocketAddr {
    (EXIT_INNER_V4, EXIT_RESOLVER_PORT).into()
}

/// An answer to this very question, or nothing.
fn answer_to(ours: &Message, bytes: &[u8]) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let is_answer = answer.metadata.message_type == MessageType::Response
        && answer.metadata.id == ours.metadata.id
        && answer.queries == ours.queries;
    is_answer.then_some(answer)
}
