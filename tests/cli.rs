//! The real binary, as a person or a script meets it: help, exit codes, words, JSON.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use assert_cmd::Command;
use cepa::telemetry::{
    CircuitInfo, CircuitState, CircuitsStatus, ClientState, ClientStatus, HopInfo, PingAnswer,
    Status, TraceAnswer, TraceHop,
    control::{ControlServer, Refusal, RefusalKind, Request, TraceArgs, command},
};
use tempfile::TempDir;

/// The binary, without the settings of the machine the test runs on.
fn cepa(words: &[&str]) -> Command {
    let mut command = Command::cargo_bin("cepa").unwrap();
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CEPA_") {
            command.env_remove(name);
        }
    }
    command.args(words);
    command
}

/// What one run came to.
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

fn run(words: &[&str]) -> Ran {
    let output = cepa(words).output().unwrap();
    Ran {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs and checks the exit code, and that standard error has all the needles.
fn fails(words: &[&str], code: i32, needles: &[&str]) {
    let ran = run(words);
    assert_eq!(ran.code, Some(code), "{words:?}: {}", ran.err);
    for needle in needles {
        assert!(ran.err.contains(needle), "{words:?}: {needle:?} is not in {}", ran.err);
    }
}

fn private_folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    folder
}

fn subcommands() -> Vec<String> {
    let help = run(&["--help"]).out;
    let list = help.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    list.lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_subcommand_has_help() {
    let names = subcommands();
    for needed in
        ["controller", "node", "client", "nodes", "status", "circuits", "ping", "trace", "rig"]
    {
        assert!(names.iter().any(|name| name == needed), "{needed} is not in {names:?}");
    }
    for name in names {
        let ran = run(&[&name, "--help"]);
        assert_eq!(ran.code, Some(0), "{name}");
        assert!(ran.out.contains("Usage: cepa"), "{name}: {}", ran.out);
        assert!(ran.out.lines().all(|line| line.len() <= 120), "{name}: a line is too long");
    }
}

#[test]
fn the_version_is_that_of_the_package() {
    assert_eq!(run(&["--version"]).out.trim(), format!("cepa {}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_wrong_command_line_is_2() {
    fails(&[], 2, &["Usage"]);
    fails(&["fly"], 2, &["fly"]);
    fails(&["statsu"], 2, &["status"]);
    fails(&["client", "--hop", "3"], 2, &["--hops"]);
    fails(&["ping"], 2, &["<NODE>"]);
    fails(&["trace", "--count", "0"], 2, &["--count"]);
}

#[test]
fn a_wrong_setting_is_2_and_names_its_place() {
    fails(&["client", "--hops", "two"], 2, &["flag --hops", "expected a whole number", "got two"]);
    fails(&["client", "--hops", "2"], 2, &["at least 3 hops, got 2", "--lab"]);
    fails(&["client", "--hops", "5", "--lab"], 2, &["1 to 4 hops, got 5"]);
    fails(&["client", "--path", "a,b"], 2, &["flag --path", "at least 3 hops"]);
    fails(&["client"], 2, &["controller is not set", "--controller", "CEPA_CONTROLLER"]);
    fails(&["node", "--also", "tracker"], 2, &["also", "no such function"]);
    fails(&["node", "--exit-policy", "allow:*"], 2, &["exit_policy", "`accept:`"]);
    fails(&["controller", "--admission", "closed"], 2, &["\"token\" or \"open\", got closed"]);

    let folder = private_folder();
    let file = folder.path().join("own.toml");
    fs::write(&file, "hops = 3\nhopps = 4\n").unwrap();
    let shown = file.display().to_string();
    fails(&["client", "--config", &shown], 2, &["own.toml:2", "\"hopps\"", "mean \"hops\"?"]);
    fs::write(&file, "hops = 3\n\nlab = \"yes\"\n").unwrap();
    fails(&["client", "--config", &shown], 2, &["own.toml:3", "lab: expected true or false"]);
    fs::write(&file, "hops = 3 4\n").unwrap();
    fails(&["client", "--config", &shown], 2, &["own.toml:1", "expected TOML"]);
    fails(&["client", "--config", "/nonexistent"], 2, &["/nonexistent: cannot be read"]);
}

#[test]
fn a_variable_is_a_setting_and_a_flag_wins() {
    let run = |words: &[&str]| {
        let output = cepa(words).env("CEPA_HOPS", "9").output().unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(run(&["client"]).contains("variable CEPA_HOPS: hops: expected 1 to 4 hops, got 9"));
    assert!(run(&["client", "--hops", "3"]).contains("controller is not set"));
    let slip = cepa(&["client"]).env("CEPA_HOP", "3").output().unwrap();
    assert!(String::from_utf8_lossy(&slip.stderr).contains("did you mean CEPA_HOPS?"));
}

#[test]
fn completions_for_every_shell() {
    for (shell, needle) in
        [("bash", "complete -F _cepa"), ("zsh", "#compdef cepa"), ("fish", "complete -c cepa")]
    {
        let ran = run(&["completions", shell]);
        assert_eq!(ran.code, Some(0), "{shell}");
        assert!(ran.out.contains(needle), "{shell}");
        assert!(ran.out.contains("exit-policy"), "{shell}");
    }
    fails(&["completions", "cmd"], 2, &["bash"]);
}

#[test]
fn a_man_page_per_subcommand() {
    let folder = private_folder();
    let dir = folder.path().join("man1");
    assert_eq!(run(&["man", dir.to_str().unwrap()]).code, Some(0));
    for name in subcommands() {
        let page = fs::read_to_string(dir.join(format!("cepa-{name}.1"))).unwrap();
        assert!(page.contains(".SH SYNOPSIS"), "{name}");
    }
    assert!(dir.join("cepa.1").exists());
    fails(&["man", "/proc/nowhere"], 1, &["cannot make /proc/nowhere"]);
}

#[test]
fn no_daemon_is_3_and_says_how_to_start_it() {
    let folder = private_folder();
    let state = folder.path().to_str().unwrap();
    for words in [&["circuits"][..], &["ping", "otter"], &["trace"], &["circuits", "new"]] {
        let mut words = words.to_vec();
        words.extend(["--state", state]);
        fails(&words, 3, &["no client runs here", "start it with: cepa client --state"]);
    }
    fails(&["status", "--state", state], 3, &["no daemon runs here"]);
    let ran = run(&["status", "--state", state, "--json"]);
    let answer: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert!(ran.out.starts_with("{\n  \"schema\": \"cepa.error/1\""));
    assert_eq!(answer["exit_code"], 3);
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let script = format!(
        "set -o pipefail; {} completions bash | head -n 1 >/dev/null",
        env!("CARGO_BIN_EXE_cepa")
    );
    let status = std::process::Command::new("bash").args(["-c", &script]).status().unwrap();
    assert!(status.success());
}

fn hop(name: &str, rtt_ms: f64) -> HopInfo {
    HopInfo { name: name.to_owned(), rtt_ms: Some(rtt_ms), ..HopInfo::default() }
}

fn circuit() -> CircuitInfo {
    CircuitInfo {
        number: 1,
        state: CircuitState::Active,
        hops: vec![hop("otter", 0.4), hop("heron", 0.9), hop("lynx", 1.3)],
        age_s: 61,
        flows: 4,
        bytes_up: 1000,
        bytes_down: 2_000_000,
        ..CircuitInfo::default()
    }
}

/// What a client would answer.
async fn answer(request: Request) -> Result<serde_json::Value, Refusal> {
    let value = match request.command.as_str() {
        command::STATUS => serde_json::to_value(Status::Client(ClientStatus {
            state: ClientState::Connected,
            circuits: vec![circuit()],
            ..ClientStatus::default()
        })),
        command::CIRCUITS => serde_json::to_value(CircuitsStatus { circuits: vec![circuit()] }),
        command::CIRCUIT_NEW => {
            return Err(Refusal::new(RefusalKind::Blocked, "expected 3 live nodes, got 2"));
        }
        command::CIRCUIT_CLOSE => Ok(serde_json::Value::Null),
        command::PING => serde_json::to_value(PingAnswer {
            node: "heron".to_owned(),
            circuit: 1,
            hop: 2,
            rtt_ms: Some(0.9),
        }),
        command::TRACE => {
            let count = request.parse_args::<TraceArgs>()?.count;
            serde_json::to_value(TraceAnswer {
                circuit: 1,
                hops: vec![TraceHop {
                    name: "otter".to_owned(),
                    rtt_ms: Some(0.4),
                    loss: 0.0,
                    sent: count,
                    received: count,
                }],
            })
        }
        _ => return Err(request.unknown("client")),
    };
    Ok(value.unwrap())
}

/// Runs `test` while a client answers in `state`.
fn with_client(test: impl FnOnce(&str) + Send + 'static) {
    let folder = private_folder();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let server = ControlServer::bind("client", folder.path()).unwrap();
        let state = folder.path().to_str().unwrap().to_owned();
        let test = tokio::task::spawn_blocking(move || test(&state));
        tokio::select! {
            () = server.serve(answer) => unreachable!("it serves until it is dropped"),
            result = test => result.unwrap(),
        }
    });
}

#[test]
fn a_client_is_shown_in_words_and_as_json() {
    with_client(|state| {
        let on = |words: &[&str]| run(&[words, &["--state", state]].concat());
        let text = on(&["status"]);
        assert_eq!(text.code, Some(0), "{}", text.err);
        assert!(text.out.contains("client: connected"));
        assert!(text.out.contains("you > otter 0.40 ms > heron 0.90 ms > lynx 1.30 ms"));

        let list = on(&["circuits"]).out;
        let words: Vec<_> = list.split_whitespace().collect();
        let words = words.join(" ");
        assert!(words.starts_with("circuit state path round trip age flows up down 1 active"));
        assert!(
            words.ends_with("otter > heron > lynx 1.30 ms 1 min 1 s 4 1.0 kB 2.0 MB"),
            "{list}"
        );
        assert_eq!(on(&["circuits", "close", "1"]).out, "circuit 1 is closed\n");

        let ping = on(&["ping", "heron", "-c", "2", "--interval", "1ms"]).out;
        assert_eq!(ping.matches("heron (hop 2 of circuit 1): 0.90 ms").count(), 2);
        assert!(ping.contains("2 sent, 2 answered, 0 % lost"));
        let trace = on(&["trace", "-c", "3"]).out;
        assert!(trace.contains("1    otter  0.40 ms     0 %   3 of 3"), "{trace}");

        for (words, schema) in [
            (&["status"][..], "cepa.status/1"),
            (&["circuits"], "cepa.circuits/1"),
            (&["ping", "heron", "-c", "1"], "cepa.ping/1"),
            (&["trace"], "cepa.trace/1"),
            (&["circuits", "close", "1"], "cepa.circuits.close/1"),
        ] {
            let json = on(&[words, &["--json"]].concat());
            assert_eq!(json.code, Some(0), "{words:?}: {}", json.err);
            let first = format!("{{\n  \"schema\": \"{schema}\"");
            assert!(json.out.starts_with(&first), "{words:?}: {}", json.out);
            serde_json::from_str::<serde_json::Value>(&json.out).unwrap();
        }
    });
}

#[test]
fn a_refusal_keeps_its_exit_code() {
    with_client(|state| {
        fails(&["circuits", "new", "--state", state], 5, &["expected 3 live nodes, got 2"]);
    });
}

#[test]
fn the_examples_shipped_are_valid_configurations() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/config");
    for role in ["node", "client"] {
        let file = folder.join(format!("{role}.toml"));
        fails(&[role, "--config", file.to_str().unwrap()], 2, &["controller is not set"]);
    }
}
