//! The real binary: `cepa controller` as a daemon, its commands beside it, `cepa nodes`.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use cepa::directory::{ControllerLink, JoinToken};

use crate::stage::{Node, Stage, identity};

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

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command that must end with `code`; returns what it printed.
fn ends(code: i32, words: &[&str]) -> String {
    let Output { status, stdout, stderr } = cepa(words).output().unwrap();
    assert_eq!(status.code(), Some(code), "{words:?}\n{}{}", text(&stdout), text(&stderr));
    if code == 0 { text(&stdout) } else { text(&stderr) }
}

/// A controller in a process of its own.
struct Daemon {
    child: Child,
    state: PathBuf,
    _folder: tempfile::TempDir,
}

impl Daemon {
    fn start(extra: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let mut words = vec!["controller", "--listen", "127.0.0.1:0", "--state"];
        words.push(state.to_str().unwrap());
        words.extend(extra);
        let child = cepa(&words).stderr(Stdio::null()).spawn().unwrap();
        let daemon = Self { child, state, _folder: folder };
        for _ in 0..200 {
            if daemon.state.join("control.sock").exists()
                && cepa(&["status", "--state", daemon.state.to_str().unwrap()])
                    .output()
                    .unwrap()
                    .status
                    .success()
            {
                return daemon;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the controller does not start");
    }

    /// `cepa controller <words> --state DIR`.
    fn ask(&self, words: &[&str]) -> String {
        let mut all = vec!["controller"];
        all.extend(words);
        all.extend(["--state", self.state.to_str().unwrap()]);
        ends(0, &all)
    }

    fn json(&self, words: &[&str]) -> serde_json::Value {
        let mut all = words.to_vec();
        all.push("--json");
        let json: serde_json::Value = serde_json::from_str(&self.ask(&all)).unwrap();
        let schema = json["schema"].as_str().unwrap().to_owned();
        let command = words.iter().take_while(|word| !word.starts_with("--"));
        let command: Vec<&str> = command.take(2).copied().collect();
        assert_eq!(schema, format!("cepa.controller-{}/1", command.join("-")));
        json
    }

    fn terminate(&mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_network_is_run_by_commands() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut daemon = Daemon::start(&[]);
    let link: ControllerLink = daemon.ask(&["link"]).trim().parse().unwrap();
    assert_eq!(daemon.json(&["link"])["link"], link.to_string());
    let token: JoinToken =
        daemon.ask(&["token", "new", "--label", "otter", "--ttl", "10m"]).trim().parse().unwrap();
    assert_eq!(token.link, link, "the address is the one that the daemon was started with");
    let listed = daemon.json(&["token", "list"]);
    assert_eq!(listed["tokens"][0]["id"], token.id.to_string());
    assert_eq!(listed["tokens"][0]["state"], "unused");
    assert!(!listed.to_string().contains(&token.reveal()[100..]), "no secrets in lists");

    let link_text = link.to_string();
    let _node = runtime.block_on(async {
        let client = cepa::directory::ControllerClient::new(&link, None).unwrap();
        let signed = client.directory(None, false).await.unwrap().unwrap();
        let now = jiff::Timestamp::now();
        let directory =
            cepa::directory::Directory::open(&signed, &link.fingerprint(), now, None).unwrap();
        let node = Node::of(1, directory.controller().clone()).await;
        client.register(&node.signed(), Some(&token)).await.unwrap();
        node
    });
    let mut nodes = String::new();
    for _ in 0..50 {
        nodes = ends(0, &["nodes", "--controller", &link_text]);
        if nodes.contains("1 live node") {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(nodes.contains("n1") && nodes.contains("1 live node"), "{nodes}");
    let nodes = ends(0, &["nodes", "--controller", &link_text, "--role", "tracker"]);
    assert!(nodes.contains("0 live nodes"), "{nodes}");
    let shown = ends(0, &["nodes", "show", "n1", "--controller", &link_text]);
    assert!(shown.contains("BEGIN PUBLIC KEY") && shown.contains("127.0.0.1:"), "{shown}");
    let json = ends(0, &["nodes", "--json", "--controller", &link_text]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["nodes"][0]["id"], identity(1).id().to_string());
    let json = ends(0, &["nodes", "show", "n1", "--json", "--controller", &link_text]);
    assert!(json.starts_with("{\n  \"schema\": \"cepa.nodes-show/1\""), "{json}");
    let error = ends(1, &["nodes", "show", "m1", "--controller", &link_text]);
    assert!(error.contains("did you mean n1?"), "{error}");

    let status = ends(0, &["status", "--state", daemon.state.to_str().unwrap()]);
    assert!(status.contains("controller"), "{status}");
    assert_eq!(daemon.json(&["nodes", "list"])["nodes"][0]["label"], "otter");
    let new_link = daemon.json(&["key", "rotate", "--overlap", "1d"])["link"].clone();
    assert_ne!(new_link, link_text);
    std::thread::sleep(Duration::from_millis(1500));
    ends(0, &["nodes", "show", "n1", "--controller", &link_text]);
    assert_eq!(daemon.json(&["nodes", "revoke", "n1"])["revoked"]["name"], "n1");
    let revoked = daemon.ask(&["nodes", "list"]);
    assert!(revoked.contains("revoked"), "{revoked}");
    let token = daemon.json(&["token", "new"]);
    let id = token["id"].as_str().unwrap();
    assert_eq!(daemon.json(&["token", "revoke", id])["revoked"], id);
    assert!(daemon.ask(&["token", "list"]).contains("2 tokens"));
    assert_eq!(daemon.terminate(), Some(0));
    ends(3, &["nodes", "--controller", &link_text]);
}

#[test]
fn errors_have_their_exit_codes_and_a_way_out() {
    let daemon = Daemon::start(&["--admission", "open"]);
    let state = daemon.state.to_str().unwrap();
    let link = daemon.ask(&["link"]);
    let port = link.split(['/', ':']).nth(4).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other");
    let other = other.to_str().unwrap();

    let taken = format!("127.0.0.1:{port}");
    let error = ends(1, &["controller", "--listen", &taken, "--state", other]);
    assert!(error.contains("choose another with --listen"), "{error}");
    assert_eq!(error.matches("os error").count(), 1, "said once: {error}");
    let error = ends(1, &["controller", "--listen", "127.0.0.1:0", "--state", state]);
    assert!(error.contains("another cepa process"), "{error}");
    let error = ends(2, &["controller", "--valid-for", "30d", "--state", other]);
    assert!(error.contains("at most 6d"), "{error}");
    let error = ends(2, &["controller", "token", "new", "--ttl", "0s", "--state", state]);
    assert!(error.contains("ttl"), "{error}");
    ends(2, &["controller", "token", "new", "--role", "king", "--state", state]);
    let error = ends(1, &["controller", "nodes", "revoke", "x", "--state", state]);
    assert!(error.contains("cepa controller nodes list"), "{error}");
    let nowhere = folder.path().join("nowhere");
    let error = ends(1, &["controller", "token", "list", "--state", nowhere.to_str().unwrap()]);
    assert!(error.contains("start the controller once"), "{error}");
    assert!(!Path::new(&nowhere).exists(), "looking makes nothing");
    let error = ends(2, &["nodes", "--config", "x"]);
    assert!(error.contains("--config"), "{error}");
    let error = ends(2, &["nodes", "--controller", "192.0.2.1:5000"]);
    assert!(error.contains("cepa controller link"), "{error}");
    let foreign = format!("cepa://127.0.0.1:{port}/{}", "ab".repeat(32));
    let error = ends(1, &["nodes", "--controller", &foreign]);
    assert!(error.contains("another controller"), "{error}");
}

#[test]
fn a_killed_controller_starts_again_and_a_cut_database_does_not() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut stage = runtime.block_on(Stage::open());
    runtime.block_on(stage.stop());
    let state = stage.settings.state.to_str().unwrap().to_owned();
    let start = |listen: &str| {
        cepa(&["controller", "--listen", listen, "--state", &state])
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let link = stage.link.to_string();
    let listen = stage.addr.to_string();
    for _ in 0..2 {
        let mut child = start(&listen);
        let begun = std::time::Instant::now();
        while !cepa(&["nodes", "--controller", &link]).output().unwrap().status.success() {
            assert!(begun.elapsed() < Duration::from_secs(10), "it does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    ends(0, &["controller", "token", "list", "--state", &state]);
    let path = stage.state("controller.db");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let error = ends(1, &["controller", "--listen", &listen, "--state", &state]);
    assert!(error.contains("left as it is"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap().len(), whole.len() / 2);
    // The way out that the message names.
    std::fs::rename(&path, stage.state("damaged")).unwrap();
    let error = ends(1, &["controller", "--listen", &listen, "--state", &state]);
    assert!(error.contains("key adopt"), "{error}");
    let kept = ends(0, &["controller", "key", "adopt", "--state", &state]);
    assert!(kept.contains(&stage.link.fingerprint().to_string()), "{kept}");
    ends(0, &["controller", "token", "list", "--state", &state]);
}
