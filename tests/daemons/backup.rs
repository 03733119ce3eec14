//! A node's state goes into a file and comes back on another machine, and it is the same node.

use std::{fs, path::Path};

use serde_json::Value;

use crate::stage::{Stage, chmod, fails, mode, run};

fn onion_id(dir: &str) -> String {
    let ran = run(&["keys", "show", "--state", dir, "--json"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let keys: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(keys["schema"], "cepa.keys/1");
    let keys = keys["keys"].as_array().unwrap();
    let onion = keys.iter().find(|key| key["key"] == "onion").unwrap();
    onion["id"].as_str().unwrap().to_owned()
}

#[test]
fn a_node_moves_by_backup_and_restore() {
    let stage = Stage::new();
    let token = stage.ask_controller(&["token", "new"]);
    let node = stage.start_node("otter", &["--join", &token]);
    let before = stage.status("otter", |status| status["state"] == "registered");
    let (dir, file) = (stage.path("otter"), stage.path("otter.tar"));

    // The running daemon draws a new onion key itself; the controller hears of it.
    let first = onion_id(&dir);
    let ran = run(&["keys", "rotate", "--state", &dir]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.out.contains("onion, previous"), "{}", ran.out);
    let second = onion_id(&dir);
    assert_ne!(first, second);

    // Its state is not copied, nor replaced, under its feet.
    fails(&["backup", &file, "--state", &dir], 1, &["a node runs", "systemctl stop cepa-node"]);
    assert!(!Path::new(&file).exists());
    node.stop();
    let ran = run(&["backup", &file, "--state", &dir]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.out.contains("private keys"), "{}", ran.out);
    assert_eq!(mode(Path::new(&file)), 0o600);
    fails(&["backup", &file, "--state", &dir], 1, &["exists"]);
    fails(&["restore", &file, "--state", &dir], 1, &["--replace"]);

    // Without a daemon the key is changed in the file; the backup has the one of before.
    assert_eq!(run(&["keys", "rotate", "--state", &dir]).code, Some(0));
    assert_ne!(onion_id(&dir), second);
    let ran = run(&["restore", &file, "--state", &dir, "--replace", "--json"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let answer: Value = serde_json::from_str(&ran.out).unwrap();
    let aside = answer["aside"].as_str().unwrap();
    assert!(Path::new(aside).join("identity.pem").exists(), "nothing is lost");
    assert_eq!(onion_id(&dir), second);

    // On another machine it is the same node, without a token.
    let there = stage.path("there");
    assert_eq!(run(&["restore", &file, "--state", &there]).code, Some(0));
    assert_eq!(mode(Path::new(&there)), 0o700);
    assert_eq!(mode(&Path::new(&there).join("identity.pem")), 0o600);
    let listen = format!("127.0.0.1:{}", crate::stage::free_port());
    let words = [
        "node",
        "--controller",
        &stage.link,
        "--name",
        "otter",
        "--state",
        &there,
        "--listen",
        &listen,
    ];
    let moved = crate::stage::Daemon::start(&words, stage.folder.path().join("there.log"));
    let after = stage.status("there", |status| status["state"] == "registered");
    assert_eq!(after["id"], before["id"]);
    fails(&["restore", &file, "--state", &there, "--replace"], 1, &["a node runs"]);
    moved.stop();
}

#[test]
fn a_damaged_backup_is_refused_and_touches_nothing() {
    let mut stage = Stage::new();
    stage.controller.take().unwrap().stop();
    let (dir, file) = (stage.path("controller"), stage.path("controller.tar"));
    assert_eq!(run(&["backup", &file, "--state", &dir]).code, Some(0));
    let ran = run(&["restore", &file, "--check"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.out.contains("the state of a controller"), "{}", ran.out);
    let whole = fs::read(&file).unwrap();
    let (broken, back) = (stage.path("broken.tar"), stage.path("back"));
    let mut changed = whole.clone();
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    for bytes in [&whole[..whole.len() / 3], &changed, b"something else", b""] {
        fs::write(&broken, bytes).unwrap();
        fails(&["restore", &broken, "--state", &back], 1, &["no whole backup of cepa"]);
        assert!(!Path::new(&back).exists());
    }
    fails(&["restore", &stage.path("none.tar")], 1, &["none.tar"]);
    // The controller's database works from its new place: link and tokens are those of before.
    assert_eq!(run(&["restore", &file, "--state", &back]).code, Some(0));
    fs::rename(&dir, stage.path("old")).unwrap();
    fs::rename(&back, &dir).unwrap();
    let link = stage.link.clone();
    stage.start_controller(&[]);
    assert_eq!(stage.link, link);
}

#[test]
fn whose_state_it_is_is_found_or_asked_for() {
    let stage = Stage::without_controller();
    let (empty, file) = (stage.path("empty"), stage.path("x.tar"));
    fails(&["backup", &file, "--state", &empty], 1, &["--role"]);
    fails(
        &["backup", &file, "--role", "node", "--state", &empty],
        1,
        &["expected the state of a node"],
    );
    fs::create_dir(&empty).unwrap();
    chmod(&empty, 0o755);
    fails(&["backup", &file, "--role", "node", "--state", &empty], 1, &["chmod 700"]);
    chmod(&empty, 0o700);
    fails(
        &["backup", &file, "--role", "node", "--state", &empty],
        1,
        &["expected files, got none"],
    );
    assert!(!Path::new(&file).exists());
    fails(&["keys", "show", "--role", "node", "--state", &empty], 1, &["at its first start"]);
    let controller = stage.path("controller");
    fails(&["keys", "show", "--state", &controller], 2, &["cepa controller link"]);
    fails(&["keys", "rotate", "--state", &controller], 2, &["cepa controller key rotate"]);
    fails(&["keys", "rotate", "--role", "client", "--state", &empty], 2, &["cepa circuits new"]);
}
