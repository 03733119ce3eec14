//! What a service manager sees of the real daemons: readiness, and a watchdog that a loop feeds
//! only while it turns.
//!
//! strace holds single threads at the call they wait in, which is what a hung loop looks like from
//! outside. Without strace, or the privilege to use it, the test says so and passes.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    fs, io,
    os::unix::net::UnixDatagram,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// What systemd sets as `WatchdogSec=`.
const PERIOD: Duration = Duration::from_secs(2);

/// A daemon, and the socket it believes to be systemd's.
struct Watched {
    child: Child,
    socket: UnixDatagram,
    _folder: tempfile::TempDir,
}

impl Watched {
    fn start(words: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_cepa"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CEPA_") {
                command.env_remove(name);
            }
        }
        let child = command
            .args(words)
            .args(["--state", folder.path().join("state").to_str().unwrap()])
            .env("CEPA_CONFIG", "/dev/null")
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", PERIOD.as_micros().to_string())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, socket, _folder: folder }
    }

    /// Everything it says for so long.
    fn listen(&self, time: Duration) -> Vec<String> {
        let end = Instant::now() + time;
        let mut said = Vec::new();
        let mut buffer = [0; 4096];
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) {
            self.socket.set_read_timeout(Some(left)).unwrap();
            match self.socket.recv(&mut buffer) {
                Ok(length) => said
                    .extend(String::from_utf8_lossy(&buffer[..length]).lines().map(str::to_owned)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
        }
        said
    }

    /// Waits until it says `word`; the time is for a machine that does much else.
    fn says(&self, word: &str) {
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end {
            if self.listen(Duration::from_millis(100)).iter().any(|line| line == word) {
                return;
            }
        }
        panic!("it did not say {word}");
    }

    /// The thread of this name.
    fn thread(&self, name: &str) -> String {
        let tasks = format!("/proc/{}/task", self.child.id());
        let thread = fs::read_dir(tasks).unwrap().flatten().find(|task| {
            fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
        });
        thread.unwrap().file_name().into_string().unwrap()
    }

    /// Lets one thread wait for far longer than it asked for, until what is returned is dropped.
    fn hold(&self, thread: &str) -> Held {
        let waits = "epoll_wait,epoll_pwait,epoll_pwait2";
        let strace = Command::new("strace")
            .args(["-qq", "-o", "/dev/null", "-e", &format!("trace={waits}")])
            .args(["-e", &format!("inject={waits}:delay_enter=60s"), "-p", &self.thread(thread)])
            .spawn()
            .unwrap();
        Held(strace)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn fed(said: &[String]) -> usize {
    said.iter().filter(|line| *line == "WATCHDOG=1").count()
}

fn strace_works() -> bool {
    let possible = Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).status();
    possible.is_ok_and(|status| status.success())
}

/// A node whose controller is not there: it is ready all the same, and keeps asking.
const NODE: [&str; 7] = [
    "node",
    "--name=otter",
    "--listen=127.0.0.1:0",
    "--log=error",
    "--lab",
    "--controller",
    "cepa://127.0.0.1:9/6f1ed002ab5595859014ebf0951522d96f1ed002ab5595859014ebf0951522d9",
];

#[test]
fn a_node_that_hangs_starves_the_watchdog() {
    if !strace_works() {
        eprintln!("SKIPPED: no strace, or not allowed to use it; install strace");
        return;
    }
    for thread in ["data", "tokio-rt-worker"] {
        let node = Watched::start(&NODE);
        node.says("READY=1");
        node.says("WATCHDOG=1");
        let held = node.hold(thread);
        // What was on its way, and one more turn until strace has the thread.
        node.listen(PERIOD * 2);
        let said = node.listen(PERIOD);
        assert_eq!(fed(&said), 0, "{thread} hangs, and yet: {said:?}");
        assert!(Path::new(&format!("/proc/{}", node.child.id())).exists());
        drop(held);
    }
}

#[test]
fn a_controller_is_ready_feeds_the_watchdog_and_says_when_it_ends() {
    let mut controller = Watched::start(&["controller", "--listen=127.0.0.1:0", "--log=error"]);
    controller.says("READY=1");
    for _ in 0..3 {
        controller.says("WATCHDOG=1");
    }
    let killed = Command::new("kill").arg(controller.child.id().to_string()).status().unwrap();
    assert!(killed.success());
    controller.says("STOPPING=1");
    assert!(controller.child.wait().unwrap().success());
}
