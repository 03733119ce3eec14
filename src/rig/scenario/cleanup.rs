//! What an exit leaves behind: nothing, and after a kill nothing once it is started again.
//!
//! In: an exit. Out: promises. Called by: rig::suite.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::rig::{
    host::{Daemon, Host},
    promise::Evidence,
    stage::{PATIENCE, Stage},
};

/// Stops and kills an exit, and looks at its kernel.
pub fn exit_leaves_nothing(stage: &mut Stage<'_>, exit: &'static str) {
    stage.promise(
        "an exit that is stopped leaves no rule, no interface, no changed setting",
        |stage| {
            let node = stage.daemons.nodes.remove(exit).context("expected a node")?;
            ensure!(tables(stage.network.host(exit)?)? == 1, "expected one table while it ran");
            ensure!(node.stop(), "it had to be killed, or ended with an error");
            nothing_left(stage.network.host(exit)?)
        },
    );
    stage.promise("an exit that was killed is cleaned up after by its next start", |stage| {
        let extra = stage.extra.clone();
        stage.daemons.start_node(stage.network, exit, &extra)?;
        wait_for_table(stage.network.host(exit)?)?;
        stage.daemons.nodes.remove(exit).context("expected a node")?.kill();
        stage.daemons.start_node(stage.network, exit, &extra)?;
        let host = stage.network.host(exit)?;
        wait_for_table(host)?;
        std::thread::sleep(Duration::from_millis(300));
        let count = tables(host)?;
        ensure!(count == 1, "expected one table, got {count}");
        let stopped = stage.daemons.nodes.remove(exit).is_some_and(Daemon::stop);
        ensure!(stopped, "it had to be killed, or ended with an error");
        let evidence = nothing_left(host)?;
        stage.daemons.start_node(stage.network, exit, &extra)?;
        Ok(evidence)
    });
}

fn nothing_left(host: &Host) -> Result<Evidence> {
    let count = tables(host)?;
    ensure!(count == 0, "expected no table, got {count}");
    let links = host.ip("-o link show type tun")?;
    ensure!(links.trim().is_empty(), "an interface stays: {links}");
    let forwarding =
        host.netns.run(|| std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/forwarding"))??;
    ensure!(forwarding.trim() == "0", "IPv6 forwarding stays on");
    Ok(Evidence::new("no table, no TUN interface, forwarding as it was"))
}

fn tables(host: &Host) -> Result<usize> {
    let output = host.netns.run(|| Command::new("nft").args(["list", "tables"]).output())??;
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.contains("cepa")).count())
}

fn wait_for_table(host: &Host) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while tables(host)? == 0 {
        ensure!(Instant::now() < deadline, "the exit sets no rules");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
