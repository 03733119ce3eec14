//! The hosts of a plan, plugged into a switch.
//!
//! In: a run and a plan. Out: namespaces with cables and addresses, removed when dropped.
//! Called by: the scenarios, `cepa rig up`, the benchmark.

use std::{
    collections::BTreeMap,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};

use super::{
    host::Host,
    link::{LinkOptions, LinkProcess},
    plan::{self, HostPlan, Plan, Port},
    run::{self, Run},
};
use crate::capture::netns::NetNs;

/// A network that is up.
#[derive(Debug)]
pub struct Network {
    /// The run it belongs to.
    pub run: Run,
    /// What is where.
    pub plan: Plan,
    hosts: BTreeMap<&'static str, Host>,
    /// Where the cables end.
    pub switch: Host,
    links: Vec<LinkProcess>,
    guardian: Option<Child>,
}

impl Network {
    /// Brings a network up. `shaped` gives some hosts' cables a rate, loss or delay.
    ///
    /// # Errors
    /// What the system's tools say; what was made until then is removed.
    pub fn up(run: Run, plan: Plan, shaped: &BTreeMap<String, LinkOptions>) -> Result<Self> {
        let guardian = guard(&run)?;
        let switch_plan = HostPlan { name: "switch", ports: Vec::new() };
        let switch = Host::new(&run, &switch_plan);
        let switch = match switch {
            Ok(switch) => switch,
            Err(error) => {
                run.clean();
                return Err(error);
            }
        };
        let mut network = Self {
            run,
            plan,
            hosts: BTreeMap::new(),
            switch,
            links: Vec::new(),
            guardian: Some(guardian),
        };
        network.plug_all(shaped)?;
        network.run.hosts = network.hosts.keys().map(|name| (*name).to_owned()).collect();
        network.run.save()?;
        Ok(network)
    }

    fn plug_all(&mut self, shaped: &BTreeMap<String, LinkOptions>) -> Result<()> {
        for segment in self.plan.segments() {
            self.switch.ip(&format!(
                "link add name {segment} type bridge forward_delay 0 stp_state 0 mcast_snooping 0"
            ))?;
            self.switch.ip(&format!("link set dev {segment} up"))?;
        }
        for plan in self.plan.hosts.clone() {
            let host = Host::new(&self.run, &plan)?;
            // What is chosen here is unique, and a host must not listen to anybody's guesses.
            for (name, value) in [
                ("net/ipv6/conf/all/accept_dad", "0"),
                ("net/ipv6/conf/default/accept_dad", "0"),
                ("net/ipv6/conf/default/accept_ra", "0"),
                ("net/ipv4/conf/all/rp_filter", "0"),
                ("net/ipv4/conf/default/rp_filter", "0"),
                ("net/ipv4/conf/all/send_redirects", "0"),
                ("net/ipv4/conf/default/send_redirects", "0"),
                ("net/ipv4/conf/all/accept_redirects", "0"),
                ("net/ipv4/conf/default/accept_redirects", "0"),
            ] {
                host.sysctl(name, value)?;
            }
            for port in &plan.ports {
                let options = shaped.get(plan.name).filter(|_| port.interface == plan::INSIDE);
                if let Some(link) = self.plug(&host, port, options)? {
                    self.links.push(link);
                }
            }
            self.hosts.insert(plan.name, host);
        }
        Ok(())
    }

    fn plug(
        &self,
        host: &Host,
        port: &Port,
        options: Option<&LinkOptions>,
    ) -> Result<Option<LinkProcess>> {
        let plug = host.plan.plug(port);
        let near = port.interface;
        let slow = options.filter(|options| options.needs_process());
        let process = match slow {
            Some(options) => {
                let process = LinkProcess::start(host, near, &self.switch, &plug, options)?;
                host.ip(&format!("link set dev {near} txqueuelen 5000"))?;
                self.switch.ip(&format!("link set dev {plug} txqueuelen 5000"))?;
                Some(process)
            }
            None => {
                host.ip(&format!(
                    "link add name {near} type veth peer name {plug} netns {}",
                    self.switch.namespace
                ))?;
                None
            }
        };
        host.ip(&format!("address add {}/24 dev {near}", port.v4))?;
        host.ip(&format!("address add {}/64 dev {near} nodad", port.v6))?;
        host.ip(&format!("link set dev {near} up"))?;
        self.switch.ip(&format!("link set dev {plug} master {} up", port.segment))?;
        if let Some(options) = options {
            options.apply(host, near, &self.switch, &plug)?;
        }
        Ok(process)
    }

    /// A host.
    ///
    /// # Errors
    /// When the plan has none of this name.
    pub fn host(&self, name: &str) -> Result<&Host> {
        self.hosts.get(name).with_context(|| format!("expected a host, got {name:?}"))
    }

    /// All hosts.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.hosts.values()
    }

    /// Lets trains of datagrams pass the cables whole (the kernel's default between namespaces),
    /// or cuts them as a real wire would, which is what a capture should show.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn carry_trains(&self, whole: bool) -> Result<()> {
        // The number of segments is enough for what sockets send; packets from a TUN interface do
        // not carry it, so their size is limited, too.
        let limit = if whole {
            "gso_max_segs 65535 gso_max_size 65536"
        } else {
            "gso_max_segs 1 gso_max_size 1500"
        };
        for host in self.hosts.values() {
            for port in &host.plan.ports {
                host.ip(&format!("link set dev {} {limit}", port.interface))?;
                let plug = host.plan.plug(port);
                self.switch.ip(&format!("link set dev {plug} {limit}"))?;
            }
        }
        Ok(())
    }

    /// Makes the kernels of `path` forward from the sender to a second address of the receiver:
    /// the same hosts and cables without cepa, for comparison.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn bare_path(&self, path: &[&str]) -> Result<BarePath> {
        let sender = self.host("sender")?;
        let receiver = self.host("receiver")?;
        let bare = plan::BARE_V4;
        receiver.ip(&format!("address replace {bare}/32 dev lo"))?;
        let v4 = |name: &str| self.host(name).map(|host| host.plan.v4());
        let mut towards = sender;
        for name in path {
            towards.ip(&format!("route replace {bare}/32 via {}", v4(name)?))?;
            towards = self.host(name)?;
            // By interface: the switch for all would also reset what an exit has set.
            for port in &towards.plan.ports {
                towards.sysctl(&format!("net/ipv4/conf/{}/forwarding", port.interface), "1")?;
            }
        }
        towards.ip(&format!("route replace {bare}/32 via {}", plan::RECEIVER_V4))?;
        let home = sender.plan.v4();
        let outside =
            towards.plan.on("outside").context("expected the last host to be an exit")?.v4;
        receiver.ip(&format!("route replace {home}/32 via {outside} src {bare}"))?;
        for pair in path.windows(2) {
            self.host(pair[1])?.ip(&format!("route replace {home}/32 via {}", v4(pair[0])?))?;
        }
        Ok(BarePath { path: path.iter().map(|name| (*name).to_owned()).collect() })
    }

    /// Takes it away again.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn remove_bare_path(&self, path: BarePath) -> Result<()> {
        let bare = plan::BARE_V4;
        let home = self.host("sender")?.plan.v4();
        self.host("sender")?.ip(&format!("route delete {bare}/32"))?;
        for (number, name) in path.path.iter().enumerate() {
            let host = self.host(name)?;
            host.ip(&format!("route delete {bare}/32"))?;
            if number > 0 {
                host.ip(&format!("route delete {home}/32"))?;
            }
            host.sysctl(&format!("net/ipv4/conf/{}/forwarding", plan::INSIDE), "0")?;
        }
        self.host("receiver")?.ip(&format!("route delete {home}/32"))?;
        self.host("receiver")?.ip(&format!("address delete {bare}/32 dev lo"))?;
        Ok(())
    }
}

/// A path of kernels that forward.
#[derive(Debug)]
#[must_use]
pub struct BarePath {
    path: Vec<String>,
}

impl Drop for Network {
    fn drop(&mut self) {
        self.links.clear();
        self.run.clean();
        if let Some(mut guardian) = self.guardian.take() {
            drop(guardian.stdin.take());
            let _ = guardian.wait();
        }
    }
}

/// Starts a process that cleans up if this one is killed: it waits for the end of a pipe.
fn guard(run: &Run) -> Result<Child> {
    Command::new(std::env::current_exe()?)
        .args(["rig", "guardian"])
        .arg(&run.dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting the guardian")
}

/// What the guardian does.
///
/// # Errors
/// When there is no such run.
pub fn guardian(dir: &std::path::Path) -> Result<()> {
    use std::io::Read;
    crate::capture::process::leave_terminal();
    let run = Run::load(dir)?;
    // Ends when the rig does, in whatever way.
    let _ = std::io::stdin().read(&mut [0]);
    if dir.join("run.json").exists() {
        run.clean();
    }
    Ok(())
}

/// Enters a host of a run and becomes a program there.
///
/// # Errors
/// When that is not possible.
pub fn inside(
    namespace: &std::path::Path,
    host: &str,
    program: &[std::ffi::OsString],
) -> Result<()> {
    let [name, arguments @ ..] = program else { anyhow::bail!("expected a program to run") };
    let mut command = Command::new(name);
    command.args(arguments);
    let error = crate::capture::process::become_inside(namespace, host, &mut command);
    Err(error).with_context(|| format!("running {} on {host}", name.to_string_lossy()))
}

/// Whether a namespace can be entered.
///
/// # Errors
/// When it is gone.
pub fn open(namespace: &str) -> Result<NetNs> {
    NetNs::open(&std::path::Path::new("/run/netns").join(namespace)).context(run::GONE)
}
