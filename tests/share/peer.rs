//! `cepa peer` over the whole network: a link leads to the file, a kill costs next to nothing, a
//! lost exit is routed around, and nobody on the way sees what it is.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use crate::stage::{PROGRAM, Stage};

const FILM: usize = 48 << 20;
const CHUNK: u64 = 256 << 10;

/// A process that ends with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn peer(stage: &Stage, host: &str, name: &str, path: &str) -> Command {
    let mut command = stage.on(host);
    command
        .args([PROGRAM, "peer", "--controller", &stage.link, "--lab", "--path", path])
        .args(["--log", "debug", "--state"])
        .arg(stage.dir.join(host).join(format!("peer-{name}")));
    command
}

/// Shares a file; the process that shares it, and its link.
fn share(stage: &Stage, host: &str, path: &str, file: &Path) -> (Running, String) {
    let log = fs::File::create(stage.dir.join(host).join("share.log")).unwrap();
    let mut command = peer(stage, host, "up", path);
    command.arg("share").arg(file).stdout(Stdio::piped()).stderr(log);
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let link = lines
        .map_while(Result::ok)
        .map(|line| line.trim().to_owned())
        .find(|line| line.starts_with("cepa:?"));
    (Running(child), link.unwrap_or_else(|| panic!("no link: {}", stage.log(host, "share"))))
}

/// Gets a link until `is_enough` of a progress line; then SIGKILL. The last line.
fn get(
    stage: &Stage,
    host: &str,
    path: &str,
    link: &str,
    mut is_enough: impl FnMut(&serde_json::Value) -> bool,
) -> serde_json::Value {
    let log = fs::File::create(stage.dir.join(host).join("get.log")).unwrap();
    let to = stage.dir.join(host).join("files");
    let mut command = peer(stage, host, "down", path);
    command.args(["get", link, "--json", "--give-up", "40", "--to"]).arg(to);
    let mut child = Running(command.stdout(Stdio::piped()).stderr(log).spawn().unwrap());
    let mut last = serde_json::Value::Null;
    for line in BufReader::new(child.0.stdout.take().unwrap()).lines().map_while(Result::ok) {
        last = serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("{line}\n{}", stage.log(host, "get")));
        if is_enough(&last) {
            // `rig shell` executes the peer in its own process.
            child.0.kill().unwrap();
            break;
        }
    }
    assert!(!last.is_null(), "{}", stage.log(host, "get"));
    last
}

fn number(view: &serde_json::Value, field: &str) -> u64 {
    view[field].as_u64().unwrap_or_else(|| panic!("{field} of {view}"))
}

fn film(stage: &Stage, host: &str) -> (PathBuf, Vec<u8>) {
    let mut bytes = vec![0; FILM];
    blake3::Hasher::new().update(b"film").finalize_xof().fill(&mut bytes);
    let file = stage.dir.join(host).join("très long film.mkv");
    fs::write(&file, &bytes).unwrap();
    (file, bytes)
}

#[test]
fn a_link_leads_to_the_file_and_a_kill_costs_at_most_a_chunk() {
    let Some(stage) = Stage::up() else { return };
    let (file, bytes) = film(&stage, "stranger");
    let (_sharing, link) = share(&stage, "stranger", "n1,n2,n4", &file);
    let began = Instant::now();
    let first = get(&stage, "sender", "n2,n3,n5", &link, |view| number(view, "have") > 8 << 20);
    eprintln!("first run: {first} in {:?}", began.elapsed());
    let second = get(&stage, "sender", "n2,n3,n5", &link, |_| false);
    eprintln!("second run: {second}");
    assert_eq!(second["state"], "done", "{second}\n{}", stage.log("sender", "get"));
    let got = fs::read(second["path"].as_str().unwrap()).unwrap();
    assert_eq!(blake3::hash(&got), blake3::hash(&bytes));
    if first["state"] != "done" {
        // The last progress line is up to a second older than the kill.
        let kept = FILM as u64 - (number(&second, "fetched") - number(&second, "fetched_again"));
        assert!(kept + CHUNK >= number(&first, "have"), "{kept} bytes were kept: {first}");
    }
    for (host, log) in [("stranger", "tracker"), ("n4", "node"), ("n5", "node")] {
        let said = stage.log(host, log);
        let root = blake3::hash(&bytes).to_hex();
        assert!(!said.contains("film") && !said.contains(root.as_str()), "{host}: {said}");
    }
}
