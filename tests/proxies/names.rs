//! Names: resolved by the exit, for the proxies and for whoever asks the client's resolver.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};

use crate::{
    outcome::socks,
    servers,
    stage::{DNS, Stage},
};

fn question(name: &str, kind: RecordType) -> Message {
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    question
}

fn over_udp(stage: &Stage, name: &str, kind: RecordType) -> Message {
    let resolver: SocketAddr = DNS.parse().unwrap();
    let socket = stage.sender.run(|| UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(9))).unwrap();
    let question = question(name, kind);
    socket.send_to(&question.to_vec().unwrap(), resolver).unwrap();
    let mut bytes = [0; 4096];
    let (len, from) = socket.recv_from(&mut bytes).unwrap();
    assert_eq!(from, resolver);
    let answer = Message::from_vec(&bytes[..len]).unwrap();
    assert_eq!(answer.metadata.id, question.metadata.id);
    answer
}

fn over_tcp(stage: &Stage, name: &str, kind: RecordType) -> Message {
    let resolver: SocketAddr = DNS.parse().unwrap();
    let mut stream = stage.sender.run(|| TcpStream::connect(resolver).unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(9))).unwrap();
    let bytes = question(name, kind).to_vec().unwrap();
    stream.write_all(&(bytes.len() as u16).to_be_bytes()).unwrap();
    stream.write_all(&bytes).unwrap();
    let mut len = [0; 2];
    stream.read_exact(&mut len).unwrap();
    let mut bytes = vec![0; u16::from_be_bytes(len).into()];
    stream.read_exact(&mut bytes).unwrap();
    Message::from_vec(&bytes).unwrap()
}

fn addresses(answer: &Message) -> Vec<IpAddr> {
    let address = |data: &RData| match data {
        RData::A(v4) => Some(IpAddr::V4(v4.0)),
        RData::AAAA(v6) => Some(IpAddr::V6(v6.0)),
        _ => None,
    };
    answer.answers.iter().filter_map(|record| address(&record.data)).collect()
}

pub(crate) fn all(stage: &Stage) {
    for host in ["web.example", "six.example", "WEB.Example."] {
        let mut stream = socks(&stage.sender, host, servers::ECHO, None).unwrap();
        stream.write_all(b"!").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
    for nowhere in ["no.example", "printer.local", "localhost", "x.onion"] {
        assert_eq!(socks(&stage.sender, nowhere, 80, None).err(), Some(4), "{nowhere}");
    }
    let v4 = IpAddr::from(servers::V4);
    assert_eq!(addresses(&over_udp(stage, "web.example.", RecordType::A)), [v4]);
    assert_eq!(addresses(&over_tcp(stage, "web.example.", RecordType::A)), [v4]);
    assert_eq!(
        addresses(&over_udp(stage, "six.example.", RecordType::AAAA)),
        [IpAddr::from(servers::V6)]
    );
    assert_eq!(
        addresses(&over_udp(stage, "rebind.example.", RecordType::A)),
        [v4],
        "addresses that the policy rejects are taken out"
    );
    let code = |name, kind| over_udp(stage, name, kind).metadata.response_code;
    assert_eq!(code("no.example.", RecordType::A), ResponseCode::NXDomain);
    assert_eq!(code("1.0.0.127.in-addr.arpa.", RecordType::PTR), ResponseCode::NXDomain);
    assert_eq!(code("web.example.", RecordType::ANY), ResponseCode::Refused);
    let loopback = addresses(&over_udp(stage, "localhost.", RecordType::A));
    assert_eq!(loopback, [IpAddr::from([127, 0, 0, 1])]);
    let cut = over_udp(stage, "big.example.", RecordType::TXT);
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    assert_eq!(over_tcp(stage, "big.example.", RecordType::TXT).answers.len(), 40);
}
