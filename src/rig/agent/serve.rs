//! The servers of the receiver.
//!
//! In: connections and datagrams. Out: the rig's plaintext, echoes, counts.
//! Called by: rig::agent.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    sync::{Arc, Mutex},
    thread,
};

use anyhow::{Context, Result};

use super::{
    bulk::{self, Counted},
    dns, port,
};
use crate::rig::plaintext;

/// Who asked, for the promise that only exits are seen here.
struct Seen {
    file: File,
    known: BTreeSet<IpAddr>,
}

impl Seen {
    fn note(seen: &Mutex<Self>, from: SocketAddr) {
        let Ok(mut seen) = seen.lock() else { return };
        let ip = from.ip().to_canonical();
        if seen.known.insert(ip) {
            let _ = writeln!(seen.file, "{ip}");
        }
    }
}

/// Serves until killed.
pub(super) fn serve(seen: &Path, ready: impl FnOnce() -> Result<()>) -> Result<()> {
    let file = File::create(seen).with_context(|| format!("writing {}", seen.display()))?;
    let seen = Arc::new(Mutex::new(Seen { file, known: BTreeSet::new() }));
    let any = IpAddr::from(Ipv6Addr::UNSPECIFIED);
    for (port, handler) in [
        (port::HTTP, http as fn(TcpStream) -> Result<()>),
        (port::BULK, bulk::serve),
        (port::ECHO, echo_stream),
    ] {
        let listener = TcpListener::bind((any, port))?;
        let seen = seen.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Ok(from) = stream.peer_addr() {
                    Seen::note(&seen, from);
                }
                thread::spawn(move || handler(stream));
            }
        });
    }
    for (port, handler) in [
        (port::ECHO, echo as fn(&UdpSocket, &Mutex<Seen>) -> Result<()>),
        (port::DNS, name_server),
        (port::COUNT, count),
    ] {
        let socket = UdpSocket::bind((any, port))?;
        crate::capture::udp::grow_buffers(&socket2::SockRef::from(&socket));
        let seen = seen.clone();
        thread::spawn(move || handler(&socket, &seen));
    }
    ready()?;
    loop {
        thread::park();
    }
}

/// `GET /N`: N bytes of the plaintext.
fn http(mut stream: TcpStream) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut first = String::new();
        if reader.read_line(&mut first)? == 0 {
            return Ok(());
        }
        let mut line = String::new();
        while reader.read_line(&mut line)? > 2 {
            line.clear();
        }
        let len: u64 =
            first.split(['/', ' ']).nth(2).and_then(|word| word.parse().ok()).unwrap_or(0);
        write!(
            stream,
            "HTTP/1.1 200 OK\r\n{}\r\nContent-Type: application/octet-stream\r\nContent-Length: {len}\r\n\r\n",
            plaintext::HTTP_SERVER
        )?;
        bulk::send_plaintext(&mut stream, len)?;
    }
}

fn echo_stream(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = [0; 65_536];
    loop {
        let len = stream.read(&mut bytes)?;
        if len == 0 {
            return Ok(());
        }
        stream.write_all(&bytes[..len])?;
    }
}

fn echo(socket: &UdpSocket, seen: &Mutex<Seen>) -> Result<()> {
    let mut bytes = [0; 65_536];
    loop {
        let (len, from) = socket.recv_from(&mut bytes)?;
        Seen::note(seen, from);
        let _ = socket.send_to(&bytes[..len], from);
    }
}

fn name_server(socket: &UdpSocket, seen: &Mutex<Seen>) -> Result<()> {
    let mut bytes = [0; 1500];
    loop {
        let (len, from) = socket.recv_from(&mut bytes)?;
        Seen::note(seen, from);
        if let Some(answer) = dns::answer(&bytes[..len]) {
            let _ = socket.send_to(&answer, from);
        }
    }
}

/// Counts datagrams by sender, and tells a sender its count when asked.
fn count(socket: &UdpSocket, seen: &Mutex<Seen>) -> Result<()> {
    let mut counts: HashMap<SocketAddr, Counted> = HashMap::new();
    let mut bytes = [0; 65_536];
    loop {
        let (len, from) = socket.recv_from(&mut bytes)?;
        if len <= bulk::HOW_MANY.len() && bytes[..len] == *bulk::HOW_MANY {
            Seen::note(seen, from);
            let counted = counts.get(&from).copied().unwrap_or_default();
            let _ = socket.send_to(&serde_json::to_vec(&counted)?, from);
        } else {
            let counted = counts.entry(from).or_default();
            counted.datagrams += 1;
            counted.bytes += len as u64;
        }
    }
}

/// Reads until the end and says how much it was and whether it was the plaintext.
pub(super) fn read_all(stream: &mut TcpStream, most: u64) -> Result<(u64, bool)> {
    let mut buffer = vec![0; 256 << 10];
    let (mut total, mut right) = (0, true);
    while total < most {
        let len = stream.read(&mut buffer)?;
        if len == 0 {
            break;
        }
        right &= plaintext::is_right(&buffer[..len], total);
        total += len as u64;
    }
    Ok((total, right))
}
