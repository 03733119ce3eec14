//! The client's own network changes under running flows.
//!
//! In: a connected client. Out: promises. Called by: rig::suite.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::rig::{
    agent::{BulkAnswer, Direction, Tool},
    plan::INSIDE,
    promise::Evidence,
    stage::{PATIENCE, RECEIVERS, Stage},
};

/// How long the connection runs, and how long the interface is down.
const CONNECTION: Duration = Duration::from_secs(9);
const DOWN: Duration = Duration::from_secs(3);
/// What passes in a healthy second is far more; a connection that died early stays below.
const LEAST_BYTES: u64 = 50_000_000;

/// Changes the sender's address, and takes its interface down and up.
pub fn address_and_interface(stage: &mut Stage<'_>) {
    stage.promise("a client is connected", |stage| {
        stage.daemons.stop_client();
        stage.daemons.start_client(stage.network, &[])?;
        stage.daemons.wait_connected(stage.network, PATIENCE)?;
        Ok(Evidence::default())
    });
    stage.promise("a TCP connection outlives a change of the client's address", |stage| {
        through(stage, |stage| {
            let sender = stage.network.host("sender")?;
            let (old, new) = (sender.plan.v4(), "10.77.0.202");
            sender.ip(&format!("address add {new}/24 dev {INSIDE}"))?;
            sender.ip(&format!("address del {old}/24 dev {INSIDE}"))?;
            // The second address of a network goes with its first.
            sender.ip(&format!("address replace {new}/24 dev {INSIDE}"))?;
            Ok(format!("{old} became {new}"))
        })
    });
    stage.promise("and the change back", |stage| {
        through(stage, |stage| {
            let sender = stage.network.host("sender")?;
            let old = sender.plan.v4();
            sender.ip(&format!("address flush dev {INSIDE} scope global"))?;
            for address in sender.plan.addresses() {
                let (prefix, nodad) = if address.is_ipv4() { (24, "") } else { (64, " nodad") };
                sender.ip(&format!("address add {address}/{prefix} dev {INSIDE}{nodad}"))?;
            }
            Ok(format!("10.77.0.202 became {old}"))
        })
    });
    stage.promise(
        format!("a TCP connection outlives an interface that is down for {DOWN:?}"),
        |stage| {
            through(stage, |stage| {
                let sender = stage.network.host("sender")?;
                sender.ip(&format!("link set dev {INSIDE} down"))?;
                std::thread::sleep(DOWN);
                sender.ip(&format!("link set dev {INSIDE} up"))?;
                for address in sender.plan.addresses().filter(|address| !address.is_ipv4()) {
                    // The kernel takes IPv6 addresses from an interface that goes down.
                    sender.ip(&format!("address replace {address}/64 dev {INSIDE} nodad"))?;
                }
                Ok("down and up".to_owned())
            })
        },
    );
}

/// A connection during which something happens.
fn through(
    stage: &mut Stage<'_>,
    change: impl FnOnce(&Stage<'_>) -> Result<String>,
) -> Result<Evidence> {
    let before = stage.daemons.active_circuit(stage.network)?.number;
    let sender = stage.network.host("sender")?;
    let connection = sender.start(&Tool::Bulk {
        to: RECEIVERS[0],
        direction: Direction::Down,
        flows: 1,
        time: CONNECTION,
        bytes: 0,
        proxy: None,
    })?;
    std::thread::sleep(Duration::from_secs(1));
    let what = change(stage)?;
    let answer: BulkAnswer = connection.answer(CONNECTION + PATIENCE)?;
    ensure!(answer.right, "the bytes that arrived are not those that were sent");
    ensure!(answer.down >= LEAST_BYTES, "only {} bytes arrived", answer.down);
    // Another may be the active one by now: what counts is that its own circuit was not given up.
    let circuits = stage.daemons.client_status(stage.network)?.circuits;
    let is_there = circuits.iter().any(|circuit| circuit.number == before);
    ensure!(is_there, "circuit {before} was in use before, and is gone");
    Ok(Evidence::new(format!(
        "{what}; {} MB arrived on circuit {before}, in {:.1} s",
        answer.down / 1_000_000,
        answer.seconds
    )))
}
