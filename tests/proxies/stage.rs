//! The network of `cepa rig up`, and a second client on the sender, without privileges.

use std::{
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use cepa::capture::netns::NetNs;

use crate::up::rig_up;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_cepa");
pub(crate) const SOCKS: &str = "127.0.0.1:9050";
pub(crate) const HTTP: &str = "127.0.0.1:9080";
pub(crate) const DNS: &str = "127.0.0.1:5300";
/// A user without any privilege.
const NOBODY: &str = "65534";

/// One network at a time: two cores have enough to do with one.
static ONE: Mutex<()> = Mutex::new(());

/// How the exits of a network let packets out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Exits {
    Kernel,
    Userspace,
}

/// A network that is up; taken down when dropped.
pub(crate) struct Stage {
    id: String,
    dir: PathBuf,
    pub(crate) sender: NetNs,
    pub(crate) receiver: NetNs,
    /// An exit, for what happens without the proxy.
    pub(crate) exit: NetNs,
    client: Option<Child>,
    _one: MutexGuard<'static, ()>,
}

impl Stage {
    /// The network, with a proxy as `more` says; none without the privilege.
    pub(crate) fn up(exits: Exits, more: &[&str]) -> Option<Self> {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let arguments: &[&str] = if exits == Exits::Userspace { &["--userspace"] } else { &[] };
        let (id, dir) = rig_up(PROGRAM, arguments)?;
        let open = |host: &str| {
            NetNs::open(&Path::new("/run/netns").join(format!("cepa-{id}-{host}"))).unwrap()
        };
        let (sender, receiver, exit) = (open("sender"), open("receiver"), open("n4"));
        let mut stage = Self { id, dir, sender, receiver, exit, client: None, _one: one };
        crate::servers::start(&stage);
        stage.client = Some(stage.start_client(more));
        stage.wait_connected();
        Some(stage)
    }

    /// A command that runs on a host.
    pub(crate) fn on(&self, host: &str) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(["rig", "shell", "--run", &self.id, host, "--"]);
        command
    }

    /// The client as a user without privileges: it needs a program and a state directory that this
    /// user can reach.
    fn start_client(&self, more: &[&str]) -> Child {
        let home = std::env::temp_dir().join(format!("cepa-proxies-{}", self.id));
        std::fs::create_dir_all(&home).unwrap();
        let program = home.join("cepa");
        std::fs::copy(PROGRAM, &program).unwrap();
        let state = home.join("state");
        std::fs::create_dir(&state).unwrap();
        let run = |words: &[&str]| {
            assert!(Command::new(words[0]).args(&words[1..]).status().unwrap().success());
        };
        run(&["chmod", "755", home.to_str().unwrap()]);
        run(&["chmod", "700", state.to_str().unwrap()]);
        run(&["chown", NOBODY, state.to_str().unwrap()]);
        let log = std::fs::File::create(self.dir.join("proxy.log")).unwrap();
        self.on("sender")
            .args(["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"])
            .args(["--bounding-set", "-all", "--no-new-privs"])
            .arg(&program)
            .args(["client", "--lab", "--log", "debug", "--controller", &self.link()])
            .arg("--state")
            .arg(&state)
            .args(["--socks", SOCKS, "--http", HTTP, "--dns", DNS])
            .args(more)
            .env("CEPA_CONFIG", "/dev/null")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    fn home(&self) -> PathBuf {
        std::env::temp_dir().join(format!("cepa-proxies-{}", self.id))
    }

    fn link(&self) -> String {
        let output = self
            .on("controller")
            .args([PROGRAM, "controller", "link", "--state"])
            .arg(self.dir.join("controller/state"))
            .env("CEPA_LISTEN", "10.77.0.2:5000")
            .output()
            .unwrap();
        let link = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        assert!(link.starts_with("cepa://"), "{}", String::from_utf8_lossy(&output.stderr));
        link
    }

    /// What the client says of itself.
    pub(crate) fn status(&self) -> serde_json::Value {
        let output = self
            .on("sender")
            .args([PROGRAM, "status", "--json", "--state"])
            .arg(self.home().join("state"))
            .output()
            .unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    fn wait_connected(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let status = self.status().to_string();
            // The spare, too: isolation groups take it.
            if status.contains("\"connected\"") && status.contains("\"spare\"") {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "the client did not connect: {status}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("proxy.log")).unwrap_or_default()
    }

    /// A connection from one host, made without the proxy.
    pub(crate) fn connect(&self, from: &NetNs, to: &str) -> std::io::Result<TcpStream> {
        let to: SocketAddr = to.parse().unwrap();
        from.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5))).unwrap()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(mut client) = self.client.take() {
            let _ = client.kill();
            let _ = client.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("{}", lines[lines.len().saturating_sub(30)..].join("\n"));
        }
        let _ = Command::new(PROGRAM).args(["rig", "down", "--run", &self.id]).output();
        let _ = std::fs::remove_dir_all(&self.dir);
        let _ = std::fs::remove_dir_all(self.home());
    }
}
