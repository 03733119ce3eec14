//! `hosts.toml`: which machines there are, how they are reached, what they do.
//!
//! In: a file. Out: checked machines. Called by: rig::remote, `cepa rig run --hosts`.
//!
//! ```toml
//! ssh = ["ssh", "-i", "key"]        # the program and its first words; unset: ssh
//!
//! [[host]]
//! name = "sender"
//! ssh = "root@192.0.2.10"           # with `port`, if it is not 22
//! roles = ["client"]                # client, node, exit, controller, receiver
//! addresses = ["10.77.1.201"]       # in the network under test
//! lockdown = true                   # it has to be locked before its network comes up
//! capture = "sender.pcap"           # what its network card sent and took, if something records it
//! ```

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// What a machine does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MachineRole {
    /// Its packets go through circuits.
    Client,
    /// It relays.
    Node,
    /// It relays and lets packets out.
    Exit,
    /// It signs the directory.
    Controller,
    /// It is behind the exits and has no daemon.
    Receiver,
}

/// A machine.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Its name; a node's is that of the directory.
    pub name: String,
    /// Where ssh finds it.
    pub ssh: String,
    /// The port of its ssh.
    #[serde(default)]
    pub port: Option<u16>,
    /// What it does.
    pub roles: Vec<MachineRole>,
    /// Its addresses in the network under test.
    pub addresses: Vec<IpAddr>,
    /// It has to be locked before its network comes up.
    #[serde(default)]
    pub lockdown: bool,
    /// A capture of its network card, on this machine.
    #[serde(default)]
    pub capture: Option<PathBuf>,
}

/// All machines.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hosts {
    /// The program that reaches them, and its first words.
    #[serde(default = "plain_ssh")]
    pub ssh: Vec<String>,
    /// The machines.
    #[serde(rename = "host")]
    pub machines: Vec<Machine>,
}

fn plain_ssh() -> Vec<String> {
    vec!["ssh".to_owned()]
}

impl Hosts {
    /// Reads the file.
    ///
    /// # Errors
    /// When it is not one, or has not one client, one receiver, a controller and an exit.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let mut hosts = Self::parse(&text).with_context(|| format!("in {}", path.display()))?;
        // Captures are named as seen from the file.
        let folder = path.parent().unwrap_or(Path::new("."));
        for machine in &mut hosts.machines {
            machine.capture = machine.capture.take().map(|capture| folder.join(capture));
        }
        Ok(hosts)
    }

    fn parse(text: &str) -> Result<Self> {
        let hosts: Self = toml::from_str(text)?;
        ensure!(!hosts.ssh.is_empty(), "expected a program in ssh, got none");
        for (role, least, most) in [
            (MachineRole::Client, 1, 1),
            (MachineRole::Receiver, 1, 1),
            (MachineRole::Controller, 1, 1),
            (MachineRole::Exit, 1, usize::MAX),
        ] {
            let got = hosts.with(role).count();
            ensure!(
                (least..=most).contains(&got),
                "expected {} host with the role {role:?}, got {got}",
                if most == 1 { "one" } else { "at least one" }
            );
        }
        for machine in &hosts.machines {
            ensure!(!machine.addresses.is_empty(), "expected addresses of {}", machine.name);
            ensure!(!machine.ssh.starts_with('-'), "expected a machine, got {:?}", machine.ssh);
        }
        Ok(hosts)
    }

    /// The machines with a role.
    pub fn with(&self, role: MachineRole) -> impl Iterator<Item = &Machine> {
        self.machines.iter().filter(move |machine| machine.has(role))
    }

    /// The client; [`Self::read`] saw to it that there is one.
    pub(super) fn client(&self) -> &Machine {
        self.only(MachineRole::Client)
    }

    /// The receiver; [`Self::read`] saw to it that there is one.
    pub(super) fn receiver(&self) -> &Machine {
        self.only(MachineRole::Receiver)
    }

    fn only(&self, role: MachineRole) -> &Machine {
        self.with(role).next().unwrap_or(&self.machines[0])
    }
}

impl Machine {
    /// Whether it has a role.
    pub fn has(&self, role: MachineRole) -> bool {
        self.roles.contains(&role)
    }

    /// The units that must be active on it.
    pub fn units(&self) -> Vec<&'static str> {
        let mut units = Vec::new();
        for role in &self.roles {
            let unit = match role {
                MachineRole::Client => "cepa-client.service",
                MachineRole::Node | MachineRole::Exit => "cepa-node.service",
                MachineRole::Controller => "cepa-controller.service",
                MachineRole::Receiver => continue,
            };
            if !units.contains(&unit) {
                units.push(unit);
            }
        }
        if self.lockdown {
            units.push("cepa-lockdown.service");
        }
        units
    }

    /// Its units, for people.
    pub(super) fn words(&self) -> String {
        let units: Vec<&str> =
            self.units().iter().map(|unit| unit.trim_end_matches(".service")).collect();
        if units.is_empty() { "it is".to_owned() } else { units.join(", ") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        [[host]]
        name = "sender"
        ssh = "root@127.0.0.1"
        port = 2201
        roles = ["client"]
        addresses = ["10.77.1.201"]
        lockdown = true
        capture = "sender.pcap"
        [[host]]
        name = "node"
        ssh = "root@127.0.0.1"
        roles = ["controller", "exit"]
        addresses = ["10.77.1.11", "203.0.113.11"]
        [[host]]
        name = "receiver"
        ssh = "root@127.0.0.1"
        roles = ["receiver"]
        addresses = ["203.0.113.2"]
    "#;

    #[test]
    fn the_source_s_three_machines() {
        let hosts = Hosts::parse(TEXT).unwrap();
        assert_eq!(hosts.ssh, ["ssh"]);
        assert_eq!(hosts.client().units(), ["cepa-client.service", "cepa-lockdown.service"]);
        assert_eq!(hosts.machines[1].units(), ["cepa-controller.service", "cepa-node.service"]);
        assert!(hosts.receiver().units().is_empty());
    }

    #[test]
    fn what_is_missing_or_unknown_is_said() {
        let says = |text: &str, words: &str| {
            let error = format!("{:#}", Hosts::parse(text).unwrap_err());
            assert!(error.contains(words), "{words:?} is not in {error:?}");
        };
        says(&TEXT.replace("\"client\"", "\"node\""), "one host with the role Client, got 0");
        says(&TEXT.replace("\"exit\"", "\"node\""), "at least one host with the role Exit");
        says(&TEXT.replace("port", "prot"), "prot");
        says(&TEXT.replace("[\"203.0.113.2\"]", "[]"), "expected addresses of receiver");
        says(&TEXT.replace("root@127.0.0.1", "-oProxyCommand=x"), "expected a machine");
    }
}
