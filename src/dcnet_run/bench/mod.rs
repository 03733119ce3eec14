//! The bench: a whole group on this machine, every party a process of its own, or the clients tasks
//! of one.
//!
//! In: how many clients and trustees, cell size, window, round-trip time. Out: rounds a second,
//! echo latency, throughput, CPU and bytes per party; how long a join, a leave and a client that
//! hangs interrupt the others; the time of a blame.
//! Called by: `cepa dcnet bench`.
//!
//! The client that jams is a task of this process, and so are the echo service behind the relay and
//! the programs at the clients' local ports.

mod group;
mod load;

use std::{
    path::Path,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::time::sleep;

use crate::dcnet_run::dial::dial;

use self::{
    group::Group,
    load::{echo_once, echoes, flood, longest_echo},
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
    /// Whether the clients share one process, all but the last.
    pub tasks: bool,
}

impl Plan {
    /// Clients but the jammer, who is a task of this program.
    const fn honest(&self) -> usize {
        self.clients.saturating_sub(self.blame as usize)
    }
}

/// What was measured.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// What the clients ran as: processes, or tasks (their links threads) of one process.
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
    /// The longest pause of an echo that ran on while a client was stopped, until it was left out.
    pub hung_pause_ms: Option<f64>,
    /// From the first jammed cell to the verdict.
    pub blame_ms: Option<f64>,
    /// Who was convicted.
    pub blamed: Option<String>,
}

#[expect(clippy::cast_precision_loss, reason = "rates")]
fn rate(after: u64, before: u64, time: f64) -> f64 {
    (after.saturating_sub(before)) as f64 / time
}

/// How long the set of members may take to change.
const CHANGE: Duration = Duration::from_secs(60);

/// Runs the bench in a directory of its own.
///
/// # Errors
/// When a party ends, or nothing comes back.
pub async fn run(plan: &Plan, dir: &Path) -> anyhow::Result<Report> {
    let start = Instant::now();
    let mut group = Group::start(plan, dir).await?;
    let mut report = Report {
        parties: if plan.tasks { "tasks" } else { "processes" },
        clients: plan.clients,
        trustees: plan.trustees,
        cell_bytes: plan.cell,
        added_rtt_ms: plan.rtt.as_secs_f64() * 1000.0,
        start_s: start.elapsed().as_secs_f64(),
        ..Report::default()
    };
    sleep(Duration::from_millis(500)).await;
    let port = group.first_port;
    let open = echoes(&[port], plan.time).await?;
    (report.echo_p50_ms, report.echo_p99_ms) = (open.quantile_ms(0.5), open.quantile_ms(0.99));
    if plan.honest() > 1 {
        let idle = echoes(&[port, port + 1], plan.time).await?;
        (report.idle_echo_p50_ms, report.idle_echo_p99_ms) =
            (idle.quantile_ms(0.5), idle.quantile_ms(0.99));
    }
    measure_flood(plan, &group, &mut report).await?;
    if plan.honest() > 2 {
        measure_churn(plan, &mut group, &mut report).await?;
        measure_hung(plan, &mut group, &mut report).await?;
    }
    if plan.blame {
        measure_blame(&mut group, &mut report).await?;
    }
    Ok(report)
}

/// One client floods, as fast as it goes.
#[expect(clippy::cast_precision_loss, reason = "means")]
async fn measure_flood(plan: &Plan, group: &Group, report: &mut Report) -> anyhow::Result<()> {
    let flooding = flood(group.first_port);
    sleep(plan.time / 2).await;
    let (before, cpu_before, start) = (group.status()?, group.cpu(), Instant::now());
    sleep(plan.time).await;
    let (after, cpu_after) = (group.status()?, group.cpu());
    let time = start.elapsed().as_secs_f64();
    flooding.end().await?;
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
    let clients = used[trustees..].iter().sum::<f64>() / plan.honest() as f64;
    report.cpu = [used[0], mean(&used[1..trustees]), clients];
    Ok(())
}

/// One client leaves and comes back, while another's echoes go on.
async fn measure_churn(plan: &Plan, group: &mut Group, report: &mut Report) -> anyhow::Result<()> {
    let echoing = longest_echo(group.first_port);
    sleep(Duration::from_millis(300)).await;
    group.end_last().await?;
    group.await_members(plan.clients - 1, CHANGE).await?;
    let start = Instant::now();
    let port = group.start_last()?;
    let mut stream = dial(&format!("127.0.0.1:{port}")).await?;
    echo_once(&mut stream).await?;
    report.join_s = Some(start.elapsed().as_secs_f64());
    report.pause_ms = Some(echoing.end().await? * 1000.0);
    group.await_members(plan.clients, CHANGE).await
}

/// One client is stopped, as a machine that hangs would be, while another's echoes go on.
async fn measure_hung(plan: &Plan, group: &mut Group, report: &mut Report) -> anyhow::Result<()> {
    let echoing = longest_echo(group.first_port);
    sleep(Duration::from_millis(500)).await;
    group.signal_last("STOP").await?;
    let left_out = group.await_members(plan.clients - 1, CHANGE).await;
    report.hung_pause_ms = Some(echoing.end().await? * 1000.0);
    group.signal_last("CONT").await?;
    left_out?;
    group.await_members(plan.clients, CHANGE).await
}

/// The last client jams, while another floods.
async fn measure_blame(group: &mut Group, report: &mut Report) -> anyhow::Result<()> {
    let before = group.status()?;
    group.jam.store(true, Ordering::Relaxed);
    let flooding = flood(group.first_port);
    let after = group
        .await_status(Duration::from_secs(30), |status| {
            status.collisions > before.collisions && status.last_blame.is_some()
        })
        .await?;
    flooding.end().await?;
    (report.blame_ms, report.blamed) = (after.last_blame_ms, after.last_blame);
    Ok(())
}
