//! A host of the rig: a namespace with a name, and programs that run in it.
//!
//! In: commands. Out: running processes, answers of agents. Called by: the scenarios.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;

use super::{
    agent::Tool,
    plan::HostPlan,
    run::{self, Run},
};
use crate::capture::{netns::NetNs, process};

/// A host.
#[derive(Debug)]
pub struct Host {
    /// Its place in the plan.
    pub plan: HostPlan,
    /// The name of its namespace.
    pub namespace: String,
    /// Its directory.
    pub dir: PathBuf,
    /// Its namespace.
    pub netns: NetNs,
    /// What its daemons run, if it is not this program.
    program: Option<PathBuf>,
}

impl Host {
    /// Makes the namespace, with nothing plugged in.
    ///
    /// # Errors
    /// Without the privilege.
    pub fn new(run: &Run, plan: &HostPlan) -> Result<Self> {
        let namespace = run.namespace(plan.name);
        run::ip(&["netns", "add", &namespace])?;
        let netns = NetNs::open(&Path::new("/run/netns").join(&namespace))?;
        let host = Self {
            plan: plan.clone(),
            namespace,
            dir: run.host_dir(plan.name)?,
            netns,
            program: run.programs.get(plan.name).cloned(),
        };
        host.ip("link set dev lo up")?;
        Ok(host)
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.plan.name
    }

    /// Runs `ip` inside with these words.
    ///
    /// # Errors
    /// What it says.
    pub fn ip(&self, words: &str) -> Result<String> {
        let mut all = vec!["-n", &self.namespace];
        all.extend(words.split_whitespace());
        run::ip(&all)
    }

    /// Sets a kernel setting inside, named by its path below `/proc/sys/`.
    ///
    /// # Errors
    /// When the kernel does not have it.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        self.netns
            .run(|| std::fs::write(Path::new("/proc/sys").join(name), value))?
            .with_context(|| format!("setting {name} on {}", self.name()))
    }

    /// A command that will run inside.
    ///
    /// # Errors
    /// When this program's file is gone.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let mut command = Command::new(own_program()?);
        command
            .args(["rig", "inside"])
            .arg(Path::new("/run/netns").join(&self.namespace))
            .args([self.name(), "--"])
            .arg(program)
            // A daemon of the rig must not take settings of the machine it runs on.
            .env("CEPA_CONFIG", "/dev/null")
            .current_dir(&self.dir)
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Starts a role of this program, whose log goes to `NAME.log` in the host's directory.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn daemon(&self, name: &str, arguments: &[String]) -> Result<Daemon> {
        self.daemon_with(name, &[], arguments)
    }

    /// The same, started by another program that becomes it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn daemon_with(
        &self,
        name: &str,
        before: &[String],
        arguments: &[String],
    ) -> Result<Daemon> {
        let own = self.program.clone().map_or_else(own_program, Ok)?;
        let mut words: Vec<std::ffi::OsString> = before.iter().map(Into::into).collect();
        words.push(own.into());
        words.extend(arguments.iter().map(Into::into));
        self.program(name, &words[0], &words[1..])
    }

    /// Starts any program, whose output goes to `NAME.log` in the host's directory.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn program(
        &self,
        name: &str,
        program: impl AsRef<std::ffi::OsStr>,
        arguments: &[impl AsRef<std::ffi::OsStr>],
    ) -> Result<Daemon> {
        let log = self.dir.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log)?;
        let child = self
            .command(program)?
            .args(arguments)
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {name} on {}", self.name()))?;
        Ok(Daemon { host: self.name(), name: name.to_owned(), child, log })
    }

    /// Runs a program inside and returns what it printed.
    ///
    /// # Errors
    /// What it said, if it fails.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output =
            self.command(program)?.args(arguments).output().with_context(|| program.to_owned())?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{program} {} on {}: {}", arguments.join(" "), self.name(), said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs this program inside and returns how it ended, and what it said.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn own(&self, arguments: &[&str]) -> Result<std::process::Output> {
        self.command(own_program()?)?.args(arguments).output().context("running cepa")
    }

    /// Runs a tool inside and waits for its answer.
    ///
    /// # Errors
    /// What the tool says, or that it took longer than `patience`.
    pub fn ask<T: DeserializeOwned>(&self, tool: &Tool, patience: Duration) -> Result<T> {
        self.start(tool)?.answer(patience)
    }

    /// Starts a tool inside.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, tool: &Tool) -> Result<Agent> {
        let mut child = self
            .command(own_program()?)?
            .args(["rig", "agent", &serde_json::to_string(tool)?])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let stdout = BufReader::new(child.stdout.take().context("expected a pipe")?);
        Ok(Agent { host: self.name(), child, stdout })
    }
}

fn own_program() -> Result<PathBuf> {
    std::env::current_exe().context("finding this program's file")
}

/// A daemon of the product, running on a host; it is killed when this is dropped.
#[derive(Debug)]
pub struct Daemon {
    /// Where it runs.
    pub host: &'static str,
    /// What it was started as.
    pub name: String,
    child: Child,
    /// Where its log goes.
    pub log: PathBuf,
}

impl Daemon {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends it with SIGKILL.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end and waits; says whether it did so by itself and in time.
    pub fn stop(mut self) -> bool {
        if process::terminate(self.pid()).is_err() {
            return false;
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(Some(status)) => return status.success(),
                Ok(None) => std::thread::sleep(Duration::from_millis(20)),
                Err(_) => return false,
            }
        }
        false
    }

    /// The end of its log, for error messages.
    pub fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A tool of the rig, running on a host; it is killed when this is dropped.
#[derive(Debug)]
pub struct Agent {
    host: &'static str,
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Agent {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the line that says it is ready.
    ///
    /// # Errors
    /// When it ends instead.
    pub fn ready(&mut self) -> Result<()> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        if line.trim() == "ready" { Ok(()) } else { Err(self.failure()) }
    }

    /// Waits for its answer.
    ///
    /// # Errors
    /// What it says instead, or that it took longer than `patience`.
    pub fn answer<T: DeserializeOwned>(mut self, patience: Duration) -> Result<T> {
        let deadline = Instant::now() + patience;
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => break,
                Some(_) => return Err(self.failure()),
                None if Instant::now() > deadline => {
                    bail!("a tool on {} took longer than {patience:?}", self.host)
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        let mut text = String::new();
        self.stdout.read_to_string(&mut text)?;
        let line = text.lines().last().unwrap_or_default();
        serde_json::from_str(line).with_context(|| format!("reading the answer {line:?}"))
    }

    fn failure(&mut self) -> anyhow::Error {
        let mut said = String::new();
        let _ = self.child.kill();
        if let Some(mut stderr) = self.child.stderr.take() {
            let _ = stderr.read_to_string(&mut said);
        }
        anyhow::anyhow!("{} on {}", said.trim().trim_start_matches("cepa: "), self.host)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
