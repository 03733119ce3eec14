//! The modern DC-net as processes on loopback: echoes, a trustee that is killed, members that come
//! and go, connections that are not read, curl and Chromium, the page, the status and the bench.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "dcnet/processes.rs"]
mod processes;

use std::{
    io::{Read, Write},
    net::TcpListener,
    os::unix::net::UnixDatagram,
    thread,
    time::{Duration, Instant},
};

use processes::{Group, browse, cepa, connect, echoed, http_server, pattern, tool};
use serde_json::Value;

fn echo(stream: std::net::TcpStream, bytes: &[u8]) {
    let back = echoed(stream, bytes);
    assert!(back == bytes, "{} of {} bytes came back", back.len(), bytes.len());
}

#[test]
fn echoes_a_killed_trustee_and_the_status() {
    let mut group = Group::new(4, 2);
    echo(group.connect(1), b"hello");
    let threads: Vec<_> = (0..4)
        .map(|at| {
            let stream = group.connect(at);
            thread::spawn(move || echo(stream, &pattern(100_000)))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let status = group.status().unwrap();
    assert_eq!(status["schema"], "cepa.dcnet.status/1");
    assert_eq!(status["collisions"], 0);
    // A trustee is killed in the middle of a stream; it goes on when the trustee is back.
    let stream = group.connect(0);
    let running = thread::spawn(move || echo(stream, &pattern(400_000)));
    thread::sleep(Duration::from_millis(200));
    group.kill(4);
    group.await_status(|status| status["interval"] == 0);
    group.start(4);
    group.await_status(|status| status["interval"] != 0);
    running.join().unwrap();
}

/// 24 downloads by SOCKS5 through three clients, one of which is not read.
#[test]
fn of_24_connections_one_that_is_not_read_disturbs_nobody() {
    let target = free_echo();
    let group = Group::with_exit(3, 2, |port| {
        cepa(&["socks5", "--allow-private", "--listen", &format!("127.0.0.1:{port}")])
    });
    let mut stuck = socks(group.connect(0), target.0);
    let mut filling = stuck.try_clone().unwrap();
    filling.set_write_timeout(Some(Duration::from_secs(3))).unwrap();
    let _ = filling.write_all(&pattern(8_000_000));
    let threads: Vec<_> = (0..23)
        .map(|at| {
            let stream = socks(group.connect(at % 3), target.0);
            thread::spawn(move || echo(stream, &pattern(20_000)))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let mut first = [0; 1000];
    stuck.read_exact(&mut first).unwrap();
    assert_eq!(first[..], pattern(1000));
    // It is given up: the connection behind the relay ends, and with it the last one open.
    drop((stuck, filling));
    group.await_status(|status| status["connections"] == 0);
}

/// A client that is stopped holds the others up until it is left out; when it goes on, it is back.
#[test]
fn a_stopped_client_is_left_out_within_a_second_and_comes_back() {
    let group = Group::new(4, 2);
    let mut stream = group.connect(0);
    let mut longest = Duration::ZERO;
    let mut echo_for = |time: Duration, stream: &mut std::net::TcpStream| {
        let end = Instant::now() + time;
        while Instant::now() < end {
            let (start, mut back) = (Instant::now(), [0; 100]);
            stream.write_all(&[7; 100]).unwrap();
            stream.read_exact(&mut back).unwrap();
            longest = longest.max(start.elapsed());
        }
        longest
    };
    echo_for(Duration::from_secs(1), &mut stream);
    group.signal(3, "STOP");
    let longest = echo_for(Duration::from_secs(2), &mut stream);
    group.await_members(3);
    group.signal(3, "CONT");
    group.await_members(4);
    println!("the longest echo took {} ms", longest.as_millis());
    assert!(
        longest > Duration::from_millis(300) && longest < Duration::from_secs(2),
        "{longest:?}"
    );
}

/// What a program has seen is in a file of its own, which the next one reads.
#[test]
fn a_client_started_again_knows_whom_it_has_spoken_among() {
    let mut group = Group::new(3, 1);
    echo(group.connect(0), b"among three");
    let file = group
        .path()
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with(&group.clients[0]) && name.ends_with("-memory.json")
        })
        .unwrap();
    let memory: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(memory["spoken"], serde_json::json!([0, 1, 2]));
    let mode = std::os::unix::fs::PermissionsExt::mode(&file.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    // Among strangers it does not speak, whatever the relay says the set is.
    group.kill(0);
    let strangers = serde_json::json!({"spoken": [0, 61, 62], "convicted": []});
    std::fs::write(&file, strangers.to_string()).unwrap();
    group.start(0);
    group.await_members(3);
    let mut stream = group.connect(0);
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    stream.write_all(b"not to be heard").unwrap();
    assert!(stream.read(&mut [0]).is_err());
    // A file that says something else is named.
    group.kill(0);
    std::fs::write(&file, "{}").unwrap();
    let own = group.path().join(format!("{}.json", group.clients[0]));
    let port = group.first_port.to_string();
    let mut again = cepa(&["client", "-p", &port]);
    let output = again.arg(group.path()).arg(own).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("-memory.json: convicted"), "{said}");
}

fn free_echo() -> (u16, processes::Running) {
    let port = processes::free_port();
    let child = processes::quiet(&mut cepa(&["echo", "-p", &port.to_string()]));
    drop(connect(port));
    (port, processes::Running(vec![child]))
}

/// Asks a SOCKS5 server for a port of this host.
fn socks(mut stream: std::net::TcpStream, port: u16) -> std::net::TcpStream {
    stream.write_all(&[5, 1, 0]).unwrap();
    let mut choice = [0; 2];
    stream.read_exact(&mut choice).unwrap();
    assert_eq!(choice, [5, 0]);
    let [high, low] = port.to_be_bytes();
    stream.write_all(&[5, 1, 0, 1, 127, 0, 0, 1, high, low]).unwrap();
    let mut answer = [0; 10];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..2], [5, 0]);
    stream
}

#[test]
fn curl_and_chromium_through_a_client_and_the_page_of_the_relay() {
    let site = http_server("<h1>behind the DC-net</h1>");
    let group = Group::with_exit(3, 2, |port| {
        cepa(&["socks5", "--allow-private", "--listen", &format!("127.0.0.1:{port}")])
    });
    let proxy = format!("127.0.0.1:{}", group.first_port);
    let url = format!("http://127.0.0.1:{site}/");
    let output =
        tool("curl", &["-sS", "-m", "30", "--socks5-hostname", &proxy, &url]).output().unwrap();
    let (said, wrong) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(said, "<h1>behind the DC-net</h1>", "{wrong}");
    let through = format!("--proxy-server=socks5://{proxy}");
    let seen = browse(&url, &[&through, "--proxy-bypass-list=<-loopback>"]);
    assert!(seen.contains("<h1>behind the DC-net</h1>"), "{seen}");
    assert!(group.status().unwrap()["cells"].as_u64().unwrap() > 2);
    // The page lets nothing but its own script run, and that script draws the group.
    let page = format!("http://127.0.0.1:{}/", group.page);
    let head = tool("curl", &["-sSI", "-m", "10", &page]).output().unwrap();
    let head = String::from_utf8_lossy(&head.stdout).to_lowercase();
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    assert!(!head.contains("unsafe"), "{head}");
    // On a busy machine a member may have come later, or have been left out for a moment: the page
    // is asked for while all are there, and shows the interval that they are in.
    let (seen, interval) = (0..5)
        .map(|_| {
            let interval = group.await_members(3)["interval"].clone();
            (browse(&page, &["--virtual-time-budget=3000"]), interval)
        })
        .find(|(seen, interval)| seen.contains(&format!("Interval {interval}, 3 members.")))
        .expect("the page shows the interval of the status");
    assert!(interval.as_u64().unwrap() >= 1);
    assert_eq!(seen.matches("<circle").count(), 3, "{seen}");
    assert_eq!(seen.matches("<rect").count(), 2, "{seen}");
}

/// The relay's exit is another SOCKS5 port, as a cepa client has one.
#[test]
fn the_exit_can_be_the_socks_port_of_a_client_of_circuits() {
    let site = http_server("<p>by another way</p>");
    let dir = tempfile::tempdir().unwrap();
    let (relay, way, first) =
        (processes::free_port(), processes::free_port(), processes::free_ports(2));
    processes::make_config(dir.path(), 2, 1, relay);
    let way = format!("127.0.0.1:{way}");
    let mut running = processes::Running::default();
    let exit = processes::quiet(&mut cepa(&["socks5", "--allow-private", "--listen", &way]));
    running.0.push(exit);
    let (via, ports) = (format!("via-onion={way}"), first.to_string());
    let mut all = cepa(&["supervisor", "--relay", "--exit", &via, "--first-port", &ports]);
    running.0.push(processes::quiet(all.arg(dir.path())));
    drop(connect(first));
    let (proxy, url) = (format!("127.0.0.1:{first}"), format!("http://127.0.0.1:{site}/"));
    let output =
        tool("curl", &["-sS", "-m", "40", "--socks5-hostname", &proxy, &url]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "<p>by another way</p>");
}

/// For how long: 10 s here, 10 minutes in the named job, by `CEPA_DCNET_SOAK_SECONDS`.
#[test]
fn churn_every_two_seconds_loses_no_byte() {
    let time = std::env::var("CEPA_DCNET_SOAK_SECONDS").map_or(10, |text| text.parse().unwrap());
    let mut group = Group::new(5, 2);
    let end = Instant::now() + Duration::from_secs(time);
    let talkers: Vec<_> = (0..3)
        .map(|at| {
            let port = group.first_port + at;
            thread::spawn(move || {
                let mut rounds = 0;
                while Instant::now() < end {
                    echo(connect(port), &pattern(30_000));
                    rounds += 1;
                }
                rounds
            })
        })
        .collect();
    let mut memory = Vec::new();
    while Instant::now() < end {
        for at in [3, 4] {
            match group.running[at] {
                Some(_) => group.kill(at),
                None => group.start(at),
            }
            thread::sleep(Duration::from_secs(2));
        }
        memory.push(group.relay_memory());
    }
    for talker in talkers {
        assert!(talker.join().unwrap() > 0);
    }
    // Flat: the last reading is no more than 16 MB above the one after the first minute.
    let settled = memory[memory.len().min(15) - 1];
    assert!(*memory.last().unwrap() < settled + 16_384, "{memory:?}");
}

fn bench(flag: &str) -> Value {
    let output =
        cepa(&["bench", "-c", "4", "-t", "2", "--seconds", "1", flag, "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_bench_convicts_its_jammer() {
    let report = bench("--blame");
    assert_eq!(report["parties"], "processes");
    assert_eq!(report["blamed"], "client 3");
    assert!(report["rounds_per_s"].as_f64().unwrap() > 100.0, "{report}");
}

/// While the relay is away, something else at its address ends every handshake.
#[test]
fn broken_handshakes_end_no_party() {
    let mut group = Group::new(3, 2);
    group.end_relay();
    let listener = TcpListener::bind(("127.0.0.1", group.relay_port)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    let accept = || loop {
        match listener.accept() {
            Ok((stream, _)) => return stream,
            Err(error) => assert!(Instant::now() < end, "no party tried again: {error}"),
        }
        thread::sleep(Duration::from_millis(20));
    };
    for _ in 0..5 {
        // One closes at once, one says nonsense.
        drop(accept());
        let _ = accept().write_all(&[0, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }
    drop(listener);
    group.start_relay();
    group.await_members(3);
    for at in 0..3 {
        echo(group.connect(at), b"back again");
    }
}

/// While a thread waits for the relay, the program is as alive as before.
#[test]
fn trustees_and_clients_with_a_link_feed_the_watchdog() {
    let mut group = Group::new(3, 2);
    for party in [0, 3] {
        let path = group.path().join(format!("notify-{party}"));
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        group.kill(party);
        group.await_status(|status| status["interval"] == 0 || party == 0);
        let path = path.to_str().unwrap();
        group.start_with(party, &[("NOTIFY_SOCKET", path), ("WATCHDOG_USEC", "1000000")]);
        group.await_members(3);
        let (end, mut fed) = (Instant::now() + Duration::from_secs(5), 0);
        while Instant::now() < end {
            let mut said = [0; 64];
            let Ok(len) = socket.recv(&mut said) else { continue };
            fed += usize::from(&said[..len] == b"WATCHDOG=1\n");
        }
        // Every quarter of a second, of which a busy machine may miss half.
        assert!(fed >= 10, "party {party} said so {fed} times");
    }
}

#[test]
fn a_member_given_twice_is_refused() {
    let group = Group::new(2, 1);
    let own = group.path().join(format!("{}.json", group.clients[0]));
    let command = ["20", env!("CARGO_BIN_EXE_cepa"), "dcnet", "client"];
    let output = tool("timeout", &command).arg(group.path()).args([&own, &own]).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("is given twice"), "{said}");
}

#[test]
fn members_of_one_process_speak_each_at_its_own_port() {
    let mut group = Group::new(4, 2);
    group.kill(2);
    group.kill(3);
    group.await_members(2);
    let together = group.start_together(&[2, 3]);
    group.await_members(4);
    for at in 0..4 {
        echo(group.connect(at), format!("member {at}").as_bytes());
    }
    drop(together);
    group.await_members(2);
    echo(group.connect(0), b"the others go on");
}

#[test]
fn the_bench_runs_its_clients_as_tasks_too() {
    let report = bench("--tasks");
    assert_eq!(report["parties"], "tasks");
    let client_cpu = report["cpu"][2].as_f64().unwrap();
    assert!(client_cpu > 0.0 && client_cpu < 1.0, "{report}");
    // One client left and came back while the others' process stayed.
    assert!(report["join_s"].as_f64().unwrap() > 0.0, "{report}");
}
