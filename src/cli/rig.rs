//! `cepa rig`: the whole network on this machine.
//!
//! In: a scenario. Out: a report. Called by: the command line.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Context;

use super::{
    ExitCode, Failure,
    output::{self, OutputFlags, say},
    rig_files::FilesArgs,
    rig_flood::FloodArgs,
    rig_peers::PeersArgs,
    rig_rogue::RogueArgs,
    rig_text,
};
use crate::rig::{
    agent, bench,
    bench::BenchOptions,
    network,
    network::Network,
    options::NetworkOptions,
    plan::Plan,
    remote,
    report::Report,
    run::Run,
    session,
    suite::{self, RunOptions, SCENARIOS},
};

/// Arguments of `cepa rig`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Bring the network up, check every promise, and report
    Run(RunArgs),
    /// Measure cepa beside bare kernel forwarding over the same hosts
    Bench(BenchArgs),
    /// Measure cepa beside what one would pick instead, over the same hosts (see: scripts/bench-peers)
    Peers(PeersArgs),
    /// Measure a file from one and from four uploaders, beside ipv8's tunnels (see: scripts/bench-peers)
    Files(FilesArgs),
    /// Measure what CREATEs cost: building a circuit, and a flood of forged ones
    Flood(FloodArgs),
    /// Bring the network up, to play with
    Up(UpArgs),
    /// Open a shell on a host of the network that is up
    Shell {
        /// Which network, if several are up: its four digits
        #[arg(long, value_name = "ID")]
        run: Option<String>,
        /// sender, controller, n1 to n6, stranger or receiver
        host: String,
        /// A program to run there instead of a shell
        #[arg(last = true)]
        program: Vec<OsString>,
    },
    /// Take the network down
    Down {
        /// Which network, if several are up: its four digits
        #[arg(long, value_name = "ID")]
        run: Option<String>,
    },
    /// Hold a network until this process is ended
    #[command(hide = true)]
    Hold(UpArgs),
    /// Run one of the rig's tools in this host
    #[command(hide = true)]
    Agent {
        /// What to do, as JSON
        tool: String,
    },
    /// Offer a file, and do not behave
    #[command(hide = true)]
    Rogue(RogueArgs),
    /// Become a program in a host
    #[command(hide = true)]
    Inside {
        /// The file of the host's namespace
        namespace: PathBuf,
        /// The host's name
        host: String,
        /// The program and its arguments
        #[arg(last = true)]
        program: Vec<OsString>,
    },
    /// Clean up behind a rig that was killed
    #[command(hide = true)]
    Guardian {
        /// The run's directory
        dir: PathBuf,
    },
}

#[derive(clap::Args)]
struct RunArgs {
    /// Make a host's cable behave: rate=100mbit, loss=1%, delay=20ms, jitter=2ms, reorder=1%; may repeat
    #[arg(long = "link", value_name = "HOST:OPTIONS")]
    links: Vec<String>,
    /// Where captures go [default: a directory of this run]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// How many hostile datagrams a node has to survive
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    hostile: u64,
    /// On the machines of this file, over ssh, instead of in namespaces
    #[arg(long, value_name = "HOSTS.TOML", conflicts_with_all = ["links", "out", "hostile", "kills", "programs", "keep"])]
    hosts: Option<PathBuf>,
    /// How many nodes are killed one after the other
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    kills: u16,
    /// Only these scenarios, comma-separated
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = scenarios())]
    only: Vec<String>,
    /// Run a host's daemons by another build of this program, such as one for another processor; may
    /// repeat
    #[arg(long = "program", value_name = "HOST=FILE")]
    programs: Vec<String>,
    /// Leave the network up after the last scenario, until interrupted
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    output: OutputFlags,
}

#[derive(clap::Args)]
struct BenchArgs {
    /// Connections at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    flows: u16,
    /// How long each measurement takes, such as 5s
    #[arg(long, value_name = "DURATION", default_value = "4s")]
    duration: String,
    /// Add a round trip to the sender's cable, such as 20ms
    #[arg(long, value_name = "DURATION")]
    rtt: Option<String>,
    /// Lose packets on the sender's cable, such as 1%
    #[arg(long, value_name = "SHARE")]
    loss: Option<String>,
    /// The size of a UDP datagram
    #[arg(long, value_name = "BYTES", default_value_t = 1400, value_parser = clap::value_parser!(u16).range(16..=1472))]
    size: u16,
    /// The rate of UDP in Mb/s [default: TCP's goodput and a half]
    #[arg(long, value_name = "MBIT")]
    udp_rate: Option<u64>,
    /// Nodes of the path
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=4))]
    hops: u8,
    /// Bare and cepa alternate so often; the medians count
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=20))]
    rounds: u8,
    #[command(flatten)]
    output: OutputFlags,
}

#[derive(clap::Args, Clone)]
struct UpArgs {
    /// Make a host's cable behave: rate=100mbit, loss=1%, delay=20ms, jitter=2ms, reorder=1%; may repeat
    #[arg(long = "link", value_name = "HOST:OPTIONS")]
    links: Vec<String>,
    /// Nodes of the client's path
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=4))]
    hops: u8,
    /// Only hosts and cables, no daemons
    #[arg(long)]
    bare: bool,
    /// Exits without privileges, that let packets out by sockets
    #[arg(long)]
    userspace: bool,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self.action {
            Action::Run(run) => run.run(),
            Action::Bench(bench) => bench.run(),
            Action::Peers(peers) => peers.run(),
            Action::Files(files) => files.run(),
            Action::Flood(flood) => flood.run(),
            Action::Up(up) => up.up(),
            Action::Hold(up) => session::hold(&up.options()?, up.bare, say_ready),
            Action::Shell { run, host, program } => {
                session::shell(&session::find(run.as_deref())?, &host, &program)
            }
            Action::Down { run } => {
                let run = session::find(run.as_deref())?;
                session::down(&run)?;
                say!("the rig {} is down; its logs stay in {}", run.id, run.dir.display());
                Ok(())
            }
            Action::Agent { tool } => agent::run(&tool),
            Action::Rogue(rogue) => rogue.run(),
            Action::Inside { namespace, host, program } => {
                network::inside(&namespace, &host, &program)
            }
            Action::Guardian { dir } => network::guardian(&dir),
        }
    }
}

/// The scenarios in namespaces, then those on machines.
fn scenarios() -> clap::builder::PossibleValuesParser {
    SCENARIOS.into_iter().chain(remote::SCENARIOS).collect::<Vec<_>>().into()
}

/// `HOST=FILE`, the file as seen from anywhere.
fn programs(texts: &[String]) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let split = |text: &String| -> anyhow::Result<(String, PathBuf)> {
        let (host, file) =
            text.split_once('=').with_context(|| format!("expected HOST=FILE, got {text:?}"))?;
        let file = std::fs::canonicalize(file).with_context(|| format!("finding {file}"))?;
        Ok((host.to_owned(), file))
    };
    texts.iter().map(split).collect()
}

fn say_ready(run: &Run) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "ready {}", run.dir.display())?;
    Ok(out.flush()?)
}

impl RunArgs {
    fn run(self) -> anyhow::Result<()> {
        let mut watcher = rig_text::Progress::new(self.output.json);
        if let Some(file) = &self.hosts {
            let hosts = remote::Hosts::read(file)?;
            return finish(remote::run(&hosts, &self.only, &mut watcher)?, self.output);
        }
        if let Some(name) = self.only.iter().find(|name| !SCENARIOS.contains(&name.as_str())) {
            let text = format!("the scenario {name} is for machines: add --hosts HOSTS.TOML");
            return Err(Failure::new(ExitCode::Usage, text).into());
        }
        let options = RunOptions {
            network: NetworkOptions::read(&self.links, 3)?,
            out: self.out,
            hostile: self.hostile,
            kills: usize::from(self.kills),
            only: self.only,
            programs: programs(&self.programs)?,
        };
        let keep = |network: &Network| {
            if self.keep {
                watcher_says_kept(&network.run);
                loop {
                    std::thread::park();
                }
            }
        };
        finish(suite::run(&options, &mut watcher, &keep)?, self.output)
    }
}

/// Prints a report; an error unless every promise is kept.
fn finish(mut report: Report, output: OutputFlags) -> anyhow::Result<()> {
    report.finish();
    if output.json {
        output::print_json("rig-run", &report)?;
    } else {
        output::print(format_args!("{}", rig_text::summary(&report)));
    }
    if report.kept {
        return Ok(());
    }
    let (kept, all) = report.count();
    let text = format!("expected every promise to be kept, got {kept} of {all}");
    Err(Failure::new(ExitCode::Failed, text).into())
}

fn watcher_says_kept(run: &Run) {
    eprintln!(
        "The network {} stays up until this is interrupted; see: cepa rig shell HOST",
        run.id
    );
}

impl BenchArgs {
    fn run(self) -> anyhow::Result<()> {
        let network = NetworkOptions::read(&[], self.hops)?
            .with_path(self.rtt.as_deref(), self.loss.as_deref())?;
        let options = BenchOptions {
            network,
            flows: usize::from(self.flows),
            duration: crate::rig::link::duration(&self.duration)?,
            size: usize::from(self.size),
            udp_rate: self.udp_rate.map(|rate| rate * 1_000_000),
            rounds: usize::from(self.rounds),
        };
        let result = bench::bench(&options, &mut |line| eprintln!("{line}"))?;
        if self.output.json {
            output::print_json("rig-bench", &result)
        } else {
            output::print(format_args!("{}", rig_text::bench(&result)));
            Ok(())
        }
    }
}

impl UpArgs {
    fn options(&self) -> anyhow::Result<NetworkOptions> {
        let options = NetworkOptions::read(&self.links, self.hops)?;
        Ok(NetworkOptions { userspace: self.userspace, ..options })
    }

    fn up(&self) -> anyhow::Result<()> {
        self.options()?;
        let mut arguments: Vec<OsString> = Vec::new();
        for link in &self.links {
            arguments.extend(["--link".into(), link.into()]);
        }
        arguments.extend(["--hops".into(), self.hops.to_string().into()]);
        if self.bare {
            arguments.push("--bare".into());
        }
        if self.userspace {
            arguments.push("--userspace".into());
        }
        let run = session::up(&arguments)?;
        say!("The rig {} is up. Its hosts:", run.id);
        for host in Plan::full().hosts {
            let addresses: Vec<String> =
                host.addresses().map(|address| address.to_string()).collect();
            say!("  {:<11} {}", host.name, addresses.join("  "));
        }
        say!();
        say!("  cepa rig shell sender -- ping 203.0.113.2     through the circuit");
        say!("  cepa rig shell sender -- cepa circuits        its path");
        say!("  cepa rig shell n1                             a shell on a node");
        say!("  cepa rig down");
        say!("Logs and state: {}", Path::new(&run.dir).display());
        Ok(())
    }
}
