//! All scenarios in order, on networks that are brought up for them.
//!
//! In: options. Out: a report. Called by: `cepa rig run`.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context, Result};

use super::{
    captures::Captures,
    inspect::Findings,
    link::LinkOptions,
    network::Network,
    options::NetworkOptions,
    plan::{NODES, PEERS, Plan},
    report::Report,
    rootless,
    run::Run,
    scenario::{
        cleanup, controller_gone, failover, gateway, hostile, kills, knowledge, limits, one_node,
        ports, proxies, refusals, roaming, share, speed, traffic, wire_image, workers,
    },
    stage::{Stage, Watcher},
};

/// What `cepa rig run` is told.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// The network's options.
    pub network: NetworkOptions,
    /// Where captures go; none: the run's own directory.
    pub out: Option<PathBuf>,
    /// How many hostile datagrams.
    pub hostile: u64,
    /// How many nodes are killed one after the other.
    pub kills: usize,
    /// Only these scenarios; empty: all.
    pub only: Vec<String>,
    /// Hosts whose daemons are another build of this program, and where that is.
    pub programs: BTreeMap<String, PathBuf>,
}

/// The scenarios' names, in order.
pub const SCENARIOS: [&str; 17] = [
    "three-hops",
    "hostile",
    "speed",
    "four-hops",
    "failover",
    "kills",
    "roaming",
    "ports",
    "workers",
    "proxies",
    "controller",
    "limits",
    "idle-circuits",
    "refusals",
    "one-node",
    "gateway",
    "share",
];

/// The rate of a sharing peer's cable: what people have at home, and more.
const PEER_RATE: u64 = 100_000_000;

/// The path of the captured scenario, and of the one with four nodes.
const THREE: [&str; 3] = ["n1", "n2", "n4"];
const FOUR: [&str; 4] = ["n1", "n2", "n3", "n5"];

impl RunOptions {
    fn wants(&self, scenario: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == scenario)
    }
}

/// Runs the scenarios. `keep` is called before the network goes.
///
/// # Errors
/// When the network itself cannot be brought up; a broken promise is no error.
pub fn run(
    options: &RunOptions,
    watcher: &mut dyn Watcher,
    keep: &dyn Fn(&Network),
) -> Result<Report> {
    rootless::ensure_privilege()?;
    let run = begin(options)?;
    let dir = options.out.clone().unwrap_or_else(|| run.dir.join("captures"));
    let mut report = Report::new(&run, dir.clone());
    if SCENARIOS[..13].iter().any(|scenario| options.wants(scenario)) {
        let network = Network::up(run, Plan::full(), &options.network.links)?;
        let mut stage = Stage::new(&network, watcher)?;
        let result = full(options, &mut stage, &dir, &mut report);
        report.promises.append(&mut stage.promises);
        keep(&network);
        result?;
    }
    if options.wants("one-node") {
        let network = Network::up(begin(options)?, Plan::one_node(), &options.network.links)?;
        let mut stage = Stage::new(&network, watcher)?;
        stage.scenario("one-node");
        one_node::sender_node_receiver(&mut stage);
        report.promises.append(&mut stage.promises);
    }
    if options.wants("gateway") {
        let network = Network::up(Run::begin()?, Plan::gateway(), &options.network.links)?;
        let mut stage = Stage::new(&network, watcher)?;
        stage.scenario("gateway");
        gateway::fails_closed(&mut stage);
        report.promises.append(&mut stage.promises);
    }
    if options.wants("share") {
        let mut links = options.network.links.clone();
        for peer in &PEERS[..4] {
            let link = LinkOptions { rate: Some(PEER_RATE), ..LinkOptions::default() };
            links.entry((*peer).to_owned()).or_insert(link);
        }
        let network = Network::up(begin(options)?, Plan::share(), &links)?;
        let mut stage = Stage::new(&network, watcher)?;
        stage.scenario("share");
        report.parties = share::files_between_peers(&mut stage, &dir.join("share"));
        report.promises.append(&mut stage.promises);
    }
    Ok(report)
}

fn begin(options: &RunOptions) -> Result<Run> {
    Ok(Run { programs: options.programs.clone(), ..Run::begin()? })
}

fn full(
    options: &RunOptions,
    stage: &mut Stage<'_>,
    dir: &std::path::Path,
    report: &mut Report,
) -> Result<()> {
    stage.scenario("three-hops");
    if !traffic::start(stage) {
        return Ok(());
    }
    if options.wants("three-hops") || options.wants("hostile") {
        let files = dir.join("three-hops");
        let findings = captured(options, stage, &THREE, &files)?;
        if let Some(findings) = findings {
            report.see(&stage.network.plan, &THREE, &findings);
        }
        knowledge::memory(stage, &THREE);
        knowledge::logs(stage, &THREE);
        if options.wants("hostile") {
            stage.scenario("hostile");
            let capture = files.join("sender.pcap");
            hostile::all_kinds(stage, THREE[0], &capture, options.hostile.max(1));
        }
    }
    if options.wants("speed") {
        stage.scenario("speed");
        stage.network.carry_trains(true)?;
        if traffic::connect(stage, &THREE) {
            speed::against_bare(stage, &THREE);
        }
    }
    if options.wants("four-hops") {
        stage.scenario("four-hops");
        captured(options, stage, &FOUR, &dir.join("four-hops"))?;
    }
    stage.network.carry_trains(true)?;
    if options.wants("failover") {
        stage.scenario("failover");
        failover::middle_node_dies(stage, 3);
    }
    if options.wants("kills") {
        stage.scenario("kills");
        kills::nodes_one_after_the_other(stage, options.kills.max(1));
    }
    if options.wants("roaming") {
        stage.scenario("roaming");
        roaming::address_and_interface(stage);
    }
    if options.wants("ports") {
        stage.scenario("ports");
        ports::of_exits(stage);
    }
    if options.wants("workers") {
        stage.scenario("workers");
        workers::on_a_path(stage);
    }
    if options.wants("proxies") {
        stage.scenario("proxies");
        proxies::beside_the_tun(stage);
    }
    if options.wants("controller") {
        stage.scenario("controller");
        if stage.daemons.client.is_none() {
            stage.daemons.start_client(stage.network, &[])?;
        }
        stage.daemons.wait_connected(stage.network, super::stage::PATIENCE)?;
        controller_gone::stopped_and_started(stage);
    }
    if options.wants("limits") {
        stage.scenario("limits");
        limits::one_circuit_at_the_exit(stage);
    }
    if options.wants("idle-circuits") {
        stage.scenario("idle-circuits");
        limits::idle_circuits_are_small(stage);
    }
    if options.wants("refusals") {
        stage.scenario("refusals");
        refusals::without_lab(stage);
        cleanup::exit_leaves_nothing(stage, NODES[4]);
    }
    Ok(())
}

/// All traffic on a path, with captures on every cable, and a look at them.
fn captured(
    options: &RunOptions,
    stage: &mut Stage<'_>,
    path: &[&'static str],
    dir: &std::path::Path,
) -> Result<Option<Findings>> {
    if !options.only.is_empty() && !options.wants("three-hops") && path.len() == 3 {
        // Only cells to replay are wanted.
        let captures = Captures::start(stage.network, dir)?;
        traffic::connect(stage, path);
        std::thread::sleep(std::time::Duration::from_secs(1));
        captures.stop()?;
        return Ok(None);
    }
    stage.network.carry_trains(false)?;
    stage.forget_seen()?;
    // The last scenario's circuits end before this one's cables are looked at.
    stage.daemons.stop_client();
    std::thread::sleep(std::time::Duration::from_millis(500));
    let captures = Captures::start(stage.network, dir)?;
    if !traffic::connect(stage, path) {
        captures.stop()?;
        return Ok(None);
    }
    let exit = path.last().context("expected a path")?;
    traffic::all_kinds(stage, exit);
    let files = captures.stop()?;
    Ok(wire_image::examine(stage, files, path))
}
