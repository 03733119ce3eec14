//! A private Tor network on the same hosts: three relays that are also the authorities.
//!
//! In: the hosts, the programs `tor` and `tor-gencert`. Out: a SOCKS proxy on the sender.
//! Called by: rig::peers.

use std::{
    fmt::Write,
    fs,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{Contender, PATH, Way};
use crate::rig::{
    host::{Daemon, Host},
    network::Network,
    plan::RECEIVER_V4,
};

/// A consensus of new authorities takes about a hundred seconds.
const PATIENCE: Duration = Duration::from_secs(240);
const ONION_PORT: u16 = 5001;
const DIRECTORY_PORT: u16 = 7000;
const SOCKS_PORT: u16 = 9050;

/// What every member is told.
const COMMON: &str = "TestingTorNetwork 1
RunAsDaemon 0
AssumeReachable 1
PathsNeededToBuildCircuits 0.67
TestingDirAuthVoteExit *
TestingDirAuthVoteGuard *
TestingDirAuthVoteHSDir *
V3AuthNIntervalsValid 3
TestingV3AuthInitialVotingInterval 20
TestingV3AuthInitialVoteDelay 4
TestingV3AuthInitialDistDelay 4
V3AuthVotingInterval 20
V3AuthVoteDelay 4
V3AuthDistDelay 4
Log notice stdout
";
const RELAY: &str = "SocksPort 0
AuthoritativeDirectory 1
V3AuthoritativeDirectory 1
ExitPolicyRejectPrivate 0
ContactInfo none
";

/// Relays and client.
pub(super) struct Tor {
    daemons: Vec<(String, Daemon)>,
}

impl Tor {
    pub(super) fn start(network: &Network) -> Result<Self> {
        let mut authorities = String::new();
        for name in PATH {
            let line = authority(network.host(name)?)?;
            let _ = writeln!(authorities, "DirAuthority {line}");
        }
        let mut daemons = Vec::new();
        for name in PATH.into_iter().chain(["sender"]) {
            let host = network.host(name)?;
            let mut text = format!(
                "{COMMON}{authorities}DataDirectory {}\nNickname {name}\nAddress {}\n",
                directory(host)?.display(),
                host.plan.v4()
            );
            if name == "sender" {
                let _ = writeln!(text, "SocksPort 127.0.0.1:{SOCKS_PORT}\nUseEntryGuards 0");
            } else {
                let is_exit = host.plan.on("outside").is_some();
                let policy = if is_exit { "accept *:*" } else { "reject *:*" };
                let _ = writeln!(
                    text,
                    "{RELAY}ORPort {ONION_PORT}\nDirPort {DIRECTORY_PORT}\nExitRelay {}\n\
                     ExitPolicy {policy}",
                    u8::from(is_exit)
                );
            }
            let file = host.dir.join("torrc");
            fs::write(&file, text)?;
            let arguments = ["-f".to_owned(), file.display().to_string()];
            daemons.push((name.to_owned(), host.program("tor", "tor", &arguments)?));
        }
        let mut tor = Self { daemons };
        tor.wait_for_consensus(network.host("sender")?)?;
        Ok(tor)
    }

    fn wait_for_consensus(&mut self, client: &Host) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let file = directory(client)?.join("cached-microdesc-consensus");
        loop {
            let text = fs::read_to_string(&file).unwrap_or_default();
            if text.lines().filter(|line| line.starts_with("r ")).count() == PATH.len() {
                return Ok(());
            }
            for (host, daemon) in &mut self.daemons {
                if !daemon.is_running() || Instant::now() > deadline {
                    bail!("Tor did not come up on {host}:\n{}", daemon.last_words());
                }
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

fn directory(host: &Host) -> Result<PathBuf> {
    let path = host.dir.join("tor");
    if !path.exists() {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().mode(0o700).recursive(true).create(path.join("keys"))?;
    }
    Ok(path)
}

/// Makes the keys of an authority; returns its entry in everybody's settings.
fn authority(host: &Host) -> Result<String> {
    let dir = directory(host)?;
    let keys = dir.join("keys");
    let (address, name) = (host.plan.v4(), host.name());
    let make = format!(
        "echo pass | tor-gencert --create-identity-key --passphrase-fd 0 -m 12 \
         -a {address}:{DIRECTORY_PORT} -i {0}/authority_identity_key \
         -s {0}/authority_signing_key -c {0}/authority_certificate",
        keys.display()
    );
    host.run("sh", &["-c", &make])?;
    let certificate = fs::read_to_string(keys.join("authority_certificate"))?;
    let identity = certificate
        .lines()
        .find_map(|line| line.strip_prefix("fingerprint "))
        .context("expected a fingerprint in Tor's certificate")?;
    let listing = host.run(
        "tor",
        &[
            "--list-fingerprint",
            "--orport",
            "1",
            "--datadirectory",
            dir.to_str().context("expected a path of characters")?,
            "--dirserver",
            "x 127.0.0.1:1 ffffffffffffffffffffffffffffffffffffffff",
        ],
    )?;
    let fingerprint: String = listing
        .lines()
        .last()
        .and_then(|line| line.split_once(' '))
        .map(|(_, words)| words.split_whitespace().collect())
        .context("expected a fingerprint from Tor")?;
    Ok(format!(
        "{name} orport={ONION_PORT} no-v2 v3ident={identity} {address}:{DIRECTORY_PORT} {fingerprint}"
    ))
}

impl Contender for Tor {
    fn name(&self) -> &'static str {
        "tor"
    }

    fn enter(&mut self, network: &Network) -> Result<Way> {
        let proxy = SocketAddr::from(([127, 0, 0, 1], SOCKS_PORT));
        // The first streams wait for circuits.
        let deadline = Instant::now() + PATIENCE;
        let tool = super::Tool::Echo {
            to: RECEIVER_V4.into(),
            count: 1,
            size: 64,
            every: Duration::from_millis(1),
            proxy: Some(proxy),
        };
        let sender = network.host("sender")?;
        while let Err(error) =
            sender.ask::<crate::rig::agent::EchoAnswer>(&tool, Duration::from_secs(60))
        {
            if Instant::now() > deadline {
                return Err(error).context("waiting for Tor's first circuit");
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        Ok(Way { to: RECEIVER_V4.into(), proxy: Some(proxy) })
    }

    fn leave(&mut self, _: &Network) -> Result<()> {
        Ok(())
    }

    fn processes(&self) -> Vec<(String, u32)> {
        self.daemons.iter().map(|(host, daemon)| (host.clone(), daemon.pid())).collect()
    }
}
