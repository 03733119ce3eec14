//! cepa beside what a person would pick instead: the same hosts, the same minutes, in turn.
//!
//! In: networks that carry traffic from the sender to the receiver. Out: medians and ratios.
//! Called by: `cepa rig peers`, which `scripts/bench-peers` runs.
//!
//! A further network is one file with a [`Contender`], and one line in [`compare`].

mod gotatun;
mod kernel;
mod measure;
mod onion;
mod tor;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::Result;
use serde::Serialize;

pub use self::measure::{Cost, Figures};
use super::{agent::Tool, network::Network, plan::Plan, rootless, run::Run};

/// The nodes of every path.
pub const PATH: [&str; 3] = ["n1", "n2", "n4"];

/// What is measured.
#[derive(Clone, Debug)]
pub struct PeersOptions {
    /// All of them alternate so often; the medians count.
    pub rounds: usize,
    /// How long each flow of TCP lasts.
    pub duration: Duration,
    /// Which networks, by name.
    pub only: Vec<String>,
}

/// Names of the networks, in the order in which they are measured.
pub const NAMES: [&str; 4] = ["bare", "cepa", "gotatun", "tor"];

/// The way of the measurements through a network.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// The receiver's address that leads through this network.
    pub to: IpAddr,
    /// The proxy to ask, for a network that carries only TCP streams.
    pub proxy: Option<SocketAddr>,
}

/// A network that carries traffic from the sender to the receiver through [`PATH`].
pub trait Contender {
    /// Its name.
    fn name(&self) -> &'static str;

    /// Makes the sender's traffic take this network, until [`Contender::leave`].
    ///
    /// # Errors
    /// What the system's tools say.
    fn enter(&mut self, network: &Network) -> Result<Way>;

    /// Undoes [`Contender::enter`].
    ///
    /// # Errors
    /// What the system's tools say.
    fn leave(&mut self, network: &Network) -> Result<()>;

    /// Its processes by host.
    fn processes(&self) -> Vec<(String, u32)>;
}

/// One network's result.
#[derive(Clone, Debug, Serialize)]
pub struct Contestant {
    /// The medians of all rounds.
    pub median: Figures,
    /// Every round.
    pub rounds: Vec<Figures>,
}

/// The whole comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The nodes that every path passes.
    pub path: Vec<String>,
    /// Seconds of each flow of TCP.
    pub duration_s: f64,
    /// Rounds.
    pub rounds: usize,
    /// Processors of this machine, which are all hosts at once.
    pub processors: usize,
    /// What kind they are.
    pub processor: String,
    /// The kernel's release.
    pub kernel: String,
    /// Whether this program was built with optimisation.
    pub optimised: bool,
    /// When it began, in UTC.
    pub date: String,
    /// Results by network.
    pub networks: BTreeMap<&'static str, Contestant>,
    /// cepa's medians as multiples of the others', by network and figure.
    pub ratios: BTreeMap<&'static str, BTreeMap<&'static str, f64>>,
}

/// Brings everything up and measures in turn.
///
/// # Errors
/// When a network does not come up or a tool fails.
pub fn compare(options: &PeersOptions, say: &mut dyn FnMut(&str)) -> Result<Comparison> {
    rootless::ensure_privilege()?;
    let date = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M").to_string();
    let network = Network::up(Run::begin()?, Plan::full(), &BTreeMap::new())?;
    let receiver = network.host("receiver")?;
    let mut server = receiver.start(&Tool::Serve { seen: receiver.dir.join("seen") })?;
    server.ready()?;
    let mut contenders: Vec<Box<dyn Contender>> = Vec::new();
    for name in NAMES.into_iter().filter(|name| options.only.iter().any(|wish| wish == name)) {
        say(&format!("bringing up {name}"));
        contenders.push(match name {
            "bare" => Box::new(kernel::Kernel::default()),
            "cepa" => Box::new(onion::Onion::start(&network)?),
            "gotatun" => Box::new(gotatun::Gotatun::start(&network)?),
            _ => Box::new(tor::Tor::start(&network)?),
        });
    }
    let mut rounds: BTreeMap<&'static str, Vec<Figures>> = BTreeMap::new();
    for round in 1..=options.rounds {
        for contender in &mut contenders {
            let way = contender.enter(&network)?;
            let figures = measure::measure(&network, way, &contender.processes(), options.duration);
            contender.leave(&network)?;
            for failure in &figures.failed {
                say(&format!("{}: {failure}", contender.name()));
            }
            say(&format!("round {round} of {}: {:<8} {figures}", options.rounds, contender.name()));
            rounds.entry(contender.name()).or_default().push(figures);
        }
    }
    let networks: BTreeMap<_, _> = rounds
        .into_iter()
        .map(|(name, rounds)| (name, Contestant { median: Figures::median(&rounds), rounds }))
        .collect();
    Ok(Comparison {
        path: PATH.map(str::to_owned).to_vec(),
        duration_s: options.duration.as_secs_f64(),
        rounds: options.rounds,
        processors: std::thread::available_parallelism().map_or(0, usize::from),
        processor: processor(),
        kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
            .unwrap_or_default()
            .trim()
            .to_owned(),
        optimised: !cfg!(debug_assertions),
        date,
        ratios: ratios(&networks),
        networks,
    })
}

fn ratios(
    networks: &BTreeMap<&'static str, Contestant>,
) -> BTreeMap<&'static str, BTreeMap<&'static str, f64>> {
    let Some(cepa) = networks.get("cepa").map(|result| &result.median) else {
        return BTreeMap::new();
    };
    networks
        .iter()
        .filter(|(name, _)| **name != "cepa")
        .map(|(name, result)| {
            let ratios = Figures::FIELDS
                .iter()
                .filter_map(|field| {
                    let (ours, theirs) = ((field.get)(cepa)?, (field.get)(&result.median)?);
                    (theirs > 0.0).then_some((field.key, ours / theirs))
                })
                .collect();
            (*name, ratios)
        })
        .collect()
}

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines()
        .find(|line| line.starts_with("model name") || line.starts_with("Model"))
        .and_then(|line| line.split_once(':'))
        .map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}
