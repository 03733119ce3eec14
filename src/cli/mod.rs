//! The command line: one file per subcommand.
//!
//! In: arguments, environment, configuration files. Out: text or JSON, and an exit code.
//! Called by: `main`.

#![allow(clippy::print_stderr, reason = "the command line is where text is printed")]

mod archive;
mod backup;
mod bench;
mod bugreport;
mod circuits;
mod client;
mod completions;
mod controller;
mod daemon;
mod dcnet;
mod doctor;
mod exit_code;
mod keys;
mod lan;
mod leaktest;
mod lockdown;
mod man;
mod node;
mod nodes;
mod output;
mod peer;
mod ping;
mod rig;
mod rig_files;
mod rig_flood;
mod rig_peers;
mod rig_rogue;
mod rig_text;
mod settings_flags;
mod status;
mod status_text;
mod table;
mod trace;
mod tracker;
mod unlock;

use clap::{CommandFactory, Parser, Subcommand};

pub use exit_code::{ExitCode, Failure};

const AFTER_HELP: &str = "\
Every flag of controller, node, client and tracker is also a key of /etc/cepa/<role>.toml and a variable:
--exit-policy, exit_policy, CEPA_EXIT_POLICY. Flags win over variables, variables over files.

Exit codes: 0 ok, 1 failed, 2 usage, 3 daemon or controller unreachable, 4 not admitted,
5 blocked (fail-closed), 6 leak seen, 7 missing privilege.";

/// An onion-routing network for any IP packet.
#[derive(Parser)]
#[command(name = "cepa", version, about, after_help = AFTER_HELP, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the main controller, or manage its link, tokens, nodes and key
    Controller(controller::Args),
    /// Run a node: relay cells, and let packets out if it is an exit
    Node(node::Args),
    /// Run the client: send this machine's packets through a circuit
    Client(client::Args),
    /// Run the tracker: join peers that share files
    Tracker(tracker::Args),
    /// Run the DC-net: relay, trustees, clients, exits, configuration
    Dcnet(dcnet::Args),
    /// Ask the controller which nodes there are
    Nodes(nodes::Args),
    /// Say what the daemons of this machine are doing
    Status(status::Args),
    /// List the client's circuits, build one, or end one
    Circuits(circuits::Args),
    /// Share and get files over circuits, with a page in the browser
    Peer(peer::Args),
    /// Send echoes to a node of the client's circuits
    Ping(ping::Args),
    /// Measure round trip and loss of every hop of a circuit
    Trace(trace::Args),
    /// List the devices behind this gateway, refuse one, print settings for dnsmasq and hostapd
    Lan(lan::Args),
    /// Try to leak, and look whether it can be done
    Leaktest(leaktest::Args),
    /// Let nothing leave this machine but cells
    Lockdown(lockdown::Args),
    /// Let packets leave in clear for a while, during a lockdown
    Unlock(unlock::Args),
    /// Look at everything that has to be right, and say how to put it right
    Doctor(doctor::Args),
    /// Gather what a person who helps needs to know, without addresses and names
    Bugreport(bugreport::Args),
    /// Measure throughput and latency of the client's circuits
    Bench(bench::Args),
    /// Show the keys of a role, or draw a node's onion key anew
    Keys(keys::Args),
    /// Write the state of a role, with its keys, into one file
    Backup(backup::BackupArgs),
    /// Put a role's state back from such a file
    Restore(backup::RestoreArgs),
    /// Run the whole network on this machine, in namespaces
    Rig(rig::Args),
    /// Print a completion script for a shell
    Completions(completions::Args),
    /// Write the man pages into a directory
    Man(man::Args),
}

impl Command {
    fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Controller(args) => args.run(),
            Self::Node(args) => args.run(),
            Self::Client(args) => args.run(),
            Self::Tracker(args) => args.run(),
            Self::Dcnet(args) => args.run(),
            Self::Nodes(args) => args.run(),
            Self::Status(args) => args.run(),
            Self::Circuits(args) => args.run(),
            Self::Peer(args) => args.run(),
            Self::Ping(args) => args.run(),
            Self::Trace(args) => args.run(),
            Self::Lan(args) => args.run(),
            Self::Leaktest(args) => args.run(),
            Self::Lockdown(args) => args.run(),
            Self::Unlock(args) => args.run(),
            Self::Doctor(args) => args.run(),
            Self::Bugreport(args) => args.run(),
            Self::Bench(args) => args.run(),
            Self::Keys(args) => args.run(),
            Self::Backup(args) => args.run(),
            Self::Restore(args) => args.run(),
            Self::Rig(args) => args.run(),
            Self::Completions(args) => args.run(),
            Self::Man(args) => args.run(),
        }
    }
}

/// Runs the command line and returns the process exit code.
pub fn main() -> std::process::ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { ExitCode::Usage } else { ExitCode::Ok };
            // A closed terminal is no reason for another exit code.
            let _ = error.print();
            return code.into();
        }
    };
    match cli.command.run() {
        Ok(()) => ExitCode::Ok.into(),
        Err(error) => {
            let code = ExitCode::of(&error);
            let is_answered = error.downcast_ref().is_some_and(Failure::is_answered);
            if !is_answered && output::wants_json(std::env::args_os()) {
                output::print_error_json(code, &error);
            }
            eprintln!("cepa: {}", output::words(&error));
            code.into()
        }
    }
}

/// The whole command line, for completions and man pages.
fn command() -> clap::Command {
    Cli::command()
}

/// Runs `future` on a runtime of one thread, for one-shot commands.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        super::command().debug_assert();
    }
}
