//! A DC-net whose exit is the client's circuit: the one hides who in the group speaks, the other
//! where the group is.

use std::{fs::File, process::Stdio};

use serde_json::Value;

use crate::{
    programs::run,
    servers::{self, pattern},
    stage::{PROGRAM, SOCKS, Stage},
};

/// Local port of the group's first client, as the supervisor has it.
const FIRST: &str = "127.0.0.1:9000";

/// How many connections the client's SOCKS port has had.
fn taken(status: &Value) -> Option<u64> {
    match status {
        Value::Object(fields) if fields.get("listen").is_some_and(|at| at == SOCKS) => {
            fields["total"].as_u64()
        }
        Value::Object(fields) => fields.values().find_map(taken),
        Value::Array(items) => items.iter().find_map(taken),
        _ => None,
    }
}

/// The whole group runs on the sender.
pub(crate) fn leaves_through_the_circuit(stage: &Stage) {
    let before = taken(&stage.status()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let group = dir.path().join("group");
    run(stage.on("sender").args([PROGRAM, "dcnet", "config", "-c", "3", "-t", "2"]).arg(&group));
    let log = dir.path().join("log");
    // `via-onion` alone is the port at which a client listens unless told otherwise.
    let mut parties = stage
        .on("sender")
        .args([PROGRAM, "dcnet", "supervisor", "--relay", "--exit", "via-onion"])
        .arg(&group)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let fetch = |path: &str| {
        let url = format!("http://web.example:{}{path}", servers::WEB);
        let output = stage
            .on("sender")
            .args(["curl", "-sS", "-m", "40", "--retry", "20", "--retry-delay", "1"])
            .args(["--retry-connrefused", "--socks5-hostname", FIRST, &url])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        assert!(output.status.success(), "{said}\n{log}");
        output.stdout
    };
    let who = String::from_utf8(fetch("/who")).unwrap();
    let bytes = fetch("/r/49");
    parties.kill().unwrap();
    parties.wait().unwrap();
    let outside = ["203.0.113.", "2001:db8:1:"].iter().any(|net| who.starts_with(net));
    assert!(outside, "the receiver saw {who}, which is no exit");
    assert!(bytes == pattern(1000 + 49 * 997));
    let after = taken(&stage.status()).unwrap();
    assert!(after >= before + 2, "{} connections came to the client's port", after - before);
}
