//! One HTTP download.
//!
//! In: a server and a number of bytes. Out: times, and whether the bytes were right.
//! Called by: rig::agent.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::port;
use crate::rig::plaintext;

/// How a download went.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct HttpAnswer {
    /// Bytes of the body.
    pub bytes: u64,
    /// Whether they were the ones that the server has.
    pub right: bool,
    /// From the first packet to the last byte.
    pub seconds: f64,
    /// From the first packet to the connection.
    pub connect_ms: f64,
    /// From the request to the first byte of the answer.
    pub first_byte_ms: f64,
    /// The longest time without a byte.
    pub longest_gap_ms: f64,
}

pub(super) fn get(to: IpAddr, bytes: u64, patience: Duration) -> Result<HttpAnswer> {
    let started = Instant::now();
    let milliseconds = |since: Instant| since.elapsed().as_secs_f64() * 1e3;
    let server = SocketAddr::new(to, port::HTTP);
    let mut stream = TcpStream::connect_timeout(&server, patience)
        .with_context(|| format!("connecting to {server}"))?;
    stream.set_read_timeout(Some(patience))?;
    let connect_ms = milliseconds(started);
    let asked = Instant::now();
    write!(stream, "GET /{bytes} HTTP/1.1\r\nHost: {server}\r\n\r\n")?;
    let mut reader = BufReader::with_capacity(256 << 10, stream);
    let mut line = String::new();
    reader.read_line(&mut line).context("waiting for the answer")?;
    let first_byte_ms = milliseconds(asked);
    ensure!(line.starts_with("HTTP/1.1 200"), "expected 200 OK, got {line:?}");
    while !line.trim().is_empty() {
        line.clear();
        reader.read_line(&mut line)?;
    }
    let mut buffer = vec![0; 256 << 10];
    let (mut total, mut right, mut longest, mut last) = (0, true, Duration::ZERO, Instant::now());
    while total < bytes {
        let len =
            reader.read(&mut buffer).with_context(|| format!("reading after {total} bytes"))?;
        ensure!(len > 0, "expected {bytes} bytes, got {total}");
        right &= plaintext::is_right(&buffer[..len], total);
        total += len as u64;
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    Ok(HttpAnswer {
        bytes: total,
        right,
        seconds: started.elapsed().as_secs_f64(),
        connect_ms,
        first_byte_ms,
        longest_gap_ms: longest.as_secs_f64() * 1e3,
    })
}
