//! `cepa dcnet`: every program of the DC-net.
//!
//! In: a configuration directory, ports. Out: configuration files, running parties, figures.
//! Called by: the command line.

mod bootstrap;
mod programs;
mod reports;

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};

use crate::telemetry::service_manager;

/// Arguments of `cepa dcnet`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

/// Which messages the parties exchange.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Wire {
    /// Authenticated links, slots on request, protection against jamming and equivocation
    #[default]
    Modern,
    /// The source's, byte for byte: no authentication, no protection
    Seed,
}

#[derive(Subcommand)]
enum Command {
    /// Generate the configuration of a group: system, session, pseudonym and interval files
    Config(ConfigArgs),
    /// Run the relay: the hub all clients and trustees connect to
    Relay(RelayArgs),
    /// Run a trustee: it sends pads and carries nobody's traffic
    Trustee(TrusteeArgs),
    /// Run a client: local connections to its port go through the DC-net
    Client(ClientArgs),
    /// Run a SOCKS5 server behind the relay
    Socks5(SocksArgs),
    /// Run an echo server behind the relay, for tests
    Echo(EchoArgs),
    /// Make requests through a client at a given rate and time them
    TestClient(TestClientArgs),
    /// Start all clients and trustees of a configuration on this machine
    Supervisor(SupervisorArgs),
    /// Show a running relay: members, rounds, slots, collisions, the last verdict
    Status(StatusArgs),
    /// Judge a verdict file anew
    Verdict(VerdictArgs),
    /// Measure a whole group on this machine, every party a process or the clients tasks
    Bench(BenchArgs),
}

#[derive(clap::Args)]
pub(super) struct ConfigArgs {
    /// Clients of the group
    #[arg(short, long, default_value_t = 10)]
    pub(super) clients: usize,
    /// Trustees of the group
    #[arg(short, long, default_value_t = 3)]
    pub(super) trustees: usize,
    /// Where the relay will be
    #[arg(short, long, default_value = "127.0.0.1:12345", value_name = "HOST:PORT")]
    pub(super) relay: String,
    /// Make the same keys again from this text: for tests only, whoever knows it knows all keys
    #[arg(short, long)]
    pub(super) seed: Option<String>,
    /// Bytes of a cell
    #[arg(long, default_value_t = 256)]
    pub(super) cell_size: usize,
    /// Rounds the relay keeps in flight at most (the seed wire keeps 2)
    #[arg(long, default_value_t = 32)]
    pub(super) client_window: usize,
    /// Rounds the trustees run ahead (the seed wire: 10)
    #[arg(long, default_value_t = 64)]
    pub(super) trustee_window: usize,
    /// Clients refuse to speak in a set of fewer members [default: half of the clients, at least 2]
    #[arg(long, value_name = "MEMBERS")]
    pub(super) min_anonymity_set: Option<usize>,
    /// Trustees refuse to leave out more members than this an hour
    #[arg(long, default_value_t = 1000, value_name = "MEMBERS")]
    pub(super) removals_per_hour: usize,
    /// Replace the files of a group that is there already
    #[arg(long)]
    pub(super) force: bool,
    /// The directory to write
    pub(super) output_dir: PathBuf,
}

#[derive(clap::Args)]
pub(super) struct RelayArgs {
    /// Port to listen on
    #[arg(short, long, default_value_t = 12345)]
    pub(super) port: u16,
    /// Address to listen on [default: the relay's host in system.json]
    #[arg(long, value_name = "ADDRESS")]
    pub(super) bind: Option<String>,
    /// Where connections leave: a SOCKS5 server, an echo server, or via-onion[=HOST:PORT], the
    /// SOCKS5 port of a cepa client (127.0.0.1:9050)
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "HOST:PORT")]
    pub(super) exit: String,
    /// Which messages the parties exchange
    #[arg(long, value_enum, default_value_t)]
    pub(super) wire: Wire,
    /// Modern wire: serve a page of the group's state
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(super) web: Option<String>,
    /// Modern wire: slots by turns only, as the source has it, instead of on request
    #[arg(long)]
    pub(super) round_robin: bool,
    /// Modern wire: hear every party so much later, as if it were far away
    #[arg(long, default_value_t = 0, hide = true)]
    pub(super) far_ms: u64,
    /// The configuration directory
    pub(super) config_dir: PathBuf,
}

#[derive(clap::Args)]
pub(super) struct PartyArgs {
    /// A client's port for local connections, of several members the first's, from which the others
    /// count up; a trustee needs none [default: any that are free; the log names them]
    #[arg(short, long, default_value_t = 0, hide_default_value = true)]
    pub(super) port: u16,
    /// Address of that port
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    pub(super) bind: String,
    /// Which messages the parties exchange
    #[arg(long, value_enum, default_value_t)]
    pub(super) wire: Wire,
    /// The configuration directory
    pub(super) config_dir: PathBuf,
}

#[derive(clap::Args)]
pub(super) struct TrusteeArgs {
    #[command(flatten)]
    pub(super) party: PartyArgs,
    /// The party's private file, {config_dir}/{id}.json
    pub(super) private_file: PathBuf,
}

#[derive(clap::Args)]
pub(super) struct ClientArgs {
    #[command(flatten)]
    pub(super) party: PartyArgs,
    /// The member's private file, {config_dir}/{id}.json; of several members one each
    #[arg(required = true, value_name = "PRIVATE_FILE")]
    pub(super) private_files: Vec<PathBuf>,
}

#[derive(clap::Args)]
pub(super) struct SocksArgs {
    /// Address and port to listen on
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDRESS:PORT")]
    pub(super) listen: String,
    /// Let connections to private networks and this host through
    #[arg(long)]
    pub(super) allow_private: bool,
}

#[derive(clap::Args)]
pub(super) struct EchoArgs {
    /// Port to listen on
    #[arg(short, long, default_value_t = 8080)]
    pub(super) port: u16,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    pub(super) bind: String,
}

#[derive(clap::Args)]
pub(super) struct TestClientArgs {
    /// Port of the DC-net client
    #[arg(short, long)]
    pub(super) port: u16,
    /// Address of the DC-net client
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    pub(super) host: String,
    /// An echo service to ask for by SOCKS5; without it, the exit itself has to be an echo
    #[arg(long, value_name = "HOST:PORT")]
    pub(super) target: Option<String>,
    /// Requests a second
    #[arg(short, long, default_value_t = 1.0)]
    pub(super) rate: f64,
    /// Requests in all
    #[arg(short = 'n', long, default_value_t = 10)]
    pub(super) count: usize,
    /// Bytes of a request
    #[arg(short, long, default_value_t = 100)]
    pub(super) bytes: usize,
    #[command(flatten)]
    pub(super) output: super::output::OutputFlags,
}

#[derive(clap::Args)]
pub(super) struct SupervisorArgs {
    /// Leave this many clients to be started by hand
    #[arg(long, value_name = "K", num_args = 0..=1, default_missing_value = "1", default_value_t = 0,
          require_equals = true)]
    pub(super) local: usize,
    /// Port of the first client; the others count up
    #[arg(long, default_value_t = 9000)]
    pub(super) first_port: u16,
    /// Start the relay as well
    #[arg(long)]
    pub(super) relay: bool,
    /// With --relay: where connections leave
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "HOST:PORT")]
    pub(super) exit: String,
    /// Which messages the parties exchange
    #[arg(long, value_enum, default_value_t)]
    pub(super) wire: Wire,
    /// The configuration directory
    pub(super) config_dir: PathBuf,
}

#[derive(clap::Args)]
pub(super) struct StatusArgs {
    /// The relay's configuration directory
    pub(super) config_dir: PathBuf,
    #[command(flatten)]
    pub(super) output: super::output::OutputFlags,
}

#[derive(clap::Args)]
pub(super) struct VerdictArgs {
    /// A configuration directory of the group
    pub(super) config_dir: PathBuf,
    /// The verdict file, as the relay wrote it
    pub(super) file: PathBuf,
    #[command(flatten)]
    pub(super) output: super::output::OutputFlags,
}

#[derive(clap::Args)]
pub(super) struct BenchArgs {
    /// Clients
    #[arg(short, long, default_value_t = 10)]
    pub(super) clients: usize,
    /// Trustees
    #[arg(short, long, default_value_t = 3)]
    pub(super) trustees: usize,
    /// Bytes of a cell
    #[arg(long, default_value_t = 256)]
    pub(super) cell_size: usize,
    /// Rounds in flight at most
    #[arg(long, default_value_t = 32)]
    pub(super) window: usize,
    /// Round-trip time added to every party's link, in milliseconds
    #[arg(long, default_value_t = 0)]
    pub(super) rtt_ms: u64,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 5.0)]
    pub(super) seconds: f64,
    /// Let one client jam at the end, and time the trial
    #[arg(long)]
    pub(super) blame: bool,
    /// Run the clients, all but one, as tasks of one process instead of as processes
    #[arg(long)]
    pub(super) tasks: bool,
    #[command(flatten)]
    pub(super) output: super::output::OutputFlags,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        // A bench prints figures; what its parties did on the way is their business.
        let level = if matches!(self.command, Command::Bench(_)) { "error" } else { "info" };
        crate::telemetry::logs::init("dcnet", level)?;
        crate::dcnet_run::supervisor::end_with_supervisor();
        match self.command {
            Command::Config(args) => bootstrap::config(&args),
            Command::Relay(args) => run_party(programs::relay(args)),
            Command::Trustee(args) => run_party(programs::trustee(args)),
            Command::Client(args) => run_party(programs::client(args)),
            Command::Socks5(args) => run_party(programs::socks5(args)),
            Command::Echo(args) => run_party(programs::echo(args)),
            Command::TestClient(args) => super::block_on(programs::test_client(args)),
            Command::Supervisor(args) => super::block_on(programs::supervisor(args)),
            Command::Status(args) => reports::status(&args),
            Command::Verdict(args) => reports::verdict(&args),
            Command::Bench(args) => super::block_on(reports::bench(args)),
        }
    }
}

/// Runs a party; the runtime it is on also feeds the service manager's watchdog.
fn run_party(party: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    super::block_on(async {
        tokio::select! {
            ended = party => ended,
            () = service_manager::feed_watchdog() => Ok(()),
        }
    })
}
