//! Where scenarios play: a network, its daemons, and the promises so far.
//!
//! In: checks. Out: promises, told to the watcher as they are decided. Called by: the scenarios.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde::de::DeserializeOwned;

use super::{
    agent::Tool,
    daemons::{Daemons, Extra},
    host::Agent,
    network::Network,
    plan::{RECEIVER_V4, RECEIVER_V6},
    promise::{Evidence, Promise},
};

/// Who is told what happens.
pub trait Watcher {
    /// A scenario begins.
    fn begins(&mut self, scenario: &str);
    /// A promise is decided.
    fn decided(&mut self, promise: &Promise);
}

/// The stage.
pub struct Stage<'a> {
    /// The hosts.
    pub network: &'a Network,
    /// The daemons.
    pub daemons: Daemons,
    /// What they are told.
    pub extra: Extra,
    /// The promises so far.
    pub promises: Vec<Promise>,
    scenario: &'static str,
    watcher: &'a mut dyn Watcher,
    server: Option<Agent>,
}

/// How long a tool may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The receiver, in both families.
pub const RECEIVERS: [IpAddr; 2] = [IpAddr::V4(RECEIVER_V4), IpAddr::V6(RECEIVER_V6)];

impl<'a> Stage<'a> {
    /// A stage with nothing running but the receiver's servers.
    ///
    /// # Errors
    /// When those do not start.
    pub fn new(network: &'a Network, watcher: &'a mut dyn Watcher) -> Result<Self> {
        let receiver = network.host("receiver")?;
        let mut server = receiver.start(&Tool::Serve { seen: receiver.dir.join("seen") })?;
        server.ready()?;
        Ok(Self {
            network,
            daemons: Daemons::default(),
            extra: Extra::default(),
            promises: Vec::new(),
            scenario: "",
            watcher,
            server: Some(server),
        })
    }

    /// Names the scenario that the next promises belong to.
    pub fn scenario(&mut self, name: &'static str) {
        self.scenario = name;
        self.watcher.begins(name);
    }

    /// Checks a promise; an error breaks it.
    pub fn promise(
        &mut self,
        name: impl Into<String>,
        check: impl FnOnce(&mut Self) -> Result<Evidence>,
    ) -> bool {
        let started = Instant::now();
        let result = check(self);
        let kept = result.is_ok();
        let evidence = result.unwrap_or_else(|error| Evidence::new(format!("{error:#}")));
        let promise = Promise {
            scenario: self.scenario,
            name: name.into(),
            kept,
            evidence: evidence.text,
            values: evidence.values,
            seconds: started.elapsed().as_secs_f64(),
        };
        self.watcher.decided(&promise);
        self.promises.push(promise);
        kept
    }

    /// Runs a tool on the sender.
    ///
    /// # Errors
    /// What it says.
    pub fn sender<T: DeserializeOwned>(&self, tool: &Tool) -> Result<T> {
        self.network.host("sender")?.ask(tool, PATIENCE)
    }

    /// The addresses that have asked the receiver.
    pub fn seen_by_receiver(&self) -> Vec<IpAddr> {
        let file = self.network.host("receiver").map(|host| host.dir.join("seen"));
        let text =
            file.ok().and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Starts the receiver's servers anew, so that they have seen nobody.
    ///
    /// # Errors
    /// When they do not start.
    pub fn forget_seen(&mut self) -> Result<()> {
        self.server = None;
        let receiver = self.network.host("receiver")?;
        let mut server = receiver.start(&Tool::Serve { seen: receiver.dir.join("seen") })?;
        server.ready()?;
        self.server = Some(server);
        Ok(())
    }

    /// The process of the receiver's servers.
    pub fn server_pid(&self) -> Option<u32> {
        self.server.as_ref().map(Agent::pid)
    }
}
