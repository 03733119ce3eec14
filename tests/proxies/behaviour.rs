//! Connections through the proxy behave as connections without it do.

use std::{
    io::{Read, Write},
    net::{SocketAddr, UdpSocket},
    sync::Barrier,
    time::{Duration, Instant},
};

use crate::{
    outcome::{ALL, By, socks},
    servers,
    stage::{Exits, SOCKS, Stage},
};

const AT_ONCE: usize = 500;

/// All conversations at once, with and without the proxy.
fn same_as_direct(stage: &Stage) {
    std::thread::scope(|scope| {
        let talks: Vec<_> = ALL
            .iter()
            .map(|(name, talk)| {
                let direct = scope.spawn(|| talk(stage, By::Direct));
                let proxy = scope.spawn(|| talk(stage, By::Proxy));
                (name, direct, proxy)
            })
            .collect();
        for (name, direct, proxy) in talks {
            assert_eq!(proxy.join().unwrap(), direct.join().unwrap(), "{name}");
        }
    });
}

fn five_hundred_at_once(stage: &Stage) {
    let ready = Barrier::new(AT_ONCE + 1);
    let done = Barrier::new(AT_ONCE + 1);
    std::thread::scope(|scope| {
        for number in 0..AT_ONCE {
            let (ready, done) = (&ready, &done);
            scope.spawn(move || {
                let mut stream =
                    socks(&stage.sender, &servers::V4.to_string(), servers::ECHO, None).unwrap();
                ready.wait();
                let sent = servers::pattern(4000 + number);
                stream.write_all(&sent).unwrap();
                let mut got = vec![0; sent.len()];
                stream.read_exact(&mut got).unwrap();
                assert!(got == sent, "connection {number}");
                done.wait();
            });
        }
        let started = Instant::now();
        ready.wait();
        eprintln!("{AT_ONCE} connections open after {} ms", started.elapsed().as_millis());
        done.wait();
        eprintln!("each echoed after {} ms", started.elapsed().as_millis());
    });
}

/// Datagrams by UDP ASSOCIATE, as long as its connection stands.
fn datagrams(stage: &Stage) {
    let proxy: SocketAddr = SOCKS.parse().unwrap();
    let (mut control, socket) = stage
        .sender
        .run(|| {
            (std::net::TcpStream::connect(proxy).unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap())
        })
        .unwrap();
    control.write_all(&[5, 1, 0]).unwrap();
    let mut answer = [0; 2];
    control.read_exact(&mut answer).unwrap();
    control.write_all(&[5, 3, 0, 1, 0, 0, 0, 0, 0, 0]).unwrap();
    let mut reply = [0; 10];
    control.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..4], [5, 0, 0, 1]);
    let relay = SocketAddr::from(([127, 0, 0, 1], u16::from_be_bytes([reply[8], reply[9]])));
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut header = vec![0, 0, 0, 1];
    header.extend(servers::V4.octets());
    header.extend(servers::ECHO.to_be_bytes());
    let mut by_name = vec![0, 0, 0, 3, 11];
    by_name.extend(b"web.example");
    by_name.extend(servers::ECHO.to_be_bytes());
    for (wrapped, len) in [(&header, 1), (&header, 1400), (&by_name, 500)] {
        let payload = servers::pattern(len);
        socket.send_to(&[&wrapped[..], &payload].concat(), relay).unwrap();
        let mut bytes = [0; 2000];
        let (got, from) = socket.recv_from(&mut bytes).unwrap();
        assert_eq!((from, &bytes[..10]), (relay, &header[..]));
        assert!(bytes[10..got] == payload);
    }
    drop(control);
    std::thread::sleep(Duration::from_millis(300));
    // Only a connected socket is told that nobody listens any more.
    socket.connect(relay).unwrap();
    let _ = socket.send(&header);
    assert!(socket.recv(&mut [0; 10]).is_err(), "the port is closed with the connection");
}

/// Each login has a circuit of its own.
fn isolation(stage: &Stage) {
    assert!(!stage.status().to_string().contains("\"isolated\""));
    let target = servers::V4.to_string();
    let one = |user| {
        let mut stream = socks(&stage.sender, &target, servers::ECHO, Some((user, "x"))).unwrap();
        stream.write_all(b"?").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        stream
    };
    let held = [one("ann"), one("bob"), one("ann")];
    let status = stage.status();
    let circuits = find_circuits(&status);
    let flows: Vec<u64> = circuits
        .iter()
        .filter(|circuit| circuit["state"] == "isolated")
        .map(|circuit| circuit["flows"].as_u64().unwrap())
        .collect();
    assert_eq!(flows.len(), 2, "{status}");
    assert!(flows.contains(&2) && flows.contains(&1), "{flows:?}");
    drop(held);
}

fn find_circuits(status: &serde_json::Value) -> Vec<serde_json::Value> {
    match status {
        serde_json::Value::Object(map) => map
            .iter()
            .flat_map(|(key, value)| {
                if key == "circuits" && value.is_array() {
                    value.as_array().unwrap().clone()
                } else {
                    find_circuits(value)
                }
            })
            .collect(),
        serde_json::Value::Array(list) => list.iter().flat_map(find_circuits).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn kernel_exits() {
    let Some(stage) = Stage::up(Exits::Kernel, &[]) else { return };
    isolation(&stage);
    same_as_direct(&stage);
    datagrams(&stage);
    five_hundred_at_once(&stage);
    crate::names::all(&stage);
    crate::refusals::malformed(&stage);
    crate::programs::all(&stage);
    crate::dcnet::leaves_through_the_circuit(&stage);
}

#[test]
fn unprivileged_exits() {
    let more = ["--proxy-connections-per-source", "600"];
    let Some(stage) = Stage::up(Exits::Userspace, &more) else { return };
    let devices = stage.on("n4").args(["ip", "-o", "link"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&devices.stdout).contains("cepaexit"));
    same_as_direct(&stage);
    datagrams(&stage);
    five_hundred_at_once(&stage);
    crate::names::all(&stage);
    crate::refusals::too_many(&stage, 600);
    crate::programs::all(&stage);
}
