//! The running programs of `cepa dcnet`.
//!
//! In: parsed arguments. Out: a party that runs until it is ended. Called by: `cepa dcnet`.

use std::{collections::BTreeSet, path::Path, pin::Pin, sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use tokio::{
    net::TcpListener,
    task::{JoinSet, LocalSet},
};

use super::{
    ClientArgs, EchoArgs, PartyArgs, RelayArgs, SocksArgs, SupervisorArgs, TestClientArgs,
    TrusteeArgs, Wire,
};
use crate::{
    cli::output,
    dcnet::{
        error::DcnetError,
        group::{Group, SessionPrivate},
        identity::Identity,
        member::PartyRef,
        relay::Pace,
        store,
    },
    dcnet_run::{
        client as client_program, exits, hub, keeper::Keeper, page, party, seed_parties,
        seed_relay, status, supervisor as supervising, test_client as testing,
    },
    telemetry::{control::ControlServer, service_manager::ready},
};

async fn bind(address: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("listening on {address}; is the port taken, or is the address not of this host?")
    })
}

async fn listen(address: &str) -> anyhow::Result<TcpListener> {
    let listener = bind(address).await?;
    log::info!("listening on {}", listener.local_addr()?);
    Ok(listener)
}

struct Own {
    group: Arc<Group>,
    identity: Identity,
    session: SessionPrivate,
}

impl Own {
    fn load(dir: &Path, group: Arc<Group>, private: &Path) -> anyhow::Result<Self> {
        let identity = store::load_identity(private)?;
        let session = store::load_session(dir, &group, &identity.id())?;
        Ok(Self { group, identity, session })
    }

    fn secrets(self, me: PartyRef) -> anyhow::Result<party::Secrets> {
        Ok(party::Secrets {
            me,
            secret: self.session.scalar()?,
            group: self.group,
            identity: Arc::new(self.identity),
        })
    }
}

/// What this party has to remember from one start to the next.
fn keeper(own: &Own, dir: &Path) -> Keeper {
    Keeper::new(dir.join(store::memory_file(&own.identity.id(), &own.group.session.session_id)))
}

fn not_a(role: &str, private: &Path) -> DcnetError {
    DcnetError::config(
        private.display().to_string(),
        "id",
        format!("is not among the {role}s of system.json"),
    )
}

/// Where a cepa client listens for SOCKS5 unless told otherwise.
const ONION_SOCKS: &str = "127.0.0.1:9050";

/// `via-onion` is the SOCKS5 port of a cepa client, whose circuit hides where the group is.
fn exit_address(exit: &str) -> String {
    match exit.strip_prefix("via-onion") {
        Some("") => ONION_SOCKS.to_owned(),
        Some(rest) => rest.trim_start_matches('=').to_owned(),
        None => exit.to_owned(),
    }
}

pub(super) async fn relay(args: RelayArgs) -> anyhow::Result<()> {
    let group = store::load_group(&args.config_dir)?;
    let bind = args.bind.as_ref().unwrap_or(&group.system.relay.host);
    let listener = listen(&format!("{bind}:{}", args.port)).await?;
    if args.wire == Wire::Seed {
        ready();
        return seed_relay::run(&group, listener, exit_address(&args.exit)).await;
    }
    let identity = store::load_identity(&args.config_dir.join("relay.json"))?;
    if identity.public() != group.relay {
        return Err(DcnetError::config("relay.json", "secret", "is not that of relay.key").into());
    }
    let setup = hub::Setup {
        verdicts: store::load_verdicts(&args.config_dir)?,
        last_number: store::load_interval(&args.config_dir)?.interval.number,
        group: Arc::new(group),
        identity,
        dir: args.config_dir.clone(),
        exit: exit_address(&args.exit),
        pace: Pace { round_robin: args.round_robin, ..Pace::default() },
        far: Duration::from_millis(args.far_ms),
    };
    let board = status::Board::default();
    let control = ControlServer::bind("dcnet", &args.config_dir)?;
    tokio::spawn(status::answer(control, Arc::clone(&board)));
    if let Some(web) = &args.web {
        let web = listen(web).await?;
        tokio::spawn(page::serve(web, Arc::clone(&board)));
    }
    let started = move |hub| {
        tokio::task::spawn_local(status::keep(hub, board));
    };
    ready();
    Ok(LocalSet::new().run_until(hub::run(setup, listener, started)).await?)
}

pub(super) async fn trustee(args: TrusteeArgs) -> anyhow::Result<()> {
    let TrusteeArgs { party: args, private_file } = args;
    let group = Arc::new(store::load_group(&args.config_dir)?);
    let own = Own::load(&args.config_dir, group, &private_file)?;
    let index = own
        .group
        .trustee_index(&own.identity.id())
        .ok_or_else(|| not_a("trustee", &private_file))?;
    if args.wire == Wire::Seed {
        store::load_interval(&args.config_dir)?.check_seed(&own.group)?;
        let pads = seed_parties::pads(&*own.session.scalar()?, &own.group.client_keys);
        ready();
        return seed_parties::run_trustee(&own.group, index, pads).await;
    }
    let keeper = keeper(&own, &args.config_dir);
    let secrets = own.secrets(PartyRef::Trustee(u16::try_from(index)?))?;
    ready();
    LocalSet::new().run_until(party::run_trustee(secrets, keeper)).await
}

pub(super) async fn client(args: ClientArgs) -> anyhow::Result<()> {
    let ClientArgs { party: args, private_files } = args;
    let group = Arc::new(store::load_group(&args.config_dir)?);
    let running = async {
        let (mut members, mut seen) = (JoinSet::new(), BTreeSet::new());
        for (at, private_file) in private_files.iter().enumerate() {
            let port = match args.port {
                0 => 0,
                first => u16::try_from(usize::from(first) + at).with_context(|| {
                    format!("the ports of {} members end beyond 65535", private_files.len())
                })?,
            };
            members.spawn_local(member(&args, &group, private_file, port, &mut seen).await?);
        }
        ready();
        while let Some(ended) = members.join_next().await {
            ended??;
        }
        Ok(())
    };
    LocalSet::new().run_until(running).await
}

type Running = Pin<Box<dyn Future<Output = anyhow::Result<()>>>>;

/// One member, ready to run.
async fn member(
    args: &PartyArgs,
    group: &Arc<Group>,
    private_file: &Path,
    port: u16,
    seen: &mut BTreeSet<usize>,
) -> anyhow::Result<Running> {
    let own = Own::load(&args.config_dir, Arc::clone(group), private_file)?;
    let index =
        own.group.client_index(&own.identity.id()).ok_or_else(|| not_a("client", private_file))?;
    ensure!(seen.insert(index), "{} is given twice", private_file.display());
    let slot = own.group.own_slot(&*own.session.pseudonym()?).ok_or_else(|| {
        DcnetError::config("pseudonym.json", "slots", "holds no slot of this member's key")
    })?;
    let listener = bind(&format!("{}:{port}", args.bind)).await?;
    log::info!("client {index}: listening on {}", listener.local_addr()?);
    if args.wire == Wire::Seed {
        store::load_interval(&args.config_dir)?.check_seed(&own.group)?;
        let pads = seed_parties::pads(&*own.session.scalar()?, &own.group.trustee_keys);
        let client = seed_parties::SeedClient { index, slot, pads };
        let group = own.group;
        return Ok(Box::pin(
            async move { seed_parties::run_client(&group, client, listener).await },
        ));
    }
    let pseudonym = own.session.pseudonym()?;
    let keeper = keeper(&own, &args.config_dir);
    let secrets = own.secrets(PartyRef::Client(u16::try_from(index)?))?;
    let slot = u16::try_from(slot)?;
    Ok(Box::pin(client_program::run_client(secrets, slot, pseudonym, listener, keeper)))
}

pub(super) async fn socks5(args: SocksArgs) -> anyhow::Result<()> {
    let listener = listen(&args.listen).await?;
    ready();
    exits::run_socks(listener, args.allow_private).await;
    Ok(())
}

pub(super) async fn echo(args: EchoArgs) -> anyhow::Result<()> {
    let listener = listen(&format!("{}:{}", args.bind, args.port)).await?;
    ready();
    exits::run_echo(listener).await;
    Ok(())
}

#[derive(serde::Serialize)]
struct TestReport {
    requests: usize,
    failed: usize,
    p50_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
}

pub(super) async fn test_client(args: TestClientArgs) -> anyhow::Result<()> {
    let outcome = testing::run(&testing::Plan {
        proxy: format!("{}:{}", args.host, args.port),
        target: args.target,
        rate: args.rate,
        count: args.count,
        bytes: args.bytes,
    })
    .await;
    let report = TestReport {
        requests: outcome.seconds.len() + outcome.failures.len(),
        failed: outcome.failures.len(),
        p50_ms: outcome.quantile_ms(0.5),
        p95_ms: outcome.quantile_ms(0.95),
        p99_ms: outcome.quantile_ms(0.99),
    };
    if args.output.json {
        output::print_json("dcnet.test-client", &report)?;
    } else {
        output::print(format_args!(
            "{} requests, {} failed; p50 {:.2} ms, p95 {:.2} ms, p99 {:.2} ms\n",
            report.requests, report.failed, report.p50_ms, report.p95_ms, report.p99_ms
        ));
    }
    match outcome.failures.first() {
        Some(why) => anyhow::bail!("{} requests failed; the first: {why}", report.failed),
        None => Ok(()),
    }
}

pub(super) async fn supervisor(args: SupervisorArgs) -> anyhow::Result<()> {
    let group = store::load_group(&args.config_dir)?;
    let started = group.system.clients.len().saturating_sub(args.local);
    let wire = match args.wire {
        Wire::Modern => "modern",
        Wire::Seed => "seed",
    };
    let plan = supervising::Plan {
        dir: args.config_dir.clone(),
        trustees: group.system.trustees.iter().map(|entry| entry.id.to_string()).collect(),
        clients: group.system.clients[..started].iter().map(|e| e.id.to_string()).collect(),
        first_client: 0,
        first_port: args.first_port,
        relay: args.relay.then_some(group.system.relay.port),
        exit: args.exit,
        extra: vec!["--wire".into(), wire.into()],
        together: false,
        logs: None,
    };
    let mut parties = supervising::start_all(&plan)?;
    log::info!("started {} processes; Ctrl-C ends them", parties.len());
    for (at, entry) in group.system.clients.iter().enumerate() {
        if at < started {
            log::info!("client {at} listens on port {}", usize::from(args.first_port) + at);
        } else {
            log::info!(
                "left to you: cepa dcnet client --wire {wire} -p PORT {dir} {dir}/{}.json",
                entry.id,
                dir = args.config_dir.display()
            );
        }
    }
    supervising::watch(&mut parties).await
}
