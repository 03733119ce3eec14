//! A rig that stays up to be played with, and a way into its hosts.
//!
//! In: `up`, `shell HOST`, `down`. Out: a process that holds the network, a shell in a host.
//! Called by: `cepa rig`.

use std::{
    ffi::OsString,
    io::{BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{
    daemons::{Daemons, Extra},
    network::Network,
    options::NetworkOptions,
    plan::{NODES, Plan},
    rootless,
    run::{self, Run},
};
use crate::capture::process;

/// Starts a process that holds a network, waits until everything in it runs, and returns the run.
///
/// # Errors
/// What that process says.
pub fn up(arguments: &[OsString]) -> Result<Run> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["rig", "hold"])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    let stdout = child.stdout.take().context("expected a pipe")?;
    BufReader::new(stdout).read_line(&mut line)?;
    match line.trim().strip_prefix("ready ") {
        Some(dir) => Run::load(Path::new(dir)),
        None => {
            let mut said = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                let _ = stderr.read_to_string(&mut said);
            }
            let _ = child.wait();
            bail!("{}", said.trim().trim_start_matches("cepa: "))
        }
    }
}

/// Holds a network until this process is ended; `ready` is told where it is.
///
/// # Errors
/// When it cannot be brought up.
pub fn hold(
    options: &NetworkOptions,
    bare: bool,
    ready: impl FnOnce(&Run) -> Result<()>,
) -> Result<()> {
    rootless::ensure_privilege()?;
    process::leave_terminal();
    let run = Run::begin()?;
    let network = Network::up(run, Plan::full(), &options.links)?;
    let _daemons = if bare {
        None
    } else {
        let mut daemons = Daemons::default();
        let extra = Extra { userspace: options.userspace, ..Extra::default() };
        daemons.start_all(&network, &NODES, &extra)?;
        daemons.start_client(&network, &["--hops", &options.hops.to_string()])?;
        daemons.wait_connected(&network, Duration::from_secs(30))?;
        Some(daemons)
    };
    ready(&network.run)?;
    loop {
        std::thread::park();
    }
}

/// The run of this name that is up, or the only one.
///
/// # Errors
/// When there is none, or several and no name.
pub fn find(id: Option<&str>) -> Result<Run> {
    let wanted = |run: &Run| id.is_none_or(|id| run.id == id);
    let mut up: Vec<Run> = Run::all()?
        .into_iter()
        .filter(|run| run.is_alive() && !run.hosts.is_empty() && wanted(run))
        .collect();
    if up.len() > 1 {
        let ids: Vec<&str> = up.iter().map(|run| run.id.as_str()).collect();
        bail!(
            "expected to be told which network, got several that are up: --run {}",
            ids.join(" or --run ")
        );
    }
    up.pop().context(run::GONE)
}

/// Becomes a program in a host of a run; a shell if none is named.
///
/// # Errors
/// When there is no such host.
pub fn shell(run: &Run, host: &str, program: &[OsString]) -> Result<()> {
    if !run.hosts.iter().any(|name| name == host) {
        bail!("expected one of {}, got {host:?}", run.hosts.join(", "));
    }
    let own = std::env::current_exe()?;
    let mut words: Vec<OsString> = Vec::new();
    if run.rootless {
        let target = run.pid.to_string();
        words.extend(
            [
                "nsenter",
                "--target",
                &target,
                "--user",
                "--mount",
                "--net",
                "--preserve-credentials",
            ]
            .map(OsString::from),
        );
    }
    words.push(own.clone().into());
    words.extend(["rig", "inside"].map(OsString::from));
    words.push(Path::new("/run/netns").join(run.namespace(host)).into());
    words.extend([host, "--"].map(OsString::from));
    if program.is_empty() {
        words.push(std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into()));
    } else {
        words.extend(program.iter().cloned());
    }
    let mut search = OsString::from(own.parent().context("expected a directory")?);
    search.push(":");
    search.push(std::env::var_os("PATH").unwrap_or_default());
    let error = Command::new(&words[0])
        .args(&words[1..])
        // `cepa status` in the shell asks the daemon of this host, and finds this very program.
        .env("CEPA_STATE", run.dir.join(host).join("state"))
        .env("PATH", search)
        .env("PS1", format!("{host}# "))
        .exec();
    Err(error).context("entering the host")
}

/// Ends a run and waits until nothing of it is left.
///
/// # Errors
/// When it does not end.
pub fn down(run: &Run) -> Result<()> {
    process::terminate(run.pid).context("ending the rig's process")?;
    for _ in 0..500 {
        if Run::load(&run.dir).is_err() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("expected the rig {} to be gone, got its record still in {}", run.id, run.dir.display())
}
