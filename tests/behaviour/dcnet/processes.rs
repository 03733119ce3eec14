//! A DC-net of processes on loopback: every party is the real program.

#![allow(dead_code, unreachable_pub, reason = "a module of two tests, which use different parts")]

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

#[path = "../../ports/mod.rs"]
mod ports;

pub(crate) use ports::{free_port, free_ports};

/// Processes that end with the test.
#[derive(Default)]
pub struct Running(pub Vec<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub fn cepa(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cepa"));
    command.arg("dcnet").args(arguments).stdin(Stdio::null()).env("CEPA_LOG", "warn");
    command
}

/// A program of the system; `scripts/test` installs what is missing.
pub fn tool(name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(name);
    command.args(arguments).env_remove("http_proxy").env_remove("all_proxy");
    command
}

pub fn quiet(command: &mut Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

pub fn connect(port: u16) -> TcpStream {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        if let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) {
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            return stream;
        }
        assert!(Instant::now() < end, "nothing listens on {port}");
        thread::sleep(Duration::from_millis(30));
    }
}

/// Sends bytes, ends, and gives what comes back until the end.
pub fn echoed(mut stream: TcpStream, bytes: &[u8]) -> Vec<u8> {
    let mut writer = stream.try_clone().unwrap();
    let sent = bytes.to_vec();
    let writing = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    writing.join().unwrap();
    back
}

pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

pub fn make_config(dir: &Path, clients: u16, trustees: u16, relay: u16) {
    let (clients, trustees) = (clients.to_string(), trustees.to_string());
    let relay = format!("127.0.0.1:{relay}");
    let made = cepa(&["config", "-c", &clients, "-t", &trustees, "-r", &relay])
        .args(["--min-anonymity-set", "2"])
        .arg(dir)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(made.success());
}

/// An HTTP server that gives one page to everybody; its port.
pub fn http_server(page: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                let mut request = Vec::new();
                let mut byte = [0];
                while !request.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                    request.push(byte[0]);
                }
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close";
                let _ = write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{page}", page.len());
            });
        }
    });
    port
}

/// What headless Chromium makes of a page.
pub fn browse(url: &str, arguments: &[&str]) -> String {
    let profile = tempfile::tempdir().unwrap();
    let output =
        tool("timeout", &["60", "chromium", "--headless", "--no-sandbox", "--disable-gpu"])
            .args(["--disable-background-networking", "--no-first-run", "--dump-dom"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .args(arguments)
            .arg(url)
            .output()
            .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A group of the modern wire with an exit, all parties running.
pub struct Group {
    dir: tempfile::TempDir,
    pub first_port: u16,
    pub clients: Vec<String>,
    pub trustees: Vec<String>,
    pub page: u16,
    pub relay_port: u16,
    exit_port: u16,
    relay: Running,
    pub running: Vec<Option<Child>>,
    exit: Running,
}

impl Drop for Group {
    fn drop(&mut self) {
        for child in self.running.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Group {
    /// With an echo behind the relay.
    pub fn new(clients: u16, trustees: u16) -> Self {
        Self::with_exit(clients, trustees, |port| cepa(&["echo", "-p", &port.to_string()]))
    }

    /// With the program behind the relay that `exit` gives for a port.
    pub fn with_exit(clients: u16, trustees: u16, exit: impl Fn(u16) -> Command) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (relay_port, exit_port, page) = (free_port(), free_port(), free_port());
        make_config(dir.path(), clients, trustees, relay_port);
        let system = std::fs::read(dir.path().join("system.json")).unwrap();
        let system: Value = serde_json::from_slice(&system).unwrap();
        let ids = |field: &str| {
            let list = system[field].as_array().unwrap();
            list.iter().map(|entry| entry["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let mut group = Self {
            first_port: free_ports(clients),
            clients: ids("clients"),
            trustees: ids("trustees"),
            page,
            relay_port,
            exit_port,
            relay: Running::default(),
            running: (0..clients + trustees).map(|_| None).collect(),
            exit: Running(vec![quiet(&mut exit(exit_port))]),
            dir,
        };
        group.start_relay();
        for at in 0..usize::from(clients + trustees) {
            group.start(at);
        }
        group.await_members(group.clients.len());
        group
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    pub fn start_relay(&mut self) {
        let port = self.relay_port.to_string();
        let (behind, web) =
            (format!("127.0.0.1:{}", self.exit_port), format!("127.0.0.1:{}", self.page));
        let mut command = cepa(&["relay", "-p", &port, "--exit", &behind, "--web", &web]);
        self.relay = Running(vec![quiet(command.arg(self.dir.path()))]);
    }

    pub fn end_relay(&mut self) {
        self.relay = Running::default();
    }

    /// Clients come first.
    pub fn start(&mut self, at: usize) {
        self.start_with(at, &[]);
    }

    pub fn start_with(&mut self, at: usize, variables: &[(&str, &str)]) {
        let (role, id, port) = match at.checked_sub(self.clients.len()) {
            None => ("client", &self.clients[at], self.first_port + at as u16),
            Some(trustee) => ("trustee", &self.trustees[trustee], 0),
        };
        let own = self.path().join(format!("{id}.json"));
        let mut command = cepa(&[role, "-p", &port.to_string()]);
        command.envs(variables.iter().copied());
        self.running[at] = Some(quiet(command.arg(self.path()).arg(own)));
    }

    /// Starts clients that follow each other as one process.
    pub fn start_together(&self, clients: &[usize]) -> Running {
        let port = self.first_port + clients[0] as u16;
        let own = |at: &usize| self.path().join(format!("{}.json", self.clients[*at]));
        let mut command = cepa(&["client", "-p", &port.to_string()]);
        Running(vec![quiet(command.arg(self.path()).args(clients.iter().map(own)))])
    }

    pub fn kill(&mut self, at: usize) {
        let mut child = self.running[at].take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Sends a signal by its name.
    pub fn signal(&self, at: usize, name: &str) {
        let id = self.running[at].as_ref().unwrap().id().to_string();
        assert!(tool("sh", &["-c", "kill -$0 $1", name, &id]).status().unwrap().success());
    }

    pub fn status(&self) -> Option<Value> {
        let output =
            cepa(&["status", "--json"]).arg(self.path()).stderr(Stdio::null()).output().unwrap();
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    pub fn await_status(&self, done: impl Fn(&Value) -> bool) -> Value {
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

    /// Waits for an interval with so many clients.
    pub fn await_members(&self, count: usize) -> Value {
        self.await_status(|status| status["members"].as_array().unwrap().len() == count)
    }

    pub fn connect(&self, at: u16) -> TcpStream {
        connect(self.first_port + at)
    }

    /// Resident kilobytes of the relay.
    pub fn relay_memory(&self) -> u64 {
        let id = self.relay.0[0].id();
        let text = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = text.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}
