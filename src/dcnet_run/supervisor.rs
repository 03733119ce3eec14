//! Starts the parties of one machine and watches them.
//!
//! In: a configuration directory, how many clients to leave to be started by hand. Out: child
//! processes, ended with the supervisor: one per party, or one for all clients.
//! Called by: `cepa dcnet supervisor`, the bench.

use std::{
    ffi::OsString,
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    slice,
};

use anyhow::{Context, bail};
use tokio::process::{Child, Command};

/// What to start.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The configuration directory.
    pub dir: PathBuf,
    /// Ids of the trustees to start.
    pub trustees: Vec<String>,
    /// Ids of the clients to start; their ports count up.
    pub clients: Vec<String>,
    /// The number of the first of them in the group.
    pub first_client: usize,
    /// The local port of client 0.
    pub first_port: u16,
    /// Whether the relay is started as well, and on which port.
    pub relay: Option<u16>,
    /// The exit the relay connects to.
    pub exit: String,
    /// Arguments for every party, such as `--wire seed`.
    pub extra: Vec<OsString>,
    /// Whether the clients share one process.
    pub together: bool,
    /// Where their logs go instead of this program's own: a file of this directory each.
    pub logs: Option<PathBuf>,
}

/// The variable that tells a party to end when its standard input does.
const SUPERVISED: &str = "CEPA_DCNET_SUPERVISED";

/// Ends this process with its supervisor, even one that was killed: the pipe to it breaks.
pub fn end_with_supervisor() {
    if std::env::var_os(SUPERVISED).is_none() {
        return;
    }
    std::thread::spawn(|| {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        std::process::exit(0);
    });
}

/// A started party.
pub struct Party {
    /// As a person would name it.
    pub name: String,
    /// Its process; killed when dropped.
    pub child: Child,
    /// Its log, if it has a file of its own.
    pub log: Option<PathBuf>,
}

fn start(
    program: &Path,
    name: String,
    arguments: Vec<OsString>,
    logs: Option<&Path>,
) -> anyhow::Result<Party> {
    let log = logs.map(|dir| dir.join(format!("{name}.log")));
    let stderr = match &log {
        Some(path) => File::create(path).with_context(|| format!("{}", path.display()))?.into(),
        None => Stdio::inherit(),
    };
    let child = Command::new(program)
        .args(&arguments)
        .env(SUPERVISED, "1")
        .stdin(Stdio::piped())
        .stderr(stderr)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("starting {name}"))?;
    Ok(Party { name, child, log })
}

/// Starts every party of the plan with this very program.
///
/// # Errors
/// When a process cannot be started.
pub fn start_all(plan: &Plan) -> anyhow::Result<Vec<Party>> {
    let program = std::env::current_exe().context("finding this program")?;
    let mut parties = Vec::new();
    let party_args = |role: &str, port: u16, ids: &[String]| {
        let mut arguments: Vec<OsString> =
            vec!["dcnet".into(), role.into(), "-p".into(), port.to_string().into()];
        arguments.push(plan.dir.clone().into());
        arguments.extend(ids.iter().map(|id| plan.dir.join(format!("{id}.json")).into()));
        arguments.extend(plan.extra.iter().cloned());
        arguments
    };
    if let Some(port) = plan.relay {
        let mut arguments: Vec<OsString> = vec!["dcnet".into(), "relay".into(), "-p".into()];
        arguments.push(port.to_string().into());
        arguments.push(plan.dir.clone().into());
        arguments.extend(["--exit".into(), OsString::from(&plan.exit)]);
        arguments.extend(plan.extra.iter().cloned());
        parties.push(start(&program, "relay".into(), arguments, plan.logs.as_deref())?);
    }
    for (at, id) in plan.trustees.iter().enumerate() {
        let arguments = party_args("trustee", 0, slice::from_ref(id));
        parties.push(start(&program, format!("trustee {at}"), arguments, plan.logs.as_deref())?);
    }
    let each = if plan.together { plan.clients.len().max(1) } else { 1 };
    let mut at = plan.first_client;
    for ids in plan.clients.chunks(each) {
        let name = match ids.len() {
            1 => format!("client {at}"),
            several => format!("clients {at} to {}", at + several - 1),
        };
        let arguments =
            party_args("client", u16::try_from(usize::from(plan.first_port) + at)?, ids);
        parties.push(start(&program, name, arguments, plan.logs.as_deref())?);
        at += ids.len();
    }
    Ok(parties)
}

/// A party that has ended, if any has, and how.
///
/// # Errors
/// When the system does not know the process.
pub fn first_ended(parties: &mut [Party]) -> io::Result<Option<(&Party, ExitStatus)>> {
    for party in parties {
        if let Some(status) = party.child.try_wait()? {
            return Ok(Some((party, status)));
        }
    }
    Ok(None)
}

/// Waits until a party ends, which is an error, or until the person ends it.
///
/// # Errors
/// Names the party that ended.
pub async fn watch(parties: &mut [Party]) -> anyhow::Result<()> {
    loop {
        if let Some((party, status)) = first_ended(parties)? {
            bail!("{} ended ({status}); its log above says why", party.name);
        }
        tokio::select! {
            () = tokio::time::sleep(std::time::Duration::from_millis(200)) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}
