//! Three nested WireGuard tunnels, in user space like cepa: one to each node, inside the other.
//!
//! In: the hosts, the programs `gotatun` and `wg`. Out: a way through the tunnels.
//! Called by: rig::peers.
//!
//! ```text
//! sender: wg3( to n4 ) in wg2( to n2 ) in wg1( to n1 ); each node forwards, with NAT
//! ```

use std::time::Duration;

use anyhow::{Context, Result};

use super::{Contender, PATH, Way};
use crate::rig::{
    host::{Daemon, Host},
    network::Network,
    plan::{INSIDE, OUTSIDE, RECEIVER_V4},
};

const PORT: u16 = 51_820;
/// The MTU of the first tunnel; each further one has 80 bytes less.
const MTU: usize = 1420;

/// The daemons of both ends of every tunnel.
pub(super) struct Gotatun {
    daemons: Vec<(String, Daemon)>,
    /// The sender's interfaces, the outermost first.
    tunnels: Vec<String>,
    servers: Vec<String>,
}

impl Gotatun {
    pub(super) fn start(network: &Network) -> Result<Self> {
        let mut started = Self { daemons: Vec::new(), tunnels: Vec::new(), servers: Vec::new() };
        let sender = network.host("sender")?;
        for (index, name) in PATH.into_iter().enumerate() {
            let node = network.host(name)?;
            let number = index + 1;
            let [client, server] =
                ["c", "s"].map(|end| format!("wg{}{end}{number}", network.run.id));
            let mut keys = Vec::new();
            for (host, interface) in [(sender, &client), (node, &server)] {
                started.daemons.push((host.name().to_owned(), daemon(host, interface)?));
                keys.push(key_pair(host, interface)?);
            }
            let (peers, files) = (&keys, keys.iter().map(|key| &key.file).collect::<Vec<_>>());
            let allowed = format!("10.9.{number}.2/32");
            let port = PORT.to_string();
            wg(node, &server, &["private-key", files[1], "listen-port", &port])?;
            wg(node, &server, &["peer", &peers[0].public, "allowed-ips", &allowed])?;
            node.ip(&format!("addr add 10.9.{number}.1/24 dev {server}"))?;
            node.ip(&format!("link set {server} up"))?;
            let endpoint = format!("{}:{PORT}", node.plan.v4());
            wg(sender, &client, &["private-key", files[0]])?;
            wg(
                sender,
                &client,
                &["peer", &peers[1].public, "endpoint", &endpoint, "allowed-ips", "0.0.0.0/0"],
            )?;
            sender.ip(&format!("addr add 10.9.{number}.2/24 dev {client}"))?;
            sender.ip(&format!("link set {client} mtu {} up", MTU - index * 80))?;
            masquerade(node, number, &server)?;
            started.tunnels.push(client);
            started.servers.push(server);
        }
        Ok(started)
    }
}

struct KeyPair {
    file: String,
    public: String,
}

fn key_pair(host: &Host, interface: &str) -> Result<KeyPair> {
    let private = host.run("wg", &["genkey"])?;
    let file = host.dir.join(format!("{interface}.key"));
    std::fs::write(&file, private)?;
    let file = file.to_str().context("expected a path of characters")?.to_owned();
    let public = host.run("sh", &["-c", &format!("wg pubkey < {file}")])?;
    Ok(KeyPair { file, public: public.trim().to_owned() })
}

fn daemon(host: &Host, interface: &str) -> Result<Daemon> {
    let daemon = host.program(
        interface,
        "gotatun",
        &["--foreground".to_owned(), "--disable-drop-privileges".to_owned(), interface.to_owned()],
    )?;
    for _ in 0..100 {
        if host.ip(&format!("link show {interface}")).is_ok()
            && host.run("wg", &["show", interface]).is_ok()
        {
            return Ok(daemon);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    anyhow::bail!("gotatun did not come up on {}:\n{}", host.name(), daemon.last_words())
}

fn wg(host: &Host, interface: &str, words: &[&str]) -> Result<()> {
    let mut all = vec!["set", interface];
    all.extend(words);
    host.run("wg", &all).map(drop)
}

fn masquerade(node: &Host, number: usize, interface: &str) -> Result<()> {
    for rule in [
        "add table ip tunnel".to_owned(),
        "add chain ip tunnel post { type nat hook postrouting priority 100; }".to_owned(),
        format!(
            "add rule ip tunnel post ip saddr 10.9.{number}.0/24 oifname != {interface} masquerade"
        ),
    ] {
        node.run("nft", &[&rule])?;
    }
    Ok(())
}

impl Contender for Gotatun {
    fn name(&self) -> &'static str {
        "gotatun"
    }

    fn enter(&mut self, network: &Network) -> Result<Way> {
        let sender = network.host("sender")?;
        let ends = PATH.iter().skip(1).map(|name| network.host(name).map(|node| node.plan.v4()));
        for (inner, tunnel) in ends.chain([Ok(RECEIVER_V4)]).zip(&self.tunnels) {
            sender.ip(&format!("route replace {}/32 dev {tunnel}", inner?))?;
        }
        for (name, server) in PATH.into_iter().zip(&self.servers) {
            let node = network.host(name)?;
            for interface in [server, INSIDE, OUTSIDE] {
                if interface != OUTSIDE || node.plan.on("outside").is_some() {
                    node.sysctl(&format!("net/ipv4/conf/{interface}/forwarding"), "1")?;
                }
            }
        }
        Ok(Way { to: RECEIVER_V4.into(), proxy: None })
    }

    fn leave(&mut self, network: &Network) -> Result<()> {
        let sender = network.host("sender")?;
        for name in PATH.iter().skip(1) {
            let inner = network.host(name)?.plan.v4();
            sender.ip(&format!("route delete {inner}/32"))?;
        }
        sender.ip(&format!("route delete {RECEIVER_V4}/32")).map(drop)
    }

    fn processes(&self) -> Vec<(String, u32)> {
        self.daemons.iter().map(|(host, daemon)| (host.clone(), daemon.pid())).collect()
    }
}
