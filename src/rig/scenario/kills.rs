//! Nodes of the circuit in use are killed, one after the other.
//!
//! In: a client with an active circuit and a spare. Out: how soon each loss was noticed, and how
//! soon after that new flows worked. Called by: rig::suite.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::{
    rig::{
        agent::{FlowsAnswer, Tool, clock_us},
        plan::NODES,
        promise::Evidence,
        stage::{PATIENCE, RECEIVERS, Stage},
    },
    telemetry::{CircuitInfo, CircuitState, NodeState},
};

/// The loss of a node is noticed within this time, and new flows work so long after that.
const NOTICED: Duration = Duration::from_secs(2);
const RESUMED: Duration = Duration::from_secs(1);
/// How often a new flow is tried.
const EVERY: Duration = Duration::from_millis(20);

/// Kills that may be repeated, because the machine was so busy that flows had a gap before.
const AGAIN: usize = 3;

/// The times of one kill, in milliseconds.
struct Times {
    noticed: f64,
    resumed: f64,
}

/// Kills so many nodes, the first, the middle and the last of the path in turn.
pub fn nodes_one_after_the_other(stage: &mut Stage<'_>, kills: usize) {
    let mut all: Vec<Times> = Vec::new();
    let began = stage.promise("a client has a circuit in use and a spare", |stage| {
        stage.daemons.stop_client();
        stage.daemons.start_client(stage.network, &[])?;
        let [active, spare] = both(stage)?;
        Ok(Evidence::new(format!("{} and {}", path(&active), path(&spare))))
    });
    if !began {
        return;
    }
    for place in 0..3 {
        let word = ["first", "middle", "last"][place];
        let rounds = (kills + 2 - place) / 3;
        if rounds == 0 {
            continue;
        }
        stage.promise(
            format!(
                "the {word} node is killed {rounds} times: noticed within {NOTICED:?}, new flows \
                 work within {RESUMED:?} of that"
            ),
            |stage| {
                let mut times = Vec::new();
                for round in 1..=rounds + AGAIN {
                    let one = kill(stage, place).with_context(|| format!("kill {round}"))?;
                    times.extend(one);
                    if times.len() == rounds {
                        break;
                    }
                }
                ensure!(times.len() == rounds, "flows had gaps before {AGAIN} of the kills");
                let evidence = evidence(&times);
                let is_late =
                    |time: &Times| time.noticed > ms(NOTICED) || time.resumed > ms(RESUMED);
                let late = times.iter().filter(|time| is_late(time)).count();
                all.append(&mut times);
                ensure!(late == 0, "{late} of {rounds} took longer: {}", evidence.text);
                Ok(evidence)
            },
        );
    }
    if all.len() > 1 {
        stage.promise(format!("{} kills in all", all.len()), |_| Ok(evidence(&all)));
    }
}

/// Kills the node at this place of the active path and starts it again afterwards. None when the
/// flows had their gap before, and so say nothing of the kill.
fn kill(stage: &mut Stage<'_>, place: usize) -> Result<Option<Times>> {
    let [active, _] = both(stage)?;
    let name = active.hops.get(place).context("expected a hop")?.name.clone();
    let sender = stage.network.host("sender")?;
    let mut flows = sender.start(&Tool::NewFlows {
        to: RECEIVERS[0],
        every: EVERY,
        time: Duration::from_secs(12),
    })?;
    // On a busy machine a tool takes its time to start.
    flows.ready()?;
    std::thread::sleep(Duration::from_millis(200));
    let node = stage.daemons.nodes.remove(&name).context("expected a node")?;
    let killed_us = clock_us();
    node.kill();
    let noticed_us = noticed(stage, active.number)?;
    let answer: FlowsAnswer = flows.answer(PATIENCE)?;
    let extra = stage.extra.clone();
    stage.daemons.start_node(stage.network, &name, &extra)?;
    wait_listed(stage, &name)?;
    if answer.flows.last().is_none_or(|last| last.sent_us < killed_us) {
        return Ok(None);
    }
    let worked = answer
        .flows
        .iter()
        .filter(|flow| flow.sent_us > killed_us)
        .filter_map(|flow| flow.answered_us)
        .min()
        .with_context(|| format!("no new flow worked after {name} was killed"))?;
    let before =
        answer.flows.iter().any(|flow| flow.sent_us < killed_us && flow.answered_us.is_some());
    ensure!(before, "no flow worked before {name} was killed");
    Ok(Some(Times {
        noticed: noticed_us.saturating_sub(killed_us) as f64 / 1e3,
        resumed: worked.saturating_sub(noticed_us) as f64 / 1e3,
    }))
}

/// When the circuit was no longer the one that new flows take.
fn noticed(stage: &Stage<'_>, number: u32) -> Result<u64> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let circuits = stage.daemons.circuits(stage.network)?;
        let in_use = circuits
            .iter()
            .any(|circuit| circuit.number == number && circuit.state == CircuitState::Active);
        if !in_use {
            return Ok(clock_us());
        }
        ensure!(Instant::now() < deadline, "circuit {number} is still in use after 10 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The active circuit and the spare, once both are there.
fn both(stage: &Stage<'_>) -> Result<[CircuitInfo; 2]> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let circuits = stage.daemons.circuits(stage.network).unwrap_or_default();
        let find = |state| circuits.iter().find(|circuit| circuit.state == state).cloned();
        if let (Some(active), Some(spare)) = (find(CircuitState::Active), find(CircuitState::Spare))
        {
            return Ok([active, spare]);
        }
        ensure!(Instant::now() < deadline, "expected an active circuit and a spare");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn wait_listed(stage: &mut Stage<'_>, name: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !stage
        .daemons
        .node_status(stage.network, name)
        .is_ok_and(|status| status.state == NodeState::Registered)
    {
        ensure!(Instant::now() < deadline, "{name} is not registered");
        std::thread::sleep(Duration::from_millis(50));
    }
    stage.daemons.wait_listed(stage.network, NODES.len(), PATIENCE)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn evidence(times: &[Times]) -> Evidence {
    let sorted = |pick: fn(&Times) -> f64| {
        let mut values: Vec<f64> = times.iter().map(pick).collect();
        values.sort_by(f64::total_cmp);
        let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
        [at(0.5), at(0.99), at(1.0)]
    };
    let noticed = sorted(|time| time.noticed);
    let resumed = sorted(|time| time.resumed);
    Evidence::new(format!(
        "noticed after p50 {:.0} ms, p99 {:.0} ms, at most {:.0} ms; new flows work p50 {:.0} ms, \
         p99 {:.0} ms, at most {:.0} ms later",
        noticed[0], noticed[1], noticed[2], resumed[0], resumed[1], resumed[2]
    ))
    .with("kills", times.len())
    .with("noticed_p50_ms", noticed[0])
    .with("noticed_p99_ms", noticed[1])
    .with("noticed_max_ms", noticed[2])
    .with("resumed_p50_ms", resumed[0])
    .with("resumed_p99_ms", resumed[1])
    .with("resumed_max_ms", resumed[2])
}

fn path(circuit: &CircuitInfo) -> String {
    circuit.hops.iter().map(|hop| hop.name.as_str()).collect::<Vec<_>>().join(" > ")
}
