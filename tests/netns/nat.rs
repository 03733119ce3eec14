//! An exit's NAT with real connections: who the other side sees, and what is left afterwards.

use std::{
    io::{Read, Write},
    net::{IpAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    time::Duration,
};

use cepa::capture::{
    PacketDevice,
    nat::{ExitNat, NatOptions},
    netns::NetNs,
    open_tun, sysctl,
    tun::TunOptions,
};

use crate::{cable, ip, namespaces, wire::Wire};

const POOL: [(&str, u8); 2] = [("100.65.0.0", 16), ("fd63:6570:6101::", 64)];

fn tun(netns: &NetNs, name: &str, addresses: [&str; 2]) -> Box<dyn PacketDevice> {
    let addresses: Vec<(IpAddr, u8)> = addresses
        .iter()
        .zip(POOL)
        .map(|(address, (_, prefix))| (address.parse().unwrap(), prefix))
        .collect();
    netns.run(|| open_tun(&TunOptions::new(name, &addresses)).unwrap()).unwrap()
}

fn options(netns: &NetNs) -> NatOptions {
    let memo = std::env::temp_dir().join(format!("cepa-test{}", netns.path().replace('/', "-")));
    NatOptions {
        tun: "exit".into(),
        interface: "out".into(),
        pool: POOL.iter().map(|(ip, prefix)| (ip.parse().unwrap(), *prefix)).collect(),
        memo: Some(memo),
    }
}

/// `inside` is behind the tunnel, `exit` has the NAT, `outside` is the rest of the world.
fn network() -> Option<([NetNs; 3], Wire)> {
    let netns = namespaces::<3>()?;
    let [inside, exit, outside] = &netns;
    cable(
        (exit, "out", &["198.51.100.1/24", "2001:db8:5::1/64"]),
        (outside, "in", &["198.51.100.2/24", "2001:db8:5::2/64"]),
    );
    let near = tun(inside, "near", ["100.65.0.7", "fd63:6570:6101::7"]);
    let far = tun(exit, "exit", ["100.65.0.1", "fd63:6570:6101::1"]);
    ip(inside, "route add default dev near");
    ip(inside, "-6 route add default dev near");
    let wire = Wire::between(near, far);
    Some((netns, wire))
}

fn tables(netns: &NetNs) -> String {
    let output =
        netns.run(|| Command::new("nft").args(["list", "ruleset"]).output().unwrap()).unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_world_sees_the_exit_and_nothing_stays_behind() {
    let Some(([inside, exit, outside], _wire)) = network() else { return };
    let forwarding = || exit.run(|| sysctl::get("net/ipv6/conf/all/forwarding").unwrap()).unwrap();
    assert_eq!(forwarding(), "0");
    let options = options(&exit);
    let nat = exit.run(|| ExitNat::start(&options)).unwrap().unwrap();
    for (world, seen) in [("198.51.100.2", "198.51.100.1"), ("2001:db8:5::2", "2001:db8:5::1")] {
        let listener = outside.run(|| TcpListener::bind((world, 0)).unwrap()).unwrap();
        let addr = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, peer) = listener.accept().unwrap();
            stream.write_all(b"hello").unwrap();
            peer.ip()
        });
        let mut stream = inside
            .run(|| TcpStream::connect_timeout(&addr, Duration::from_secs(5)).unwrap())
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        assert_eq!(server.join().unwrap(), seen.parse::<IpAddr>().unwrap());
    }
    assert_eq!(forwarding(), "1");
    assert!(tables(&exit).contains("table inet cepa_exit_exit"));
    drop_inside(&exit, nat);
    assert!(!tables(&exit).contains("cepa"), "{}", tables(&exit));
    assert_eq!(forwarding(), "0");
}

/// NAT belongs to the namespace it was started in, so it has to be dropped there.
fn drop_inside(netns: &NetNs, nat: ExitNat) {
    netns.run(move || drop(nat)).unwrap();
}

#[test]
fn the_exit_itself_and_strangers_stay_out() {
    let Some(([inside, exit, outside], _wire)) = network() else { return };
    let options = options(&exit);
    let nat = exit.run(|| ExitNat::start(&options)).unwrap().unwrap();
    // What the pool sends to the exit's own services does not arrive.
    let own = exit.run(|| UdpSocket::bind("100.65.0.1:99").unwrap()).unwrap();
    own.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let sender = inside.run(|| UdpSocket::bind("100.65.0.7:99").unwrap()).unwrap();
    sender.send_to(b"x", "100.65.0.1:99").unwrap();
    assert!(own.recv(&mut [0; 9]).is_err());
    // What nobody asked for does not come in.
    ip(&outside, "route add 100.65.0.0/16 via 198.51.100.1");
    sender.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let stranger = outside.run(|| UdpSocket::bind("198.51.100.2:98").unwrap()).unwrap();
    stranger.send_to(b"x", "100.65.0.7:99").unwrap();
    assert!(sender.recv(&mut [0; 9]).is_err());
    // What was asked for does.
    stranger.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    sender.send_to(b"ask", stranger.local_addr().unwrap()).unwrap();
    let (_, from) = stranger.recv_from(&mut [0; 9]).unwrap();
    assert_eq!(from.ip(), "198.51.100.1".parse::<IpAddr>().unwrap());
    stranger.send_to(b"answer", from).unwrap();
    assert_eq!(sender.recv(&mut [0; 9]).unwrap(), 6);
    // Until the address is forgotten, the answer finds its way; then it does not.
    exit.run(|| nat.forget("100.65.0.7".parse().unwrap()).unwrap()).unwrap();
    stranger.send_to(b"late", from).unwrap();
    assert!(sender.recv(&mut [0; 9]).is_err());
    exit.run(|| nat.forget("fd63:6570:6101::7".parse().unwrap()).unwrap()).unwrap();
    drop_inside(&exit, nat);
}

#[test]
fn a_killed_exit_is_cleaned_up_after_by_the_next() {
    let Some(([_inside, exit, _outside], _wire)) = network() else { return };
    let options = options(&exit);
    let nat = exit.run(|| ExitNat::start(&options)).unwrap().unwrap();
    std::mem::forget(nat);
    let nat = exit.run(|| ExitNat::start(&options)).unwrap().unwrap();
    assert_eq!(tables(&exit).matches("table inet cepa").count(), 1);
    drop_inside(&exit, nat);
    assert!(!tables(&exit).contains("cepa"));
    let forwarding = exit.run(|| sysctl::get("net/ipv6/conf/all/forwarding").unwrap()).unwrap();
    assert_eq!(forwarding, "0", "the value from before the first start");
}

#[test]
fn a_missing_interface_is_named() {
    let Some([netns]) = namespaces::<1>() else { return };
    let options = options(&netns);
    let error = netns.run(|| ExitNat::start(&options)).unwrap().unwrap_err();
    assert!(error.to_string().contains("expected an interface exit"), "{error}");
}
