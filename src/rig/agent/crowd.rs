//! Many circuits of one client that then lie idle, for what a node needs to remember them.
//!
//! In: a controller, a path, a number. Out: circuits, left open. Called by: rig::agent.

use std::{
    collections::HashSet,
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use rand::{SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};

use crate::{
    circuit::{ClientCircuits, ClientEvent, ClientTimers},
    directory::{ControllerClient, ControllerLink, Directory},
    forward::{ClientTable, ClientVerdict, Outbox},
    model::{BODY_LEN, CELL_LEN, CircuitKey, Hop, Suite},
};

/// Circuits that are built at once.
const AT_ONCE: usize = 32;

/// How many circuits stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CrowdAnswer {
    /// Circuits with all their hops.
    pub ready: usize,
    /// Circuits that were refused or got no answer.
    pub failed: usize,
}

/// Builds circuits until so many stand, and leaves without a word.
pub(super) fn build(link: &str, path: &[String], count: usize) -> Result<CrowdAnswer> {
    let link: ControllerLink = link.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = ControllerClient::new(&link, None)?;
    let signed = runtime.block_on(client.directory(None, false))?;
    let signed = signed.context("expected a directory")?;
    let directory = Directory::open(&signed, &link.fingerprint(), Timestamp::now(), None)?;
    let hop = |name: &String| directory.by_name(name).map(|member| member.hop(None));
    let hops = path.iter().map(hop).collect::<Option<Vec<Hop>>>();
    Crowd::new(hops.context("expected every node of the path in the directory")?)?.build(count)
}

struct Crowd {
    socket: UdpSocket,
    path: Vec<Hop>,
    circuits: ClientCircuits,
    table: ClientTable,
    building: HashSet<CircuitKey>,
    told: CrowdAnswer,
    rng: StdRng,
}

impl Crowd {
    fn new(path: Vec<Hop>) -> Result<Self> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(5)))?;
        // Nobody watches these circuits: echoes would keep them from being idle.
        let timers = ClientTimers { echo_every: Duration::from_secs(86_400), ..Default::default() };
        Ok(Self {
            socket,
            path,
            circuits: ClientCircuits::new(timers, Suite::Aes128Gcm),
            table: ClientTable::default(),
            building: HashSet::new(),
            told: CrowdAnswer { ready: 0, failed: 0 },
            rng: StdRng::from_rng(&mut rand::rng()),
        })
    }

    fn build(mut self, count: usize) -> Result<CrowdAnswer> {
        let patience = Duration::from_secs(60) + Duration::from_millis(20) * count as u32;
        let deadline = Instant::now() + patience;
        while self.told.ready < count {
            if Instant::now() > deadline {
                bail!("{} of {count} circuits stand after {patience:?}", self.told.ready);
            }
            let now = Instant::now();
            while self.building.len() < AT_ONCE && self.told.ready + self.building.len() < count {
                self.building.insert(self.circuits.build(now, self.path.clone(), &mut self.rng)?);
            }
            self.take_cell(now);
            if !self.building.is_empty() {
                let table = &self.table;
                self.circuits.handle_timeout(now, |key| table.last_heard(key), &mut self.rng);
            }
            self.act(now)?;
        }
        Ok(self.told)
    }

    fn take_cell(&mut self, now: Instant) {
        let mut cell = [0; CELL_LEN];
        let Ok((CELL_LEN, from)) = self.socket.recv_from(&mut cell) else { return };
        let mut body = [0; BODY_LEN];
        // What makes no sense is dropped; the request is asked again.
        let _ = match self.table.handle_cell(now, from, &mut cell, &mut body) {
            ClientVerdict::Body { circuit, hop, header, .. } => {
                self.circuits.handle_body(now, circuit, hop, header, &body, &mut self.rng)
            }
            ClientVerdict::Unknown => self.circuits.handle_unknown(now, &cell, &mut self.rng),
            _ => Ok(()),
        };
    }

    fn act(&mut self, now: Instant) -> Result<()> {
        while let Some(event) = self.circuits.poll_event() {
            match event {
                ClientEvent::Send { to, cell } => self.send(to, cell.as_slice())?,
                ClientEvent::Open { key, cid, guard, pair } => {
                    self.table.open(now, key, cid, guard, &pair, &mut self.rng);
                }
                ClientEvent::AddHop { key, keys } => {
                    self.table.add_hop(key, &keys, &mut self.rng);
                }
                ClientEvent::SendBody { key, hop, body } => {
                    let mut outbox = Outbox::default();
                    let write = |out: &mut [u8; BODY_LEN]| *out = *body;
                    if self.table.send_body(key, hop, write, &mut outbox, &mut self.rng).is_ok() {
                        for (to, cells) in outbox.runs() {
                            self.send(to, cells)?;
                        }
                    }
                }
                ClientEvent::Ready { key, .. } => {
                    self.building.remove(&key);
                    self.told.ready += 1;
                }
                ClientEvent::Closed { key, .. } => {
                    self.table.remove(key);
                    if self.building.remove(&key) {
                        self.told.failed += 1;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn send(&self, to: SocketAddr, cells: &[u8]) -> Result<()> {
        for cell in cells.chunks(CELL_LEN) {
            self.socket.send_to(cell, to)?;
        }
        Ok(())
    }
}
