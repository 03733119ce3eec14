//! Commands and tools on a machine, over ssh.
//!
//! In: a line for its shell, or one of the rig's tools. Out: what it printed.
//! Called by: the scenarios of rig::remote.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;

use super::hosts::{Hosts, Machine};
use crate::rig::agent::Tool;

/// How long a command may take. Emulated machines are slow.
const PATIENCE: Duration = Duration::from_secs(120);

/// A tool that runs on a machine until this is dropped.
pub(super) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Machine {
    fn command(&self, hosts: &Hosts, line: &str) -> Command {
        let mut command = Command::new(&hosts.ssh[0]);
        command.args(&hosts.ssh[1..]).args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=30"]);
        if let Some(port) = self.port {
            command.args(["-p", &port.to_string()]);
        }
        command.arg(&self.ssh).arg(line).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a line in the machine's shell and returns what it printed.
    ///
    /// # Errors
    /// What it said, if it failed; or that it took too long.
    pub(super) fn sh(&self, hosts: &Hosts, line: &str) -> Result<String> {
        let mut child = self
            .command(hosts, line)
            .spawn()
            .with_context(|| format!("expected the program {}; install it", hosts.ssh[0]))?;
        let mut stdout = child.stdout.take().context("expected a pipe")?;
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = stdout.read_to_string(&mut text);
            text
        });
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                bail!("{} took longer than {PATIENCE:?} for: {line}", self.name);
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let text = reader.join().unwrap_or_default();
        if !status.success() {
            let mut said = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                let _ = stderr.read_to_string(&mut said);
            }
            bail!("{} on {}: {}", line, self.name, said.trim());
        }
        Ok(text)
    }

    /// Runs a tool and returns its answer.
    ///
    /// # Errors
    /// What the tool said.
    pub(super) fn ask<T: DeserializeOwned>(&self, hosts: &Hosts, tool: &Tool) -> Result<T> {
        let said = self.sh(hosts, &agent(tool)?)?;
        let line = said.lines().last().unwrap_or_default();
        serde_json::from_str(line).with_context(|| format!("reading the answer {line:?}"))
    }

    /// Starts a tool that says when it is ready, and runs until what is returned is dropped.
    ///
    /// # Errors
    /// When it does not come up.
    pub(super) fn start(&self, hosts: &Hosts, tool: &Tool) -> Result<Running> {
        // What runs there does not notice that ssh is gone, but its input ends.
        let line = format!("{} & tool=$!; cat >/dev/null; kill $tool", agent(tool)?);
        let mut child =
            self.command(hosts, &line).stdin(Stdio::piped()).spawn().context("starting ssh")?;
        let stdout = child.stdout.take().context("expected a pipe")?;
        let mut running = Running(child);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        if line.trim() != "ready" {
            let mut said = String::new();
            if let Some(mut stderr) = running.0.stderr.take() {
                let _ = stderr.read_to_string(&mut said);
            }
            bail!("a tool did not start on {}: {}", self.name, said.trim());
        }
        Ok(running)
    }
}

fn agent(tool: &Tool) -> Result<String> {
    let json = serde_json::to_string(tool)?.replace('\'', r"'\''");
    Ok(format!("cepa rig agent '{json}'"))
}
