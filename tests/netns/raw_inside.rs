//! An inside captured raw: the kernel's interface has no address, and a device behind it connects all
//! the same.

use std::{
    io::{Read, Write},
    net::{IpAddr, TcpListener, TcpStream},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cepa::capture::raw_inside::{Carried, RawInside};

use crate::{cable, ip, namespaces};

const BYTES: usize = 3_000_000;

fn transfer(mut stream: TcpStream) -> bool {
    let bytes: Vec<u8> = (0..BYTES).map(|at| (at % 251) as u8).collect();
    let mut sender = stream.try_clone().unwrap();
    let sent = bytes.clone();
    let worker = std::thread::spawn(move || sender.write_all(&sent).unwrap());
    let mut got = vec![0; BYTES];
    stream.read_exact(&mut got).unwrap();
    worker.join().unwrap();
    got == bytes
}

#[test]
fn a_device_talks_to_a_gateway_that_has_no_address_on_the_cable() {
    let Some([device, gateway]) = namespaces::<2>() else { return };
    cable((&device, "eth0", &["192.168.77.2/24", "fd78::2/64"]), (&gateway, "eth1", &[]));
    ip(&device, "link set dev lo up");
    ip(&gateway, "link set dev lo up");
    let networks: Vec<(IpAddr, u8)> =
        vec![("192.168.77.1".parse().unwrap(), 24), ("fd78::1".parse().unwrap(), 64)];
    let mut inside =
        gateway.run(|| RawInside::open("eth1", "cepain0", &networks).unwrap()).unwrap();
    let gateway_rules = cepa::client::gateway::Gateway {
        tun: "cepa0".to_owned(),
        lan: vec!["cepain0".to_owned()],
        captured: Some("eth1".to_owned()),
        resolver: None,
        denied: [].into(),
        apart: true,
    };
    gateway.run(|| cepa::capture::nft::apply(&gateway_rules.rules(), "rules").unwrap()).unwrap();
    // As a gateway's start does: the kernel keeps quiet about addresses that it has elsewhere.
    gateway
        .run(|| std::fs::write("/proc/sys/net/ipv4/conf/eth1/arp_ignore", "8").unwrap())
        .unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let is_over = Arc::clone(&over);
    let carrier = std::thread::spawn(move || -> Carried {
        inside.run(|| is_over.load(Ordering::Relaxed)).unwrap();
        inside.carried()
    });
    for address in ["192.168.77.1", "fd78::1"] {
        let ping = device
            .run(|| Command::new("ping").args(["-c", "2", "-W", "2", address]).output())
            .unwrap();
        // A machine without ping still has TCP.
        if let Ok(ping) = ping {
            let said = String::from_utf8_lossy(&ping.stdout);
            assert!(ping.status.success() && !said.contains("DUP"), "{said}");
        }
        let listener = gateway.run(|| TcpListener::bind((address, 0)).unwrap()).unwrap();
        let addr = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || transfer(listener.accept().unwrap().0));
        let stream = device
            .run(|| TcpStream::connect_timeout(&addr, Duration::from_secs(5)).unwrap())
            .unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert!(transfer(stream), "{address}");
        assert!(server.join().unwrap(), "{address}");
    }
    over.store(true, Ordering::Relaxed);
    let carried = carrier.join().unwrap();
    eprintln!("{carried:?}");
    assert!(carried.answers >= 2 && carried.inwards > 10 && carried.outwards > 10, "{carried:?}");
    // The kernel knew nothing of the device: what it has of it, it has by the TUN.
    let found = gateway
        .run(|| Command::new("ip").args(["neigh", "show", "dev", "eth1"]).output().unwrap())
        .unwrap();
    let neighbours = String::from_utf8_lossy(&found.stdout).into_owned();
    assert!(!neighbours.contains("192.168.77.2"), "{neighbours}");
}
