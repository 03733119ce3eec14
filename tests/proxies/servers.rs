//! The receiver's servers: TCP with several manners, HTTP, a name server, UDP that comes back.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    thread,
    time::Duration,
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{RData, Record, RecordType, rdata},
};
use socket2::SockRef;

use crate::stage::Stage;

pub(crate) const V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
pub(crate) const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);
/// Says `hello`, waits for the end, says how much came.
pub(crate) const HALF_CLOSE: u16 = 7001;
/// Sends so many bytes and closes.
pub(crate) const SOURCE: u16 = 7002;
pub(crate) const SOURCE_BYTES: usize = 6 << 20;
/// Reads one byte and resets.
pub(crate) const RESET: u16 = 7003;
/// Takes connections and never says anything.
pub(crate) const SILENT: u16 = 7004;
/// Sends back what comes.
pub(crate) const ECHO: u16 = 7005;
/// Reads nothing for a while, then everything.
pub(crate) const SLOW: u16 = 7006;
/// Nobody listens there.
pub(crate) const CLOSED: u16 = 7099;
pub(crate) const WEB: u16 = 8000;

/// What a source sends.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 251) as u8).collect()
}

type Manner = fn(TcpStream) -> std::io::Result<()>;

/// Starts all of them; they end with the namespace's last socket, when the test process does.
pub(crate) fn start(stage: &Stage) {
    let manners: [(u16, Manner); 7] = [
        (HALF_CLOSE, half_close),
        (SOURCE, source),
        (RESET, reset),
        (SILENT, silent),
        (ECHO, echo),
        (SLOW, slow),
        (WEB, web),
    ];
    for (port, manner) in manners {
        let listener = stage
            .receiver
            .run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap())
            .unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || manner(stream));
            }
        });
    }
    let socket =
        stage.receiver.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, ECHO)).unwrap()).unwrap();
    thread::spawn(move || {
        let mut bytes = [0; 2048];
        while let Ok((len, from)) = socket.recv_from(&mut bytes) {
            let _ = socket.send_to(&bytes[..len], from);
        }
    });
    name_server(stage);
}

fn half_close(mut stream: TcpStream) -> std::io::Result<()> {
    stream.write_all(b"hello")?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    thread::sleep(Duration::from_millis(200));
    write!(stream, " {}", all.len())
}

fn source(mut stream: TcpStream) -> std::io::Result<()> {
    stream.write_all(&pattern(SOURCE_BYTES))
}

fn reset(mut stream: TcpStream) -> std::io::Result<()> {
    stream.read_exact(&mut [0])?;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))
}

fn silent(mut stream: TcpStream) -> std::io::Result<()> {
    stream.read_to_end(&mut Vec::new()).map(drop)
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let mut bytes = [0; 65_536];
    loop {
        match stream.read(&mut bytes)? {
            0 => return Ok(()),
            len => stream.write_all(&bytes[..len])?,
        }
    }
}

fn slow(mut stream: TcpStream) -> std::io::Result<()> {
    thread::sleep(Duration::from_secs(2));
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    let right = all == pattern(all.len());
    write!(stream, "{} {right}", all.len())
}

/// Serves `site()`'s pages and whatever lies in the directory of git repositories.
fn web(mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    loop {
        head.clear();
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read(&mut byte)? == 0 {
                return Ok(());
            }
            head.push(byte[0]);
        }
        let text = String::from_utf8_lossy(&head).into_owned();
        let path = text.split_whitespace().nth(1).unwrap_or("/");
        let path = path.split('?').next().unwrap_or("/");
        let body = match path {
            "/who" => Some(stream.peer_addr()?.ip().to_canonical().to_string().into_bytes()),
            _ => page(path),
        };
        let (status, body) = match body {
            Some(body) => ("200 OK", body),
            None => ("404 Not Found", Vec::new()),
        };
        let kind = if path == "/" { "text/html" } else { "application/octet-stream" };
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Type: {kind}\r\n\r\n",
            body.len()
        )?;
        stream.write_all(&body)?;
        if text.to_ascii_lowercase().contains("connection: close") {
            return Ok(());
        }
    }
}

/// Where the repository that is cloned lies.
pub(crate) fn repositories() -> PathBuf {
    std::env::temp_dir().join(format!("cepa-proxies-git-{}", std::process::id()))
}

fn page(path: &str) -> Option<Vec<u8>> {
    if path == "/" {
        return Some(INDEX.as_bytes().to_vec());
    }
    if let Some(number) = path.strip_prefix("/r/") {
        let number: usize = number.parse().ok()?;
        return Some(pattern(1000 + number * 997));
    }
    let path = path.strip_prefix("/git/").filter(|path| !path.contains(".."))?;
    std::fs::read(repositories().join(path)).ok()
}

/// Loads fifty resources at once and says what it got.
const INDEX: &str = r#"<!doctype html><title>loading</title><pre id=out></pre><script>
async function one(number) {
  const bytes = new Uint8Array(await (await fetch("/r/" + number)).arrayBuffer());
  let hash = 7;
  for (const byte of bytes) hash = (hash * 31 + byte) >>> 0;
  return number + " " + bytes.length + " " + hash;
}
Promise.all([...Array(50).keys()].map(one)).then(
  (lines) => { out.textContent = lines.join("\n") + "\nall"; },
  (error) => { out.textContent = "failed " + error; });
</script>"#;

/// What that page says.
pub(crate) fn loaded() -> String {
    let line = |number: usize| {
        let bytes = pattern(1000 + number * 997);
        let hash = bytes
            .iter()
            .fold(7u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(*byte)));
        format!("{number} {} {hash}\n", bytes.len())
    };
    (0..50).map(line).collect::<String>() + "all"
}

/// Answers for `*.example`, over UDP and TCP; `big.example` has more than fits a datagram.
fn name_server(stage: &Stage) {
    let bind = || {
        let udp = UdpSocket::bind((V4, 53)).unwrap();
        (udp, TcpListener::bind((V4, 53)).unwrap())
    };
    let (udp, tcp) = stage.receiver.run(bind).unwrap();
    thread::spawn(move || {
        let mut bytes = [0; 2048];
        while let Ok((len, from)) = udp.recv_from(&mut bytes) {
            let Some(answer) = answer(&bytes[..len]) else { continue };
            let sent = match answer.to_vec().unwrap() {
                long if long.len() > 1232 => answer.truncate().to_vec().unwrap(),
                short => short,
            };
            let _ = udp.send_to(&sent, from);
        }
    });
    thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            thread::spawn(move || {
                let mut len = [0; 2];
                stream.read_exact(&mut len)?;
                let mut bytes = vec![0; u16::from_be_bytes(len).into()];
                stream.read_exact(&mut bytes)?;
                if let Some(answer) = answer(&bytes) {
                    let answer = answer.to_vec().unwrap();
                    stream.write_all(&(answer.len() as u16).to_be_bytes())?;
                    stream.write_all(&answer)?;
                }
                Ok::<_, std::io::Error>(())
            });
        }
    });
}

fn answer(bytes: &[u8]) -> Option<Message> {
    let mut answer = Message::from_vec(bytes).ok()?.into_response();
    let asked = answer.queries.first()?.clone();
    let name = asked.name().to_ascii().to_ascii_lowercase();
    let mut add = |data| {
        answer.add_answer(Record::from_rdata(asked.name().clone(), 60, data));
    };
    let v4 = |octets: [u8; 4]| RData::A(rdata::A(octets.into()));
    match (name.as_str(), asked.query_type()) {
        ("web.example.", RecordType::A) => add(v4(V4.octets())),
        ("web.example." | "six.example.", RecordType::AAAA) => add(RData::AAAA(rdata::AAAA(V6))),
        ("web.example." | "six.example.", _) => {}
        // Addresses that no circuit may learn, with one that it may.
        ("rebind.example.", RecordType::A) => {
            add(v4([127, 0, 0, 1]));
            add(v4([169, 254, 169, 254]));
            add(v4(V4.octets()));
        }
        ("rebind.example.", _) => {}
        ("big.example.", RecordType::TXT) => {
            for number in 0..40 {
                add(RData::TXT(rdata::TXT::new(vec![format!("{number:0>100}")])));
            }
        }
        _ => {
            answer.metadata.response_code = ResponseCode::NXDomain;
        }
    }
    Some(answer)
}
