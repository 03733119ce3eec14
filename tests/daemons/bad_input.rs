//! Bad input gets a clear error with the way out, and loses nothing.

use std::{fs, path::Path, process::Command};

use crate::stage::{Stage, cepa, chmod, fails, free_port, run};

fn config(stage: &Stage, name: &str, text: &str) -> String {
    let file = stage.path(name);
    fs::write(&file, text).unwrap();
    chmod(&file, 0o600);
    file
}

fn fails_with_config(file: &str, words: &[&str], code: i32, needles: &[&str]) {
    let output = cepa(words).env("CEPA_CONFIG", file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
    for needle in needles {
        assert!(said.contains(needle), "{words:?}: {needle:?} is not in {said}");
    }
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest_one() {
    let stage = Stage::without_controller();
    let file = config(&stage, "node.toml", "name = \"otter\"\nlisten_ = \"0.0.0.0:5000\"\n");
    fails_with_config(&file, &["node"], 2, &["node.toml:2", "listen_", "did you mean \"listen\""]);
    let file = config(&stage, "client.toml", "hops = \"many\"\n");
    fails_with_config(&file, &["client"], 2, &["client.toml", "hops"]);
}

#[test]
fn a_key_file_that_others_can_read_is_refused_with_the_command_that_closes_it() {
    let stage = Stage::without_controller();
    let dir = stage.path("otter");
    let node = stage.start_node("otter", &[]);
    stage.status("otter", |_| true);
    node.stop();
    let key = format!("{dir}/identity.pem");
    let before = fs::read(&key).unwrap();
    let listen = format!("127.0.0.1:{}", free_port());
    let words = [
        "node",
        "--controller",
        &stage.link,
        "--name",
        "otter",
        "--state",
        &dir,
        "--listen",
        &listen,
    ];
    chmod(&key, 0o644);
    fails(&words, 1, &["identity.pem", "0644", "chmod 600"]);
    chmod(&key, 0o600);
    chmod(&dir, 0o755);
    fails(&words, 1, &["0755", "chmod 700"]);
    chmod(&dir, 0o700);
    // Cut in half: refused, and kept as it is.
    fs::write(&key, &before[..before.len() / 2]).unwrap();
    fails(&words, 1, &["identity.pem", "expected", "got"]);
    assert_eq!(fs::read(&key).unwrap(), before[..before.len() / 2]);
    fs::write(&key, &before).unwrap();
    let onion = format!("{dir}/onion-keys.json");
    let keys = fs::read(&onion).unwrap();
    fs::write(&onion, &keys[..keys.len() / 2]).unwrap();
    fails(&words, 1, &["onion-keys.json", "expected"]);
    assert_eq!(fs::read(&onion).unwrap(), keys[..keys.len() / 2]);
}

#[test]
fn a_taken_port_and_a_taken_state_directory_are_named() {
    let stage = Stage::without_controller();
    let node = stage.start_node("otter", &[]);
    let status = stage.status("otter", |_| true);
    let listen = status["listen"].as_str().unwrap().to_owned();
    let (dir, other) = (stage.path("otter"), stage.path("other"));
    let words = |state| {
        vec![
            "node",
            "--controller",
            &stage.link,
            "--name",
            "b",
            "--state",
            state,
            "--listen",
            &listen,
        ]
    };
    fails(&words(&other), 1, &[&listen, "in use"]);
    fails(&words(&dir), 1, &["another cepa process", "--state"]);
    node.stop();
}

#[test]
fn a_controller_that_is_away_is_3_for_commands_and_a_line_in_status_for_daemons() {
    let mut stage = Stage::without_controller();
    fails(&["nodes", "--controller", &stage.link], 3, &["check that it runs"]);
    let node = stage.start_node("otter", &[]);
    let status = stage.status("otter", |status| !status["controller"]["last_error"].is_null());
    assert_eq!(status["controller"]["reachable"], false);
    assert!(status["next_step"].as_str().unwrap().contains("check the network"), "{status}");
    assert!(status["controller"]["retry_in_s"].is_u64(), "{status}");
    assert!(node.log().contains("trying again"), "{}", node.log());
    // It comes, and the node, which has no token, hears that it is not let in.
    stage.start_controller(&[]);
    drop(node);
}

#[test]
fn a_wrong_token_is_4_and_a_good_one_is_not_used_up_by_it() {
    let stage = Stage::new();
    let good = stage.ask_controller(&["token", "new"]);
    let mut wrong = good.clone();
    let last = wrong.pop().unwrap();
    // Another digit, not the same one as a capital.
    wrong.push(if last == '0' { '1' } else { '0' });
    let dir = stage.path("otter");
    let listen = format!("127.0.0.1:{}", free_port());
    let mut words = vec![
        "node",
        "--controller",
        &stage.link,
        "--name",
        "otter",
        "--state",
        &dir,
        "--listen",
        &listen,
    ];
    fails(&words, 4, &["not admitted", "token"]);
    words.extend(["--join", &wrong]);
    let ran = run(&words);
    assert!(matches!(ran.code, Some(4 | 2)), "{:?} {}", ran.code, ran.err);
    assert!(ran.err.contains("token"), "{}", ran.err);
    let node = stage.start_node("otter", &["--join", &good]);
    stage.status("otter", |status| status["state"] == "registered");
    node.stop();
}

#[test]
fn an_unusable_cached_directory_is_refused_and_kept() {
    let stage = Stage::new();
    let token = stage.ask_controller(&["token", "new"]);
    let node = stage.start_node("otter", &["--join", &token]);
    stage.status("otter", |status| status["directory"]["version"].as_u64() > Some(0));
    node.stop();
    let file = stage.path("otter/directory.json");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let (dir, listen) = (stage.path("otter"), format!("127.0.0.1:{}", free_port()));
    let words = [
        "node",
        "--controller",
        &stage.link,
        "--name",
        "otter",
        "--state",
        &dir,
        "--listen",
        &listen,
    ];
    fails(&words, 1, &["directory.json", "expected"]);
    assert_eq!(fs::read(&file).unwrap(), whole[..whole.len() / 2]);
}

/// Runs without any privilege: as the user that runs the test, or as a root without capabilities.
fn without_privilege(words: &[&str]) -> (Option<i32>, String) {
    let output = Command::new("setpriv")
        .args(["--bounding-set=-all", "--inh-caps=-all", env!("CARGO_BIN_EXE_cepa")])
        .args(words)
        .env("CEPA_CONFIG", "/dev/null")
        .output();
    match output {
        Ok(output) => (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => panic!("expected setpriv (util-linux), got {error}"),
    }
}

#[test]
fn a_missing_privilege_is_7_and_says_what_to_grant() {
    let stage = Stage::without_controller();
    let dir = stage.path("client");
    let (code, said) = without_privilege(&["client", "--controller", &stage.link, "--state", &dir]);
    assert_eq!(code, Some(7), "{said}");
    assert!(said.contains("CAP_NET_ADMIN") || said.contains("/dev/net/tun"), "{said}");
    assert_eq!(said.matches("os error").count(), 1, "the cause is said once: {said}");
}

#[test]
fn a_state_directory_of_others_is_7_and_says_what_to_do() {
    let stage = Stage::without_controller();
    let locked = stage.path("locked");
    fs::create_dir(&locked).unwrap();
    chmod(&locked, 0o500);
    let dir = format!("{locked}/node");
    let words = ["node", "--controller", &stage.link, "--name", "otter", "--state", &dir];
    let (code, said) = without_privilege(&words);
    assert_eq!(code, Some(7), "{said}");
    assert!(said.contains(&dir) && said.contains("--state"), "{said}");
}

#[test]
fn commands_without_a_daemon_say_how_to_start_one() {
    let stage = Stage::without_controller();
    let nowhere = stage.path("nowhere");
    for words in [
        vec!["status"],
        vec!["circuits"],
        vec!["circuits", "new"],
        vec!["ping", "otter"],
        vec!["trace"],
        vec!["bench"],
    ] {
        let words = [&words[..], &["--state", &nowhere]].concat();
        fails(&words, 3, &["start ", " with: cepa ", "--state"]);
    }
    assert!(!Path::new(&nowhere).exists());
}
