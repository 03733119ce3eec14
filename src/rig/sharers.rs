//! `cepa peer` on hosts of the rig: started, told what to share, watched while it gets something.
//!
//! In: hosts, the controller's link. Out: links, downloads with what was seen of them.
//! Called by: the scenario and the measurement of file sharing.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::host::{Daemon, Host};
use crate::telemetry::control::{Place, Request, ask};

/// A download may take so long, and as long as its bytes take at the lowest rate.
const PATIENCE: Duration = Duration::from_secs(120);
/// In bytes a second.
const LOWEST_RATE: u64 = 1 << 20;

/// A peer of one host and one state directory.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    /// Where it runs.
    pub host: &'a Host,
    /// The controller's link.
    pub link: &'a str,
    /// The name of its state directory.
    pub state: &'static str,
    /// Its path; none: it chooses.
    pub path: Option<[&'static str; 3]>,
}

impl Peer<'_> {
    fn dir(&self) -> PathBuf {
        self.host.dir.join(self.state)
    }

    fn words(&self, words: &[&str]) -> Vec<String> {
        let dir = self.dir();
        let mut all = vec!["peer", "--controller", self.link, "--lab", "--log", "debug"];
        let path = self.path.map(|path| path.join(","));
        if let Some(path) = &path {
            all.extend(["--path", path]);
        }
        let dir = dir.to_string_lossy();
        all.extend(["--state", &dir]);
        all.extend(words);
        all.into_iter().map(str::to_owned).collect()
    }

    /// Starts it as a daemon and waits until it answers.
    ///
    /// # Errors
    /// When it does not.
    pub fn serve(&self) -> Result<Daemon> {
        let daemon = self.host.daemon("peer", &self.words(&["--web", "127.0.0.1:0", "serve"]))?;
        wait_for("the peer answers", || self.view().is_ok())
            .with_context(|| daemon.last_words())?;
        Ok(daemon)
    }

    /// Runs one command to its end and returns what it printed.
    ///
    /// # Errors
    /// What it said, if it fails.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let words = self.words(words);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let output = self.host.own(&words)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {}", self.host.name(), said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Everything it says of itself.
    ///
    /// # Errors
    /// When it does not run.
    pub fn view(&self) -> Result<Value> {
        let place = Place::new("peer", Some(&self.dir()));
        Ok(ask(&place, &Request::plain("peer_view"), Duration::from_secs(5))?)
    }

    /// The link of a file that it shares.
    ///
    /// # Errors
    /// When it shares no such file.
    pub fn link_of(&self, name: &str) -> Result<String> {
        let view = self.view()?;
        let shares = view["shares"].as_array().context("expected shares")?;
        let share = shares.iter().find(|share| share["name"] == name);
        let link = share.and_then(|share| share["link"].as_str());
        let who = self.host.name();
        Ok(link.with_context(|| format!("expected {who} to share {name}"))?.to_owned())
    }

    /// The exit of the circuit that its transfers use.
    ///
    /// # Errors
    /// When it has no transfer.
    pub fn exit_in_use(&self) -> Result<String> {
        let view = self.view()?;
        let circuits = view["circuits"].as_array().context("expected circuits")?;
        let used = circuits.iter().find(|circuit| number(circuit, "sessions") > 0);
        let hops = used.and_then(|circuit| circuit["hops"].as_array());
        let exit = hops.and_then(|hops| hops.last()).and_then(Value::as_str);
        Ok(exit.context("expected a circuit with a transfer")?.to_owned())
    }

    /// Waits until the catalogue lists a name with so many sources.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait_listed(&self, name: &str, sources: u64) -> Result<()> {
        wait_for(&format!("{sources} sources of {name} in the catalogue"), || {
            let listed = self.run(&["ls", "--json"]).unwrap_or_default();
            let listed: Value = serde_json::from_str(&listed).unwrap_or_default();
            let mut entries = listed["entries"].as_array().into_iter().flatten();
            entries.any(|entry| entry["name"] == name && entry["sources"] == sources)
        })
    }

    /// Gets a file by name or link; `settings` go before the command, `more` behind it. `look` sees
    /// every line of its progress.
    ///
    /// # Errors
    /// When it says nothing, or takes too long.
    pub fn get(
        &self,
        what: &str,
        settings: &[&str],
        more: &[&str],
        mut look: impl FnMut(&Value) -> Result<()>,
    ) -> Result<Got> {
        let to = self.host.dir.join("files");
        // A file that is there already would get a number.
        let _ = fs::remove_dir_all(&to);
        fs::create_dir_all(&to)?;
        let to = to.to_string_lossy();
        let mut words = settings.to_vec();
        words.extend(["get", what, "--json", "--give-up", "30", "--to", &to]);
        words.extend(more);
        let log = self.host.dir.join("get.log");
        let file = fs::File::options().create(true).append(true).open(&log)?;
        let began = Instant::now();
        let child = self
            .host
            .command(std::env::current_exe()?)?
            .args(self.words(&words))
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()?;
        let mut child = Getting(child);
        let stdout = child.0.stdout.take().context("expected a pipe")?;
        let mut got =
            Got { view: Value::Null, took: Duration::ZERO, longest_pause: Duration::ZERO };
        let (mut have, mut moved) = (0, None);
        for line in BufReader::new(stdout).lines() {
            got.view = serde_json::from_str(&line?).context("reading a line of progress")?;
            let (fetched, now) = (number(&got.view, "fetched"), Instant::now());
            if fetched > have {
                let pause = moved.replace(now).map(|before| now.duration_since(before));
                got.longest_pause = got.longest_pause.max(pause.unwrap_or_default());
                have = fetched;
            }
            look(&got.view)?;
            let patience = PATIENCE + Duration::from_secs(number(&got.view, "size") / LOWEST_RATE);
            ensure!(began.elapsed() < patience, "it took longer than {patience:?}: {}", got.view);
        }
        got.took = began.elapsed();
        if got.view.is_null() {
            let said = fs::read_to_string(&log).unwrap_or_default();
            bail!("the peer said nothing: {}", said.lines().last().unwrap_or_default());
        }
        Ok(got)
    }
}

/// A download that ended.
#[derive(Clone, Debug)]
pub struct Got {
    /// The last line of its progress.
    pub view: Value,
    /// From the start of the program to its end.
    pub took: Duration,
    /// The longest time between two lines, a second apart, between which bytes came.
    pub longest_pause: Duration,
}

impl Got {
    /// Whether it is the file with this hash.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, hash: &blake3::Hash) -> Result<()> {
        let view = &self.view;
        ensure!(view["state"] == "done", "it ended as {}: {}", view["state"], view["reason"]);
        let path = Path::new(view["path"].as_str().context("expected a path")?);
        let mut hasher = blake3::Hasher::new();
        std::io::copy(&mut fs::File::open(path)?, &mut hasher)?;
        let got = hasher.finalize();
        ensure!(got == *hash, "expected BLAKE3 {hash}, got {got}");
        Ok(())
    }

    /// Bytes a second, from the first verified byte to the end.
    pub fn rate(&self) -> f64 {
        let first = Duration::from_millis(number(&self.view, "first_byte_ms"));
        let time = self.took.saturating_sub(first).as_secs_f64().max(0.001);
        number(&self.view, "size") as f64 / time
    }
}

struct Getting(Child);

impl Drop for Getting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A number of a view; zero if there is none.
pub fn number(view: &Value, field: &str) -> u64 {
    view[field].as_u64().unwrap_or(0)
}

/// Waits until something is so.
///
/// # Errors
/// When it is not within half a minute.
pub fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        ensure!(Instant::now() < deadline, "expected within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
