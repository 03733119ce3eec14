//! The modern DC-net as processes on loopback: echoes, a trustee that is killed, members that come
//! and go, connections that are not read, the status and the bench.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

struct Group {
    dir: tempfile::TempDir,
    first_port: u16,
    clients: Vec<String>,
    trustees: Vec<String>,
    relay: Option<Child>,
    running: Vec<Option<Child>>,
    exit: Child,
}

impl Drop for Group {
    fn drop(&mut self) {
        for child in
            self.running.iter_mut().chain([&mut self.relay]).flatten().chain([&mut self.exit])
        {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn cepa(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cepa"));
    command.arg("dcnet").args(arguments).stdin(Stdio::null());
    command
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn free_ports(count: u16) -> u16 {
    'again: loop {
        let first = free_port().min(60_000);
        for port in first..first + count {
            if TcpListener::bind(("127.0.0.1", port)).is_err() {
                continue 'again;
            }
        }
        return first;
    }
}

fn quiet(command: &mut Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

impl Group {
    fn new(clients: u16, trustees: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (relay_port, exit_port) = (free_port(), free_port());
        let counts = [clients.to_string(), trustees.to_string()];
        let relay = format!("127.0.0.1:{relay_port}");
        let made = cepa(&["config", "-c", &counts[0], "-t", &counts[1], "-r", &relay])
            .arg(dir.path())
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(made.success());
        let system = std::fs::read(dir.path().join("system.json")).unwrap();
        let system: Value = serde_json::from_slice(&system).unwrap();
        let ids = |field: &str| {
            let list = system[field].as_array().unwrap();
            list.iter().map(|entry| entry["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let exit = quiet(&mut cepa(&["echo", "-p", &exit_port.to_string()]));
        let behind = format!("127.0.0.1:{exit_port}");
        let relay = quiet(
            cepa(&["relay", "-p", &relay_port.to_string(), "--exit", &behind]).arg(dir.path()),
        );
        let mut group = Self {
            first_port: free_ports(clients),
            clients: ids("clients"),
            trustees: ids("trustees"),
            relay: Some(relay),
            running: Vec::new(),
            exit,
            dir,
        };
        group.running = (0..clients + trustees).map(|_| None).collect();
        for at in 0..usize::from(clients + trustees) {
            group.start(at);
        }
        group.await_status(|status| {
            status["members"].as_array().unwrap().len() == group.clients.len()
        });
        group
    }

    fn path(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// Clients come first.
    fn start(&mut self, at: usize) {
        let (role, id, port) = match at.checked_sub(self.clients.len()) {
            None => ("client", &self.clients[at], self.first_port + at as u16),
            Some(trustee) => ("trustee", &self.trustees[trustee], 0),
        };
        let own = self.path().join(format!("{id}.json"));
        let mut command = cepa(&[role, "-p", &port.to_string()]);
        self.running[at] = Some(quiet(command.arg(self.path()).arg(own)));
    }

    fn kill(&mut self, at: usize) {
        let mut child = self.running[at].take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn status(&self) -> Option<Value> {
        status(&self.path())
    }

    fn await_status(&self, done: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.status()
                && done(&status)
            {
                return status;
            }
            assert!(Instant::now() < end, "{:?}", self.status());
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn connect(&self, at: u16) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.first_port + at)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Resident kilobytes of the relay.
    fn relay_memory(&self) -> u64 {
        let id = self.relay.as_ref().unwrap().id();
        let text = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = text.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

fn status(dir: &Path) -> Option<Value> {
    let output = cepa(&["status", "--json"]).arg(dir).stderr(Stdio::null()).output().unwrap();
    output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
}

fn echo(mut stream: TcpStream, bytes: Vec<u8>) {
    let mut writer = stream.try_clone().unwrap();
    let sent = bytes.clone();
    let writing = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    writing.join().unwrap();
    assert!(back == bytes, "{} of {} bytes came back", back.len(), bytes.len());
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

#[test]
fn echoes_a_killed_trustee_and_the_status() {
    let mut group = Group::new(4, 2);
    echo(group.connect(1), b"hello".to_vec());
    let threads: Vec<_> = (0..4)
        .map(|at| {
            let stream = group.connect(at);
            thread::spawn(move || echo(stream, pattern(100_000)))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let status = group.status().unwrap();
    assert_eq!(status["schema"], "cepa.dcnet.status/1");
    assert_eq!(status["collisions"], 0);
    // A trustee is killed in the middle of a stream; it goes on when the trustee is back.
    let stream = group.connect(0);
    let running = thread::spawn(move || echo(stream, pattern(400_000)));
    thread::sleep(Duration::from_millis(200));
    group.kill(4);
    group.await_status(|status| status["interval"] == 0);
    group.start(4);
    group.await_status(|status| status["interval"] != 0);
    running.join().unwrap();
}

#[test]
fn of_24_connections_one_that_is_not_read_disturbs_nobody() {
    let group = Group::new(3, 2);
    let mut stuck = group.connect(0);
    let mut filling = stuck.try_clone().unwrap();
    filling.set_write_timeout(Some(Duration::from_secs(3))).unwrap();
    let _ = filling.write_all(&pattern(8_000_000));
    let threads: Vec<_> = (0..23)
        .map(|at| {
            let stream = group.connect(at % 3);
            thread::spawn(move || echo(stream, pattern(20_000)))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let mut first = [0; 1000];
    stuck.read_exact(&mut first).unwrap();
    assert_eq!(first[..], pattern(1000));
}

/// For how long: 10 s here, 10 minutes in the named job, by `CEPA_DCNET_SOAK_SECONDS`.
#[test]
fn churn_every_two_seconds_loses_no_byte() {
    let time = std::env::var("CEPA_DCNET_SOAK_SECONDS").map_or(10, |text| text.parse().unwrap());
    let mut group = Group::new(5, 2);
    let end = Instant::now() + Duration::from_secs(time);
    let talkers: Vec<_> = (0..3)
        .map(|at| {
            let port = group.first_port + at;
            thread::spawn(move || {
                let mut rounds = 0;
                while Instant::now() < end {
                    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
                    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
                    echo(stream, pattern(30_000));
                    rounds += 1;
                }
                rounds
            })
        })
        .collect();
    let mut memory = Vec::new();
    while Instant::now() < end {
        for at in [3, 4] {
            match group.running[at] {
                Some(_) => group.kill(at),
                None => group.start(at),
            }
            thread::sleep(Duration::from_secs(2));
        }
        memory.push(group.relay_memory());
    }
    for talker in talkers {
        assert!(talker.join().unwrap() > 0);
    }
    // Flat: the last reading is no more than 16 MB above the one after the first minute.
    let settled = memory[memory.len().min(15) - 1];
    assert!(*memory.last().unwrap() < settled + 16_384, "{memory:?}");
}

#[test]
fn the_bench_convicts_its_jammer() {
    let output = cepa(&["bench", "-c", "4", "-t", "2", "--seconds", "1", "--blame", "--json"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["parties"], "processes");
    assert_eq!(report["blamed"], "client 3");
    assert!(report["rounds_per_s"].as_f64().unwrap() > 100.0, "{report}");
}
