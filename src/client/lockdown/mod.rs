//! Fail closed: what may leave this machine, whatever the daemons do.
//!
//! In: settings, the cached directory. Out: rules for nftables, changes of them, the last plan.
//! Called by: node::lock, which hands them to the kernel.
//!
//! Everything that may change (who the daemon is, which interfaces are inside, whom it may talk to)
//! is a set. A new directory changes sets, in one transaction, and never a rule. An unlock is an
//! element that the kernel removes when its time is over, whether or not anything of cepa still runs.

mod rules;
mod state;

use std::{
    collections::BTreeSet,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use self::{
    rules::TABLE,
    state::{Counter, counters, read},
};
use crate::{
    config::{Cidr, ClientConfig},
    directory::{ControllerLink, Directory},
};

const SCHEMA: &str = "cepa.lockdown/1";

/// Whom the daemon may talk to.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Endpoints {
    /// The controller, TCP.
    pub controller: BTreeSet<SocketAddr>,
    /// The relays, UDP.
    pub members: BTreeSet<SocketAddr>,
}

impl Endpoints {
    /// The controller, if its link names it by address, and the relays of a directory.
    pub fn new(link: Option<&ControllerLink>, directory: Option<&Directory>) -> Self {
        // Names would have to be resolved, and before anything is allowed nothing can be asked.
        let controller = link
            .and_then(|link| Some(SocketAddr::new(link.host().parse().ok()?, link.port())))
            .into_iter()
            .collect();
        let members = directory
            .into_iter()
            .flat_map(Directory::nodes)
            .filter(|member| member.is_relay())
            .map(|member| member.addr())
            .collect();
        Self { controller, members }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.controller.len() + self.members.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Everything the rules are made of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lockdown {
    schema: String,
    /// The user whose packets to endpoints may leave; none: nobody's.
    pub uid: Option<u32>,
    /// The client's TUN interface.
    pub tun: String,
    /// The interfaces of the inside.
    pub lan: Vec<String>,
    /// Networks that reach TCP port 22 of this machine, and are answered.
    pub ssh_from: Vec<String>,
    /// Whom the daemon may talk to.
    pub endpoints: Endpoints,
}

impl Default for Lockdown {
    /// Nothing may leave.
    fn default() -> Self {
        Self {
            schema: SCHEMA.to_owned(),
            uid: None,
            tun: ClientConfig::default().tun,
            lan: Vec::new(),
            ssh_from: Vec::new(),
            endpoints: Endpoints::default(),
        }
    }
}

impl Lockdown {
    /// What the settings ask for.
    pub fn new(config: &ClientConfig, uid: Option<u32>, endpoints: Endpoints) -> Self {
        Self {
            uid,
            tun: config.tun.clone(),
            lan: config.inside(),
            ssh_from: config.ssh_from.iter().map(Cidr::to_string).collect(),
            endpoints,
            ..Self::default()
        }
    }

    /// Replaces the table, in one transaction; an unlock ends. What had leaked stays counted.
    pub fn rules(&self, leaked: Counter) -> String {
        rules::table(self, leaked)
    }

    /// Keeps the plan, for a start at which the settings cannot be read.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, state: &Path) -> io::Result<()> {
        let file = file(state);
        if let Some(dir) = file.parent() {
            fs::create_dir_all(dir)?;
        }
        let new = file.with_extension("new");
        fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        fs::rename(new, file)
    }

    /// The plan of the last time; none if there is none, or none that can be read.
    pub fn load(state: &Path) -> Option<Self> {
        let plan: Self = serde_json::from_slice(&fs::read(file(state)).ok()?).ok()?;
        let is_sound = plan.schema == SCHEMA
            && plan.lan.iter().chain([&plan.tun]).all(|name| rules::is_interface(name))
            && plan.ssh_from.iter().all(|text| text.parse::<Cidr>().is_ok());
        is_sound.then_some(plan)
    }
}

/// Beside the client's state directory, which belongs to the daemon's user.
fn file(state: &Path) -> PathBuf {
    state.parent().unwrap_or(state).join("lockdown.json")
}

/// Puts other endpoints in the place of those in force, in one transaction.
pub fn update(endpoints: &Endpoints) -> String {
    rules::update(endpoints)
}

/// Lets this machine's packets out for so many seconds; those of the inside stay where they are.
pub fn unlock(seconds: u64) -> String {
    rules::unlock(seconds)
}

/// Takes the table away.
pub fn removal() -> String {
    format!("delete table inet {TABLE}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Lockdown {
        let controller = ["10.77.0.2:5000".parse().unwrap()].into();
        let members = ["10.77.0.11:5000".parse().unwrap(), "[fd77::b]:5000".parse().unwrap()];
        let config = ClientConfig {
            lan: vec!["eth1".to_owned()],
            ssh_from: vec!["192.168.1.0/24".parse().unwrap()],
            ..ClientConfig::default()
        };
        Lockdown::new(&config, Some(990), Endpoints { controller, members: members.into() })
    }

    #[test]
    fn a_plan_is_kept_and_damage_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("client");
        assert_eq!(Lockdown::load(&state), None);
        plan().save(&state).unwrap();
        assert_eq!(Lockdown::load(&state), Some(plan()));
        let text = fs::read_to_string(file(&state)).unwrap();
        for damage in [
            text[..text.len() / 2].to_owned(),
            text.replace("eth1", "x\\\" accept"),
            text.replace("192.168.1.0/24", "0.0.0.0/0 } ; }"),
            text.replace("cepa.lockdown/1", "cepa.lockdown/9"),
        ] {
            fs::write(file(&state), damage).unwrap();
            assert_eq!(Lockdown::load(&state), None);
        }
    }

    #[test]
    fn rules_name_what_the_plan_names() {
        let text = plan().rules(Counter { packets: 7, bytes: 700 });
        for words in [
            "elements = { 990 }",
            "elements = { \"eth1\" }",
            "elements = { \"cepa0\" }",
            "10.77.0.2 . tcp . 5000",
            "10.77.0.11 . udp . 5000",
            "fd77::b . udp . 5000",
            "elements = { 192.168.1.0/24 }",
            "counter leaked { packets 7 bytes 700 }",
        ] {
            assert!(text.contains(words), "{words}:\n{text}");
        }
        assert!(!Lockdown::default().rules(Counter::default()).contains("elements = {  }"));
    }

    #[test]
    fn an_update_touches_sets_only() {
        let text = update(&plan().endpoints);
        assert!(text.lines().all(|line| {
            line.starts_with("flush set inet cepa_lockdown members")
                || line.starts_with("add element inet cepa_lockdown members")
        }));
        assert_eq!(update(&Endpoints::default()).lines().count(), 2);
    }
}
