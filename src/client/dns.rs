//! The resolver for programs of this machine and its network: DNS over UDP and TCP.
//!
//! In: questions. Out: the answers of the circuit's exit. Called by: the proxies.
//!
//! Nothing is asked of any other resolver, whatever happens: no circuit, no answer.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use hickory_proto::{
    op::{Message, MessageType, OpCode, ResponseCode},
    rr::{RData, Record, RecordType, rdata},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    time::timeout,
};

use super::{
    counters::{Counters, Sources, is_near},
    listener::{self, Guest},
    names::Names,
    target::{NameRefused, check_name},
};

/// Questions under way at once.
const MOST_QUESTIONS: usize = 512;
/// The longest question.
const MOST_BYTES: usize = 4096;
/// What a client without EDNS takes.
const PLAIN_UDP: u16 = 512;
/// The longest answer over UDP (the value that resolvers agreed on in 2020).
const MOST_UDP: u16 = 1232;
/// A connection without a question is closed after this.
const IDLE: Duration = Duration::from_secs(10);
/// Questions of one connection.
const MOST_OF_ONE: usize = 1024;
/// How long a name of this machine may be kept.
const LOCAL_TTL: u32 = 86_400;

/// Serves both sockets, in tasks of their own.
pub(super) fn serve(
    udp: UdpSocket,
    tcp: TcpListener,
    counters: Arc<Counters>,
    sources: Sources,
    names: Rc<Names>,
) {
    tokio::task::spawn_local(serve_udp(udp, Arc::clone(&counters), Rc::clone(&names)));
    tokio::task::spawn_local(listener::serve(tcp, counters, sources, move |guest| {
        serve_tcp(guest, Rc::clone(&names))
    }));
}

async fn serve_udp(socket: UdpSocket, counters: Arc<Counters>, names: Rc<Names>) {
    let socket = Rc::new(socket);
    let mut bytes = vec![0; MOST_BYTES];
    loop {
        // An ICMP error of an earlier answer; the next read goes on.
        let Ok((len, from)) = socket.recv_from(&mut bytes).await else { continue };
        if !is_near(from.ip()) || Rc::strong_count(&socket) > MOST_QUESTIONS {
            counters.refuse();
            continue;
        }
        let Some(question) = parse(&bytes[..len]) else {
            counters.refuse();
            continue;
        };
        let (socket, names, open) = (Rc::clone(&socket), Rc::clone(&names), counters.open());
        tokio::task::spawn_local(async move {
            let _open = open;
            answer_udp(&socket, from, question, &names).await;
        });
    }
}

async fn answer_udp(socket: &UdpSocket, from: SocketAddr, question: Message, names: &Names) {
    let room = question
        .edns
        .as_ref()
        .map_or(PLAIN_UDP, |edns| edns.max_payload().clamp(PLAIN_UDP, MOST_UDP));
    let answer = answer(question, names).await;
    let fits = |bytes: &Vec<u8>| bytes.len() <= usize::from(room);
    let bytes = answer.to_vec().ok().filter(fits).or_else(|| answer.truncate().to_vec().ok());
    if let Some(bytes) = bytes {
        // A client that is gone needs no answer.
        let _ = socket.send_to(&bytes, from).await;
    }
}

async fn serve_tcp(mut guest: Guest, names: Rc<Names>) {
    for _ in 0..MOST_OF_ONE {
        let question = timeout(IDLE, async {
            let len = guest.stream.read_u16().await?;
            let mut bytes = vec![0; usize::from(len).min(MOST_BYTES)];
            guest.stream.read_exact(&mut bytes).await?;
            Ok::<_, std::io::Error>(parse(&bytes))
        });
        let Ok(Ok(Some(question))) = question.await else { return };
        let Ok(bytes) = answer(question, &names).await.to_vec() else { return };
        let Ok(len) = u16::try_from(bytes.len()) else { return };
        let mut framed = len.to_be_bytes().to_vec();
        framed.extend(bytes);
        if guest.stream.write_all(&framed).await.is_err() {
            return;
        }
    }
}

/// A question that may be answered; none for noise and for answers.
fn parse(bytes: &[u8]) -> Option<Message> {
    Message::from_vec(bytes)
        .ok()
        .filter(|message| message.metadata.message_type == MessageType::Query)
}

/// The answer to a question, be it only that there is none.
async fn answer(question: Message, names: &Names) -> Message {
    let metadata = question.metadata;
    let has_edns = question.edns.is_some();
    let mut empty = Message::error_msg(metadata.id, metadata.op_code, ResponseCode::NoError);
    empty.metadata.recursion_desired = metadata.recursion_desired;
    empty.metadata.recursion_available = true;
    empty.add_queries(question.queries.iter().cloned());
    let refuse = |mut empty: Message, code| {
        empty.metadata.response_code = code;
        empty
    };
    let [asked] = &question.queries[..] else { return refuse(empty, ResponseCode::FormErr) };
    if metadata.op_code != OpCode::Query {
        return refuse(empty, ResponseCode::NotImp);
    }
    // What is asked for everything is what is used to flood others (RFC 8482).
    if matches!(asked.query_type(), RecordType::ANY | RecordType::AXFR | RecordType::IXFR) {
        return refuse(empty, ResponseCode::Refused);
    }
    let name = asked.name().to_ascii();
    let last = name.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    if last.eq_ignore_ascii_case("localhost") {
        return of_this_machine(empty, asked.query_type());
    }
    // The root and service names are no host names and are asked all the same.
    if check_name(&name) == Err(NameRefused::SpecialUse) {
        return refuse(empty, ResponseCode::NXDomain);
    }
    match names.ask(question, 0).await {
        Ok(mut answer) => {
            answer.metadata.recursion_desired = metadata.recursion_desired;
            if !has_edns {
                answer.edns = None;
            }
            answer
        }
        Err(error) => {
            log::debug!("a question was not answered: {error}");
            refuse(empty, ResponseCode::ServFail)
        }
    }
}

/// `localhost` never leaves this machine (RFC 6761).
fn of_this_machine(mut answer: Message, kind: RecordType) -> Message {
    let name = answer.queries[0].name().clone();
    let data = match kind {
        RecordType::A => RData::A(rdata::A(std::net::Ipv4Addr::LOCALHOST)),
        RecordType::AAAA => RData::AAAA(rdata::AAAA(std::net::Ipv6Addr::LOCALHOST)),
        _ => return answer,
    };
    answer.add_answer(Record::from_rdata(name, LOCAL_TTL, data));
    answer
}
