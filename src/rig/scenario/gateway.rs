//! A gateway between a laptop and the network: it works, and nothing passes it in clear, whatever
//! happens to its daemon.
//!
//! In: the network with a gateway. Out: promises. Called by: rig::suite.
//!
//! In every state the laptop and the gateway send a packet of each kind that leaks, to addresses
//! that exist; forwarding and NAT are on throughout, as a careless person leaves them. What left is
//! counted at the far end of the gateway's outside cable.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    capture::process,
    client::probe::KINDS,
    rig::{
        agent::{EchoAnswer, HttpAnswer, ProbeAnswer, Tool},
        clear::{self, Members, Tally, Watch},
        daemons::{self, PORT},
        host::Host,
        plan::{INSIDE, LAN},
        promise::Evidence,
        stage::{PATIENCE, RECEIVERS, Stage},
    },
    telemetry::{ClientState, LockdownStatus},
};

/// The nodes of this scenario; the last two are exits.
const NODES: [&str; 5] = ["n1", "n2", "n3", "n4", "n5"];
/// The user the client runs as, who needs no entry anywhere.
const USER: u32 = 990;
/// Packets that are tried in each state: by the laptop, by the gateway, and by the gateway bound to
/// its outside interface.
const TRIED: u64 = 3 * 2 * KINDS.len() as u64;

/// All of it.
pub fn fails_closed(stage: &mut Stage<'_>) {
    stage.daemons.client_host = "gateway";
    let up = stage.promise("controller, five nodes and a careless gateway come up", |stage| {
        let extra = stage.extra.clone();
        stage.daemons.start_all(stage.network, &NODES, &extra)?;
        prepare(stage)?;
        Ok(Evidence::new("a laptop behind it, forwarding and NAT on, a default route outside"))
    });
    let control = up
        && stage.promise("the counter counts: without a lockdown every kind leaves", |stage| {
            let (sent, left) = probe(stage)?;
            ensure!(
                left.clear.len() == 2 * KINDS.len(),
                "expected {} kinds, got {:?}",
                2 * KINDS.len(),
                left.clear
            );
            Ok(Evidence::new(format!(
                "{} packets of {} kinds in clear; the laptop sent {}",
                left.clear_packets(),
                left.clear.len(),
                sent.clear_packets()
            ))
            .with("clear_packets", left.clear_packets()))
        });
    if !control {
        return;
    }
    let state = |stage: &mut Stage<'_>, name: &str, enter: fn(&mut Stage<'_>) -> Result<()>| {
        stage.promise(format!("{name}: nothing leaves in clear"), |stage| {
            enter(stage)?;
            nothing_leaves(stage)
        })
    };
    state(stage, "before the client ever ran", lock);
    state(stage, "connecting", |stage| {
        pause_nodes(stage, true)?;
        start_client(stage)?;
        wait_state(stage, &[ClientState::Building, ClientState::Blocked])
    });
    let connected = state(stage, "connected", |stage| {
        pause_nodes(stage, false)?;
        stage.daemons.wait_connected(stage.network, PATIENCE).map(drop)
    });
    if connected {
        stage.promise("the laptop downloads through the circuit, in both families", downloads);
        stage.promise("laptop, tablet and gateway each have a circuit of their own", apart);
    }
    state(stage, "rebuilding", |stage| {
        pause_nodes(stage, true)?;
        wait_state(stage, &[ClientState::Building, ClientState::Blocked])
    });
    state(stage, "daemon killed", |stage| {
        pause_nodes(stage, false)?;
        stage.daemons.client.take().context("expected a client")?.kill();
        Ok(())
    });
    state(stage, "controller gone", |stage| {
        start_client(stage)?;
        stage.daemons.wait_connected(stage.network, PATIENCE)?;
        let controller = stage.daemons.controller.take().context("expected a controller")?;
        ensure!(controller.stop(), "the controller had to be killed");
        Ok(())
    });
    state(stage, "configuration broken", |stage| {
        stage.daemons.stop_client();
        std::fs::write(settings_file(stage)?, "lan = [\"lan0\"\nthis is no setting")?;
        let output = gateway(stage)?.own(&["client", "--config", &settings_text(stage)?])?;
        ensure!(output.status.code() == Some(2), "the client took it: {:?}", output.status);
        lock_with(stage).map(drop)
    });
    stage.promise("after all that the kernel counted no leak, and the gateway works", |stage| {
        let leaked = lockdown(stage)?.leaked_packets;
        ensure!(leaked == 0, "it counted {leaked} leaked packets");
        let extra = stage.extra.clone();
        stage.daemons.start_controller(stage.network, &extra)?;
        write_settings(stage)?;
        lock(stage)?;
        start_client(stage)?;
        stage.daemons.wait_connected(stage.network, PATIENCE)?;
        downloads(stage)
    });
}

fn gateway<'a>(stage: &Stage<'a>) -> Result<&'a Host> {
    stage.network.host("gateway")
}

fn settings_file(stage: &Stage<'_>) -> Result<PathBuf> {
    Ok(gateway(stage)?.dir.join("client.toml"))
}

fn settings_text(stage: &Stage<'_>) -> Result<String> {
    Ok(settings_file(stage)?.to_str().context("expected a path of characters")?.to_owned())
}

/// Routes, forwarding, NAT and settings, as a person sets them up who has read half of a page.
fn prepare(stage: &mut Stage<'_>) -> Result<()> {
    let gateway = gateway(stage)?;
    let laptop = stage.network.host("laptop")?;
    let router = stage.network.host("router")?.plan.clone();
    let home = gateway.plan.on("home").context("expected a port at home")?;
    let tablet = stage.network.host("tablet")?;
    for (host, v4, v6) in [
        (gateway, router.ports[0].v4, router.ports[0].v6),
        (laptop, home.v4, home.v6),
        (tablet, home.v4, home.v6),
    ] {
        host.ip(&format!("route replace default via {v4}"))?;
        host.ip(&format!("-6 route replace default via {v6}"))?;
    }
    gateway.sysctl("net/ipv4/conf/all/forwarding", "1")?;
    gateway.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    let nat = format!(
        "table inet careless {{ chain out {{ type nat hook postrouting priority srcnat; \
         oifname \"{INSIDE}\" masquerade; }}; }}"
    );
    let output = gateway.command("nft")?.arg(nat).output().context("running nft")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    // The client's user has to find its state below directories that are root's alone.
    let mut dir = Some(gateway.dir.as_path());
    for _ in 0..3 {
        let Some(path) = dir else { break };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o711))?;
        dir = path.parent();
    }
    write_settings(stage)
}

fn write_settings(stage: &Stage<'_>) -> Result<()> {
    let text = format!(
        "controller = \"{}\"\nstate = \"{}\"\nlan = [\"{LAN}\"]\nuser = \"{}\"\n\
         route = [\"0.0.0.0/0\", \"::/0\"]\nlab = true\nlog = \"debug\"\n",
        stage.daemons.link,
        daemons::state(gateway(stage)?).display(),
        user(),
    );
    Ok(std::fs::write(settings_file(stage)?, text)?)
}

/// Without root there is one user only.
fn user() -> u32 {
    let is_root = std::env::var_os(crate::rig::rootless::MARK).is_none();
    let can_be_run = |path: &Path| {
        path.ancestors()
            .all(|dir| dir.metadata().is_ok_and(|found| found.permissions().mode() & 0o001 != 0))
    };
    let program = std::env::current_exe().is_ok_and(|path| can_be_run(&path));
    if is_root && program { USER } else { 0 }
}

fn lock(stage: &mut Stage<'_>) -> Result<()> {
    let said = lock_with(stage)?;
    ensure!(said.is_empty(), "{said}");
    Ok(())
}

/// `cepa lockdown on`, which has to lock; returns what it warns of.
fn lock_with(stage: &Stage<'_>) -> Result<String> {
    let state = daemons::state(gateway(stage)?);
    let state = state.to_str().context("expected a path of characters")?;
    let output = gateway(stage)?.own(&[
        "lockdown",
        "on",
        "--config",
        &settings_text(stage)?,
        "--state",
        state,
    ])?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    ensure!(output.status.success(), "{said}");
    Ok(said)
}

fn lockdown(stage: &Stage<'_>) -> Result<LockdownStatus> {
    let output = gateway(stage)?.own(&["lockdown", "status", "--json"])?;
    let mut value: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("reading the lockdown's status")?;
    Ok(serde_json::from_value(value["lockdown"].take())?)
}

/// Words that give the program behind them the access to `/dev/net/tun` that udev gives everybody:
/// where the device is root's alone, a node of its own in a mount namespace of its own, at `dir`.
fn with_open_tun(dir: &Path) -> Result<Vec<String>> {
    const TUN: &str = "/dev/net/tun";
    const OPEN: u32 = 0o006;
    if std::fs::metadata(TUN)?.mode() & OPEN == OPEN {
        return Ok(Vec::new());
    }
    std::fs::create_dir_all(dir)?;
    let script = format!(
        "mount -t tmpfs -o mode=755 tmpfs \"$0\" && mknod -m 0666 \"$0/tun\" c 10 200 && \
         mount --bind \"$0/tun\" {TUN} && exec \"$@\""
    );
    let words = ["unshare", "--mount", "sh", "-c", &script];
    Ok(words.into_iter().map(str::to_owned).chain([dir.display().to_string()]).collect())
}

/// Starts the client as its own user, with the one capability that its unit gives it.
fn start_client(stage: &mut Stage<'_>) -> Result<()> {
    let host = gateway(stage)?;
    let arguments = ["client".to_owned(), "--config".to_owned(), settings_text(stage)?];
    let user = user();
    let before: Vec<String> = if user == 0 {
        Vec::new()
    } else {
        let state = daemons::state(host);
        std::fs::create_dir_all(&state)?;
        std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o700))?;
        chown(&state, Some(user), Some(user))?;
        let flags = ["--clear-groups", "--inh-caps=+net_admin", "--ambient-caps=+net_admin", "--"];
        let setpriv = ["setpriv".to_owned(), format!("--reuid={user}"), format!("--regid={user}")];
        with_open_tun(&host.dir.join("dev"))?
            .into_iter()
            .chain(setpriv)
            .chain(flags.map(str::to_owned))
            .collect()
    };
    stage.daemons.client = None;
    stage.daemons.client = Some(host.daemon_with("client", &before, &arguments)?);
    Ok(())
}

fn pause_nodes(stage: &Stage<'_>, paused: bool) -> Result<()> {
    for node in stage.daemons.nodes.values() {
        if paused { process::pause(node.pid())? } else { process::resume(node.pid())? }
    }
    Ok(())
}

fn wait_state(stage: &mut Stage<'_>, wanted: &[ClientState]) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let state = stage.daemons.client_status(stage.network).map(|status| status.state);
        if state.as_ref().is_ok_and(|state| wanted.contains(state)) {
            return Ok(());
        }
        let client = stage.daemons.client.as_mut().context("expected a client")?;
        if !client.is_running() || Instant::now() > deadline {
            bail!("expected one of {wanted:?}, got {state:?}\n{}", client.last_words());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// One packet of each kind by each sender: what the laptop sent, and what left the gateway.
fn probe(stage: &Stage<'_>) -> Result<(Tally, Tally)> {
    let network = stage.network;
    let (gateway, laptop) = (gateway(stage)?, network.host("laptop")?);
    let members = Members {
        relays: NODES
            .iter()
            .filter_map(|name| network.plan.host(name))
            .map(|host| SocketAddr::from((host.v4(), PORT)))
            .collect(),
        controller: network.plan.host("controller").map(|host| (host.v4(), PORT).into()),
    };
    let watch = |host: &Host, segment: &str| {
        let port = host.plan.on(segment).context("expected a cable")?;
        let mac = clear::mac(&host.netns, port.interface)?;
        Watch::start(&network.switch.netns, &host.plan.plug(port), mac, members.clone())
    };
    let left = watch(gateway, "switch")?;
    let sent = watch(laptop, "home")?;
    for (host, device) in [(laptop, None), (gateway, None), (gateway, Some(INSIDE.to_owned()))] {
        let tool = Tool::Probe { to: RECEIVERS.to_vec(), device };
        let answer: ProbeAnswer = host.ask(&tool, PATIENCE)?;
        ensure!(u64::from(answer.tried) == TRIED / 3, "tried {} packets only", answer.tried);
    }
    let (sent, left) = (sent.stop()?, left.stop()?);
    ensure!(left.lost + sent.lost == 0, "frames went by unseen");
    ensure!(sent.clear.len() >= 2 * KINDS.len(), "the laptop sent {:?} only", sent.clear);
    Ok((sent, left))
}

fn nothing_leaves(stage: &mut Stage<'_>) -> Result<Evidence> {
    let (sent, left) = probe(stage)?;
    ensure!(
        left.clear_packets() == 0,
        "{} packets left in clear: {:?}",
        left.clear_packets(),
        left.clear
    );
    let status = lockdown(stage)?;
    ensure!(status.on, "the lockdown is not on");
    Ok(Evidence::new(format!(
        "{TRIED} packets tried ({} left the laptop), 0 in clear, beside {} cells; user {} to {} endpoints",
        sent.clear_packets(),
        left.cells,
        status.uid.map_or_else(|| "nobody".to_owned(), |uid| uid.to_string()),
        status.endpoints
    ))
    .with("tried", TRIED)
    .with("clear_packets", left.clear_packets())
    .with("cells", left.cells))
}

/// Who downloads sees bytes on one circuit, which carries nobody else's.
fn apart(stage: &mut Stage<'_>) -> Result<Evidence> {
    const BYTES: u64 = 1 << 20;
    let network = stage.network;
    let carried = |stage: &Stage<'_>| -> Result<BTreeMap<u32, u64>> {
        let circuits = stage.daemons.circuits(network)?;
        Ok(circuits.into_iter().map(|circuit| (circuit.number, circuit.bytes_down)).collect())
    };
    let mut own = BTreeMap::new();
    for name in ["laptop", "tablet", "gateway"] {
        for to in RECEIVERS {
            let before = carried(stage)?;
            let tool = Tool::HttpGet { to, bytes: BYTES, patience: Duration::from_secs(10) };
            let answer: HttpAnswer = network.host(name)?.ask(&tool, PATIENCE)?;
            ensure!(answer.right, "{name} got other bytes than were sent");
            let after = carried(stage)?;
            let grown: Vec<u32> = after
                .iter()
                .filter(|(number, bytes)| {
                    **bytes >= before.get(number).copied().unwrap_or_default() + BYTES
                })
                .map(|(number, _)| *number)
                .collect();
            let &[number] = grown.as_slice() else {
                bail!("expected one circuit to carry {name}'s download from {to}, got {grown:?}");
            };
            let known = *own.entry(name).or_insert(number);
            ensure!(known == number, "{name} was on circuit {known}, then on {number}");
        }
    }
    let mut distinct: Vec<u32> = own.values().copied().collect();
    distinct.sort_unstable();
    distinct.dedup();
    ensure!(distinct.len() == own.len(), "two of them share a circuit: {own:?}");
    // The same ports at the same time, to the same server: answers find who asked.
    let every = Duration::from_millis(5);
    let tool = Tool::Echo { to: RECEIVERS[0], count: 200, size: 64, every, proxy: None };
    let agents = [network.host("laptop")?.start(&tool)?, network.host("tablet")?.start(&tool)?];
    for agent in agents {
        let answer: EchoAnswer = agent.answer(PATIENCE)?;
        ensure!(answer.received == answer.sent, "{} of {} came back", answer.received, answer.sent);
    }
    let words: Vec<String> =
        own.iter().map(|(name, number)| format!("{name} on circuit {number}")).collect();
    Ok(Evidence::new(words.join(", ")))
}

fn downloads(stage: &mut Stage<'_>) -> Result<Evidence> {
    let laptop = stage.network.host("laptop")?;
    let mut words = Vec::new();
    for to in RECEIVERS {
        let tool = Tool::HttpGet { to, bytes: 4 << 20, patience: Duration::from_secs(10) };
        let answer: HttpAnswer = laptop.ask(&tool, PATIENCE)?;
        ensure!(answer.right, "the bytes from {to} are not those that were sent");
        words.push(format!("4 MiB from {to} in {:.2} s", answer.seconds));
    }
    let seen = stage.seen_by_receiver();
    let is_exit = |address| {
        let host = stage.network.plan.host_of(address);
        host.is_some_and(|host| daemons::is_exit(host.name))
    };
    ensure!(seen.iter().copied().all(is_exit), "the receiver saw {seen:?}");
    Ok(Evidence::new(words.join(", ")))
}
