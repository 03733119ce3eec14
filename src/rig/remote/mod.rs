//! The rig on machines that are not this one: real Pis, or virtual ones, over ssh.
//!
//! In: `hosts.toml`. Out: the same promises as in namespaces, where another machine can check them,
//! and what only systemd can show: restarts, watchdogs, the order of a boot.
//! Called by: `cepa rig run --hosts`.
//!
//! The machines are set up already, by `scripts/flash` or by hand: the package is installed, the
//! roles' units are enabled, nodes have joined. Nothing is configured here.

mod card;
mod faults;
mod hosts;
mod journal;
mod machine;
mod traffic;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

pub use self::hosts::{Hosts, Machine, MachineRole};
use super::{
    promise::{Evidence, Promise},
    report::Report,
    stage::Watcher,
};

/// The scenarios' names, in order.
pub const SCENARIOS: [&str; 5] = ["machines", "boot", "traffic", "faults", "card"];

/// How long a machine may take to have a circuit after something happened to it. An emulated one
/// is slow.
const CONNECTING: Duration = Duration::from_secs(180);

/// Where the checks play: machines, and the promises so far.
pub(super) struct Field<'a> {
    pub(super) hosts: &'a Hosts,
    promises: Vec<Promise>,
    scenario: &'static str,
    watcher: &'a mut dyn Watcher,
}

impl Field<'_> {
    /// Checks a promise; an error breaks it.
    pub(super) fn promise(
        &mut self,
        name: impl Into<String>,
        check: impl FnOnce(&Hosts) -> Result<Evidence>,
    ) -> bool {
        let started = Instant::now();
        let result = check(self.hosts);
        let kept = result.is_ok();
        let evidence = result.unwrap_or_else(|error| Evidence::new(format!("{error:#}")));
        let promise = Promise {
            scenario: self.scenario,
            name: name.into(),
            kept,
            evidence: evidence.text,
            values: evidence.values,
            seconds: started.elapsed().as_secs_f64(),
        };
        self.watcher.decided(&promise);
        self.promises.push(promise);
        kept
    }
}

/// Runs the scenarios on machines. `only` names some; empty: all.
///
/// # Errors
/// When a name is not one of [`SCENARIOS`]; a broken promise is no error.
pub fn run(hosts: &Hosts, only: &[String], watcher: &mut dyn Watcher) -> Result<Report> {
    for name in only {
        ensure!(
            SCENARIOS.contains(&name.as_str()),
            "expected one of {} with --hosts, got {name:?}",
            SCENARIOS.join(", ")
        );
    }
    let mut field = Field { hosts, promises: Vec::new(), scenario: "", watcher };
    for scenario in SCENARIOS {
        if !only.is_empty() && !only.iter().any(|name| name == scenario) {
            continue;
        }
        field.scenario = scenario;
        field.watcher.begins(scenario);
        match scenario {
            "machines" => machines(&mut field),
            "boot" => journal::boots(&mut field),
            "traffic" => traffic::all_kinds(&mut field),
            "faults" => faults::killed_and_hung(&mut field),
            _ => card::nothing_in_clear(&mut field),
        }
    }
    Ok(Report {
        run: "hosts".to_owned(),
        kept: false,
        captures: None,
        logs: None,
        path: Vec::new(),
        parties: Vec::new(),
        promises: field.promises,
    })
}

/// Every machine answers, its units are active, and the client has a circuit.
fn machines(field: &mut Field<'_>) {
    for machine in &field.hosts.machines {
        field.promise(format!("{}: {} active", machine.name, machine.words()), |hosts| {
            let what = machine
                .sh(hosts, "uname -m; cepa --version; systemctl is-system-running || true")?;
            let mut lines = what.lines();
            let mut line = || lines.next().unwrap_or_default().to_owned();
            let (arch, version, state) = (line(), line(), line());
            for unit in machine.units() {
                let active = machine.sh(hosts, &format!("systemctl is-active {unit} || true"))?;
                ensure!(active.trim() == "active", "expected {unit} to be active, got {active}");
            }
            Ok(Evidence::new(format!("{arch}, {version}, system {state}")))
        });
    }
    field.promise("the client has a circuit", |hosts| {
        let (path, seconds) = wait_connected(hosts, CONNECTING)?;
        Ok(Evidence::new(format!("through {}, after {seconds:.1} s", path.join(", ")))
            .with("connected_s", seconds))
    });
}

/// Waits for an active circuit; its hops, and how long that took.
pub(super) fn wait_connected(hosts: &Hosts, patience: Duration) -> Result<(Vec<String>, f64)> {
    let started = Instant::now();
    let client = hosts.client();
    loop {
        let said = client.sh(hosts, "cepa circuits --json 2>&1 || true")?;
        if let Some(path) = active_path(&said) {
            return Ok((path, started.elapsed().as_secs_f64()));
        }
        ensure!(
            started.elapsed() < patience,
            "expected an active circuit within {} s, got: {}",
            patience.as_secs(),
            said.lines().last().unwrap_or_default()
        );
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// The hops of the active circuit in what `cepa circuits --json` printed.
fn active_path(said: &str) -> Option<Vec<String>> {
    let answer: crate::telemetry::CircuitsStatus = serde_json::from_str(said).ok()?;
    let active = crate::telemetry::CircuitState::Active;
    let circuit = answer.circuits.into_iter().find(|circuit| circuit.state == active)?;
    Some(circuit.hops.into_iter().map(|hop| hop.name).collect())
}
