//! The source's DC-net as processes on loopback: netcat against the echo, requests at a rate, curl
//! and Chromium through SOCKS5, large transfers unharmed, the supervisor's `--local`, and configuration errors named by file and field.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "dcnet/processes.rs"]
mod processes;

use std::{fs, io::Write, os::unix::fs::PermissionsExt, path::Path, process::Stdio, thread};

use processes::{
    Running, browse, cepa, connect, echoed, free_port, free_ports, http_server, make_config, tool,
};

fn netcat(port: u16, line: &str) -> String {
    let mut child = tool("nc", &["-N", "-w", "20", "127.0.0.1", &port.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(line.as_bytes()).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

#[test]
fn netcat_against_the_echo_with_a_client_started_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    let (relay, exit) = (free_port(), free_port());
    let first = free_ports(4);
    make_config(dir.path(), 4, 2, relay);
    let path = dir.path().to_str().unwrap();
    let (relay, exit) = (relay.to_string(), exit.to_string());
    let mut running = Running::default();
    running.0.push(cepa(&["echo", "-p", &exit]).spawn().unwrap());
    let behind = format!("127.0.0.1:{exit}");
    running.0.push(
        cepa(&["relay", "--wire", "seed", "-p", &relay, "--exit", &behind, path]).spawn().unwrap(),
    );
    let ports = first.to_string();
    running.0.push(
        cepa(&["supervisor", "--wire", "seed", "--local", "--first-port", &ports, path])
            .spawn()
            .unwrap(),
    );
    // The one client that `--local` leaves to the person is the last of system.json.
    let system: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.path().join("system.json")).unwrap()).unwrap();
    let id = system["clients"][3]["id"].as_str().unwrap();
    let own = dir.path().join(format!("{id}.json"));
    let port = (first + 3).to_string();
    running.0.push(
        cepa(&["client", "--wire", "seed", "-p", &port, path, own.to_str().unwrap()])
            .spawn()
            .unwrap(),
    );
    let large: Vec<u8> = (0..60_000_u32).map(|at| (at * 7 % 251) as u8).collect();
    let threads: Vec<_> = (0..4)
        .map(|at| {
            let large = large.clone();
            thread::spawn(move || {
                drop(connect(first + at));
                assert_eq!(netcat(first + at, "hello\n"), "hello\n");
                assert_eq!(echoed(connect(first + at), &large), large);
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn socks_requests_reach_a_server_and_private_ones_only_when_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let (relay, socks, target) = (free_port(), free_port(), free_port());
    let first = free_ports(2);
    make_config(dir.path(), 2, 2, relay);
    let path = dir.path().to_str().unwrap();
    let (socks, target) = (format!("127.0.0.1:{socks}"), target.to_string());
    let ports = first.to_string();
    let mut running = Running::default();
    running.0.push(cepa(&["echo", "-p", &target]).spawn().unwrap());
    let relay_args =
        ["supervisor", "--wire", "seed", "--relay", "--exit", &socks, "--first-port", &ports, path];
    running.0.push(cepa(&relay_args).spawn().unwrap());
    let mut denying = cepa(&["socks5", "--listen", &socks]).spawn().unwrap();
    drop(connect(first));
    let target = format!("127.0.0.1:{target}");
    let ask = || {
        cepa(&["test-client", "-p", &ports, "--target", &target, "-r", "20", "-n", "10", "--json"])
            .output()
            .unwrap()
    };
    let refused = ask();
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("refuses with code 2"));
    denying.kill().unwrap();
    denying.wait().unwrap();
    running.0.push(cepa(&["socks5", "--allow-private", "--listen", &socks]).spawn().unwrap());
    drop(connect(socks.rsplit_once(':').unwrap().1.parse().unwrap()));
    let started = std::time::Instant::now();
    let allowed = ask();
    assert!(allowed.status.success(), "{}", String::from_utf8_lossy(&allowed.stderr));
    let report: serde_json::Value = serde_json::from_slice(&allowed.stdout).unwrap();
    assert_eq!(report["schema"], "cepa.dcnet.test-client/1");
    assert_eq!(report["failed"], 0);
    // 10 requests at 20 a second take at least 450 ms: the rate is kept.
    assert!(started.elapsed() >= std::time::Duration::from_millis(450));
    let (site, proxy) = (http_server("<b>of the source</b>"), format!("127.0.0.1:{first}"));
    let url = format!("http://127.0.0.1:{site}/");
    let output =
        tool("curl", &["-sS", "-m", "30", "--socks5-hostname", &proxy, &url]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "<b>of the source</b>");
    let through = format!("--proxy-server=socks5://{proxy}");
    let seen = browse(&url, &[&through, "--proxy-bypass-list=<-loopback>"]);
    assert!(seen.contains("<b>of the source</b>"), "{seen}");
}

/// Changes a JSON file, runs a party, gives its complaint.
fn complaint(dir: &Path, file: &str, change: impl FnOnce(&mut serde_json::Value)) -> String {
    let path = dir.join(file);
    let original = fs::read(&path).unwrap();
    let mut value = serde_json::from_slice(&original).unwrap();
    change(&mut value);
    fs::write(&path, serde_json::to_vec(&value).unwrap()).unwrap();
    let output = cepa(&["relay", "-p", "0"]).arg(dir).output().unwrap();
    fs::write(&path, original).unwrap();
    assert_eq!(output.status.code(), Some(2));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn configuration_errors_name_file_and_field() {
    let dir = tempfile::tempdir().unwrap();
    make_config(dir.path(), 3, 2, free_port());
    let dir = dir.path();
    let told = complaint(dir, "session.json", |value| value["group-id"] = "00".repeat(32).into());
    assert!(told.contains("session.json: group-id"), "{told}");
    let told =
        complaint(dir, "system.json", |value| value["clients"][1] = value["clients"][0].clone());
    assert!(told.contains("system.json: clients[1].id") && told.contains("twice"), "{told}");
    let told = complaint(dir, "system.json", |value| {
        value["trustees"][0]["key"] = format!("02{}", "00".repeat(31)).into()
    });
    assert!(told.contains("system.json: trustees[0].key"), "{told}");
    let told = complaint(dir, "system.json", |value| {
        value.as_object_mut().unwrap().remove("relay");
    });
    assert!(told.contains("system.json: relay"), "{told}");
    let told =
        complaint(dir, "pseudonym.json", |value| value["slots"][0] = value["slots"][1].clone());
    assert!(told.contains("pseudonym.json: slots"), "{told}");
    let told = complaint(dir, "system.json", |value| {
        value["settings"]["cell-size"] = 3.into();
    });
    assert!(told.contains("settings.cell-size") && told.contains("got 3"), "{told}");

    let system: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.join("system.json")).unwrap()).unwrap();
    let own = dir.join(format!("{}.json", system["clients"][0]["id"].as_str().unwrap()));
    let run = || cepa(&["client", "-p", "0"]).arg(dir).arg(&own).output().unwrap();
    fs::set_permissions(&own, fs::Permissions::from_mode(0o644)).unwrap();
    let output = run();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && told.contains("chmod 600"), "{told}");
    fs::remove_file(&own).unwrap();
    let told = String::from_utf8_lossy(&run().stderr).into_owned();
    assert!(told.contains("No such file"), "{told}");
}
