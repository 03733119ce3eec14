//! Daemons on loopback in a directory of their own.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

#[path = "../ports/mod.rs"]
mod ports;

pub(crate) use ports::free_port;

const PROGRAM: &str = env!("CARGO_BIN_EXE_cepa");
const PATIENCE: Duration = Duration::from_secs(60);

/// What one run came to.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// The binary, without the settings of the machine the test runs on.
pub(crate) fn cepa(words: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CEPA_") {
            command.env_remove(name);
        }
    }
    command.args(words).env("CEPA_CONFIG", "/dev/null").stdin(Stdio::null());
    command
}

pub(crate) fn run(words: &[&str]) -> Ran {
    let output = cepa(words).output().unwrap();
    Ran {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs and checks the exit code, and that standard error has all the needles.
pub(crate) fn fails(words: &[&str], code: i32, needles: &[&str]) {
    let ran = run(words);
    assert_eq!(ran.code, Some(code), "{words:?}: {} {}", ran.out, ran.err);
    for needle in needles {
        assert!(ran.err.contains(needle), "{words:?}: {needle:?} is not in {}", ran.err);
    }
}

/// A daemon; it is killed when dropped.
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    pub(crate) fn start(words: &[&str], log: PathBuf) -> Self {
        let file = fs::File::create(&log).unwrap();
        let child = cepa(words).stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        Self { child, log }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Asks it to end, and waits.
    pub(crate) fn stop(mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(&pid).status().unwrap().success());
        assert!(self.child.wait().unwrap().success(), "{}", self.log());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory, a controller if it was started, and what is known of it.
pub(crate) struct Stage {
    pub(crate) folder: TempDir,
    pub(crate) link: String,
    pub(crate) controller: Option<Daemon>,
    address: String,
}

impl Stage {
    /// A controller with a key, not running.
    pub(crate) fn without_controller() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        let mut stage = Self { folder, link: String::new(), controller: None, address };
        stage.start_controller(&[]);
        stage.controller = None;
        stage
    }

    pub(crate) fn new() -> Self {
        let mut stage = Self::without_controller();
        stage.start_controller(&[]);
        stage
    }

    pub(crate) fn start_controller(&mut self, more: &[&str]) {
        let dir = self.path("controller");
        let mut words = vec!["controller", "--listen", &self.address, "--state", &dir];
        words.extend(more);
        let daemon = Daemon::start(&words, self.folder.path().join("controller.log"));
        let deadline = Instant::now() + PATIENCE;
        while run(&["status", "--state", &dir]).code != Some(0) {
            assert!(Instant::now() < deadline, "{}", daemon.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        self.controller = Some(daemon);
        self.link = self.ask_controller(&["link"]);
    }

    pub(crate) fn ask_controller(&self, words: &[&str]) -> String {
        let mut all = vec!["controller"];
        all.extend(words);
        let dir = self.path("controller");
        all.extend(["--state", &dir]);
        let output = cepa(&all).env("CEPA_LISTEN", &self.address).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// The path of something in the directory, as an argument.
    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// A node `name` with its state in a directory of that name.
    pub(crate) fn start_node(&self, name: &str, more: &[&str]) -> Daemon {
        let dir = self.path(name);
        let listen = format!("127.0.0.1:{}", free_port());
        let mut words = vec!["node", "--controller", &self.link, "--name", name];
        words.extend(["--state", &dir, "--listen", &listen]);
        words.extend(more);
        Daemon::start(&words, self.folder.path().join(format!("{name}.log")))
    }

    /// The status of the daemon with this state, once it answers and `fits`.
    pub(crate) fn status(&self, name: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let dir = self.path(name);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ran = run(&["status", "--state", &dir, "--json"]);
            if let Ok(status) = serde_json::from_str::<Value>(&ran.out) {
                let one = one_daemon(&status);
                if ran.code == Some(0) && fits(one) {
                    return one.clone();
                }
            }
            let log = fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default();
            assert!(Instant::now() < deadline, "{name}: {} {}\n{log}", ran.out, ran.err);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The answer of the one daemon that was asked.
fn one_daemon(status: &Value) -> &Value {
    status["daemons"].get(0).unwrap_or(status)
}

pub(crate) fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

pub(crate) fn chmod(path: &str, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}
