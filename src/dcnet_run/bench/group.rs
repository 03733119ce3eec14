//! The bench's group: its files, its processes, the task that jams.
//!
//! In: a plan. Out: running parties, their status and CPU time. Called by: the bench.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use rand::RngExt;
use tokio::{net::TcpListener, process::Command, time::sleep};

use crate::{
    dcnet::{
        ceremony::{self, Files},
        group::{PARTIES_MAX, Settings},
        identity::Identity,
        member::PartyRef,
        store,
    },
    dcnet_run::{
        exits, jammer,
        party::Secrets,
        status::Status,
        supervisor::{self, Party},
    },
    telemetry::control::{Place, Request, ask, command},
};

use super::Plan;

/// A group and its processes.
pub(super) struct Group {
    dir: PathBuf,
    files: Files,
    plan: Plan,
    /// Local port of client 0; the others count up.
    pub(super) first_port: u16,
    /// The relay, the trustees, the clients.
    pub(super) parties: Vec<Party>,
    /// Told to jam, the last client does.
    pub(super) jam: Arc<AtomicBool>,
}

/// Where parties listen: below the ports that systems give to outgoing connections, of which the
/// parties have one each.
const PORTS: Range<u16> = 10_000..30_000;

/// The first of `count` ports that are free now.
async fn free_ports(count: usize) -> anyhow::Result<u16> {
    let count = u16::try_from(count)?;
    for _ in 0..100 {
        let first = rand::rng().random_range(PORTS.start..PORTS.end - count);
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

impl Group {
    /// Makes the files, starts everybody, and waits for an interval with all.
    pub(super) async fn start(plan: &Plan, dir: &Path) -> anyhow::Result<Self> {
        ensure!(
            plan.honest() > 0,
            "expected a client that does not jam, got {} in all",
            plan.clients
        );
        ensure!(plan.clients <= PARTIES_MAX, "expected at most {PARTIES_MAX} clients");
        // The relay has the one after the clients'.
        let first_port = free_ports(plan.clients + 1).await?;
        let relay_port = first_port + u16::try_from(plan.clients)?;
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
        let mut group = Self {
            dir: dir.to_owned(),
            files,
            plan: plan.clone(),
            first_port,
            parties: Vec::new(),
            jam: Arc::default(),
        };
        group.parties = supervisor::start_all(&supervisor::Plan {
            relay: Some(relay_port),
            exit: exit_address,
            extra: vec!["--far-ms".into(), plan.rtt.as_millis().to_string().into()],
            ..group.supervised()
        })?;
        group.await_status(Duration::from_secs(60), |_| true).await?;
        let ids = |list: &[crate::dcnet::group::PartyEntry]| {
            list.iter().map(|entry| entry.id.to_string()).collect()
        };
        // The last client is a process of its own in any case: it will leave, and come back.
        group.parties.extend(supervisor::start_all(&supervisor::Plan {
            trustees: ids(&group.files.system.trustees),
            clients: ids(&group.files.system.clients[..plan.honest() - 1]),
            together: plan.tasks,
            ..group.supervised()
        })?);
        group.start_last()?;
        if plan.blame {
            group.start_jammer()?;
        }
        let patience = Duration::from_secs(60 + plan.clients as u64);
        group.await_members(plan.clients, patience).await?;
        Ok(group)
    }

    fn supervised(&self) -> supervisor::Plan {
        supervisor::Plan {
            dir: self.dir.clone(),
            trustees: Vec::new(),
            clients: Vec::new(),
            first_client: 0,
            first_port: self.first_port,
            relay: None,
            exit: String::new(),
            extra: Vec::new(),
            together: false,
            logs: Some(self.dir.clone()),
        }
    }

    /// Ends the last process, a client's.
    pub(super) async fn end_last(&mut self) -> anyhow::Result<()> {
        if let Some(mut leaving) = self.parties.pop() {
            leaving.child.kill().await?;
        }
        Ok(())
    }

    /// Starts the last client; its local port.
    pub(super) fn start_last(&mut self) -> anyhow::Result<u16> {
        let at = self.plan.honest() - 1;
        self.parties.extend(supervisor::start_all(&supervisor::Plan {
            clients: vec![self.files.system.clients[at].id.to_string()],
            first_client: at,
            ..self.supervised()
        })?);
        Ok(self.first_port + u16::try_from(at)?)
    }

    /// Stops the last process, or lets it go on, by a signal's name.
    pub(super) async fn signal_last(&self, signal: &str) -> anyhow::Result<()> {
        let id = self.parties.last().and_then(|party| party.child.id()).context("a client")?;
        let script = format!("kill -{signal} {id}");
        let status = Command::new("sh").args(["-c", &script]).status().await?;
        ensure!(status.success(), "`{script}` failed");
        Ok(())
    }

    /// The relay's status.
    pub(super) fn status(&self) -> anyhow::Result<Status> {
        let place = Place::new("dcnet", Some(&self.dir));
        let value = ask(&place, &Request::plain(command::STATUS), Duration::from_secs(10))?;
        Ok(serde_json::from_value(value)?)
    }

    pub(super) async fn await_status(
        &mut self,
        patience: Duration,
        done: impl Fn(&Status) -> bool,
    ) -> anyhow::Result<Status> {
        let end = Instant::now() + patience;
        loop {
            if let Some((party, status)) = supervisor::first_ended(&mut self.parties)? {
                bail!("{} ended ({status}); the last it said: {}", party.name, last_words(party));
            }
            match self.status() {
                Ok(status) if done(&status) => return Ok(status),
                Ok(status) if Instant::now() > end => {
                    bail!("not in time; the last status: {status:?}")
                }
                Err(error) if Instant::now() > end => return Err(error),
                _ => sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Waits for an interval with so many clients.
    pub(super) async fn await_members(
        &mut self,
        count: usize,
        patience: Duration,
    ) -> anyhow::Result<()> {
        let there = |status: &Status| status.interval > 0 && status.members.len() == count;
        self.await_status(patience, there).await.map(drop)
    }

    /// Seconds of CPU each process has used.
    pub(super) fn cpu(&self) -> Vec<f64> {
        self.parties.iter().map(cpu_seconds).collect()
    }

    fn start_jammer(&self) -> anyhow::Result<()> {
        let group = Arc::new(store::load_group(&self.dir)?);
        let at = self.plan.clients - 1;
        let identity = Identity::from_secret(&self.files.parties[at].secret.0);
        let pseudonym = self.files.sessions[at].pseudonym()?;
        let slot = group.own_slot(&pseudonym).context("the jammer has no slot")?;
        let secrets = Secrets {
            me: PartyRef::Client(u16::try_from(at)?),
            identity: Arc::new(identity),
            secret: self.files.sessions[at].scalar()?,
            group,
        };
        let (slot, jam) = (u16::try_from(slot)?, Arc::clone(&self.jam));
        tokio::task::spawn_local(async move {
            if let Err(error) = jammer::run(secrets, slot, pseudonym, jam).await {
                log::info!("the jammer's link ended: {error:#}");
            }
        });
        Ok(())
    }
}

fn last_words(party: &Party) -> String {
    let log = party.log.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
    log.as_deref().and_then(|log| log.lines().last()).unwrap_or("nothing").to_owned()
}

fn cpu_seconds(party: &Party) -> f64 {
    let Some(id) = party.child.id() else { return 0.0 };
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks =
        |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    // utime and stime, in hundredths of a second on every Linux this runs on.
    (ticks(11) + ticks(12)) / 100.0
}
