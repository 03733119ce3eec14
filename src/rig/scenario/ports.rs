//! Exits that let different ports through, and flows that find the right one.
//!
//! In: exits of which two reject a port. Out: promises. Called by: rig::suite.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;

use super::{controller_gone::new_circuit, refusals::restart};
use crate::{
    directory::Guard,
    keys::StateDir,
    rig::{
        agent::{BulkAnswer, Direction, EchoAnswer, HttpAnswer, Tool, port},
        daemons::{self, PROHIBITED},
        promise::Evidence,
        stage::{PATIENCE, RECEIVERS, Stage},
    },
    telemetry::{CircuitInfo, CircuitState},
};

/// The exits that reject the port of the echo server, and the one that does not.
const REJECT: [&str; 2] = ["n4", "n5"];
const ACCEPTS: &str = "n6";
/// Echoes of one flow.
const ECHOES: u32 = 20;
/// Attempts to get an active circuit that does not end at the one exit.
const ATTEMPTS: usize = 20;

/// A flow whose port the active circuit's exit rejects, and one that outlives its circuit's turn.
pub fn of_exits(stage: &mut Stage<'_>) {
    let prepared = stage.promise(
        format!("{} reject port {}, {ACCEPTS} does not", REJECT.join(" and "), port::ECHO),
        |stage| {
            stage.daemons.stop_client();
            for name in REJECT {
                restart(stage, name, |arguments| {
                    let policy = format!("reject:*:{PROHIBITED},reject:*:{},accept:*", port::ECHO);
                    if let Some(at) = arguments.iter().position(|word| word == "--exit-policy") {
                        arguments[at + 1] = policy;
                    }
                })?;
            }
            stage.daemons.start_client(stage.network, &[])?;
            stage.daemons.wait_connected(stage.network, PATIENCE)?;
            for _ in 0..ATTEMPTS {
                let active = stage.daemons.active_circuit(stage.network)?;
                if exit(&active) != ACCEPTS {
                    return Ok(Evidence::new(format!(
                        "the circuit in use ends at {}",
                        exit(&active)
                    )));
                }
                new_circuit(stage)?;
            }
            anyhow::bail!("{ATTEMPTS} circuits in a row end at {ACCEPTS}")
        },
    );
    if prepared {
        stage.promise("a flow to that port takes a circuit whose exit lets it through", by_port);
    }
    stage.promise("a running connection keeps its circuit when new flows move on", keeps);
    if prepared {
        stage.promise(
            format!("and where {ACCEPTS} is the guard, another node is first"),
            |stage| {
                stage.daemons.stop_client();
                pin_guard(stage, ACCEPTS)?;
                stage.daemons.start_client(stage.network, &[])?;
                stage.daemons.wait_connected(stage.network, PATIENCE)?;
                by_port(stage)
            },
        );
    }
    stage.promise("exits with one policy are back", |stage| {
        stage.daemons.stop_client();
        for name in REJECT {
            restart(stage, name, |_| {})?;
        }
        Ok(Evidence::default())
    });
}

/// Makes a node the guard of the client, which does not run.
fn pin_guard(stage: &mut Stage<'_>, name: &str) -> Result<()> {
    let id = stage.daemons.node_status(stage.network, name)?.id.parse()?;
    let dir = StateDir::open(&daemons::state(stage.network.host("sender")?))?;
    Ok(Guard::new(id, name, Timestamp::now()).save(&dir)?)
}

fn by_port(stage: &mut Stage<'_>) -> Result<Evidence> {
    let every = Duration::from_millis(20);
    let tool = Tool::Echo { to: RECEIVERS[0], count: ECHOES, size: 64, every, proxy: None };
    let echo: EchoAnswer = stage.sender(&tool)?;
    ensure!(echo.received == u64::from(ECHOES), "{} of {ECHOES} came back", echo.received);
    let circuits = stage.daemons.circuits(stage.network)?;
    let taken = circuits
        .iter()
        .find(|circuit| exit(circuit) == ACCEPTS && circuit.flows > 0)
        .with_context(|| format!("no circuit that ends at {ACCEPTS} has a flow"))?;
    ensure!(
        matches!(taken.state, CircuitState::Extra | CircuitState::Spare),
        "it is the {} one",
        taken.state.word()
    );
    // What the active one's exit lets through stays there.
    let patience = Duration::from_secs(5);
    let download: HttpAnswer =
        stage.sender(&Tool::HttpGet { to: RECEIVERS[1], bytes: 10_000, patience })?;
    ensure!(download.right, "a download is damaged");
    let active = stage.daemons.active_circuit(stage.network)?;
    ensure!(active.bytes_down >= 10_000, "the download did not take circuit {}", active.number);
    Ok(Evidence::new(format!(
        "all {ECHOES} echoes, the first included, took circuit {} ({}) to {ACCEPTS}; a download took \
         circuit {} to {}",
        taken.number,
        taken.state.word(),
        active.number,
        exit(&active)
    )))
}

fn keeps(stage: &mut Stage<'_>) -> Result<Evidence> {
    let time = Duration::from_secs(4);
    let before = stage.daemons.active_circuit(stage.network)?.number;
    let sender = stage.network.host("sender")?;
    let (to, direction) = (RECEIVERS[0], Direction::Down);
    let connection =
        sender.start(&Tool::Bulk { to, direction, flows: 1, time, bytes: 0, proxy: None })?;
    std::thread::sleep(Duration::from_secs(1));
    new_circuit(stage)?;
    let answer: BulkAnswer = connection.answer(time + PATIENCE)?;
    ensure!(answer.right && answer.seconds >= 0.9 * time.as_secs_f64(), "the connection broke");
    let circuits = stage.daemons.circuits(stage.network)?;
    let active = stage.daemons.active_circuit(stage.network)?.number;
    ensure!(active != before, "circuit {before} is still the one for new flows");
    let old = circuits.iter().find(|circuit| circuit.number == before);
    let old = old.with_context(|| format!("circuit {before} is gone"))?;
    Ok(Evidence::new(format!(
        "{} MB in {:.1} s over circuit {before}, which is {}; new flows take circuit {active}",
        answer.down / 1_000_000,
        answer.seconds,
        old.state.word()
    )))
}

fn exit(circuit: &CircuitInfo) -> &str {
    circuit.hops.last().map_or("", |hop| hop.name.as_str())
}
