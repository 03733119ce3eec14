//! Datagrams that a node must survive: replayed, changed, cut, invented.
//!
//! In: a node, and cells captured on the way to it. Out: how many were sent.
//! Called by: rig::agent.

use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng};
use serde::{Deserialize, Serialize};

use crate::{
    capture::{pcap::PcapReader, udp::UdpSocket},
    model::{CELL_LEN, CID_LEN, SEQ_LEN},
    rig::frame::Frame,
    wire::CREATE_VERSION,
};

/// What is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Manner {
    /// Captured cells, as they were.
    Replayed,
    /// The newest captured cell, under counters that the node has not seen, with one more bit
    /// flipped: only the tag can tell.
    Flipped,
    /// Captured cells, cut short.
    Cut,
    /// Random bytes of any length.
    Noise,
    /// Random bytes of a cell's length: circuits that do not exist.
    Unknown,
    /// CREATEs with a random MAC, each under a circuit id of its own.
    Forged,
    /// All of these in turn but the forged ones.
    Mixed,
}

/// What was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HostileAnswer {
    /// Datagrams that left.
    pub sent: u64,
    /// Different cells there were to take.
    pub cells: usize,
}

/// How many, and how fast.
pub(super) struct Pace {
    pub(super) count: u64,
    pub(super) rate: Option<u32>,
}

pub(super) fn send(
    to: SocketAddr,
    capture: Option<&Path>,
    pace: Pace,
    manner: Manner,
    seed: u64,
) -> Result<HostileAnswer> {
    let file = capture.map(std::fs::read).transpose()?.unwrap_or_default();
    let cells = cells_to(&file, to);
    let needs_cells = !matches!(manner, Manner::Noise | Manner::Unknown | Manner::Forged);
    ensure!(!needs_cells || !cells.is_empty(), "expected cells to {to} in the capture, got none");
    let any: SocketAddr =
        if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut sent = 0;
    let mut bytes = Vec::new();
    let started = Instant::now();
    for number in 0..pace.count {
        let manner = match manner {
            Manner::Mixed => {
                [Manner::Replayed, Manner::Flipped, Manner::Cut, Manner::Noise, Manner::Unknown]
                    [number as usize % 5]
            }
            one => one,
        };
        make(manner, &cells, &mut rng, &mut bytes);
        if bytes.is_empty() {
            bytes.push(0);
        }
        sent += u64::from(socket.send(to, &bytes, bytes.len()).is_ok());
        if number % 64 != 63 {
            continue;
        }
        match pace.rate {
            Some(rate) => {
                let due = Duration::from_secs_f64((number + 1) as f64 / f64::from(rate.max(1)));
                std::thread::sleep(due.saturating_sub(started.elapsed()));
            }
            // As fast as a node can be made to look, not as fast as its socket overflows.
            None => std::thread::sleep(Duration::from_micros(300)),
        }
    }
    Ok(HostileAnswer { sent, cells: cells.len() })
}

fn make(manner: Manner, cells: &[&[u8]], rng: &mut SmallRng, bytes: &mut Vec<u8>) {
    if manner != Manner::Forged {
        bytes.clear();
    }
    let cell = |rng: &mut SmallRng| cells.get(rng.random_range(0..cells.len().max(1))).copied();
    match manner {
        Manner::Replayed | Manner::Mixed => bytes.extend(cell(rng).unwrap_or_default()),
        Manner::Flipped => {
            bytes.extend(cells.last().copied().unwrap_or_default());
            let Some(seq) =
                bytes.get_mut(CID_LEN..CID_LEN + SEQ_LEN).and_then(|seq| seq.first_chunk_mut())
            else {
                return;
            };
            let ahead = rng.random_range(50_000..1_000_000);
            *seq = u32::from_be_bytes(*seq).wrapping_add(ahead).to_be_bytes();
            let bit = rng.random_range((CID_LEN + SEQ_LEN) * 8..CELL_LEN * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        Manner::Cut => {
            bytes.extend(cell(rng).unwrap_or_default());
            bytes.truncate(rng.random_range(1..CELL_LEN));
        }
        Manner::Noise => {
            bytes.resize(rng.random_range(1..=1472), 0);
            rng.fill_bytes(bytes);
        }
        Manner::Unknown => {
            bytes.resize(CELL_LEN, 0);
            rng.fill_bytes(bytes);
        }
        Manner::Forged => {
            // All but the id and the version may be as it was: nothing of it is true.
            bytes.resize(CELL_LEN, 0x5a);
            rng.fill_bytes(&mut bytes[..CID_LEN]);
            bytes[CID_LEN..CID_LEN + 2].copy_from_slice(&CREATE_VERSION.to_be_bytes());
        }
    }
}

fn cells_to(file: &[u8], to: SocketAddr) -> Vec<&[u8]> {
    PcapReader::new(file)
        .into_iter()
        .flatten()
        .filter_map(|(_, frame)| Frame::parse(frame)?.udp())
        .filter(|udp| udp.to == to && udp.payload.len() == CELL_LEN)
        .map(|udp| udp.payload)
        .collect()
}
