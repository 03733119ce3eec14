//! Datagrams that a node must survive, while traffic goes on.
//!
//! In: a connected client and a capture of its cells. Out: promises. Called by: rig::suite.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{
    model::DropReason,
    rig::{
        agent::{HostileAnswer, HttpAnswer, Manner, Tool},
        daemons::PORT,
        promise::Evidence,
        stage::{RECEIVERS, Stage},
    },
};

/// Sends each kind to the guard, whose cells `capture` holds, and then all of them.
pub fn all_kinds(stage: &mut Stage<'_>, guard: &'static str, capture: &Path, count: u64) {
    let each = (count / 20).clamp(500, 50_000);
    for (manner, name, reasons) in [
        (Manner::Replayed, "a replayed cell is dropped at the first hop", vec![DropReason::Replay]),
        (Manner::Flipped, "a flipped bit is dropped at the first hop", vec![DropReason::BadTag]),
        (Manner::Cut, "a truncated cell is dropped", vec![DropReason::BadLength]),
        (Manner::Noise, "a random datagram is dropped", vec![]),
        (
            Manner::Unknown,
            "a cell of an unknown circuit is dropped",
            vec![DropReason::UnknownCircuit],
        ),
    ] {
        stage.promise(name, |stage| one_kind(stage, guard, capture, each, manner, &reasons));
    }
    stage.promise(
        format!("a node survives {count} hostile datagrams and traffic goes on"),
        |stage| {
            let pid = stage.daemons.nodes.get(guard).context("expected a node")?.pid();
            let sender = stage.network.host("sender")?;
            let patience = Duration::from_secs(20);
            let download =
                sender.start(&Tool::HttpGet { to: RECEIVERS[0], bytes: 64 << 20, patience })?;
            let answer = send(stage, guard, capture, count, Manner::Mixed)?;
            let download: HttpAnswer = download.answer(Duration::from_secs(120))?;
            ensure!(download.right, "the download that ran meanwhile is damaged");
            let after = stage.daemons.nodes.get_mut(guard).context("expected a node")?;
            ensure!(
                after.is_running() && after.pid() == pid,
                "the node ended:\n{}",
                after.last_words()
            );
            let status = stage.daemons.node_status(stage.network, guard)?;
            let drops: Vec<String> =
                status.drops.0.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
            Ok(Evidence::new(format!(
                "{} sent; a 64 MiB download meanwhile was right; dropped: {}",
                answer.sent,
                drops.join(", ")
            ))
            .with("sent", answer.sent)
            .with("download_s", download.seconds))
        },
    );
}

fn send(
    stage: &Stage<'_>,
    guard: &str,
    capture: &Path,
    count: u64,
    manner: Manner,
) -> Result<HostileAnswer> {
    let to = SocketAddr::from((stage.network.host(guard)?.plan.v4(), PORT));
    let tool =
        Tool::Hostile { to, capture: Some(capture.to_owned()), count, manner, seed: 7, rate: None };
    stage.network.host("stranger")?.ask(&tool, Duration::from_secs(600))
}

fn one_kind(
    stage: &Stage<'_>,
    guard: &str,
    capture: &Path,
    count: u64,
    manner: Manner,
    reasons: &[DropReason],
) -> Result<Evidence> {
    let before = stage.daemons.node_status(stage.network, guard)?.drops;
    let answer = send(stage, guard, capture, count, manner)?;
    // What the node's socket holds is taken within a turn of its loop.
    std::thread::sleep(Duration::from_millis(300));
    let after = stage.daemons.node_status(stage.network, guard)?.drops;
    let mut counted = Vec::new();
    for (reason, total) in &after.0 {
        let new = total - before.0.get(reason).copied().unwrap_or(0);
        if new > 0 {
            counted.push(format!("{new} as {reason}"));
        }
    }
    let dropped = after.total() - before.total();
    ensure!(
        dropped * 10 >= answer.sent * 9,
        "expected {} drops to be counted, got {dropped} ({})",
        answer.sent,
        counted.join(", ")
    );
    for reason in reasons {
        let new = after.0.get(reason.name()).copied().unwrap_or(0);
        ensure!(new > 0, "expected drops counted as {}, got {}", reason.name(), counted.join(", "));
    }
    Ok(Evidence::new(format!("{} sent, dropped {}", answer.sent, counted.join(", ")))
        .with("sent", answer.sent)
        .with("dropped", dropped))
}
