//! The real daemons on the rig's hosts: started, asked, killed.
//!
//! In: a network. Out: running controller, nodes and client. Called by: the scenarios.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;

use super::{
    agent::port,
    host::{Daemon, Host},
    network::Network,
    plan::{self, EXITS, OUTSIDE_V4, OUTSIDE_V6},
};
use crate::telemetry::{
    CircuitInfo, CircuitsStatus, ClientState, ClientStatus, NodeStatus, Status, TrackerStatus,
    control::{Place, Request, ask, command},
};

/// The port of every member.
pub const PORT: u16 = 5000;
const PATIENCE: Duration = Duration::from_secs(5);

/// What the daemons are told beyond the usual.
#[derive(Clone, Debug)]
pub struct Extra {
    /// What nodes log.
    pub log: &'static str,
    /// The exits' policy.
    pub policy: String,
    /// Further arguments of the nodes.
    pub node: Vec<String>,
    /// Exits let packets out by sockets, without privileges.
    pub userspace: bool,
    /// Further arguments of the controller.
    pub controller: Vec<String>,
}

impl Default for Extra {
    fn default() -> Self {
        Self {
            log: "debug",
            policy: format!("reject:*:{PROHIBITED},accept:*"),
            node: Vec::new(),
            userspace: false,
            controller: Vec::new(),
        }
    }
}

/// A port that the rig's exits do not let through.
pub const PROHIBITED: u16 = 25;

/// What runs.
#[derive(Debug)]
pub struct Daemons {
    /// What `cepa controller link` printed.
    pub link: String,
    /// The controller.
    pub controller: Option<Daemon>,
    /// The nodes, by name.
    pub nodes: BTreeMap<String, Daemon>,
    /// The client.
    pub client: Option<Daemon>,
    /// Where the client runs.
    pub client_host: &'static str,
}

impl Default for Daemons {
    fn default() -> Self {
        Self {
            link: String::new(),
            controller: None,
            nodes: BTreeMap::new(),
            client: None,
            client_host: "sender",
        }
    }
}

/// Where a host's daemon keeps its state.
pub fn state(host: &Host) -> PathBuf {
    host.dir.join("state")
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

impl Daemons {
    /// Starts the controller and nodes, and waits until the directory lists them all.
    ///
    /// # Errors
    /// When one does not come up, with the end of its log.
    pub fn start_all(&mut self, network: &Network, nodes: &[&str], extra: &Extra) -> Result<()> {
        self.start_controller(network, extra)?;
        for name in nodes {
            self.start_node(network, name, extra)?;
        }
        self.wait_listed(network, nodes.len(), Duration::from_secs(30))
    }

    /// Starts the controller, or starts it again, and asks for its link.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_controller(&mut self, network: &Network, extra: &Extra) -> Result<()> {
        let host = network.host("controller")?;
        let dir = state(host);
        let dir = dir.to_str().context("expected a path of characters")?;
        let listen = format!("{}:{PORT}", host.plan.v4());
        let mut arguments =
            words(&["controller", "--listen", &listen, "--state", dir, "--log", "debug"]);
        arguments.extend(extra.controller.iter().cloned());
        let mut daemon = host.daemon("controller", &arguments)?;
        let deadline = Instant::now() + Duration::from_secs(15);
        while !is_answering(host) {
            if !daemon.is_running() || Instant::now() > deadline {
                bail!("the controller did not come up:\n{}", daemon.last_words());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.link = ask_controller(host, &["link"])?;
        self.controller = Some(daemon);
        Ok(())
    }

    /// A single-use token for a node.
    ///
    /// # Errors
    /// When the controller gives none.
    pub fn token(&self, network: &Network) -> Result<String> {
        ask_controller(network.host("controller")?, &["token", "new"])
    }

    /// Starts a tracker on the host of that name.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_tracker(&self, network: &Network) -> Result<Daemon> {
        let token =
            ask_controller(network.host("controller")?, &["token", "new", "--role", "tracker"])?;
        let host = network.host("tracker")?;
        let (listen, dir) = (format!("{}:{PORT}", host.plan.v4()), state(host));
        let dir = dir.to_str().context("expected a path of characters")?;
        let mut arguments =
            words(&["tracker", "--controller", &self.link, "--name", "beaver", "--log", "debug"]);
        arguments.extend(words(&["--listen", &listen, "--state", dir, "--join", &token]));
        host.daemon("tracker", &arguments)
    }

    /// What the tracker says.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn tracker_status(&self, network: &Network) -> Result<TrackerStatus> {
        match ask_host::<Status>(network.host("tracker")?, "tracker", command::STATUS)? {
            Status::Tracker(status) => Ok(status),
            _ => bail!("expected a tracker's status"),
        }
    }

    /// The arguments of a node.
    ///
    /// # Errors
    /// When the plan has no such host.
    pub fn node_arguments(
        &self,
        network: &Network,
        name: &str,
        extra: &Extra,
    ) -> Result<Vec<String>> {
        let host = network.host(name)?;
        let dir = state(host);
        let dir = dir.to_str().context("expected a path of characters")?;
        let listen = format!("0.0.0.0:{PORT}");
        let mut arguments = words(&["node", "--controller", &self.link, "--name", name]);
        arguments
            .extend(words(&["--listen", &listen, "--state", dir, "--log", extra.log, "--lab"]));
        if host.plan.on("outside").is_some() {
            let way: &[&str] = if extra.userspace {
                &["--userspace"]
            } else {
                &["--exit-interface", plan::OUTSIDE]
            };
            arguments.push("--exit".to_owned());
            arguments.extend(words(way));
            let resolver = format!("{}:{}", plan::RECEIVER_V4, port::DNS);
            arguments.extend(words(&["--exit-resolver", &resolver]));
            arguments.extend(words(&["--exit-policy", &extra.policy]));
        }
        arguments.extend(extra.node.iter().cloned());
        Ok(arguments)
    }

    /// Starts a node; the first time with a token.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_node(&mut self, network: &Network, name: &str, extra: &Extra) -> Result<()> {
        let mut arguments = self.node_arguments(network, name, extra)?;
        let host = network.host(name)?;
        if !state(host).exists() {
            arguments.extend(["--join".to_owned(), self.token(network)?]);
        }
        let daemon = if extra.userspace {
            let before = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"];
            host.daemon_with("node", &words(&before), &arguments)?
        } else {
            host.daemon("node", &arguments)?
        };
        self.nodes.insert(name.to_owned(), daemon);
        Ok(())
    }

    /// Waits until so many nodes are listed.
    ///
    /// # Errors
    /// When they are not in time, with the words of one that is missing.
    pub fn wait_listed(
        &mut self,
        network: &Network,
        count: usize,
        patience: Duration,
    ) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let listed = self.controller_status(network).map_or(0, |status| status.directory.nodes);
            if listed >= count {
                return Ok(());
            }
            for daemon in self.nodes.values_mut() {
                if !daemon.is_running() {
                    bail!("{} ended:\n{}", daemon.host, daemon.last_words());
                }
            }
            if Instant::now() > deadline {
                let words: Vec<String> = self
                    .nodes
                    .values()
                    .map(|node| format!("{}: {}", node.host, node.last_words()))
                    .collect();
                bail!("expected {count} nodes to be listed, got {listed}\n{}", words.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The arguments of the client that every scenario gives.
    ///
    /// # Errors
    /// When the plan has no sender.
    pub fn client_arguments(&self, network: &Network, more: &[&str]) -> Result<Vec<String>> {
        let dir = state(network.host(self.client_host)?);
        let dir = dir.to_str().context("expected a path of characters")?;
        let mut arguments = words(&["client", "--controller", &self.link, "--state", dir]);
        arguments.extend(words(&["--log", "debug", "--route", OUTSIDE_V4, "--route", OUTSIDE_V6]));
        arguments.extend(words(more));
        Ok(arguments)
    }

    /// Starts the client, in a lab.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_client(&mut self, network: &Network, more: &[&str]) -> Result<()> {
        self.client = None;
        let mut arguments = self.client_arguments(network, more)?;
        arguments.push("--lab".to_owned());
        self.client = Some(network.host(self.client_host)?.daemon("client", &arguments)?);
        Ok(())
    }

    /// Ends the client and waits.
    pub fn stop_client(&mut self) -> bool {
        self.client.take().is_none_or(Daemon::stop)
    }

    /// Waits until the client has a circuit in use, and returns it.
    ///
    /// # Errors
    /// When it has none in time, with the end of its log.
    pub fn wait_connected(&mut self, network: &Network, patience: Duration) -> Result<CircuitInfo> {
        let deadline = Instant::now() + patience;
        loop {
            if let Ok(status) = self.client_status(network)
                && status.state == ClientState::Connected
                && let Ok(circuit) = self.active_circuit(network)
            {
                return Ok(circuit);
            }
            let client = self.client.as_mut().context("expected a client")?;
            if !client.is_running() || Instant::now() > deadline {
                bail!("the client did not connect:\n{}", client.last_words());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What the client says.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn client_status(&self, network: &Network) -> Result<ClientStatus> {
        match ask_host::<Status>(network.host(self.client_host)?, "client", command::STATUS)? {
            Status::Client(status) => Ok(status),
            _ => bail!("expected a client's status"),
        }
    }

    /// The client's circuits.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn circuits(&self, network: &Network) -> Result<Vec<CircuitInfo>> {
        let status: CircuitsStatus =
            ask_host(network.host(self.client_host)?, "client", command::CIRCUITS)?;
        Ok(status.circuits)
    }

    /// The circuit that new flows use.
    ///
    /// # Errors
    /// When there is none.
    pub fn active_circuit(&self, network: &Network) -> Result<CircuitInfo> {
        self.circuits(network)?
            .into_iter()
            .find(|circuit| circuit.state == crate::telemetry::CircuitState::Active)
            .context("expected an active circuit, got none")
    }

    /// What a node says.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn node_status(&self, network: &Network, name: &str) -> Result<NodeStatus> {
        match ask_host::<Status>(network.host(name)?, "node", command::STATUS)? {
            Status::Node(status) => Ok(status),
            _ => bail!("expected a node's status"),
        }
    }

    /// What the controller says.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn controller_status(
        &self,
        network: &Network,
    ) -> Result<crate::telemetry::ControllerStatus> {
        match ask_host::<Status>(network.host("controller")?, "controller", command::STATUS)? {
            Status::Controller(status) => Ok(status),
            _ => bail!("expected a controller's status"),
        }
    }
}

/// Runs one of `cepa controller`'s commands on its host and returns the line it prints.
fn ask_controller(host: &Host, words: &[&str]) -> Result<String> {
    let output = host
        .command(std::env::current_exe()?)?
        .arg("controller")
        .args(words)
        .arg("--state")
        .arg(state(host))
        // The link names where the controller listens.
        .env("CEPA_LISTEN", format!("{}:{PORT}", host.plan.v4()))
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() || said.is_empty() {
        bail!(
            "cepa controller {}: {}",
            words.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(said)
}

fn is_answering(host: &Host) -> bool {
    ask_host::<Status>(host, "controller", command::STATUS).is_ok()
}

fn ask_host<T: DeserializeOwned>(host: &Host, role: &str, command: &str) -> Result<T> {
    let dir = state(host);
    let answer = ask(&Place::new(role, Some(&dir)), &Request::plain(command), PATIENCE)?;
    serde_json::from_value(answer).context("reading the daemon's answer")
}

/// Whether a host lets packets out.
pub fn is_exit(name: &str) -> bool {
    EXITS.contains(&name)
}
