//! The bench: a whole group on this machine, every party a process of its own.
//!
//! In: how many clients and trustees, cell size, window, round-trip time. Out: rounds a second,
//! echo latency, throughput, CPU and bytes per party, how long a join takes and interrupts, the time
//! of a blame.
//! Called by: `cepa dcnet bench`.
//!
//! The jamming client of the blame measurement is a task of this process; the echo service behind
//! the relay and the clients of the local ports are tasks as well.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

use crate::{
    dcnet::{ceremony, group::Settings, member::PartyRef, store},
    dcnet_run::{
        dial::dial,
        exits, jammer,
        party::Secrets,
        status::Status,
        supervisor::{self, Party},
        test_client::Outcome,
    },
    telemetry::control::{Place, Request, ask, command},
};

/// What to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Clients.
    pub clients: usize,
    /// Trustees.
    pub trustees: usize,
    /// Bytes of a cell.
    pub cell: usize,
    /// Rounds in flight at most.
    pub window: usize,
    /// Added round-trip time.
    pub rtt: Duration,
    /// How long each measurement takes.
    pub time: Duration,
    /// Whether one client jams at the end.
    pub blame: bool,
}

/// What was measured.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Every party is a process.
    pub parties: &'static str,
    /// Clients.
    pub clients: usize,
    /// Trustees.
    pub trustees: usize,
    /// Bytes of a cell.
    pub cell_bytes: usize,
    /// Added round-trip time.
    pub added_rtt_ms: f64,
    /// From the start of all processes to an interval with all.
    pub start_s: f64,
    /// Rounds a second while one client sends as fast as it can.
    pub rounds_per_s: f64,
    /// Payload bytes a second of that client.
    pub useful_bytes_per_s: f64,
    /// Median of 100-byte echoes on an open slot.
    pub echo_p50_ms: f64,
    /// Their 99th percentile.
    pub echo_p99_ms: f64,
    /// Median where another slot spoke in between.
    pub idle_echo_p50_ms: f64,
    /// Their 99th percentile.
    pub idle_echo_p99_ms: f64,
    /// CPU seconds a second while sending: relay, mean trustee, mean client.
    pub cpu: [f64; 3],
    /// Bytes a second a client sends and receives while one of them floods.
    pub client_bytes_per_s: [f64; 2],
    /// Bytes a second a trustee sends and receives.
    pub trustee_bytes_per_s: [f64; 2],
    /// From the start of one more client's process to the first byte back on its own slot.
    pub join_s: Option<f64>,
    /// The longest pause of an echo that ran on while that client left and came back.
    pub pause_ms: Option<f64>,
    /// From the first jammed cell to the verdict.
    pub blame_ms: Option<f64>,
    /// Who was convicted.
    pub blamed: Option<String>,
}

async fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port())
}

/// The first of `count` ports that are free now.
async fn free_ports(count: usize) -> anyhow::Result<u16> {
    let count = u16::try_from(count)?;
    for _ in 0..100 {
        let first = free_port().await?.min(65_000 - count);
        let mut held = Vec::new();
        for port in first..first + count {
            match TcpListener::bind(("127.0.0.1", port)).await {
                Ok(listener) => held.push(listener),
                Err(_) => break,
            }
        }
        if held.len() == usize::from(count) {
            return Ok(first);
        }
    }
    bail!("no {count} ports in a row are free")
}

fn status(dir: &Path) -> anyhow::Result<Status> {
    let place = Place::new("dcnet", Some(dir));
    let value = ask(&place, &Request::plain(command::STATUS), Duration::from_secs(10))?;
    Ok(serde_json::from_value(value)?)
}

async fn await_status(
    dir: &Path,
    patience: Duration,
    done: impl Fn(&Status) -> bool,
) -> anyhow::Result<Status> {
    let end = Instant::now() + patience;
    loop {
        match status(dir) {
            Ok(status) if done(&status) => return Ok(status),
            Ok(status) if Instant::now() > end => bail!("not in time; the last status: {status:?}"),
            Err(error) if Instant::now() > end => return Err(error),
            _ => sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Seconds of CPU a process has used.
fn cpu_seconds(party: &Party) -> f64 {
    let Some(id) = party.child.id() else { return 0.0 };
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks =
        |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    // utime and stime, in hundredths of a second on every Linux this runs on.
    (ticks(11) + ticks(12)) / 100.0
}

async fn echo_once(stream: &mut TcpStream) -> anyhow::Result<f64> {
    let start = Instant::now();
    let sent = [7; 100];
    let mut back = [0; 100];
    stream.write_all(&sent).await?;
    timeout(Duration::from_secs(20), stream.read_exact(&mut back)).await.context("an echo")??;
    Ok(start.elapsed().as_secs_f64())
}

/// Echoes over the given ports in turn.
async fn echoes(ports: &[u16], time: Duration) -> anyhow::Result<Outcome> {
    let mut streams = Vec::new();
    for port in ports {
        let stream = TcpStream::connect(("127.0.0.1", *port)).await?;
        stream.set_nodelay(true)?;
        streams.push(stream);
    }
    let mut outcome = Outcome::default();
    for stream in &mut streams {
        echo_once(stream).await?;
    }
    let end = Instant::now() + time;
    'all: loop {
        for stream in &mut streams {
            if Instant::now() > end {
                break 'all;
            }
            outcome.seconds.push(echo_once(stream).await?);
        }
    }
    outcome.seconds.sort_by(f64::total_cmp);
    Ok(outcome)
}

/// Sends through a port as fast as it goes, until told to stop.
async fn flood(port: u16, stop: Arc<AtomicBool>) -> anyhow::Result<()> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let (mut reader, mut writer) = stream.into_split();
    let reading = tokio::spawn(async move {
        let mut buffer = vec![0; 64 * 1024];
        while reader.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
    });
    let chunk = vec![9; 16 * 1024];
    while !stop.load(Ordering::Relaxed) {
        if timeout(Duration::from_secs(1), writer.write_all(&chunk)).await.is_ok_and(|r| r.is_err())
        {
            break;
        }
    }
    reading.abort();
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "rates")]
fn rate(after: u64, before: u64, time: f64) -> f64 {
    (after.saturating_sub(before)) as f64 / time
}

/// Runs the bench in a directory of its own.
///
/// # Errors
/// When a party ends, or nothing comes back.
pub async fn run(plan: &Plan, dir: &Path) -> anyhow::Result<Report> {
    let relay_port = free_port().await?;
    let settings = Settings {
        cell_size: plan.cell,
        client_window: plan.window,
        trustee_window: plan.window * 2 + 32,
        ..Settings::default()
    };
    let ceremony_plan = ceremony::Plan {
        clients: plan.clients,
        trustees: plan.trustees,
        host: "127.0.0.1".into(),
        port: relay_port,
        settings,
    };
    let files = ceremony::generate(&ceremony_plan, &mut rand::rng())?;
    store::save_all(dir, &files)?;
    let exit = TcpListener::bind("127.0.0.1:0").await?;
    let exit_address = exit.local_addr()?.to_string();
    tokio::spawn(exits::run_echo(exit));
    let first_port = free_ports(plan.clients).await?;
    let start = Instant::now();
    let jam = Arc::new(AtomicBool::new(false));
    let started = plan.clients - usize::from(plan.blame);
    let mut parties = start_relay(dir, &exit_address, relay_port)?;
    await_status(dir, Duration::from_secs(60), |_| true).await?;
    parties.extend(supervisor::start_all(&supervisor::Plan {
        dir: dir.to_owned(),
        trustees: files.system.trustees.iter().map(|entry| entry.id.to_string()).collect(),
        clients: files.system.clients[..started].iter().map(|e| e.id.to_string()).collect(),
        first_port,
        relay: None,
        exit: String::new(),
        extra: vec!["--delay-ms".into(), plan.rtt.as_millis().to_string().into()],
    })?);
    if plan.blame {
        start_jammer(dir, &files, plan, &jam)?;
    }
    let patience = Duration::from_secs(60 + 10 * plan.clients as u64);
    await_status(dir, patience, |status| status.members.len() == plan.clients).await?;
    let mut report = Report {
        parties: "processes",
        clients: plan.clients,
        trustees: plan.trustees,
        cell_bytes: plan.cell,
        added_rtt_ms: plan.rtt.as_secs_f64() * 1000.0,
        start_s: start.elapsed().as_secs_f64(),
        ..Report::default()
    };
    sleep(Duration::from_millis(500)).await;
    let open = echoes(&[first_port], plan.time).await?;
    (report.echo_p50_ms, report.echo_p99_ms) = (open.quantile_ms(0.5), open.quantile_ms(0.99));
    if started > 1 {
        let idle = echoes(&[first_port, first_port + 1], plan.time).await?;
        (report.idle_echo_p50_ms, report.idle_echo_p99_ms) =
            (idle.quantile_ms(0.5), idle.quantile_ms(0.99));
    }
    measure_flood(plan, dir, first_port, &parties, &mut report).await?;
    if started > 2 {
        measure_churn(plan, dir, &files, started - 1, first_port, &mut parties, &mut report)
            .await?;
    }
    if plan.blame {
        jam.store(true, Ordering::Relaxed);
        let (before, port) = (status(dir)?, first_port);
        let stop = Arc::new(AtomicBool::new(false));
        let flooding = tokio::spawn(flood(port, Arc::clone(&stop)));
        let after = await_status(dir, Duration::from_secs(30), |status| {
            status.collisions > before.collisions && status.last_blame.is_some()
        })
        .await?;
        stop.store(true, Ordering::Relaxed);
        flooding.abort();
        (report.blame_ms, report.blamed) = (after.last_blame_ms, after.last_blame);
    }
    Ok(report)
}

/// One client leaves and comes back, while another's echoes go on.
async fn measure_churn(
    plan: &Plan,
    dir: &Path,
    files: &ceremony::Files,
    at: usize,
    first_port: u16,
    parties: &mut Vec<Party>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let echoing = tokio::spawn(longest_echo(first_port, Arc::clone(&stop)));
    sleep(Duration::from_millis(300)).await;
    if let Some(mut leaving) = parties.pop() {
        leaving.child.kill().await?;
    }
    await_status(dir, Duration::from_secs(20), |status| {
        status.interval > 0 && status.members.len() == plan.clients - 1
    })
    .await?;
    let start = Instant::now();
    let port = first_port + u16::try_from(at)?;
    parties.extend(supervisor::start_all(&supervisor::Plan {
        dir: dir.to_owned(),
        trustees: Vec::new(),
        clients: vec![files.system.clients[at].id.to_string()],
        first_port: port,
        relay: None,
        exit: String::new(),
        extra: vec!["--delay-ms".into(), plan.rtt.as_millis().to_string().into()],
    })?);
    let mut stream = dial(&format!("127.0.0.1:{port}")).await?;
    echo_once(&mut stream).await?;
    report.join_s = Some(start.elapsed().as_secs_f64());
    stop.store(true, Ordering::Relaxed);
    report.pause_ms = Some(echoing.await?? * 1000.0);
    Ok(())
}

/// Echoes on one connection until told to stop; gives the longest.
async fn longest_echo(port: u16, stop: Arc<AtomicBool>) -> anyhow::Result<f64> {
    let mut stream = dial(&format!("127.0.0.1:{port}")).await?;
    let mut longest: f64 = 0.0;
    while !stop.load(Ordering::Relaxed) {
        longest = longest.max(echo_once(&mut stream).await?);
    }
    Ok(longest)
}

fn start_relay(dir: &Path, exit: &str, port: u16) -> anyhow::Result<Vec<Party>> {
    supervisor::start_all(&supervisor::Plan {
        dir: dir.to_owned(),
        trustees: Vec::new(),
        clients: Vec::new(),
        first_port: 0,
        relay: Some(port),
        exit: exit.to_owned(),
        extra: Vec::new(),
    })
}

fn start_jammer(
    dir: &Path,
    files: &ceremony::Files,
    plan: &Plan,
    jam: &Arc<AtomicBool>,
) -> anyhow::Result<()> {
    let group = Arc::new(store::load_group(dir)?);
    let at = plan.clients - 1;
    let identity = crate::dcnet::identity::Identity::from_secret(&files.parties[at].secret.0);
    let pseudonym = files.sessions[at].pseudonym()?;
    let slot = group.own_slot(&pseudonym).context("the jammer has no slot")?;
    let secrets = Secrets {
        me: PartyRef::Client(u16::try_from(at)?),
        identity: Arc::new(identity),
        secret: files.sessions[at].scalar()?,
        group,
        delay: Duration::ZERO,
    };
    let (slot, jam) = (u16::try_from(slot)?, Arc::clone(jam));
    tokio::task::spawn_local(async move {
        if let Err(error) = jammer::run(secrets, slot, pseudonym, jam).await {
            log::info!("the jammer's link ended: {error:#}");
        }
    });
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a mean")]
async fn measure_flood(
    plan: &Plan,
    dir: &Path,
    port: u16,
    parties: &[Party],
    report: &mut Report,
) -> anyhow::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let flooding = tokio::spawn(flood(port, Arc::clone(&stop)));
    sleep(plan.time / 2).await;
    let cpu = |parties: &[Party]| parties.iter().map(cpu_seconds).collect::<Vec<_>>();
    let (before, cpu_before, start) = (status(dir)?, cpu(parties), Instant::now());
    sleep(plan.time).await;
    let (after, cpu_after) = (status(dir)?, cpu(parties));
    let time = start.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    flooding.abort();
    let span = after.uptime_s - before.uptime_s;
    report.rounds_per_s = rate(after.rounds, before.rounds, span);
    report.useful_bytes_per_s = rate(after.payload_bytes[0], before.payload_bytes[0], span);
    let each = |after: [u64; 2], before: [u64; 2], count: usize| {
        [0, 1].map(|at| rate(after[at], before[at], span) / count.max(1) as f64)
    };
    report.client_bytes_per_s =
        each(after.client_link_bytes, before.client_link_bytes, plan.clients);
    report.trustee_bytes_per_s =
        each(after.trustee_link_bytes, before.trustee_link_bytes, plan.trustees);
    let used: Vec<f64> =
        cpu_after.iter().zip(&cpu_before).map(|(after, before)| (after - before) / time).collect();
    let mean = |slice: &[f64]| slice.iter().sum::<f64>() / slice.len().max(1) as f64;
    let trustees = 1 + plan.trustees;
    report.cpu = [used[0], mean(&used[1..trustees]), mean(&used[trustees..])];
    Ok(())
}
