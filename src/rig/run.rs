//! One run of the rig: its name, its directory, and what must go when it ends, however it ends.
//!
//! In: the process that runs it. Out: namespaces named after it, removed again.
//! Called by: rig::network, the guardian, `cepa rig down`.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::capture::process;

/// The file in a run's directory that says who it belongs to.
const RECORD: &str = "run.json";
/// Said when a namespace is not there any more.
pub const GONE: &str = "expected a running rig; start one with: cepa rig up";

/// A run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// Four hexadecimal digits.
    pub id: String,
    /// Its directory: captures, logs, state of the daemons.
    pub dir: PathBuf,
    /// The process that runs it.
    pub pid: u32,
    /// When that started.
    pub started: u64,
    /// Its user and mount namespaces are its own (started without root).
    pub rootless: bool,
    /// The hosts that are up, for `cepa rig shell`.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Hosts whose daemons are another build of this program, and where that is.
    #[serde(default)]
    pub programs: BTreeMap<String, PathBuf>,
}

impl Run {
    /// A run of this process, after cleaning up behind runs whose process is gone.
    ///
    /// # Errors
    /// When its directory cannot be made.
    pub fn begin() -> Result<Self> {
        sweep()?;
        let base = base()?;
        let id = format!("{:04x}", rand::random::<u16>());
        let dir = base.join(&id);
        private_dir(&dir)?;
        let pid = std::process::id();
        let run = Self {
            id,
            dir,
            pid,
            started: process::started(pid).context("reading this process's start")?,
            rootless: std::env::var_os(super::rootless::MARK).is_some(),
            hosts: Vec::new(),
            programs: BTreeMap::new(),
        };
        run.save()?;
        Ok(run)
    }

    /// Writes the record.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn save(&self) -> Result<()> {
        fs::write(self.dir.join(RECORD), serde_json::to_vec(self)?)
            .context("writing the run's record")
    }

    /// Reads a record.
    ///
    /// # Errors
    /// When it is not one.
    pub fn load(dir: &Path) -> Result<Self> {
        let bytes = fs::read(dir.join(RECORD))?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Runs that have a record, running or not.
    ///
    /// # Errors
    /// When the directory of runs cannot be read.
    pub fn all() -> Result<Vec<Self>> {
        let mut runs: Vec<Self> = fs::read_dir(base()?)?
            .flatten()
            .filter_map(|entry| Self::load(&entry.path()).ok())
            .collect();
        runs.sort_by_key(|run| run.started);
        Ok(runs)
    }

    /// Whether its process still runs.
    pub fn is_alive(&self) -> bool {
        process::started(self.pid).is_ok_and(|started| started == self.started)
    }

    /// The namespace of a host.
    pub fn namespace(&self, host: &str) -> String {
        format!("cepa-{}-{host}", self.id)
    }

    /// The directory of a host.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn host_dir(&self, host: &str) -> Result<PathBuf> {
        let dir = self.dir.join(host);
        private_dir(&dir)?;
        Ok(dir)
    }

    /// Ends what runs in the run's namespaces, removes them and the record. Captures and logs stay.
    pub fn clean(&self) {
        let prefix = self.namespace("");
        for namespace in namespaces().into_iter().filter(|name| name.starts_with(&prefix)) {
            for pid in pids(&namespace) {
                let _ = process::kill(pid);
            }
            // A namespace lives as long as its processes, which take a moment to go.
            for _ in 0..50 {
                if pids(&namespace).is_empty() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = ip(&["netns", "delete", &namespace]);
        }
        let _ = fs::remove_file(self.dir.join(RECORD));
    }
}

/// Cleans up behind runs whose process was killed.
///
/// # Errors
/// When the directory of runs cannot be read.
pub fn sweep() -> Result<()> {
    for run in Run::all()?.into_iter().filter(|run| !run.is_alive()) {
        run.clean();
    }
    Ok(())
}

/// Where runs are: a directory of this user's alone.
fn base() -> Result<PathBuf> {
    let dir = std::env::temp_dir().join(format!("cepa-rig-{}", process::real_user()));
    private_dir(&dir)?;
    let owner = fs::symlink_metadata(&dir)?;
    if !owner.is_dir() || owner.mode() & 0o022 != 0 {
        bail!("expected {} to be a directory only you can write to; remove it", dir.display());
    }
    Ok(dir)
}

fn private_dir(dir: &Path) -> Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("making {}", dir.display()))
        }
        _ => Ok(()),
    }
}

fn namespaces() -> Vec<String> {
    fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn pids(namespace: &str) -> Vec<u32> {
    let Ok(output) =
        Command::new("ip").args(["netns", "pids", namespace]).stderr(Stdio::null()).output()
    else {
        return Vec::new();
    };
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.trim().parse().ok())
        .collect()
}

/// Runs `ip` with these words.
///
/// # Errors
/// What it says.
pub fn ip(words: &[&str]) -> Result<String> {
    tool("ip", words, "")
}

/// Runs a program of the system with these words and this input.
///
/// # Errors
/// What it says.
pub fn tool(program: &str, words: &[&str], input: &str) -> Result<String> {
    use std::io::Write;
    let mut child = Command::new(program)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| {
            format!("expected the program {program}; install it (Debian: iproute2, nftables)")
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).with_context(|| format!("writing to {program}"))?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}", words.join(" "), said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
