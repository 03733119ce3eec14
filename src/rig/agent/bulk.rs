//! TCP as fast as it goes.
//!
//! In: a server and a direction. Out: bytes and seconds. Called by: rig::agent, its servers.
//!
//! A connection starts with one byte for the direction and eight for the number of bytes; then
//! the plaintext flows, and whoever received it says how much arrived, and whether it was right.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{port, serve, socks};
use crate::rig::plaintext;

/// The question for the count of datagrams.
pub(super) const HOW_MANY: &[u8; 9] = b"how many?";
/// What one write takes.
const CHUNK: usize = 16 * plaintext::PERIOD;
const UP: u8 = 0;
const DOWN: u8 = 1;
/// As [`UP`], in pieces with their length in front and an empty one at the end: some proxies end a
/// connection both ways when one end has nothing more to say. The server answers each piece with a
/// byte, and no more than [`WINDOW`] are under way: Tor's client takes what it is given into its own
/// memory, gigabytes of it, and everything after that waits.
const UP_IN_PIECES: u8 = 2;
/// Pieces that are sent and not yet answered, at most; of [`CHUNK`] bytes each.
const WINDOW: usize = 32;

/// Which way the bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
    /// Both at once, in connections of their own.
    Both,
}

/// What arrived.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct BulkAnswer {
    /// Bytes that arrived upwards.
    pub up: u64,
    /// Bytes that arrived downwards.
    pub down: u64,
    /// How long it took.
    pub seconds: f64,
    /// Whether every byte was the one that was sent.
    pub right: bool,
    /// Processor seconds of this process.
    pub cpu: f64,
}

impl BulkAnswer {
    /// Bits per second, both ways together.
    pub fn rate(&self) -> f64 {
        (self.up + self.down) as f64 * 8.0 / self.seconds
    }
}

/// A server's count of datagrams.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Counted {
    /// How many arrived.
    pub(super) datagrams: u64,
    /// Bytes of their payloads.
    pub(super) bytes: u64,
}

pub(super) fn run(
    to: (IpAddr, Option<SocketAddr>),
    direction: Direction,
    flows: usize,
    time: Duration,
    bytes: u64,
) -> Result<BulkAnswer> {
    let modes: &[u8] = match direction {
        Direction::Up => &[UP],
        Direction::Down => &[DOWN],
        Direction::Both => &[UP, DOWN],
    };
    let started = Instant::now();
    let deadline = (!time.is_zero()).then(|| started + time);
    let workers: Vec<_> = (0..flows)
        .flat_map(|user| modes.iter().map(move |mode| (user as u8, *mode)))
        .map(|(user, mode)| {
            thread::spawn(move || {
                one(user, to, mode, deadline, bytes).map(|(bytes, right)| (mode, bytes, right))
            })
        })
        .collect();
    let mut answer = BulkAnswer { up: 0, down: 0, seconds: 0.0, right: true, cpu: 0.0 };
    for worker in workers {
        let (mode, bytes, right) =
            worker.join().map_err(|_| anyhow::anyhow!("a connection's thread panicked"))??;
        if mode == UP {
            answer.up += bytes;
        } else {
            answer.down += bytes;
        }
        answer.right &= right;
    }
    answer.seconds = started.elapsed().as_secs_f64();
    answer.cpu = crate::capture::process::usage(std::process::id())?.cpu.as_secs_f64();
    Ok(answer)
}

/// Sends so many bytes, ends its own side of the connection, and only then reads what the server
/// counted: through a proxy that ends both sides, nothing would come.
pub(super) fn half_close(to: IpAddr, bytes: u64, proxy: Option<SocketAddr>) -> Result<BulkAnswer> {
    let started = Instant::now();
    let mut stream = socks::connect((to, port::BULK).into(), proxy)?;
    let mut header = vec![UP];
    header.extend(bytes.to_be_bytes());
    stream.write_all(&header)?;
    send_plaintext(&mut stream, bytes)?;
    stream.shutdown(Shutdown::Write)?;
    let (arrived, right) = verdict(&mut stream)?;
    ensure!(arrived == bytes, "expected {bytes} bytes to arrive, got {arrived}");
    let seconds = started.elapsed().as_secs_f64();
    Ok(BulkAnswer { up: arrived, down: 0, seconds, right, cpu: 0.0 })
}

/// How many bytes arrived at the server, and whether they were the right ones.
fn verdict(stream: &mut TcpStream) -> Result<(u64, bool)> {
    let mut verdict = [0; 9];
    stream.read_exact(&mut verdict).context("waiting for the receiver's count")?;
    let arrived = u64::from_be_bytes(*verdict[..8].first_chunk().context("eight bytes")?);
    Ok((arrived, verdict[8] == 1))
}

fn one(
    user: u8,
    (to, proxy): (IpAddr, Option<SocketAddr>),
    mode: u8,
    deadline: Option<Instant>,
    bytes: u64,
) -> Result<(u64, bool)> {
    let mut stream = socks::connect_as(user, (to, port::BULK).into(), proxy)?;
    let len = if deadline.is_some() { u64::MAX } else { bytes };
    let in_pieces = proxy.is_some() && mode == UP;
    let mut header = vec![if in_pieces { UP_IN_PIECES } else { mode }];
    header.extend(len.to_be_bytes());
    stream.write_all(&header)?;
    if mode == DOWN {
        return receive(&mut stream, deadline, len);
    }
    let sent = upload(&mut stream, in_pieces, deadline, len)?;
    let (arrived, right) = verdict(&mut stream)?;
    ensure!(arrived == sent, "expected {sent} bytes to arrive, got {arrived}");
    Ok((arrived, right))
}

/// Sends so much of the plaintext, or until the time is over, and its end; how much it was.
fn upload(
    stream: &mut TcpStream,
    in_pieces: bool,
    deadline: Option<Instant>,
    len: u64,
) -> Result<u64> {
    let (mut sent, mut unanswered) = (0, 0);
    let mut chunk = vec![0; CHUNK];
    plaintext::fill(&mut chunk, 0);
    while sent < len && deadline.is_none_or(|deadline| Instant::now() < deadline) {
        let piece = CHUNK.min((len - sent) as usize);
        if in_pieces {
            if unanswered == WINDOW {
                read_answers(stream, 1)?;
                unanswered -= 1;
            }
            stream.write_all(&(piece as u32).to_be_bytes())?;
            unanswered += 1;
        }
        stream.write_all(&chunk[..piece]).context("sending")?;
        sent += piece as u64;
    }
    if in_pieces {
        stream.write_all(&[0; 4])?;
        read_answers(stream, unanswered)?;
    } else {
        stream.shutdown(Shutdown::Write)?;
    }
    Ok(sent)
}

/// Waits for the server's answers to so many pieces.
fn read_answers(stream: &mut TcpStream, pieces: usize) -> Result<()> {
    stream.read_exact(&mut [0; WINDOW][..pieces]).context("waiting for the receiver's answers")
}

fn receive(stream: &mut TcpStream, deadline: Option<Instant>, len: u64) -> Result<(u64, bool)> {
    let Some(deadline) = deadline else {
        let (total, right) = serve::read_all(stream, len)?;
        ensure!(total == len, "expected {len} bytes, got {total}");
        return Ok((total, right));
    };
    let mut buffer = vec![0; 256 << 10];
    let (mut total, mut right) = (0, true);
    while Instant::now() < deadline {
        let len = stream.read(&mut buffer).context("receiving")?;
        ensure!(len > 0, "the server ended the connection");
        right &= plaintext::is_right(&buffer[..len], total);
        total += len as u64;
    }
    Ok((total, right))
}

/// The server's side of a connection.
pub(super) fn serve(mut stream: TcpStream) -> Result<()> {
    let mut header = [0; 9];
    stream.read_exact(&mut header)?;
    let len = u64::from_be_bytes(*header[1..].first_chunk().context("eight bytes")?);
    if header[0] == DOWN {
        return send_plaintext(&mut stream, len);
    }
    let (total, right) = if header[0] == UP_IN_PIECES {
        read_pieces(&mut stream)?
    } else {
        serve::read_all(&mut stream, u64::MAX)?
    };
    let mut verdict = total.to_be_bytes().to_vec();
    verdict.push(u8::from(right));
    stream.write_all(&verdict)?;
    Ok(())
}

fn read_pieces(stream: &mut TcpStream) -> Result<(u64, bool)> {
    let mut buffer = vec![0; CHUNK];
    let (mut total, mut right) = (0, true);
    loop {
        let mut len = [0; 4];
        stream.read_exact(&mut len)?;
        let len = u32::from_be_bytes(len) as usize;
        if len == 0 {
            return Ok((total, right));
        }
        let piece = buffer.get_mut(..len).context("expected a piece no longer than a chunk")?;
        stream.read_exact(piece)?;
        right &= plaintext::is_right(piece, total);
        total += len as u64;
        stream.write_all(&[0])?;
    }
}

/// Sends so much of the plaintext, or until the other end goes.
pub(super) fn send_plaintext(stream: &mut TcpStream, len: u64) -> Result<()> {
    let mut chunk = vec![0; CHUNK];
    plaintext::fill(&mut chunk, 0);
    let mut sent = 0;
    while sent < len {
        let piece = CHUNK.min((len - sent) as usize);
        match stream.write_all(&chunk[..piece]) {
            Err(error)
                if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) =>
            {
                return Ok(());
            }
            other => other?,
        }
        sent += piece as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn an_upload_in_pieces_waits_for_answers() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let len = ((WINDOW + 2) * CHUNK) as u64;
        let sender = thread::spawn(move || upload(&mut client, true, None, len));

        // A whole window comes without an answer, and nothing after it.
        let mut window = vec![0; WINDOW * (4 + CHUNK)];
        server.read_exact(&mut window).unwrap();
        server.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let more = server.read(&mut [0]).unwrap_err();
        assert_eq!(more.kind(), ErrorKind::WouldBlock);

        server.set_read_timeout(None).unwrap();
        server.write_all(&[0; WINDOW]).unwrap();
        let (rest, _) = read_pieces(&mut server).unwrap();
        assert_eq!(rest, (2 * CHUNK) as u64);
        assert_eq!(sender.join().unwrap().unwrap(), len);
    }
}
