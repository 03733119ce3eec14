//! Two TUN interfaces in two namespaces, and between them a loop that moves batches.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use cepa::capture::{netns::NetNs, open_tun, tun::TunOptions, udp};

use crate::{namespaces, wire::Wire};

const LEFT: [(&str, u8); 2] = [("10.9.0.1", 24), ("fd09::1", 64)];
const RIGHT: [(&str, u8); 2] = [("10.9.0.2", 24), ("fd09::2", 64)];

fn options(name: &str, addresses: &[(&str, u8)]) -> TunOptions {
    let addresses: Vec<(IpAddr, u8)> =
        addresses.iter().map(|(ip, prefix)| (ip.parse().unwrap(), *prefix)).collect();
    TunOptions::new(name, &addresses)
}

/// With the feature `tun-tap` the same tests drive that backend.
const CAN_OFFLOAD: bool = cfg!(not(feature = "tun-tap"));

fn pair(change: impl Fn(&mut TunOptions) + Send + Sync) -> Option<([NetNs; 2], Wire)> {
    let netns = namespaces::<2>()?;
    let make = |netns: &NetNs, name, addresses| {
        netns
            .run(|| {
                let mut options = options(name, addresses);
                change(&mut options);
                open_tun(&options)
            })
            .unwrap()
            .unwrap()
    };
    let (left, right) = (make(&netns[0], "left", &LEFT), make(&netns[1], "right", &RIGHT));
    Some((netns, Wire::between(left, right)))
}

/// Sends `len` bytes of a pattern over TCP and returns the seconds it took.
fn transfer(netns: &[NetNs; 2], to: &str, len: usize) -> f64 {
    let listener = netns[1].run(|| TcpListener::bind((to, 0)).unwrap()).unwrap();
    let addr: SocketAddr = listener.local_addr().unwrap();
    let sink = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = vec![0; 256 << 10];
        let mut total = 0;
        loop {
            let got = stream.read(&mut buffer).unwrap();
            if got == 0 {
                return total;
            }
            for (at, byte) in buffer[..got].iter().enumerate().step_by(977) {
                assert_eq!(*byte, pattern(total + at));
            }
            total += got;
        }
    });
    let chunk: Vec<u8> = (0..251 * 512).map(pattern).collect();
    let mut stream = netns[0].run(|| TcpStream::connect(addr).unwrap()).unwrap();
    let started = Instant::now();
    let mut left = len;
    while left > 0 {
        let piece = left.min(chunk.len());
        stream.write_all(&chunk[..piece]).unwrap();
        left -= piece;
    }
    drop(stream);
    assert_eq!(sink.join().unwrap(), len);
    started.elapsed().as_secs_f64()
}

fn pattern(at: usize) -> u8 {
    (at % 251) as u8
}

#[test]
fn tcp_bytes_arrive_as_sent_with_and_without_offload() {
    for offload in [true, false] {
        let Some((netns, wire)) = pair(|options| options.offload = offload) else { return };
        for to in [RIGHT[0].0, RIGHT[1].0] {
            let len = 251 * 512 * 300;
            let seconds = transfer(&netns, to, len);
            let (packets, reads) =
                (wire.packets.swap(0, Ordering::Relaxed), wire.reads.swap(0, Ordering::Relaxed));
            eprintln!(
                "offload {offload} to {to}: {:.2} Gb/s, {packets} packets in {reads} reads",
                len as f64 * 8e-9 / seconds
            );
            assert_eq!(
                offload && CAN_OFFLOAD,
                packets > reads * 2,
                "joined packets only with offload"
            );
        }
    }
}

#[test]
fn udp_datagrams_arrive_as_sent() {
    for join_udp in [false, true] {
        let Some((netns, _wire)) = pair(|options| options.join_udp = join_udp) else { return };
        for (from, to) in [(LEFT[0].0, RIGHT[0].0), (LEFT[1].0, RIGHT[1].0)] {
            let sink = netns[1].run(|| UdpSocket::bind((to, 0)).unwrap()).unwrap();
            sink.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let source = netns[0].run(|| UdpSocket::bind((from, 0)).unwrap()).unwrap();
            for number in 0..60u8 {
                source
                    .send_to(&vec![number; 1000 + usize::from(number)], sink.local_addr().unwrap())
                    .unwrap();
            }
            let mut buffer = [0; 2000];
            for number in 0..60u8 {
                let got = sink.recv(&mut buffer).unwrap();
                assert_eq!(buffer[..got], vec![number; 1000 + usize::from(number)]);
            }
        }
    }
}

#[test]
fn a_taken_name_and_a_missing_privilege_are_told_apart() {
    let Some([netns]) = namespaces::<1>() else { return };
    netns
        .run(|| {
            let first = open_tun(&options("twice", &LEFT)).unwrap();
            let error = open_tun(&options("twice", &RIGHT)).err().unwrap();
            assert!(
                error.to_string().contains("expected the interface twice to be free"),
                "{error}"
            );
            drop(first);
            open_tun(&options("twice", &RIGHT)).unwrap();
        })
        .unwrap();
}

/// What joining UDP in writes does to delivery, into a socket that takes trains and into a plain
/// one with the default buffer: `cargo test --test netns -- --ignored --nocapture udp_delivery`.
#[test]
#[ignore = "a measurement"]
fn udp_delivery_with_and_without_joining() {
    for (join_udp, trains) in [(false, true), (true, true), (false, false), (true, false)].repeat(2)
    {
        let Some((netns, wire)) = pair(|options| options.join_udp = join_udp) else { return };
        let to: SocketAddr = "10.9.0.2:7000".parse().unwrap();
        let source = netns[0]
            .run(|| udp::UdpSocket::bind("10.9.0.1:7000".parse().unwrap()).unwrap())
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let counter = if trains {
            let sink = netns[1].run(|| udp::UdpSocket::bind(to).unwrap()).unwrap();
            let stop = stop.clone();
            std::thread::spawn(move || {
                let mut batch = udp::RecvBatch::new();
                let mut got = 0;
                while !stop.load(Ordering::Relaxed) {
                    match sink.recv(&mut batch) {
                        Ok(_) => {
                            got +=
                                batch.messages_mut().map(|mut m| m.datagrams().len()).sum::<usize>()
                        }
                        Err(_) => std::thread::sleep(Duration::from_micros(50)),
                    }
                }
                got
            })
        } else {
            let sink = netns[1].run(|| UdpSocket::bind(to).unwrap()).unwrap();
            sink.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            let stop = stop.clone();
            std::thread::spawn(move || {
                let mut got = 0;
                while !stop.load(Ordering::Relaxed) {
                    got += usize::from(sink.recv(&mut [0; 2000]).is_ok());
                }
                got
            })
        };
        let started = Instant::now();
        let mut sent = 0;
        while started.elapsed() < Duration::from_secs(2) {
            if source.send(to, &[7; 1400 * 40], 1400).is_ok() {
                sent += 40;
            }
        }
        std::thread::sleep(Duration::from_millis(200));
        stop.store(true, Ordering::Relaxed);
        let got = counter.join().unwrap();
        eprintln!(
            "joined {join_udp}, trains read {trains}: sent {} kpps, crossed {} kpps, delivered {} kpps",
            sent / 2000,
            wire.packets.load(Ordering::Relaxed) / 2000,
            got / 2000
        );
    }
}
