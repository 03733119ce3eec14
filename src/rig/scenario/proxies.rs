//! The proxies and the TUN device in one client: both work, at once, through both kinds of exits.
//!
//! In: nodes that are listed. Out: promises, and the proxy's goodput beside the TUN's.
//! Called by: rig::suite.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    rig::{
        agent::{BulkAnswer, Direction, EchoAnswer, PingAnswer, RECEIVER_NAME, Tool},
        daemons::Extra,
        plaintext,
        plan::RECEIVER_V4,
        promise::Evidence,
        stage::{PATIENCE, RECEIVERS, Stage},
    },
    telemetry::NodeState,
};

const SOCKS: &str = "127.0.0.1:9050";
const HTTP: &str = "127.0.0.1:9080";
/// A path to an exit by the kernel, and one to an exit that has no privileges.
const KERNEL: [&str; 3] = ["n1", "n2", "n4"];
const USERSPACE: [&str; 3] = ["n1", "n2", "n5"];
/// Bytes of a download.
const BYTES: u64 = 3 << 20;
/// What is asked of the proxy: this share of the TUN's goodput with one connection.
const LEAST_RATIO: f64 = 0.5;
/// How long each connection of the comparison is measured, and how often.
const MEASURED: Duration = Duration::from_millis(1500);
const ROUNDS: usize = 3;

/// All of it, through a kernel exit, then through one without privileges.
pub fn beside_the_tun(stage: &mut Stage<'_>) {
    if start(stage, &KERNEL, "kernel") {
        every_way(stage, "kernel");
        goodput(stage);
    }
    let exit = USERSPACE[2];
    let unprivileged = Extra { userspace: true, ..stage.extra.clone() };
    let changed =
        stage.promise(format!("{exit} comes back as an exit without privileges"), |stage| {
            // Without it such an exit answers no echo.
            stage.network.host(exit)?.sysctl("net/ipv4/ping_group_range", "0 0")?;
            restart(stage, exit, &unprivileged)
        });
    if changed && start(stage, &USERSPACE, "userspace") {
        every_way(stage, "userspace");
    }
    stage.promise(format!("{exit} comes back as it was"), |stage| {
        stage.daemons.stop_client();
        let extra = stage.extra.clone();
        restart(stage, exit, &extra)
    });
}

/// A client with routes and proxies on a fixed path.
fn start(stage: &mut Stage<'_>, path: &[&str], exits: &str) -> bool {
    let list = path.join(",");
    stage.promise(format!("one client has a TUN and proxies, {exits} exit"), |stage| {
        stage.daemons.stop_client();
        let more = ["--path", &list, "--socks", SOCKS, "--http", HTTP];
        stage.daemons.start_client(stage.network, &more)?;
        stage.daemons.wait_connected(stage.network, PATIENCE)?;
        let status = stage.daemons.client_status(stage.network)?;
        ensure!(!status.tun.is_empty(), "it has no TUN");
        ensure!(status.proxies.len() == 2, "it has the proxies {:?}", status.proxies);
        Ok(Evidence::new(format!("{} and two proxies, through {list}", status.tun)))
    })
}

fn every_way(stage: &mut Stage<'_>, exits: &str) {
    let promise =
        |stage: &mut Stage<'_>, what: &str, check: fn(&mut Stage<'_>) -> Result<Evidence>| {
            stage.promise(format!("{what}, {exits} exit"), check);
        };
    promise(stage, "curl --socks5-hostname gets what it gets by the TUN", |stage| {
        same_as_tun(stage, &["--socks5-hostname", SOCKS])
    });
    promise(stage, "curl by HTTP CONNECT gets what it gets by the TUN", |stage| {
        same_as_tun(stage, &["--proxytunnel", "--proxy", HTTP])
    });
    promise(stage, "datagrams by UDP ASSOCIATE", datagrams);
    promise(stage, "a connection that is closed on one side still gets its answer", half_closed);
    promise(stage, "the TUN and the proxy at the same time", both_at_once);
}

/// The same bytes by name through the proxy and by address through the TUN.
fn same_as_tun(stage: &mut Stage<'_>, proxy: &[&str]) -> Result<Evidence> {
    let sender = stage.network.host("sender")?;
    let get = |words: &[&str], host: &str| -> Result<Vec<u8>> {
        let url = format!("http://{host}/{BYTES}");
        let output = sender
            .command("curl")?
            .args(["--silent", "--show-error", "--fail", "--max-time", "20"])
            .args(words)
            .arg(&url)
            .output()
            .context("expected the program curl; install it (Debian: curl)")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "curl {} {url}: {}", words.join(" "), said.trim());
        Ok(output.stdout)
    };
    let direct = get(&[], &RECEIVER_V4.to_string())?;
    ensure!(
        direct.len() as u64 == BYTES && plaintext::is_right(&direct, 0),
        "the TUN brought {} bytes, or wrong ones",
        direct.len()
    );
    let by_proxy = get(proxy, RECEIVER_NAME)?;
    ensure!(by_proxy == direct, "the proxy brought other bytes than the TUN");
    Ok(Evidence::new(format!("{} MiB each, the name resolved at the exit", BYTES >> 20)))
}

fn socks() -> Result<SocketAddr> {
    Ok(SOCKS.parse()?)
}

fn datagrams(stage: &mut Stage<'_>) -> Result<Evidence> {
    let mut words = Vec::new();
    for to in RECEIVERS {
        let most = if to.is_ipv4() { 1472 } else { 1452 };
        for size in [64, most] {
            let tool = Tool::Associate { to, count: 20, size, proxy: socks()? };
            let answer: EchoAnswer = stage.sender(&tool)?;
            let (sent, received) = (answer.sent, answer.received);
            ensure!(received == sent, "expected {sent} of {size} bytes back, got {received}");
            words.push(format!("{received}/{sent} of {size}"));
        }
    }
    Ok(Evidence::new(format!("came back unchanged: {} bytes", words.join(", "))))
}

fn half_closed(stage: &mut Stage<'_>) -> Result<Evidence> {
    for to in RECEIVERS {
        for proxy in [None, Some(socks()?)] {
            let answer: BulkAnswer = stage.sender(&Tool::HalfClose { to, bytes: BYTES, proxy })?;
            ensure!(answer.right, "the bytes that arrived are not those that were sent");
        }
    }
    Ok(Evidence::new(format!(
        "{} MiB counted by the server after the end, with and without the proxy, both families",
        BYTES >> 20
    )))
}

/// Bulk by the proxy and by the TUN, and pings, all at once: each gets its own answers.
fn both_at_once(stage: &mut Stage<'_>) -> Result<Evidence> {
    let sender = stage.network.host("sender")?;
    let to = IpAddr::V4(RECEIVER_V4);
    let bulk = |proxy| Tool::Bulk {
        to,
        direction: Direction::Both,
        flows: 2,
        time: Duration::ZERO,
        bytes: BYTES,
        proxy,
    };
    let (tun, proxy) = (sender.start(&bulk(None))?, sender.start(&bulk(Some(socks()?)))?);
    let every = Duration::from_millis(20);
    let ping: PingAnswer = stage.sender(&Tool::Ping { to, count: 20, packet: 84, every })?;
    for (name, agent) in [("TUN", tun), ("proxy", proxy)] {
        let answer: BulkAnswer = agent.answer(PATIENCE)?;
        ensure!(answer.right, "the {name} brought wrong bytes");
    }
    ensure!(ping.received == ping.sent, "{} of {} pings came back", ping.received, ping.sent);
    let status = stage.daemons.client_status(stage.network)?;
    let conflicts = status.drops.0.get("flow_in_use").copied().unwrap_or_default();
    Ok(Evidence::new(format!(
        "four connections each way and {} pings, every byte right; {conflicts} packets of flows in use",
        ping.received
    ))
    .with("flow_in_use", conflicts))
}

/// One connection by the TUN and one by the proxy, in turns; the medians count.
fn goodput(stage: &mut Stage<'_>) {
    let mut ratio = None;
    stage.promise("goodput of one connection by the proxy beside the TUN", |stage| {
        let mut evidence = Evidence::new("");
        let (mut words, mut least) = (Vec::new(), f64::INFINITY);
        for (direction, name) in [(Direction::Up, "up"), (Direction::Down, "down")] {
            let mut rates = [Vec::new(), Vec::new()];
            for _ in 0..ROUNDS {
                for (rates, proxy) in rates.iter_mut().zip([None, Some(socks()?)]) {
                    let (to, time) = (IpAddr::V4(RECEIVER_V4), MEASURED);
                    let tool = Tool::Bulk { to, direction, flows: 1, time, bytes: 0, proxy };
                    let answer: BulkAnswer = stage.sender(&tool)?;
                    ensure!(answer.right, "the bytes that arrived are not those that were sent");
                    rates.push(answer.rate() / 1e6);
                }
            }
            let [tun, proxy] = rates.map(median);
            least = least.min(proxy / tun);
            words.push(format!("{name} {proxy:.0} of {tun:.0} Mb/s ({:.2})", proxy / tun));
            evidence = evidence
                .with(&format!("tun_{name}_mbps"), tun)
                .with(&format!("proxy_{name}_mbps"), proxy);
        }
        ratio = Some(least);
        evidence.text = words.join(", ");
        Ok(evidence.with("ratio", least))
    });
    // A build without optimisation says nothing about speed.
    let (Some(ratio), false) = (ratio, cfg!(debug_assertions)) else { return };
    stage.promise(format!("at least {LEAST_RATIO} of the TUN's goodput by the proxy"), |_| {
        ensure!(ratio >= LEAST_RATIO, "got {ratio:.2}");
        Ok(Evidence::new(format!("{ratio:.2} in the slower direction")).with("ratio", ratio))
    });
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or_default()
}

/// Ends a node and starts it with other settings; it is the same node.
fn restart(stage: &mut Stage<'_>, name: &'static str, extra: &Extra) -> Result<Evidence> {
    let node = stage.daemons.nodes.remove(name).context("expected a node")?;
    ensure!(node.stop(), "{name} had to be killed");
    stage.daemons.start_node(stage.network, name, extra)?;
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let status = stage.daemons.node_status(stage.network, name);
        if let Ok(status) = status
            && status.state == NodeState::Registered
        {
            let way = status.exit.map(|exit| exit.interface).unwrap_or_default();
            return Ok(Evidence::new(format!("{name} is listed, lets packets out by {way}")));
        }
        ensure!(std::time::Instant::now() < deadline, "{name} is not listed");
        std::thread::sleep(Duration::from_millis(50));
    }
}
