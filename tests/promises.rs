//! Every promise of the rig, kept by the program under test: real daemons, real packets, the real
//! kernel at every host. The full-size counts are jobs of `scripts/ci.sh`.
//!
//! `CEPA_NOISE_DATAGRAMS` and `CEPA_RIG_KILLS` set how many hostile datagrams a node has to survive
//! and how many nodes are killed; `CEPA_RIG_ONLY` names the scenarios that are played.

use std::process::Command;

use serde_json::Value;

fn setting(name: &str, usual: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| usual.to_owned())
}

#[test]
fn every_promise_of_the_rig_is_kept() {
    let out = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_cepa"));
    command.args(["rig", "run", "--json", "--hostile", &setting("CEPA_NOISE_DATAGRAMS", "20000")]);
    command.args(["--kills", &setting("CEPA_RIG_KILLS", "10")]);
    command.arg("--out").arg(out.path());
    let only = setting("CEPA_RIG_ONLY", "");
    if !only.is_empty() {
        command.args(["--only", &only]);
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(7) {
        eprintln!("SKIPPED: {said}");
        return;
    }
    // The promises, with what was measured, for whoever looks at the log.
    eprintln!("{said}");
    // Where a promise is broken, what the command says of its error follows the report.
    let mut documents = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>();
    let Some(Ok(report)) = documents.next() else {
        panic!("expected a report, got: {}", String::from_utf8_lossy(&output.stdout))
    };
    let broken: Vec<String> = report["promises"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|promise| promise["kept"] != true)
        .map(|promise| format!("{}: {}", promise["name"], promise["evidence"]))
        .collect();
    assert!(broken.is_empty(), "{}\nlogs: {}", broken.join("\n"), report["logs"]);
    assert!(output.status.success(), "{said}");
}
