//! `cepa dcnet status`, `verdict` and `bench`: figures for people and programs.
//!
//! In: a running relay, a verdict file, a plan. Out: text or JSON. Called by: `cepa dcnet`.

use std::time::Duration;

use anyhow::Context;
use tokio::task::LocalSet;

use super::{BenchArgs, StatusArgs, VerdictArgs};
use crate::{
    cli::output,
    dcnet::{
        blame::{Blamed, VerdictFile},
        store,
    },
    dcnet_run::{bench as benching, status::Status},
    telemetry::control::{Place, Request, ask, command},
};

const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn status(args: &StatusArgs) -> anyhow::Result<()> {
    let place = Place::new("dcnet", Some(&args.config_dir));
    let value = ask(&place, &Request::plain(command::STATUS), PATIENCE)?;
    let status: Status = serde_json::from_value(value)?;
    if args.output.json {
        return output::print_json("dcnet.status", &status);
    }
    let interval = match status.interval {
        0 => "none runs: too few members, or a trustee is away".to_owned(),
        number => format!("{number}, {} members in the anonymity set", status.members.len()),
    };
    let blame = match (&status.last_blame, status.last_blame_ms) {
        (Some(blamed), Some(took)) => format!("{blamed}, after {took:.0} ms"),
        (Some(blamed), None) => blamed.clone(),
        _ => "none".to_owned(),
    };
    output::print(format_args!(
        "members     {} of {} clients, {} of {} trustees linked\n\
         interval    {interval}\n\
         rounds      {:.0} a second, {} of {} in flight, {} in all, {} void\n\
         slots       {} open, {} connections, {} cells\n\
         collisions  {}, jammed requests {}\n\
         last blame  {blame}\n",
        status.online_clients.len(),
        status.group_clients,
        status.online_trustees.len(),
        status.group_trustees,
        status.rounds_per_s,
        status.in_flight,
        status.window,
        status.rounds,
        status.void,
        status.open_slots,
        status.connections,
        status.cells,
        status.collisions,
        status.requests_jammed,
    ));
    Ok(())
}

#[derive(serde::Serialize)]
struct VerdictReport {
    blamed: String,
    id: Option<String>,
}

pub(super) fn verdict(args: &VerdictArgs) -> anyhow::Result<()> {
    let group = store::load_group(&args.config_dir)?;
    let file: VerdictFile = store::load(&args.file)?;
    let blamed = file.judge(&group).with_context(|| args.file.display().to_string())?;
    let id = match blamed {
        Blamed::Party(party) => party.key(&group).map(|key| key.id().to_string()),
        _ => None,
    };
    let report = VerdictReport { blamed: blamed.to_string(), id };
    if args.output.json {
        return output::print_json("dcnet.verdict", &report);
    }
    let id = report.id.map_or_else(String::new, |id| format!(", {id}"));
    output::print(format_args!("the case holds; to blame: {}{id}\n", report.blamed));
    Ok(())
}

pub(super) async fn bench(args: BenchArgs) -> anyhow::Result<()> {
    let dir = std::env::temp_dir().join(format!("cepa-dcnet-bench-{}", std::process::id()));
    let plan = benching::Plan {
        clients: args.clients,
        trustees: args.trustees,
        cell: args.cell_size,
        window: args.window,
        rtt: Duration::from_millis(args.rtt_ms),
        time: Duration::from_secs_f64(args.seconds),
        blame: args.blame,
        tasks: args.tasks,
    };
    let result = LocalSet::new().run_until(benching::run(&plan, &dir)).await;
    let _ = std::fs::remove_dir_all(&dir);
    let report = result?;
    if args.output.json {
        return output::print_json("dcnet.bench", &report);
    }
    output::print(format_args!(
        "{} clients, {} trustees, {}-byte cells, {} ms added; the clients ran as {}\n\
         start       {:.1} s to an interval with all\n\
         rounds      {:.0} a second, {:.0} useful bytes a second\n\
         echo        100 bytes, open slot: p50 {:.2} ms, p99 {:.2} ms\n\
         \x20           idle slot: p50 {:.2} ms, p99 {:.2} ms\n\
         cpu         relay {:.0} %, a trustee {:.0} %, a client {:.1} %\n\
         links       a client sends {:.0} and receives {:.0} bytes a second, a trustee {:.0} and {:.0}\n",
        report.clients,
        report.trustees,
        report.cell_bytes,
        report.added_rtt_ms,
        report.parties,
        report.start_s,
        report.rounds_per_s,
        report.useful_bytes_per_s,
        report.echo_p50_ms,
        report.echo_p99_ms,
        report.idle_echo_p50_ms,
        report.idle_echo_p99_ms,
        report.cpu[0] * 100.0,
        report.cpu[1] * 100.0,
        report.cpu[2] * 100.0,
        report.client_bytes_per_s[0],
        report.client_bytes_per_s[1],
        report.trustee_bytes_per_s[0],
        report.trustee_bytes_per_s[1],
    ));
    if let (Some(join), Some(pause)) = (report.join_s, report.pause_ms) {
        output::print(format_args!(
            "join        {join:.2} s from its start to a client's first byte back; others paused \
             for {pause:.0} ms at most\n"
        ));
    }
    if let Some(pause) = report.hung_pause_ms {
        output::print(format_args!(
            "hung        a client that hangs holds the others up for {pause:.0} ms at most\n"
        ));
    }
    if let (Some(took), Some(blamed)) = (report.blame_ms, &report.blamed) {
        output::print(format_args!(
            "blame       {blamed}, {took:.0} ms after the first jammed cell; the client that jams \
             is a task of the bench\n"
        ));
    }
    Ok(())
}
