//! What the defaults refuse: short paths, one subnet, private targets.
//!
//! In: daemons without `--lab`. Out: promises. Called by: rig::suite.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::rig::{
    agent::{IcmpError, Tool},
    host::Daemon,
    plan::INSIDE,
    promise::Evidence,
    stage::{PATIENCE, Stage},
};

/// A private address that only an exit in a lab lets through.
const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

/// Starts daemons without `--lab` and looks at what they say.
pub fn without_lab(stage: &mut Stage<'_>) {
    stage.promise("a client without --lab refuses fewer than 3 hops", |stage| {
        let arguments = stage.daemons.client_arguments(stage.network, &["--hops", "2"])?;
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = stage.network.host("sender")?.own(&words)?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        ensure!(
            output.status.code() == Some(2),
            "expected exit code 2, got {:?}: {said}",
            output.status.code()
        );
        Ok(Evidence::new(said))
    });
    stage.promise("a client without --lab builds no path within one subnet", |stage| {
        stage.daemons.stop_client();
        let arguments = stage.daemons.client_arguments(stage.network, &["--hops", "3"])?;
        stage.daemons.client = Some(stage.network.host("sender")?.daemon("client", &arguments)?);
        let deadline = Instant::now() + Duration::from_secs(10);
        let reason = loop {
            if let Ok(status) = stage.daemons.client_status(stage.network)
                && let Some(reason) = status.reason
            {
                ensure!(status.circuits.is_empty(), "it has built a circuit");
                break reason;
            }
            let client = stage.daemons.client.as_mut().context("expected a client")?;
            if !client.is_running() {
                break client.last_words();
            }
            ensure!(Instant::now() < deadline, "its status gives no reason");
            std::thread::sleep(Duration::from_millis(50));
        };
        stage.daemons.stop_client();
        Ok(Evidence::new(reason))
    });
    stage.promise("an exit without --lab lets nothing through to private addresses", private);
}

/// The same packet through an exit with `--lab` and through one without.
fn private(stage: &mut Stage<'_>) -> Result<Evidence> {
    let lab = through(stage, "n4")?;
    ensure!(
        lab.is_none_or(|error| error.code != 13),
        "an exit with --lab prohibits {PRIVATE}: {lab:?}"
    );
    let extra = stage.extra.clone();
    restart(stage, "n6", |arguments| arguments.retain(|word| word != "--lab"))?;
    let strict = through(stage, "n6");
    stage.daemons.nodes.remove("n6").map(Daemon::stop);
    stage.daemons.start_node(stage.network, "n6", &extra)?;
    stage.daemons.stop_client();
    let strict = strict?;
    ensure!(
        strict.is_some_and(|error| (error.kind, error.code) == (3, 13)),
        "expected administratively prohibited, got {strict:?}"
    );
    Ok(Evidence::new(format!("{PRIVATE}: prohibited by n6 without --lab, not by n4 with it")))
}

/// Stops a node and starts it again with other arguments; returns when it is registered.
///
/// # Errors
/// When it does not come back.
pub fn restart(
    stage: &mut Stage<'_>,
    name: &str,
    change: impl FnOnce(&mut Vec<String>),
) -> Result<()> {
    let extra = stage.extra.clone();
    stage.daemons.nodes.remove(name).map(Daemon::stop);
    let mut arguments = stage.daemons.node_arguments(stage.network, name, &extra)?;
    change(&mut arguments);
    let daemon = stage.network.host(name)?.daemon("node", &arguments)?;
    stage.daemons.nodes.insert(name.to_owned(), daemon);
    let deadline = Instant::now() + PATIENCE;
    while !stage
        .daemons
        .node_status(stage.network, name)
        .is_ok_and(|status| status.state == crate::telemetry::NodeState::Registered)
    {
        ensure!(Instant::now() < deadline, "{name} is not registered");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn through(stage: &mut Stage<'_>, exit: &str) -> Result<Option<IcmpError>> {
    stage.daemons.stop_client();
    let path = format!("n1,n2,{exit}");
    let route = format!("{PRIVATE}/32");
    stage.daemons.start_client(stage.network, &["--path", &path, "--route", &route])?;
    stage.daemons.wait_connected(stage.network, PATIENCE)?;
    let _ = INSIDE;
    stage.sender(&Tool::Provoke { to: (IpAddr::V4(PRIVATE), 99).into(), hops: 64 })
}
