//! The lockdown against a real kernel: eight kinds of packets, both families, from the inside and
//! from the machine itself, counted at the far end of the outside cable.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::{Command, Output},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use cepa::{
    capture::netns::NetNs,
    client::{
        lockdown::{self, Endpoints},
        probe::KINDS,
    },
    rig::clear::{Members, Tally, Watch, mac},
};
use serde_json::{Value, json};

use crate::{cable, ip, namespaces};

const PROGRAM: &str = env!("CARGO_BIN_EXE_cepa");
const FINGERPRINT: &str = "6f1ed002ab5595859014ebf0951522d96f1ed002ab5595859014ebf0951522d9";
/// Behind the outside cable, reached by the default route.
const WORLD: [&str; 2] = ["198.51.100.2", "2001:db8:5::2"];

/// `inside` -- `gateway` -- `outside`, with forwarding and NAT on: without rules everything passes.
struct Network {
    inside: NetNs,
    gateway: NetNs,
    outside: NetNs,
    dir: tempfile::TempDir,
}

impl Network {
    fn up() -> Option<Self> {
        let [inside, gateway, outside] = namespaces::<3>()?;
        cable(
            (&gateway, "lan0", &["192.168.77.1/24", "fd78::1/64"]),
            (&inside, "eth0", &["192.168.77.2/24", "fd78::2/64"]),
        );
        cable(
            (&gateway, "wan0", &["10.99.0.2/24", "fd99::2/64"]),
            (&outside, "up0", &["10.99.0.1/24", "fd99::1/64"]),
        );
        for address in WORLD {
            let prefix = if address.contains(':') { 128 } else { 32 };
            ip(&outside, &format!("address add {address}/{prefix} dev up0"));
        }
        for (netns, v4, v6) in
            [(&inside, "192.168.77.1", "fd78::1"), (&gateway, "10.99.0.1", "fd99::1")]
        {
            ip(netns, &format!("route add default via {v4}"));
            ip(netns, &format!("-6 route add default via {v6}"));
        }
        for netns in [&inside, &gateway, &outside] {
            ip(netns, "link set dev lo up");
        }
        let network = Self { inside, gateway, outside, dir: tempfile::tempdir().unwrap() };
        network.on_gateway(|| {
            for name in ["ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding"] {
                std::fs::write(Path::new("/proc/sys/net").join(name), "1").unwrap();
            }
            let nat = "table inet careless { chain out { type nat hook postrouting priority srcnat; \
                       oifname \"wan0\" masquerade; }; }";
            let output = Command::new("nft").arg(nat).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        });
        Some(network)
    }

    fn on_gateway<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.gateway.run(work).unwrap()
    }

    fn cepa(&self, words: &[&str]) -> Output {
        self.on_gateway(|| {
            Command::new(PROGRAM)
                .args(words)
                .env("CEPA_STATE", self.dir.path().join("client"))
                .env("CEPA_CONFIG", self.dir.path().join("client.toml"))
                .output()
                .unwrap()
        })
    }

    fn settings(&self, text: &str) {
        std::fs::write(self.dir.path().join("client.toml"), text).unwrap();
    }

    fn good_settings(&self, uid: u32) {
        self.settings(&format!(
            "controller = \"cepa://10.99.0.1:5000/{FINGERPRINT}\"\nlan = [\"lan0\"]\nuser = \"{uid}\"\n"
        ));
    }

    fn lock(&self) -> String {
        let output = self.cepa(&["lockdown", "on"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said
    }

    fn status(&self) -> Value {
        let output = self.cepa(&["lockdown", "status", "--json"]);
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["lockdown"].take()
    }

    /// Everything that the gateway sends by its outside cable while `work` runs.
    fn watch(&self, work: impl FnOnce()) -> Tally {
        let mac = mac(&self.gateway, "wan0").unwrap();
        let members = Members {
            relays: vec!["10.99.0.1:5000".parse().unwrap()],
            controller: Some("10.99.0.1:5000".parse().unwrap()),
        };
        let watch = Watch::start(&self.outside, "up0", mac, members).unwrap();
        work();
        let tally = watch.stop().unwrap();
        assert_eq!(tally.lost, 0);
        tally
    }

    /// One packet of each kind and family from the inside, from the gateway, and from the gateway
    /// bound to its outside interface.
    fn probe(&self) -> Tally {
        let fire = |device: Option<&str>| {
            let tool = json!({"tool": "probe", "to": WORLD, "device": device});
            let output =
                Command::new(PROGRAM).args(["rig", "agent", &tool.to_string()]).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
            let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(answer["tried"], 2 * KINDS.len());
        };
        let sent = self.watch_inside(|| {
            self.inside.run(|| fire(None)).unwrap();
        });
        self.on_gateway(|| fire(None));
        self.on_gateway(|| fire(Some("wan0")));
        sent
    }

    /// What the inside sends, so that zero on the other side means something.
    fn watch_inside(&self, work: impl FnOnce()) -> Tally {
        let mac = mac(&self.inside, "eth0").unwrap();
        let watch = Watch::start(&self.gateway, "lan0", mac, Members::default()).unwrap();
        work();
        watch.stop().unwrap()
    }

    fn expect_nothing(&self, state: &str) {
        let mut sent = Tally::default();
        let tally = self.watch(|| sent = self.probe());
        assert!(sent.clear.len() >= 2 * KINDS.len(), "{state}: the inside sent {:?}", sent.clear);
        assert_eq!(tally.clear_packets(), 0, "{state}: {:?}", tally.clear);
        eprintln!("{state}: {} packets tried by the inside, 0 left in clear", sent.clear_packets());
    }
}

#[test]
fn nothing_leaves_in_clear_and_the_counter_counts() {
    let Some(network) = Network::up() else { return };
    // The control: without a lockdown every kind arrives, in both families, from both places.
    let tally = network.watch(|| drop(network.probe()));
    assert_eq!(tally.clear.len(), 2 * KINDS.len(), "{:?}", tally.clear);
    eprintln!("control: {:?}", tally.clear);

    // Before any settings exist, before the daemon has ever run.
    network.settings("");
    let said = network.lock();
    assert!(said.contains("controller"), "{said}");
    network.expect_nothing("no settings");
    network.good_settings(990);
    assert_eq!(network.lock(), "");
    assert_eq!(network.status()["endpoints"], 1);
    network.expect_nothing("locked");
    // A broken configuration locks with the plan of the last time.
    network.settings("lan = [\"lan0\"\nnonsense");
    assert!(network.lock().contains("last time"));
    assert_eq!(network.status()["lan"], json!(["lan0"]));
    network.expect_nothing("settings broken");
    // So does a broken state; and if that is gone, too, everything is locked.
    network.good_settings(990);
    let state = network.dir.path().join("client");
    std::fs::create_dir(&state).unwrap();
    std::fs::write(state.join("directory.json"), "{ not json").unwrap();
    assert!(!network.lock().is_empty());
    network.expect_nothing("state broken");
    network.settings("nonsense");
    std::fs::write(network.dir.path().join("lockdown.json"), "nonsense").unwrap();
    assert!(network.lock().contains("locking everything"));
    assert_eq!(network.status()["endpoints"], 0);
    network.expect_nothing("settings, state and plan broken");
    assert_eq!(network.status()["leaked_packets"], 0);
}

#[test]
fn an_unlock_ends_by_itself_and_what_left_is_counted() {
    let Some(network) = Network::up() else { return };
    network.good_settings(990);
    let output = network.cepa(&["unlock", "--for", "10m"]);
    assert_eq!(output.status.code(), Some(1), "there is nothing to unlock");
    network.lock();
    let output = network.cepa(&["unlock", "--for", "2s"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let begun = Instant::now();
    let tally = network.watch(|| drop(network.probe()));
    assert!(begun.elapsed() < Duration::from_secs(2), "this machine is too slow for the test");
    // What the gateway sends passes, bound to the interface or not; the inside stays closed.
    assert_eq!(tally.clear.len(), 2 * KINDS.len(), "{:?}", tally.clear);
    assert!(tally.clear.values().all(|packets| *packets <= 2), "{:?}", tally.clear);
    // Nobody has to end it: the kernel does.
    std::thread::sleep(Duration::from_millis(2500).saturating_sub(begun.elapsed()));
    network.expect_nothing("after the unlock");
    let status = network.status();
    assert_eq!(status["leaked_packets"], json!(tally.clear_packets()));
    assert_eq!(network.cepa(&["lockdown", "status"]).status.code(), Some(6));
    // Locking again does not forget.
    network.lock();
    assert_eq!(network.status()["leaked_packets"], json!(tally.clear_packets()));
    // A new lockdown ends an unlock at once.
    assert!(network.cepa(&["unlock", "--for", "1h"]).status.success());
    network.lock();
    network.expect_nothing("locked again");
    assert!(network.cepa(&["lockdown", "off", "--yes"]).status.success());
    let tally = network.watch(|| drop(network.probe()));
    assert_eq!(tally.clear.len(), 2 * KINDS.len(), "{:?}", tally.clear);
}

/// Only the daemon's user, only to members, only by their protocol and port.
#[test]
fn the_daemon_reaches_members_and_nobody_else() {
    let Some(network) = Network::up() else { return };
    // A user namespace has no other users to be.
    let is_real_root = std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().nth(2) == Some("4294967295"));
    if !is_real_root {
        eprintln!("SKIPPED: another user to send as; run as root");
        return;
    }
    network.good_settings(990);
    network.lock();
    let outside = network.outside.run(|| UdpSocket::bind("0.0.0.0:5000").unwrap()).unwrap();
    let other = network.outside.run(|| UdpSocket::bind("0.0.0.0:5001").unwrap()).unwrap();
    for socket in [&outside, &other] {
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    }
    let update = |members: &[&str]| {
        let endpoints = Endpoints {
            members: members.iter().map(|text| text.parse::<SocketAddr>().unwrap()).collect(),
            ..Endpoints::default()
        };
        network.on_gateway(|| {
            cepa::capture::nft::apply(&lockdown::update(&endpoints), "update").unwrap();
        });
    };
    let send = |uid: &str, to: &str| {
        let script = format!("echo x >/dev/udp/{}", to.replace(':', "/"));
        network.on_gateway(|| {
            Command::new("setpriv")
                .args(["--reuid", uid, "--regid", uid, "--clear-groups", "bash", "-c", &script])
                .output()
                .unwrap()
        })
    };
    let arrives = |socket: &UdpSocket| socket.recv(&mut [0; 9]).is_ok();
    send("990", "10.99.0.1:5000");
    assert!(!arrives(&outside), "the controller is asked by TCP, not UDP");
    update(&["10.99.0.1:5000"]);
    send("990", "10.99.0.1:5000");
    assert!(arrives(&outside));
    send("990", "10.99.0.1:5001");
    assert!(!arrives(&other), "another port");
    for uid in ["0", "991"] {
        send(uid, "10.99.0.1:5000");
        assert!(!arrives(&outside), "user {uid}");
    }
    update(&["10.99.0.3:5000"]);
    send("990", "10.99.0.1:5000");
    assert!(!arrives(&outside), "a member no longer");
    assert_eq!(network.status()["leaked_packets"], 0);
}

/// While endpoints change and the whole table is replaced, over and over, nothing slips through.
#[test]
fn no_change_opens_a_gap() {
    let Some(network) = Network::up() else { return };
    network.good_settings(990);
    network.lock();
    let done = AtomicBool::new(false);
    let tally = network.watch(|| {
        std::thread::scope(|scope| {
            let flood = |netns: &'static str| {
                let netns = if netns == "inside" { &network.inside } else { &network.gateway };
                let done = &done;
                scope.spawn(move || {
                    netns
                        .run(|| {
                            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                            let mut tried = 0u64;
                            while !done.load(Ordering::Relaxed) {
                                let _ = socket.send_to(b"leak", (WORLD[0], 443));
                                tried += 1;
                            }
                            tried
                        })
                        .unwrap()
                })
            };
            let floods = [flood("inside"), flood("gateway")];
            for round in 0..60u8 {
                let members = [format!("10.99.0.{}:5000", round + 3).parse().unwrap()];
                let endpoints = Endpoints { members: members.into(), ..Endpoints::default() };
                network.on_gateway(|| {
                    cepa::capture::nft::apply(&lockdown::update(&endpoints), "update").unwrap();
                });
                if round % 6 == 0 {
                    network.lock();
                }
            }
            done.store(true, Ordering::Relaxed);
            let tried: Vec<u64> = floods.map(|flood| flood.join().unwrap()).into();
            eprintln!("{tried:?} packets tried during 60 updates and 10 replacements");
            assert!(tried.iter().all(|tried| *tried > 1000), "{tried:?}");
        });
    });
    assert_eq!(tally.clear_packets(), 0, "{:?}", tally.clear);
}

#[test]
fn a_leak_test_finds_leaks_and_none_in_a_lockdown() {
    let Some(network) = Network::up() else { return };
    network.good_settings(990);
    let leaktest = || {
        let output = network.cepa(&["leaktest", "--json"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let report: Value = serde_json::from_slice(&output.stdout).expect(&said);
        (output.status.code(), report)
    };
    let (code, report) = leaktest();
    assert_eq!(code, Some(6), "{report}");
    assert_eq!(report["interfaces"], json!(["wan0"]));
    for probe in report["probes"].as_array().unwrap() {
        assert!(probe["leaked"].as_u64().unwrap() >= 1, "{probe}");
    }
    network.lock();
    let (code, report) = leaktest();
    assert_eq!(code, Some(0), "{report}");
    assert_eq!((&report["leaked"], report["tried"].as_u64()), (&json!(0), Some(36)));
    let tables = network
        .on_gateway(|| Command::new("nft").args(["list", "tables"]).output().unwrap().stdout);
    assert!(!String::from_utf8_lossy(&tables).contains("leaktest"));
}

#[test]
fn the_doctor_is_done_in_five_seconds_and_knows_what_to_do() {
    let Some(network) = Network::up() else { return };
    network.good_settings(990);
    let doctor = || {
        let begun = Instant::now();
        let output = network.cepa(&["doctor", "--json"]);
        assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(report["seconds"].as_f64().unwrap() < 5.0);
        let find = |name: &str| {
            let checks = report["checks"].as_array().unwrap();
            checks.iter().find(|check| check["check"] == name).cloned().unwrap_or_default()
        };
        (output.status.code(), ["lockdown", "client", "settings", "forwarding"].map(find))
    };
    let (code, [lockdown, client, settings, _]) = doctor();
    assert_eq!(code, Some(1));
    assert_eq!((&lockdown["verdict"], &client["verdict"]), (&json!("fail"), &json!("fail")));
    assert_eq!(lockdown["fix"], "sudo cepa lockdown on");
    assert_eq!(settings["verdict"], "ok");
    network.lock();
    let (_, [lockdown, ..]) = doctor();
    assert_eq!(lockdown["verdict"], "ok");
    network.settings("hopps = 3\n");
    let (_, [_, _, settings, _]) = doctor();
    assert!(settings["found"].as_str().unwrap().contains("hops"), "{settings}");
}

/// The gateway's own table, with no client and no lockdown.
#[test]
fn devices_are_seen_counted_and_refused() {
    let Some(network) = Network::up() else { return };
    network.good_settings(990);
    let gateway = cepa::client::gateway::Gateway {
        tun: "cepa0".to_owned(),
        lan: vec!["lan0".to_owned()],
        captured: None,
        resolver: None,
        denied: [].into(),
        apart: true,
    };
    network.on_gateway(|| cepa::capture::nft::apply(&gateway.rules(), "rules").unwrap());
    let ask = || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        socket.send_to(&[7; 100], "192.168.77.1:9999").unwrap();
        socket.recv(&mut [0; 200]).is_ok()
    };
    let server = network.on_gateway(|| UdpSocket::bind("192.168.77.1:9999").unwrap());
    std::thread::spawn(move || {
        while let Ok((len, from)) = server.recv_from(&mut [0; 200]) {
            let _ = server.send_to(&[8; 100][..len.min(100)], from);
        }
    });
    let asked = || network.inside.run(ask).unwrap();
    assert!(asked());
    let devices = || {
        let output = network.cepa(&["lan", "--json"]);
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["devices"].take()
    };
    let found = devices();
    let device = &found[0];
    assert!(device["bytes_up"].as_u64().unwrap() >= 128, "{found}");
    assert!(device["addresses"].as_array().unwrap().contains(&json!("192.168.77.2")), "{found}");
    let mac = device["mac"].as_str().unwrap();
    assert!(network.cepa(&["lan", "block", mac]).status.success());
    assert!(!asked());
    assert_eq!(devices()[0]["denied"], true);
    assert!(network.cepa(&["lan", "allow", mac]).status.success());
    assert!(asked());
    // Without a TUN and without a lockdown the inside still has no way out in clear.
    let tally = network.watch(|| {
        let tool = json!({"tool": "probe", "to": WORLD});
        network
            .inside
            .run(|| Command::new(PROGRAM).args(["rig", "agent", &tool.to_string()]).output())
            .unwrap()
            .unwrap();
    });
    assert_eq!(tally.clear_packets(), 0, "{:?}", tally.clear);
}

/// Whoever a device asks, the resolver on the gateway answers, in the name of whom was asked.
#[test]
fn every_question_of_the_inside_goes_to_the_resolver() {
    let Some(network) = Network::up() else { return };
    network.good_settings(990);
    network.lock();
    let gateway = cepa::client::gateway::Gateway {
        tun: "cepa0".to_owned(),
        lan: vec!["lan0".to_owned()],
        captured: None,
        resolver: Some(5353),
        denied: [].into(),
        apart: true,
    };
    network.on_gateway(|| cepa::capture::nft::apply(&gateway.rules(), "rules").unwrap());
    let resolver = network.on_gateway(|| UdpSocket::bind("[::]:5353").unwrap());
    let listener = network.on_gateway(|| TcpListener::bind("[::]:5353").unwrap());
    std::thread::spawn(move || {
        while let Ok((len, from)) = resolver.recv_from(&mut [0; 512]) {
            let _ = resolver.send_to(format!("{len} bytes").as_bytes(), from);
        }
    });
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = (&stream).write_all(b"by TCP");
        }
    });
    let tally = network.watch(|| {
        for asked in ["9.9.9.9:53", "[2001:db8:9::9]:53", "192.168.77.1:53", "[fd78::1]:53"] {
            let asked: SocketAddr = asked.parse().unwrap();
            let any = if asked.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            network
                .inside
                .run(|| {
                    let socket = UdpSocket::bind(any).unwrap();
                    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                    socket.send_to(b"a question", asked).unwrap();
                    let mut answer = [0; 64];
                    let (len, from) = socket.recv_from(&mut answer).unwrap();
                    assert_eq!((&answer[..len], from), (b"10 bytes".as_slice(), asked));
                    let mut stream =
                        TcpStream::connect_timeout(&asked, Duration::from_secs(2)).unwrap();
                    let mut text = String::new();
                    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                    stream.read_to_string(&mut text).unwrap();
                    assert_eq!(text, "by TCP");
                })
                .unwrap();
        }
    });
    assert_eq!(tally.clear_packets(), 0, "{:?}", tally.clear);
}

#[test]
fn dnsmasq_takes_the_settings_that_are_made_for_it() {
    let Some(network) = Network::up() else { return };
    network.good_settings(990);
    let output = network.cepa(&["lan", "dnsmasq"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("dhcp-range=192.168.77.2,192.168.77.254,255.255.255.0,12h"), "{text}");
    assert!(text.contains("dhcp-option=option6:dns-server,[fd78::1]"), "{text}");
    let file = network.dir.path().join("dnsmasq.conf");
    std::fs::write(&file, &text).unwrap();
    match Command::new("dnsmasq").arg("--test").arg("-C").arg(&file).output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success() && said.contains("OK"), "{said}\n{text}");
        }
        Err(error) => eprintln!("SKIPPED: dnsmasq --test ({error})"),
    }
}
