//! What the tokio side asks of a client's data path, and how it is answered.
//!
//! In: commands. Out: answers, snapshots. Called by: the client's turn.

use std::{
    net::SocketAddr,
    sync::{Arc, mpsc::TryRecvError},
    time::Instant,
};

use tokio::sync::oneshot;

use super::{Client, ShareCommand};
use crate::{
    directory::Directory,
    model::CircuitKey,
    telemetry::{
        BenchAnswer, CircuitInfo, CircuitState, Drops, HopInfo, PingAnswer, TraceAnswer, Traffic,
        control::{BenchArgs, PingArgs, Refusal, RefusalKind, TraceArgs},
    },
};

/// Where an answer goes; whoever asked may be gone by then.
pub(super) type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

/// What the tokio side tells the data path.
pub(crate) enum ClientCommand {
    /// A newer directory.
    Directory(Arc<Directory>),
    /// Say how things stand.
    Snapshot(oneshot::Sender<ClientSnapshot>),
    /// Build a circuit, and use it for new flows.
    NewCircuit(Reply<CircuitInfo>),
    /// Close the circuit with this number.
    CloseCircuit(u32, Reply<()>),
    /// One echo to one node.
    Ping(PingArgs, Reply<PingAnswer>),
    /// Echoes to every hop of a circuit.
    Trace(TraceArgs, Reply<TraceAnswer>),
    /// Cells that came over HTTP, back to back, from this stand-in.
    Cells(SocketAddr, Vec<u8>),
    /// File sharing.
    Share(ShareCommand),
    /// Echoes to the exit of a circuit, as fast as it answers.
    Bench(BenchArgs, Reply<BenchAnswer>),
    /// Tell all guards and end.
    Stop,
}

/// How things stand in the data path.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClientSnapshot {
    /// Whether packets go through a circuit.
    pub(crate) connected: bool,
    /// Why not.
    pub(crate) reason: Option<String>,
    pub(crate) circuits: Vec<CircuitInfo>,
    pub(crate) traffic: Traffic,
    pub(crate) drops: Drops,
}

impl Client {
    pub(super) fn handle_commands(&mut self, now: Instant) {
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.handle_command(now, command),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.stopping = true;
                    return;
                }
            }
        }
    }

    fn handle_command(&mut self, now: Instant, command: ClientCommand) {
        match command {
            ClientCommand::Directory(directory) => self.directory = Some(directory),
            ClientCommand::Snapshot(reply) => {
                // Whoever asked may be gone; here and below.
                let _ = reply.send(self.snapshot(now));
            }
            ClientCommand::NewCircuit(reply) => self.build_asked(now, reply),
            ClientCommand::CloseCircuit(number, reply) => {
                let done = self.by_number(number).map(|key| self.circuits.close(key));
                let _ = reply.send(done);
            }
            ClientCommand::Ping(args, reply) => self.start_ping(now, &args, reply),
            ClientCommand::Trace(args, reply) => self.start_trace(now, &args, reply),
            ClientCommand::Cells(from, mut cells) => self.handle_http_cells(now, from, &mut cells),
            ClientCommand::Share(command) => self.handle_share_command(command),
            ClientCommand::Bench(args, reply) => self.start_bench(now, &args, reply),
            ClientCommand::Stop => self.stopping = true,
        }
    }

    pub(super) fn by_number(&self, number: u32) -> Result<CircuitKey, Refusal> {
        self.numbers.iter().find(|(_, known)| *known == number).map(|(key, _)| *key).ok_or_else(
            || {
                let known: Vec<_> =
                    self.numbers.iter().map(|(_, number)| number.to_string()).collect();
                Refusal::new(
                    RefusalKind::Failed,
                    format!(
                        "expected the number of a circuit ({}), got {number}",
                        if known.is_empty() {
                            "there is none".to_owned()
                        } else {
                            known.join(", ")
                        }
                    ),
                )
            },
        )
    }

    fn snapshot(&self, now: Instant) -> ClientSnapshot {
        ClientSnapshot {
            connected: self.pool.active().is_some(),
            reason: self.reason.clone(),
            circuits: self
                .numbers
                .iter()
                .filter_map(|(key, _)| self.circuit_info(now, *key))
                .collect(),
            traffic: self.link.traffic,
            drops: Drops::from(&self.link.drops),
        }
    }

    pub(super) fn circuit_info(&self, now: Instant, key: CircuitKey) -> Option<CircuitInfo> {
        let row = self.circuits.get(key)?;
        let state = if row.ready().is_none() {
            CircuitState::Building
        } else if row.is_stalled() {
            CircuitState::Stalled
        } else if self.pool.active() == Some(key) {
            CircuitState::Active
        } else if self.pool.spare() == Some(key) {
            CircuitState::Spare
        } else if self.isolation.holds(key) {
            CircuitState::Isolated
        } else if self.targets.is_extra(key) {
            CircuitState::Extra
        } else {
            CircuitState::Draining
        };
        let hops = row.path().iter().enumerate().map(|(index, hop)| HopInfo {
            name: hop.name.clone(),
            id: hop.id.to_string(),
            suite: hop.suite.to_string(),
            rtt_ms: row.health(index).last.map(|rtt| rtt.as_secs_f64() * 1e3),
        });
        let [bytes_up, bytes_down] = self.table.bytes(key);
        Some(CircuitInfo {
            number: self.number(key),
            state,
            hops: hops.collect(),
            built: row.hops_built(),
            age_s: row.ready().map_or(0, |ready| now.saturating_duration_since(ready).as_secs()),
            hops_built: row.hops_built(),
            build_ms: row.took().map(|took| took.as_secs_f64() * 1e3),
            flows: self.flows.flows_of(now, key),
            bytes_up,
            bytes_down,
        })
    }
}
