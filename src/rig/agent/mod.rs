//! The tools that run inside hosts: servers, clients, probes. Real sockets, and no program that a
//! fresh machine lacks.
//!
//! In: one tool, as JSON on the command line. Out: one answer, as a JSON line.
//! Called by: `cepa rig agent`, which rig::host starts in a host.

mod bulk;
mod crowd;
mod discard;
mod dns;
mod echo;
mod flows;
mod hostile;
mod http;
mod icmp;
mod probe;
mod serve;
mod socks;

use std::{
    io::Write,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::Result;
use serde::{Deserialize, Serialize};

pub use bulk::{BulkAnswer, Direction};
pub use crowd::CrowdAnswer;
pub use dns::{DnsAnswer, RECEIVER_NAME};
pub use echo::EchoAnswer;
pub use flows::{FlowTimes, FlowsAnswer, clock_us};
use hostile::Pace;
pub use hostile::{HostileAnswer, Manner};
pub use http::HttpAnswer;
pub use icmp::{IcmpError, PingAnswer};
pub use probe::ProbeAnswer;

use super::link::{self, CableEnd, LinkOptions};

/// Ports of the server that the receiver runs.
pub mod port {
    /// HTTP.
    pub const HTTP: u16 = 80;
    /// Bulk TCP, both ways.
    pub const BULK: u16 = 5201;
    /// UDP echo.
    pub const ECHO: u16 = 7;
    /// UDP that is only counted.
    pub const COUNT: u16 = 5203;
    /// DNS.
    pub const DNS: u16 = 53;
    /// Nobody listens here.
    pub const CLOSED: u16 = 9;
}

/// One tool and what it is to do.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "tool", rename_all = "snake_case")]
pub enum Tool {
    /// All servers, until killed; prints `ready`. Addresses that ask are written to `seen`.
    Serve {
        /// A file of addresses, one a line.
        seen: PathBuf,
    },
    /// One download.
    HttpGet {
        /// The server.
        to: IpAddr,
        /// How many bytes to ask for.
        bytes: u64,
        /// How long to wait for the connection and between reads.
        patience: Duration,
    },
    /// TCP as fast as it goes, in several connections.
    Bulk {
        /// The server.
        to: IpAddr,
        /// Which way.
        direction: Direction,
        /// Connections at once.
        flows: usize,
        /// For so long; zero: until `bytes` are through.
        time: Duration,
        /// Bytes of each connection, if `time` is zero.
        bytes: u64,
        /// A SOCKS5 proxy to go through.
        #[serde(default)]
        proxy: Option<SocketAddr>,
    },
    /// UDP datagrams that come back; through a proxy, the same bytes over TCP.
    Echo {
        /// The server.
        to: IpAddr,
        /// How many.
        count: u32,
        /// How long each is.
        size: usize,
        /// One every so often.
        every: Duration,
        /// A SOCKS5 proxy to go through.
        #[serde(default)]
        proxy: Option<SocketAddr>,
    },
    /// UDP datagrams that come back by a SOCKS5 proxy's UDP ASSOCIATE.
    Associate {
        /// The server.
        to: IpAddr,
        /// How many.
        count: u32,
        /// How long each is.
        size: usize,
        /// The proxy.
        proxy: SocketAddr,
    },
    /// A connection whose client ends its side first and then reads.
    HalfClose {
        /// The server.
        to: IpAddr,
        /// Bytes that it sends.
        bytes: u64,
        /// A SOCKS5 proxy to go through.
        proxy: Option<SocketAddr>,
    },
    /// UDP at a rate, counted at the other end.
    Flood {
        /// The server.
        to: IpAddr,
        /// Bits of payload per second.
        rate: u64,
        /// For so long.
        time: Duration,
        /// How long each datagram is.
        size: usize,
    },
    /// A new UDP flow every so often, until there was a gap and flows work again; prints `ready` when
    /// the first one was answered.
    NewFlows {
        /// The server.
        to: IpAddr,
        /// The pace.
        every: Duration,
        /// At most for so long.
        time: Duration,
    },
    /// Circuits that are built and left alone.
    Crowd {
        /// The controller's link.
        link: String,
        /// The names of the nodes.
        path: Vec<String>,
        /// How many circuits.
        count: usize,
    },
    /// One question to the DNS server.
    Dns {
        /// The server.
        to: IpAddr,
    },
    /// ICMP echoes.
    Ping {
        /// Who is asked.
        to: IpAddr,
        /// How many.
        count: u16,
        /// The length of the whole IP packet.
        packet: usize,
        /// One every so often.
        every: Duration,
    },
    /// Sends one packet that cannot arrive and says which ICMP error came back.
    Provoke {
        /// Where it is sent; port 0: an ICMP echo instead of UDP.
        to: SocketAddr,
        /// Its hop limit.
        hops: u32,
    },
    /// One packet of every kind that leaks, to each of these.
    Probe {
        /// The destinations.
        to: Vec<IpAddr>,
        /// The interface they have to leave by; none: the route decides.
        device: Option<String>,
    },
    /// Datagrams that a node must survive.
    Hostile {
        /// The node.
        to: SocketAddr,
        /// A capture to take cells from; only what was sent to `to` is used.
        capture: Option<PathBuf>,
        /// How many datagrams.
        count: u64,
        /// What they are.
        manner: Manner,
        /// For the random parts.
        seed: u64,
        /// So many a second; otherwise as fast as a node can be made to look.
        #[serde(default)]
        rate: Option<u32>,
    },
    /// A socket that throws away what it gets, until killed; prints `ready`.
    Discard {
        /// Its port.
        port: u16,
    },
    /// A cable with delay, until killed; prints `ready`.
    Cable {
        /// Where its ends appear.
        ends: Box<[CableEnd; 2]>,
        /// How it behaves.
        options: LinkOptions,
    },
}

/// Runs a tool.
///
/// # Errors
/// What went wrong.
pub fn run(tool: &str) -> Result<()> {
    match serde_json::from_str(tool)? {
        Tool::Serve { seen } => serve::serve(&seen, ready),
        Tool::HttpGet { to, bytes, patience } => answer(&http::get(to, bytes, patience)?),
        Tool::Bulk { to, direction, flows, time, bytes, proxy } => {
            answer(&bulk::run((to, proxy), direction, flows, time, bytes)?)
        }
        Tool::Echo { to, count, size, every, proxy: None } => {
            answer(&echo::echo(to, count, size, every)?)
        }
        Tool::Echo { to, count, size, every, proxy } => {
            answer(&echo::echo_stream(to, count, size, every, proxy)?)
        }
        Tool::Associate { to, count, size, proxy } => answer(&socks::echo(to, count, size, proxy)?),
        Tool::HalfClose { to, bytes, proxy } => answer(&bulk::half_close(to, bytes, proxy)?),
        Tool::Flood { to, rate, time, size } => answer(&echo::flood(to, rate, time, size)?),
        Tool::NewFlows { to, every, time } => answer(&flows::new_flows(to, every, time, ready)?),
        Tool::Crowd { link, path, count } => answer(&crowd::build(&link, &path, count)?),
        Tool::Dns { to } => answer(&dns::ask(to)?),
        Tool::Ping { to, count, packet, every } => answer(&icmp::ping(to, count, packet, every)?),
        Tool::Provoke { to, hops } => answer(&icmp::provoke(to, hops)?),
        Tool::Probe { to, device } => answer(&probe::probe(&to, device.as_deref())),
        Tool::Hostile { to, capture, count, manner, seed, rate } => {
            let pace = Pace { count, rate };
            answer(&hostile::send(to, capture.as_deref(), pace, manner, seed)?)
        }
        Tool::Discard { port } => discard::discard(port, ready),
        Tool::Cable { ends, options } => link::be_a_cable(&ends, &options, ready),
    }
}

fn ready() -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "ready")?;
    Ok(out.flush()?)
}

fn answer(answer: &impl Serialize) -> Result<()> {
    let mut out = std::io::stdout();
    serde_json::to_writer(&mut out, answer)?;
    writeln!(out)?;
    Ok(out.flush()?)
}

/// Round trips in milliseconds, sorted.
pub(super) fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last as f64 * share).round() as usize).copied()
}
