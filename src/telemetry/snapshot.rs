//! What a daemon knows about itself, for people and programs.
//!
//! In: the state of node, client or controller. Out: serializable values.
//! Called by: node and controller (fill them in), cli (shows them).
//!
//! Fields are only ever added: they are the contents of the `--json` answers. A field that an
//! older daemon does not send reads as its default.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::LockdownStatus;
use crate::model::DropCounters;

/// How often packets and cells were dropped, by reason; reasons that never occurred are left out.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Drops(pub BTreeMap<String, u64>);

impl Drops {
    /// The sum over all reasons.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Adds the counters of another part of the daemon.
    pub fn add(&mut self, counters: &DropCounters) {
        for (reason, count) in counters.iter() {
            *self.0.entry(reason.name().to_owned()).or_default() += count;
        }
    }
}

impl From<&DropCounters> for Drops {
    fn from(counters: &DropCounters) -> Self {
        let mut drops = Self::default();
        drops.add(counters);
        drops
    }
}

/// Packets and bytes in both directions since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// Inner packets towards the exit.
    pub packets_up: u64,
    /// Inner bytes towards the exit.
    pub bytes_up: u64,
    /// Inner packets towards the client.
    pub packets_down: u64,
    /// Inner bytes towards the client.
    pub bytes_down: u64,
    /// Cells received.
    pub cells_in: u64,
    /// Cells sent.
    pub cells_out: u64,
}

/// How the daemon stands with its controller.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ControllerContact {
    /// The controller's HOST:PORT.
    pub address: String,
    /// Whether the last request was answered.
    pub reachable: bool,
    /// Seconds since the last answer.
    pub last_answer_s: Option<u64>,
    /// Why the last request failed.
    pub last_error: Option<String>,
    /// Seconds until the next attempt, after a failure.
    pub retry_in_s: Option<u64>,
}

/// The directory a daemon works with.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DirectoryStatus {
    /// Its version; 0: none yet.
    pub version: u64,
    /// How many nodes it lists.
    pub nodes: usize,
    /// How many of them are exits.
    pub exits: usize,
    /// Seconds until it expires.
    pub expires_in_s: u64,
}

/// What a node is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It prepares devices and sockets.
    #[default]
    Starting,
    /// It asks the controller to list it.
    Registering,
    /// It is listed.
    Registered,
    /// The controller does not admit it.
    NotAdmitted,
    /// It ends.
    Stopping,
}

impl NodeState {
    /// A few words for people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Registering => "asking the controller to list it",
            Self::Registered => "listed",
            Self::NotAdmitted => "not admitted",
            Self::Stopping => "stopping",
        }
    }
}

/// What an exit adds.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ExitStatus {
    /// The interface packets leave by.
    pub interface: String,
    /// The policy in force.
    pub policy: String,
    /// Circuits that hold a pool address.
    pub circuits: usize,
    /// Open connections of all circuits.
    pub connections: usize,
    /// Connections that one circuit may hold.
    pub circuit_connections: u32,
    /// Packets per second that one circuit may send out; 0: no limit.
    pub circuit_packet_rate: u64,
    /// Bytes per second that one circuit may send out; 0: no limit.
    pub circuit_byte_rate: u64,
}

/// A node at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// The program's version.
    pub version: String,
    /// The node's name.
    pub name: String,
    /// The node's id.
    pub id: String,
    /// What it is doing.
    pub state: NodeState,
    /// Where it takes cells.
    pub listen: String,
    /// The address it is listed with.
    pub public_address: Option<String>,
    /// Whether it runs with the rules of a lab.
    pub lab: bool,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// Circuits held.
    pub circuits: usize,
    /// Circuits it may hold.
    pub max_circuits: usize,
    /// CREATEs whose handshake is being computed.
    pub creates_waiting: usize,
    /// CREATEs that may wait for it.
    pub max_creates_waiting: usize,
    /// CREATEs refused with a reason: the node was full.
    pub refused: u64,
    /// Seconds until the onion key is replaced.
    pub onion_key_expires_in_s: u64,
    /// What an exit adds.
    pub exit: Option<ExitStatus>,
    /// How it stands with the controller.
    pub controller: ControllerContact,
    /// The directory it works with.
    pub directory: DirectoryStatus,
    /// What passed.
    pub traffic: Traffic,
    /// What was dropped.
    pub drops: Drops,
    /// The one thing to do, if something is wrong.
    pub next_step: Option<String>,
}

/// What a client is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientState {
    /// It prepares devices, sockets and the directory.
    #[default]
    Starting,
    /// It builds its first circuit.
    Building,
    /// Packets go through a circuit.
    Connected,
    /// Packets are held back; `reason` says why.
    Blocked,
    /// It ends.
    Stopping,
}

impl ClientState {
    /// A few words for people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Building => "building a circuit",
            Self::Connected => "connected",
            Self::Blocked => "blocked",
            Self::Stopping => "stopping",
        }
    }
}

/// What a circuit is for at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CircuitState {
    /// Its hops are being asked.
    #[default]
    Building,
    /// New flows use it.
    Active,
    /// It is open and waits for its turn.
    Spare,
    /// It was built for destinations that the active one's exit does not let through.
    Extra,
    /// Its first hop is silent; it keeps its flows until that is heard again, or given up.
    Stalled,
    /// It serves one isolation group of the proxies.
    Isolated,
    /// Only its running flows use it.
    Draining,
    /// It ends.
    Closing,
}

impl CircuitState {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Building,
        Self::Active,
        Self::Spare,
        Self::Extra,
        Self::Stalled,
        Self::Isolated,
        Self::Draining,
        Self::Closing,
    ];

    /// One word for people.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Building => "building",
            Self::Active => "active",
            Self::Spare => "spare",
            Self::Extra => "extra",
            Self::Stalled => "stalled",
            Self::Isolated => "isolated",
            Self::Draining => "draining",
            Self::Closing => "closing",
        }
    }
}

/// One hop of a circuit.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HopInfo {
    /// The node's name.
    pub name: String,
    /// The node's id.
    pub id: String,
    /// The suite of its layer.
    pub suite: String,
    /// The last round trip to it and back, in milliseconds.
    pub rtt_ms: Option<f64>,
}

/// One circuit of a client.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CircuitInfo {
    /// Its number on this client, from 1.
    pub number: u32,
    /// What it is for at the moment.
    pub state: CircuitState,
    /// Its hops, the guard first.
    pub hops: Vec<HopInfo>,
    /// How many of them have answered.
    pub built: usize,
    /// Seconds since it opened.
    pub age_s: u64,
    /// How many of its hops have answered.
    pub hops_built: usize,
    /// How long it took from the first CREATE to the last hop, in milliseconds.
    pub build_ms: Option<f64>,
    /// Flows pinned to it.
    pub flows: usize,
    /// Inner bytes towards the exit.
    pub bytes_up: u64,
    /// Inner bytes towards the client.
    pub bytes_down: u64,
}

/// A client's circuits: the answer of `circuits`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CircuitsStatus {
    /// Every circuit, by number.
    pub circuits: Vec<CircuitInfo>,
}

/// A proxy or the resolver of a client.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ProxyStatus {
    /// What it speaks: `socks5`, `http` or `dns`.
    pub kind: String,
    /// Where it listens.
    pub listen: String,
    /// Connections open now; of a resolver: questions under way.
    pub open: usize,
    /// Connections or questions since the start.
    pub total: u64,
    /// Those of them that were refused: malformed, too slow, too many, or no way there.
    pub refused: u64,
}

/// A client at one moment.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientStatus {
    /// The program's version.
    pub version: String,
    /// What it is doing.
    pub state: ClientState,
    /// Why it is not connected.
    pub reason: Option<String>,
    /// Whether it runs with the rules of a lab.
    pub lab: bool,
    /// Hops of its circuits.
    pub hops: u8,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// The TUN device; empty: there is none.
    pub tun: String,
    /// The destinations that go through the circuit.
    pub routes: Vec<String>,
    /// The proxies and the resolver.
    pub proxies: Vec<ProxyStatus>,
    /// Every circuit, by number.
    pub circuits: Vec<CircuitInfo>,
    /// How it stands with the controller.
    pub controller: ControllerContact,
    /// The directory it works with.
    pub directory: DirectoryStatus,
    /// What passed.
    pub traffic: Traffic,
    /// What was dropped.
    pub drops: Drops,
    /// What else may leave this machine; none: it could not be asked.
    pub lockdown: Option<LockdownStatus>,
    /// The one thing to do, if something is wrong.
    pub next_step: Option<String>,
}

/// A controller at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ControllerStatus {
    /// The program's version.
    pub version: String,
    /// Where it answers.
    pub listen: String,
    /// Who may register: `token` or `open`.
    pub admission: String,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// The directory it signs.
    pub directory: DirectoryStatus,
    /// Registered nodes, listed or not.
    pub registered: usize,
    /// The one thing to do, if something is wrong.
    pub next_step: Option<String>,
}

/// A tracker at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TrackerStatus {
    /// The program's version.
    pub version: String,
    /// The tracker's name.
    pub name: String,
    /// The tracker's id.
    pub id: String,
    /// What it is doing.
    pub state: NodeState,
    /// Where it answers.
    pub listen: String,
    /// The address it is listed with.
    pub public_address: Option<String>,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// Circuits with an open channel.
    pub circuits: usize,
    /// Files that they share.
    pub files: usize,
    /// Sessions whose exits were ordered.
    pub sessions: usize,
    /// How it stands with the controller.
    pub controller: ControllerContact,
    /// The directory it works with.
    pub directory: DirectoryStatus,
    /// The one thing to do, if something is wrong.
    pub next_step: Option<String>,
}

/// The answer of `status`: which role answers, and its snapshot.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub enum Status {
    /// A client answers.
    Client(ClientStatus),
    /// A node answers.
    Node(NodeStatus),
    /// A controller answers.
    Controller(ControllerStatus),
    /// A tracker answers.
    Tracker(TrackerStatus),
}

/// The answer of `ping`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PingAnswer {
    /// The node that was asked.
    pub node: String,
    /// The circuit the echo went through.
    pub circuit: u32,
    /// Which hop of it the node is, from 1.
    pub hop: u8,
    /// The round trip in milliseconds; none: no answer in time.
    pub rtt_ms: Option<f64>,
}

/// One hop of a trace.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TraceHop {
    /// The node's name.
    pub name: String,
    /// The median round trip in milliseconds; none: no answer.
    pub rtt_ms: Option<f64>,
    /// The share of echoes without an answer, 0 to 1.
    pub loss: f64,
    /// Echoes sent.
    pub sent: u32,
    /// Answers received.
    pub received: u32,
}

/// The answer of `trace`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TraceAnswer {
    /// The circuit that was traced.
    pub circuit: u32,
    /// Its hops, the guard first.
    pub hops: Vec<TraceHop>,
}

/// The answer of `bench`: echoes to the exit of a circuit, one cell each way.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BenchAnswer {
    /// The circuit that was measured.
    pub circuit: u32,
    /// Cells sent.
    pub sent: u64,
    /// Cells that came back within `seconds`.
    pub received: u64,
    /// Cells that never came back.
    pub lost: u64,
    /// How long it took.
    pub seconds: f64,
    /// Cells that were out at the end.
    pub window: u32,
    /// The shortest round trip in milliseconds.
    pub rtt_min_ms: Option<f64>,
    /// Half of the round trips were shorter.
    pub rtt_median_ms: Option<f64>,
    /// One in a hundred was longer.
    pub rtt_p99_ms: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::DropReason;

    #[test]
    fn drops_are_named_and_added_up() {
        let mut counters = DropCounters::default();
        counters.count(DropReason::Replay);
        counters.count(DropReason::Replay);
        let mut drops = Drops::from(&counters);
        drops.add(&counters);
        assert_eq!(serde_json::to_string(&drops).unwrap(), r#"{"replay":4}"#);
        assert_eq!(drops.total(), 4);
    }

    #[test]
    fn fields_an_older_daemon_does_not_send_read_as_defaults() {
        let status: ClientStatus = serde_json::from_str(r#"{"state":"blocked"}"#).unwrap();
        assert_eq!(status.state, ClientState::Blocked);
        assert_eq!(status.next_step, None);
    }
}
