//! The rig's network and tools, without daemons: the real program, real namespaces.
//!
//! Without the privilege to make namespaces every test here says so and passes; `scripts/test`
//! runs them with it.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test stops at the first surprise")]

mod up;

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::up::rig_up;

const PROGRAM: &str = env!("CARGO_BIN_EXE_cepa");

/// A network that is up; taken down when dropped.
struct Rig {
    id: String,
    dir: PathBuf,
}

impl Rig {
    fn up(arguments: &[&str]) -> Option<Self> {
        let bare: Vec<&str> = ["--bare"].iter().chain(arguments).copied().collect();
        let (id, dir) = rig_up(PROGRAM, &bare)?;
        Some(Self { id, dir })
    }

    fn on(&self, host: &str) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(["rig", "shell", "--run", &self.id, host, "--"]);
        command
    }

    fn tool(&self, host: &str, tool: &Value) -> Value {
        let output =
            self.on(host).args([PROGRAM, "rig", "agent", &tool.to_string()]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{tool}: {said}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn serve(&self, host: &str) -> Server {
        let seen = self.dir.join("seen");
        let tool = json!({"tool": "serve", "seen": seen});
        let mut child = self
            .on(host)
            .args([PROGRAM, "rig", "agent", &tool.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(
            &mut std::io::BufReader::new(child.stdout.take().unwrap()),
            &mut line,
        )
        .unwrap();
        assert_eq!(line, "ready\n");
        Server(child)
    }

    fn record(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.dir.join("run.json")).unwrap()).unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = Command::new(PROGRAM).args(["rig", "down", "--run", &self.id]).output();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn namespaces(id: &str) -> usize {
    let prefix = format!("cepa-{id}-");
    std::fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .count()
}

fn second(seconds: f64) -> Value {
    json!({"secs": seconds as u64, "nanos": (seconds.fract() * 1e9) as u32})
}

#[test]
fn the_tools_agree_about_what_passes_a_cable() {
    let Some(rig) = Rig::up(&[]) else { return };
    let _server = rig.serve("n1");
    for to in ["10.77.0.11", "fd77::b"] {
        let got = rig.tool(
            "sender",
            &json!({"tool": "http_get", "to": to, "bytes": 3_000_000, "patience": second(5.0)}),
        );
        assert_eq!((&got["bytes"], &got["right"]), (&json!(3_000_000), &json!(true)));
        for direction in ["up", "down", "both"] {
            let got = rig.tool("sender", &json!({"tool": "bulk", "to": to, "direction": direction, "flows": 2, "time": second(0.0), "bytes": 1_000_000}));
            let each = if direction == "both" {
                (2_000_000, 2_000_000)
            } else if direction == "up" {
                (2_000_000, 0)
            } else {
                (0, 2_000_000)
            };
            assert_eq!(
                (&got["up"], &got["down"], &got["right"]),
                (&json!(each.0), &json!(each.1), &json!(true))
            );
        }
        let got = rig.tool("sender", &json!({"tool": "bulk", "to": to, "direction": "up", "flows": 1, "time": second(0.3), "bytes": 0}));
        assert!(got["up"].as_u64().unwrap() > 1_000_000);
        let got = rig.tool(
            "sender",
            &json!({"tool": "echo", "to": to, "count": 50, "size": 1000, "every": second(0.001)}),
        );
        assert_eq!(got["received"], 50);
        let got = rig.tool("sender", &json!({"tool": "flood", "to": to, "rate": 10_000_000, "time": second(0.3), "size": 1000}));
        assert_eq!(got["sent"], got["received"]);
        let got = rig.tool("sender", &json!({"tool": "dns", "to": to}));
        assert_eq!(got["address"], "192.0.2.53");
        for packet in [84, 1500] {
            let got = rig.tool("sender", &json!({"tool": "ping", "to": to, "count": 5, "packet": packet, "every": second(0.01)}));
            assert_eq!(got["received"], 5);
        }
        let closed = if to.contains(':') { format!("[{to}]:9") } else { format!("{to}:9") };
        let got = rig.tool("sender", &json!({"tool": "provoke", "to": closed, "hops": 64}));
        let v6 = to.contains(':');
        assert_eq!(
            (&got["from"], &got["kind"], &got["code"]),
            (&json!(to), &json!(if v6 { 1 } else { 3 }), &json!(if v6 { 4 } else { 3 }))
        );
        let got = rig.tool(
            "sender",
            &json!({"tool": "provoke", "to": closed.replace(":9", ":7"), "hops": 64}),
        );
        assert_eq!(got, Value::Null, "an open port provokes nothing");
    }
    let seen = std::fs::read_to_string(rig.dir.join("seen")).unwrap();
    assert_eq!(seen.lines().collect::<Vec<_>>(), ["10.77.0.201", "fd77::c9"]);
}

#[test]
fn only_exits_reach_the_receiver() {
    let Some(rig) = Rig::up(&[]) else { return };
    let ping = |host: &str| {
        rig.on(host)
            .args(["ping", "-c", "1", "-W", "1", "203.0.113.2"])
            .output()
            .unwrap()
            .status
            .success()
    };
    assert!(ping("n4") && ping("n6"));
    assert!(!ping("sender") && !ping("n1") && !ping("stranger"));
}

#[test]
fn a_slow_cable_is_slow_and_a_lossy_one_loses() {
    let links =
        ["--link", "sender:delay=20ms", "--link", "n2:loss=20%", "--link", "n3:rate=20mbit"];
    let Some(rig) = Rig::up(&links) else { return };
    let _servers = [rig.serve("n1"), rig.serve("n3")];
    let got = rig.tool("sender", &json!({"tool": "echo", "to": "10.77.0.11", "count": 20, "size": 100, "every": second(0.01)}));
    let median = got["median_ms"].as_f64().unwrap();
    assert!((40.0..90.0).contains(&median), "{median} ms");
    let got = rig.tool("n2", &json!({"tool": "echo", "to": "10.77.0.11", "count": 400, "size": 100, "every": second(0.001)}));
    let received = got["received"].as_u64().unwrap();
    assert!((180..340).contains(&received), "{received} of 400 where about 256 should come back");
    let got = rig.tool("n1", &json!({"tool": "bulk", "to": "10.77.0.13", "direction": "up", "flows": 1, "time": second(0.0), "bytes": 2_500_000}));
    let rate = got["up"].as_f64().unwrap() * 8.0 / got["seconds"].as_f64().unwrap();
    assert!((8e6..22e6).contains(&rate), "{rate} bit/s");
}

#[test]
fn two_networks_stand_side_by_side_and_a_killed_one_leaves_nothing() {
    let Some(first) = Rig::up(&[]) else { return };
    let Some(second) = Rig::up(&[]) else { return };
    assert_ne!(first.id, second.id);
    assert_eq!((namespaces(&first.id), namespaces(&second.id)), (11, 11));
    let host = second.on("n3").arg("hostname").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&host.stdout).trim(), "n3");
    let sleeper = first.on("n5").args(["sleep", "1000"]).spawn().unwrap();
    let mut sleeper = Server(sleeper);
    std::thread::sleep(Duration::from_millis(200));
    let pid = first.record()["pid"].as_u64().unwrap();
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    let deadline = Instant::now() + Duration::from_secs(20);
    while namespaces(&first.id) > 0 || first.dir.join("run.json").exists() {
        assert!(Instant::now() < deadline, "{} namespaces stay", namespaces(&first.id));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(sleeper.0.try_wait().unwrap().is_some(), "what ran in its hosts is gone, too");
    assert_eq!(namespaces(&second.id), 11);
    assert!(Path::new(&second.dir).join("run.json").exists());
}

#[test]
fn mistakes_are_told() {
    let said = |arguments: &[&str]| {
        let output = Command::new(PROGRAM).arg("rig").args(arguments).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(said(&["up", "--link", "n9:loss=1%"]).contains("n1, n2"));
    assert!(said(&["up", "--link", "n1:speed=1"]).contains("rate, loss, delay"));
    assert!(said(&["shell", "--run", "zzzz", "n1"]).contains("cepa rig up"));
}
