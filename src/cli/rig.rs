//! `cepa rig`: the whole network on this machine.
//!
//! In: a scenario. Out: a report. Called by: the command line.

use std::{
    ffi::OsString,
    io::Write,
    path::{Path, PathBuf},
};

use super::output::say;
use crate::rig::{agent, network, options::NetworkOptions, plan::Plan, run::Run, session};

/// Arguments of `cepa rig`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Bring the network up, to play with
    Up(UpArgs),
    /// Open a shell on a host of the network that is up
    Shell {
        /// sender, controller, n1 to n6, stranger or receiver
        host: String,
        /// A program to run there instead of a shell
        #[arg(last = true)]
        program: Vec<OsString>,
    },
    /// Take the network down
    Down,
    /// Hold a network until this process is ended
    #[command(hide = true)]
    Hold(UpArgs),
    /// Run one of the rig's tools in this host
    #[command(hide = true)]
    Agent {
        /// What to do, as JSON
        tool: String,
    },
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
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self.action {
            Action::Up(up) => up.up(),
            Action::Hold(up) => session::hold(&up.options()?, up.bare, say_ready),
            Action::Shell { host, program } => session::shell(&session::newest()?, &host, &program),
            Action::Down => {
                let run = session::newest()?;
                session::down(&run)?;
                say!("the rig {} is down; its logs stay in {}", run.id, run.dir.display());
                Ok(())
            }
            Action::Agent { tool } => agent::run(&tool),
            Action::Inside { namespace, host, program } => {
                network::inside(&namespace, &host, &program)
            }
            Action::Guardian { dir } => network::guardian(&dir),
        }
    }
}

fn say_ready(run: &Run) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "ready {}", run.dir.display())?;
    Ok(out.flush()?)
}

impl UpArgs {
    fn options(&self) -> anyhow::Result<NetworkOptions> {
        NetworkOptions::read(&self.links, self.hops)
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
