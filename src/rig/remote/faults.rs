//! What systemd makes of daemons that are killed or hang, on every kind of machine.
//!
//! In: machines with running daemons. Out: promises. Called by: rig::remote.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{
    CONNECTING, Field,
    hosts::{Hosts, Machine, MachineRole},
    traffic::echoes,
    wait_connected,
};
use crate::rig::promise::Evidence;

/// A killed daemon is back within so long, a hung one within its watchdog's period more.
const BACK: Duration = Duration::from_secs(90);

/// One daemon of each kind is killed, and made to hang.
pub(super) fn killed_and_hung(field: &mut Field<'_>) {
    for (machine, unit) in victims(field.hosts) {
        for (signal, word) in [("KILL", "killed"), ("STOP", "hung")] {
            let name = unit.trim_end_matches(".service");
            field.promise(
                format!("{name} on {}, {word}, is back with its state", machine.name),
                |hosts| struck(hosts, machine, unit, signal),
            );
        }
    }
}

/// One machine for each unit; of the nodes one that is no exit, if there is one, and an exit.
fn victims(hosts: &Hosts) -> Vec<(&Machine, &'static str)> {
    let plain = hosts.with(MachineRole::Node).find(|node| !node.has(MachineRole::Exit));
    let exit = hosts.with(MachineRole::Exit).next();
    let controller = hosts.with(MachineRole::Controller).next();
    [
        (Some(hosts.client()), "cepa-client.service"),
        (plain, "cepa-node.service"),
        (exit, "cepa-node.service"),
        (controller, "cepa-controller.service"),
    ]
    .into_iter()
    .filter_map(|(machine, unit)| Some((machine?, unit)))
    .collect()
}

struct Unit {
    pid: u32,
    restarts: u32,
    active: bool,
}

fn show(hosts: &Hosts, machine: &Machine, unit: &str) -> Result<Unit> {
    let said =
        machine.sh(hosts, &format!("systemctl show -p MainPID,NRestarts,ActiveState {unit}"))?;
    let field = |name: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.with_context(|| format!("expected {name}, got {said:?}"))
    };
    Ok(Unit {
        pid: field("MainPID")?.parse()?,
        restarts: field("NRestarts")?.parse()?,
        active: field("ActiveState")? == "active",
    })
}

/// Who the daemon is: its keys, hashed.
fn keys(hosts: &Hosts, machine: &Machine, unit: &str) -> Result<String> {
    let role = unit.trim_start_matches("cepa-").trim_end_matches(".service");
    machine.sh(
        hosts,
        &format!("cd /var/lib/cepa/{role} && find . -name '*.pem' | sort | xargs -r sha256sum"),
    )
}

fn struck(hosts: &Hosts, machine: &Machine, unit: &str, signal: &str) -> Result<Evidence> {
    let before = show(hosts, machine, unit)?;
    ensure!(before.active && before.pid > 0, "expected {unit} to run before it is struck");
    let keys_before = keys(hosts, machine, unit)?;
    let started = Instant::now();
    machine.sh(hosts, &format!("kill -{signal} {}", before.pid))?;
    let after = loop {
        let after = show(hosts, machine, unit)?;
        if after.active && after.restarts > before.restarts && after.pid != before.pid {
            break after;
        }
        ensure!(
            started.elapsed() < BACK,
            "expected {unit} to be back within {} s, got {} restarts, active: {}",
            BACK.as_secs(),
            after.restarts,
            after.active
        );
        std::thread::sleep(Duration::from_millis(500));
    };
    let back = started.elapsed().as_secs_f64();
    ensure!(keys_before == keys(hosts, machine, unit)?, "the keys of {unit} changed");
    let client = hosts.client();
    if client.lockdown {
        client
            .sh(hosts, "nft list table inet cepa_lockdown | grep -q 'policy drop'")
            .context("the lockdown is gone")?;
    }
    wait_connected(hosts, CONNECTING)?;
    let to = hosts.receiver().addresses[0];
    let resumed = loop {
        if echoes(hosts, to, 3).is_ok_and(|answer| answer.received > 0) {
            break started.elapsed().as_secs_f64();
        }
        ensure!(started.elapsed() < BACK + CONNECTING, "expected packets to cross again, got none");
        std::thread::sleep(Duration::from_secs(1));
    };
    Ok(Evidence::new(format!(
        "restart {} by systemd after {back:.1} s, same keys, packets cross after {resumed:.1} s{}",
        after.restarts,
        if client.lockdown { ", the lockdown stands" } else { "" }
    ))
    .with("back_s", back)
    .with("resumed_s", resumed))
}
