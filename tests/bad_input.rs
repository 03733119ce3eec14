//! What is wrong is said clearly, with the way out, and nothing is lost by it.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    fs,
    io::Read,
    net::{TcpListener, UdpSocket},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

const FINGERPRINT: &str = "6f1ed002ab5595859014ebf0951522d96f1ed002ab5595859014ebf0951522d9";

fn cepa(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cepa"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CEPA_") {
            command.env_remove(name);
        }
    }
    command.args(words);
    command
}

/// Ends with `code`, and says all the needles.
fn fails(command: &mut Command, code: i32, needles: &[&str]) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for needle in needles {
        assert!(said.contains(needle), "{needle:?} is not in {said}");
    }
}

fn private_folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    set_mode(folder.path(), 0o700);
    folder
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A port nobody answers on: bound and not listened to.
fn silent_port() -> (UdpSocket, u16) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

/// A link to a controller that is not there.
fn dead_link() -> String {
    // Bound for a moment, so that nothing else listens there.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    format!("cepa://127.0.0.1:{port}/{FINGERPRINT}")
}

fn node(state: &Path, listen: &str) -> Command {
    let state = state.to_str().unwrap();
    let mut command = cepa(&["node", "--name", "otter", "--state", state, "--listen", listen]);
    command.args(["--controller", &dead_link()]);
    command
}

/// A daemon that is ended with the test.
struct Daemon(Child);

impl Daemon {
    fn start(command: &mut Command) -> Self {
        Self(command.stderr(Stdio::piped()).spawn().unwrap())
    }

    fn said(mut self) -> String {
        self.0.kill().unwrap();
        let mut said = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        said
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks for the status until it says `needle`.
fn wait_for_status(state: &Path, needle: &str) -> String {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let output = cepa(&["status", "--state", state.to_str().unwrap()]).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        if said.contains(needle) {
            return said;
        }
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(Instant::now() < end, "{needle:?} does not come: {said}{error}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_node_without_its_controller_tries_again_and_says_so() {
    let state = private_folder();
    let daemon = Daemon::start(&mut node(state.path(), "127.0.0.1:0"));
    let status = wait_for_status(state.path(), "unreachable");
    for needle in ["node otter: ", "Connection refused", "  next  "] {
        assert!(status.contains(needle), "{status}");
    }
    fails(&mut node(state.path(), "127.0.0.1:0"), 1, &["another", "--state"]);
    std::thread::sleep(Duration::from_secs(3));
    let said = daemon.said();
    assert_eq!(said.matches("trying again").count(), 1, "the same is said once: {said}");
}

#[test]
fn state_that_is_open_or_damaged_is_refused_and_left_as_it_is() {
    let state = private_folder();
    drop({
        let daemon = Daemon::start(&mut node(state.path(), "127.0.0.1:0"));
        wait_for_status(state.path(), "node otter");
        daemon
    });
    let key = state.path().join("identity.pem");
    let whole = fs::read(&key).unwrap();

    set_mode(state.path(), 0o755);
    fails(&mut node(state.path(), "127.0.0.1:0"), 1, &["mode 0700, got 0755", "chmod 700"]);
    set_mode(state.path(), 0o700);
    set_mode(&key, 0o644);
    fails(&mut node(state.path(), "127.0.0.1:0"), 1, &["mode 0600, got 0644", "chmod 600"]);
    set_mode(&key, 0o600);

    for name in ["identity.pem", "onion-keys.json"] {
        let file = state.path().join(name);
        let before = fs::read(&file).unwrap();
        let half = &before[..before.len() / 2];
        fs::write(&file, half).unwrap();
        fails(&mut node(state.path(), "127.0.0.1:0"), 1, &[name, "expected"]);
        assert_eq!(fs::read(&file).unwrap(), half, "{name} was replaced");
        fs::write(&file, before).unwrap();
    }
    assert_eq!(fs::read(&key).unwrap(), whole);
}

#[test]
fn a_port_that_is_taken_and_an_address_that_is_not_ours() {
    let state = private_folder();
    let (_socket, port) = silent_port();
    let taken = format!("127.0.0.1:{port}");
    fails(&mut node(state.path(), &taken), 1, &[&taken, "to be free", "another port"]);
    fails(&mut node(state.path(), "192.0.2.55:5999"), 1, &["192.0.2.55:5999", "ip address"]);
}

#[test]
fn a_missing_privilege_is_7_and_says_what_to_grant() {
    let state = private_folder();
    let without = |words: &[&str]| {
        let link = dead_link();
        let bare = cepa(&[]);
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-net_admin", "--inh-caps=-net_admin", "--ambient-caps=-all"]);
        command.arg(bare.get_program()).args(words);
        command.args(["--state", state.path().to_str().unwrap(), "--controller", &link]);
        command
    };
    let dropped = Command::new("setpriv").args(["--bounding-set=-net_admin", "true"]).status();
    if !dropped.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: capabilities cannot be dropped here; run as root");
        return;
    }
    fails(&mut without(&["client"]), 7, &["CAP_NET_ADMIN", "run as root or grant"]);
    let exit = ["node", "--name", "otter", "--exit", "--listen", "127.0.0.1:0"];
    fails(&mut without(&exit), 7, &["CAP_NET_ADMIN", "run as root or grant"]);
}

#[test]
fn a_link_that_is_none_shows_one() {
    for link in ["http://192.0.2.1:5000", "cepa://192.0.2.1:5000", ""] {
        let mut command = cepa(&["node", "--name", "otter", "--controller", link]);
        let needles = ["controller", "cepa://192.0.2.1:5000/", "cepa controller link"];
        fails(&mut command, 2, &needles);
    }
    let token = format!("cepa-join://192.0.2.1:5000/{FINGERPRINT}/0123456789abcdef/feedface");
    let output = cepa(&["node", "--join", &token]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(said.contains("join: expected a token"), "{said}");
    assert!(!said.contains("feedface"), "{said}");
}
