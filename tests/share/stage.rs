//! The rig with a tracker, and peers on its hosts.

use std::{
    fs::File,
    path::PathBuf,
    process::{Child, Command, Output},
    time::{Duration, Instant},
};

use cepa::{
    capture::netns::NetNs,
    model::Carrier,
    node::{ShareEvent, ShareNet, ShareSettings},
};
use tokio::sync::mpsc;

use crate::up::rig_up;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_cepa");
/// Where the tracker runs: a host of the rig that is no member.
pub(crate) const TRACKER: &str = "stranger";
pub(crate) const TRACKER_ADDR: &str = "10.77.0.66:5000";

/// The whole network with a tracker; taken down when dropped.
pub(crate) struct Stage {
    id: String,
    pub(crate) dir: PathBuf,
    pub(crate) link: String,
    tracker: Option<Child>,
    pub(crate) carrier: Carrier,
}

impl Stage {
    pub(crate) fn up() -> Option<Self> {
        let (id, dir) = rig_up(PROGRAM, &[])?;
        let mut stage = Self { id, dir, link: String::new(), tracker: None, carrier: Carrier::Udp };
        stage.link = stage.controller(&["link"]);
        let token = stage.controller(&["token", "new", "--role", "tracker"]);
        stage.start_tracker(Some(&token));
        stage.wait_tracker(true);
        Some(stage)
    }

    fn controller(&self, words: &[&str]) -> String {
        let state = self.dir.join("controller/state");
        let output = self
            .on("controller")
            .args([PROGRAM, "controller"])
            .args(words)
            .arg("--state")
            .arg(state)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A command on a host.
    pub(crate) fn on(&self, host: &str) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(["rig", "shell", "--run", &self.id, host, "--"]);
        command.env("CEPA_CONFIG", "/dev/null");
        command
    }

    pub(crate) fn tracker_state(&self) -> PathBuf {
        self.dir.join(TRACKER).join("tracker-state")
    }

    pub(crate) fn start_tracker(&mut self, token: Option<&str>) {
        let log = self.dir.join(TRACKER).join("tracker.log");
        let log = File::options().create(true).append(true).open(log).unwrap();
        let mut command = self.on(TRACKER);
        command
            .args([PROGRAM, "tracker", "--controller", &self.link, "--name", "beaver"])
            .args(["--listen", TRACKER_ADDR, "--log", "debug", "--state"])
            .arg(self.tracker_state());
        if let Some(token) = token {
            command.args(["--join", token]);
        }
        self.tracker = Some(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
    }

    /// Ends the tracker with SIGKILL.
    pub(crate) fn kill_tracker(&mut self) {
        let mut tracker = self.tracker.take().unwrap();
        tracker.kill().unwrap();
        tracker.wait().unwrap();
    }

    /// Waits until the controller lists the tracker, or no longer does.
    pub(crate) fn wait_tracker(&mut self, listed: bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let output = self
                .on(TRACKER)
                .args([PROGRAM, "nodes", "--controller", &self.link, "--json"])
                .output()
                .unwrap();
            if String::from_utf8_lossy(&output.stdout).contains("beaver") == listed {
                return;
            }
            let ended = self.tracker.as_mut().and_then(|tracker| tracker.try_wait().unwrap());
            assert!(
                Instant::now() < deadline && (ended.is_none() || !listed),
                "{}\n{}",
                self.log(TRACKER, "tracker"),
                words(&output)
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub(crate) fn log(&self, host: &str, name: &str) -> String {
        std::fs::read_to_string(self.dir.join(host).join(format!("{name}.log"))).unwrap_or_default()
    }

    /// What peers need of the stage, while it is changed.
    pub(crate) fn handle(&self) -> Handle {
        Handle {
            id: self.id.clone(),
            dir: self.dir.clone(),
            link: self.link.clone(),
            carrier: self.carrier,
        }
    }

    /// Runs `work` on a host with a peer that has started.
    pub(crate) fn peer<F: Future<Output = T>, T: Send>(
        &self,
        host: &str,
        name: &str,
        path: &[&str],
        work: impl FnOnce(ShareNet, mpsc::Receiver<ShareEvent>) -> F + Send,
    ) -> T {
        self.handle().peer(host, name, path, work)
    }

    /// Waits until the tracker answers posts.
    pub(crate) fn wait_answering(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let posted = || {
            self.on(TRACKER)
                .args(["curl", "-s", "-o", "/dev/null", "-m", "2", "--data-binary", "{}"])
                .arg(format!("http://{TRACKER_ADDR}/"))
                .status()
                .unwrap()
                .success()
        };
        while !posted() {
            assert!(Instant::now() < deadline, "{}", self.log(TRACKER, "tracker"));
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// What peers need of a stage.
pub(crate) struct Handle {
    id: String,
    dir: PathBuf,
    link: String,
    carrier: Carrier,
}

impl Handle {
    /// Runs `work` on a host with a peer that has started.
    pub(crate) fn peer<F: Future<Output = T>, T: Send>(
        &self,
        host: &str,
        name: &str,
        path: &[&str],
        work: impl FnOnce(ShareNet, mpsc::Receiver<ShareEvent>) -> F + Send,
    ) -> T {
        let settings = ShareSettings {
            link: self.link.parse().unwrap(),
            state: self.dir.join(host).join(format!("peer-{name}")),
            listen: None,
            hops: 3,
            path: path.iter().map(|name| (*name).to_owned()).collect(),
            lab: true,
            rotate_every: Duration::from_secs(600),
            tracker: None,
            carrier: self.carrier,
            suites: Vec::new(),
            workers: 2,
        };
        let netns =
            NetNs::open(&PathBuf::from(format!("/run/netns/cepa-{}-{host}", self.id))).unwrap();
        netns
            .run(|| {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(2)
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    let (net, events) = ShareNet::start(settings).await.unwrap();
                    work(net, events).await
                })
            })
            .unwrap()
    }
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(mut tracker) = self.tracker.take() {
            let _ = tracker.kill();
            let _ = tracker.wait();
        }
        let _ = Command::new(PROGRAM).args(["rig", "down", "--run", &self.id]).output();
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}
