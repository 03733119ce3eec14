//! `cepa rig up` for tests: a network that is up, or the reason why there can be none here.
//!
//! In: arguments. Out: the network's id and folder. Called by: the tests of the rig, of sharing and of
//! the proxies.

use std::{path::PathBuf, process::Command};

/// Brings a network up; none, said aloud, without the privilege.
pub(crate) fn rig_up(program: &str, arguments: &[&str]) -> Option<(String, PathBuf)> {
    let output = Command::new(program).args(["rig", "up"]).args(arguments).output().unwrap();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("expected the privilege") || said.contains("/dev/net/tun"), "{said}");
        eprintln!("SKIPPED: {said}");
        return None;
    }
    let text = String::from_utf8(output.stdout).unwrap();
    let id = text.split_whitespace().nth(2).unwrap().to_owned();
    let dir = text.lines().last().unwrap().split(": ").nth(1).unwrap().into();
    Some((id, dir))
}
