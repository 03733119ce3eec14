//! What the daemons tell Prometheus: everything that was promised, and nobody's name or address.

use std::{
    io::{Read, Write},
    net::{TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use crate::stage::{Stage, fails, free_port};

/// The text at `/metrics` of this port.
fn scrape(port: &str) -> String {
    let mut stream = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: me\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("application/openmetrics-text"), "{answer}");
    answer
}

/// Scrapes until a line is there.
fn until(port: &str, line: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let text = scrape(port);
        if text.lines().any(|found| found == line) {
            return text;
        }
        assert!(Instant::now() < deadline, "{line}:\n{text}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn every_role_has_metrics_of_one_shape_without_names_and_addresses() {
    let mut stage = Stage::without_controller();
    let ports: Vec<String> = (0..3).map(|_| free_port().to_string()).collect();
    let at = |index: usize| format!("127.0.0.1:{}", ports[index]);
    stage.start_controller(&["--admission", "open", "--metrics", &at(0)]);
    let _node = stage.start_node("otter", &["--metrics", &at(1), "--exit", "--userspace", "--lab"]);
    let status = stage.status("otter", |status| status["state"] == "registered");
    let (dir, tracker_listen) = (stage.path("beaver"), format!("127.0.0.1:{}", free_port()));
    let words = ["tracker", "--controller", &stage.link, "--name", "beaver", "--state", &dir];
    let mut words = words.to_vec();
    let tracker_metrics = at(2);
    words.extend(["--listen", &tracker_listen, "--metrics", &tracker_metrics]);
    let _tracker = crate::stage::Daemon::start(&words, stage.folder.path().join("beaver.log"));
    stage.status("beaver", |status| status["state"] == "registered");

    // A datagram that is no cell is counted under its reason.
    let listen = status["listen"].as_str().unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.send_to(b"no cell", listen).unwrap();
    let text = until(&ports[1], "cepa_drops_total{reason=\"bad_length\"} 1");
    for family in [
        "cepa_build_info{role=\"node\",version=",
        "cepa_cells_total{direction=\"in\"} ",
        "cepa_cells_total{direction=\"out\"} ",
        "cepa_circuits{state=\"open\"} 0",
        "cepa_circuits_max 16384",
        "cepa_creates_refused_total 0",
        "cepa_creates_waiting 0",
        "cepa_exit_connections 0",
        "cepa_exit_circuit_limit{limit=\"connections\"} 1024",
        "cepa_listed 1",
    ] {
        assert!(text.contains(family), "{family}:\n{text}");
    }
    let expiry = text
        .lines()
        .find_map(|line| line.strip_prefix("cepa_onion_key_expiry_timestamp_seconds "))
        .unwrap();
    let now = jiff::Timestamp::now().as_second();
    let left = expiry.parse::<i64>().unwrap() - now;
    assert!((86_000..=86_401).contains(&left), "a key lives a day: {left}");

    let tracker = until(&ports[2], "cepa_listed 1");
    assert!(tracker.contains("cepa_sessions 0"), "{tracker}");
    let controller = until(&ports[0], "cepa_controller_nodes_listed 2");
    for text in [text, tracker, controller] {
        let body = text.split("\r\n\r\n").nth(1).unwrap();
        for secret in ["127.0.0.1", "otter", "beaver", status["id"].as_str().unwrap()] {
            assert!(!body.contains(secret), "{secret}:\n{body}");
        }
        assert!(body.trim_end().ends_with("# EOF"), "{body}");
    }
}

#[test]
fn metrics_are_for_this_machine_only() {
    for role in ["controller", "node", "client", "tracker"] {
        fails(&[role, "--metrics", "0.0.0.0:9150"], 2, &["loopback", "127.0.0.1:9150"]);
    }
}
