//! UDP that comes back, and UDP that is counted.
//!
//! In: a server, a size, a pace. Out: loss and round trips. Called by: rig::agent.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{
    bulk::{Counted, HOW_MANY},
    percentile, port, socks,
};
use crate::rig::plaintext;

/// How echoes went.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct EchoAnswer {
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams that came back, or arrived, unchanged.
    pub received: u64,
    /// Half of the round trips were shorter.
    pub median_ms: Option<f64>,
    /// One in a hundred was longer.
    pub p99_ms: Option<f64>,
    /// Bits of payload per second that arrived.
    pub rate: f64,
}

impl EchoAnswer {
    pub(super) fn of(sent: u64, size: usize, mut trips: Vec<f64>, took: Duration) -> Self {
        let received = trips.len() as u64;
        trips.sort_by(f64::total_cmp);
        Self {
            sent,
            received,
            median_ms: percentile(&trips, 0.5),
            p99_ms: percentile(&trips, 0.99),
            rate: received as f64 * size as f64 * 8.0 / took.as_secs_f64(),
        }
    }
}

pub(super) fn connected(to: IpAddr, port: u16) -> Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect((to, port)).with_context(|| format!("finding a way to {to}"))?;
    Ok(socket)
}

/// Each datagram carries its number and the plaintext; answers are matched to when it was sent.
pub(super) fn echo(to: IpAddr, count: u32, size: usize, every: Duration) -> Result<EchoAnswer> {
    let socket = connected(to, port::ECHO)?;
    let mut sent_at: Vec<Instant> = Vec::new();
    let mut trips = Vec::new();
    let mut bytes = vec![0; size.max(4)];
    let mut answer = [0; 65_536];
    let started = Instant::now();
    let patience = Duration::from_secs(2);
    let mut next = started;
    loop {
        let now = Instant::now();
        if sent_at.len() < count as usize && now >= next {
            let number = sent_at.len() as u32;
            plaintext::fill(&mut bytes, u64::from(number));
            bytes[..4].copy_from_slice(&number.to_be_bytes());
            sent_at.push(now);
            let _ = socket.send(&bytes);
            next += every;
            continue;
        }
        let done = sent_at.len() == count as usize;
        let last = sent_at.last().copied().unwrap_or(started);
        if done && (trips.len() == sent_at.len() || now > last + patience) {
            break;
        }
        let wait = if done { patience } else { next.saturating_duration_since(now) };
        socket.set_read_timeout(Some(wait.max(Duration::from_micros(50))))?;
        let Ok(len) = socket.recv(&mut answer) else { continue };
        let Some(number) = answer[..len].first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
        else {
            continue;
        };
        let right =
            len == bytes.len() && plaintext::is_right(&answer[4..len], u64::from(number) + 4);
        if let Some(at) = sent_at.get(number as usize).filter(|_| right) {
            trips.push(at.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(EchoAnswer::of(u64::from(count), bytes.len(), trips, started.elapsed()))
}

/// Bytes over TCP that come back, one write under way at a time.
pub(super) fn echo_stream(
    to: IpAddr,
    count: u32,
    size: usize,
    every: Duration,
    proxy: Option<SocketAddr>,
) -> Result<EchoAnswer> {
    let mut stream = socks::connect((to, port::ECHO).into(), proxy)?;
    stream.set_nodelay(true)?;
    let mut bytes = vec![0; size];
    let mut answer = vec![0; size];
    let mut trips = Vec::new();
    let started = Instant::now();
    // A slow way has fewer round trips in the same time, and not the same number in more time.
    let most = every * count + Duration::from_secs(1);
    for number in 0..u64::from(count) {
        let at = Instant::now();
        if at - started > most {
            break;
        }
        plaintext::fill(&mut bytes, number);
        stream.write_all(&bytes).context("sending")?;
        stream.read_exact(&mut answer).context("waiting for the echo")?;
        ensure!(answer == bytes, "the bytes that came back are not those that were sent");
        trips.push(at.elapsed().as_secs_f64() * 1e3);
        std::thread::sleep(every.saturating_sub(at.elapsed()));
    }
    let sent = trips.len() as u64;
    Ok(EchoAnswer::of(sent, size, trips, started.elapsed()))
}

/// Sends at a rate and asks the server what arrived.
pub(super) fn flood(to: IpAddr, rate: u64, time: Duration, size: usize) -> Result<EchoAnswer> {
    let socket = connected(to, port::COUNT)?;
    let mut bytes = vec![0; size];
    plaintext::fill(&mut bytes, 0);
    let started = Instant::now();
    let mut sent = 0u64;
    while started.elapsed() < time {
        let due = (started.elapsed().as_secs_f64() * rate as f64 / (size as f64 * 8.0)) as u64;
        if sent >= due {
            std::thread::sleep(Duration::from_micros(100));
            continue;
        }
        // A rate that this machine cannot send must not make it send longer.
        for _ in 0..(due - sent).min(64) {
            let _ = socket.send(&bytes);
            sent += 1;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    std::thread::sleep(Duration::from_millis(200));
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    let mut answer = [0; 1500];
    let mut counted = Counted::default();
    for _ in 0..10 {
        let _ = socket.send(HOW_MANY);
        if let Ok(len) = socket.recv(&mut answer) {
            counted = serde_json::from_slice(&answer[..len])?;
            break;
        }
    }
    Ok(EchoAnswer {
        sent,
        received: counted.datagrams,
        median_ms: None,
        p99_ms: None,
        rate: counted.bytes as f64 * 8.0 / seconds,
    })
}
