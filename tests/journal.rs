//! Under systemd, records reach the journal with their fields.
//!
//! A mount namespace of its own gives the test a `/run` where it can stand for the journal.
//! Without the privilege to make one it says so and passes; `scripts/test` runs it with it.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    fs,
    os::unix::{fs::MetadataExt, net::UnixDatagram},
    process::Command,
    time::Duration,
};

const INNER: &str = "CEPA_TEST_JOURNAL_INNER";

#[test]
fn records_reach_the_journal_with_their_fields() {
    if std::env::var_os(INNER).is_some() {
        return inside();
    }
    let namespaces = ["--user", "--map-root-user", "--mount"];
    let possible = Command::new("unshare").args(namespaces).arg("true").output();
    if !possible.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: no mount namespace; run as root or allow user namespaces");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let stderr = fs::File::create(folder.path().join("stderr")).unwrap();
    let place = stderr.metadata().unwrap();
    let status = Command::new("unshare")
        .args(namespaces)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "records_reach_the_journal_with_their_fields", "--nocapture"])
        .env(INNER, "1")
        .env("JOURNAL_STREAM", format!("{}:{}", place.dev(), place.ino()))
        .stderr(stderr)
        .status()
        .unwrap();
    assert!(status.success(), "{}", fs::read_to_string(folder.path().join("stderr")).unwrap());
}

fn inside() {
    let mounted = Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run"]).status().unwrap();
    assert!(mounted.success());
    fs::create_dir_all("/run/systemd/journal").unwrap();
    let journal = UnixDatagram::bind("/run/systemd/journal/socket").unwrap();
    journal.set_read_timeout(Some(Duration::from_secs(10))).unwrap();

    cepa::telemetry::logs::init("node", "info").unwrap();
    log::debug!(target: "cepa::node", "not at this level");
    log::info!(
        target: "cepa::node", circuit = 3, event = "circuit_open", drop_reason = "replay";
        "a circuit is open"
    );

    let mut buffer = [0; 4096];
    // The logger greets the journal with an empty datagram.
    let length = std::iter::repeat_with(|| journal.recv(&mut buffer).unwrap())
        .find(|length| *length > 0)
        .unwrap();
    let entry = String::from_utf8_lossy(&buffer[..length]);
    for field in [
        "ROLE=node\n",
        "SYSLOG_IDENTIFIER=cepa-node\n",
        "CIRCUIT\n",
        "EVENT\n",
        "circuit_open\n",
        "DROP_REASON\n",
        "a circuit is open\n",
    ] {
        assert!(entry.contains(field), "{field:?} is not in {entry:?}");
    }
}
