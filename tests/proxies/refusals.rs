//! What the proxies say to nonsense, to whoever takes for ever, and to too many.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use crate::stage::{HTTP, SOCKS, Stage};

fn dial(stage: &Stage, to: &str) -> TcpStream {
    let to: SocketAddr = to.parse().unwrap();
    let stream = stage.sender.run(|| TcpStream::connect(to).unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

/// Everything that comes back until the end.
fn said(stage: &Stage, to: &str, bytes: &[u8]) -> Vec<u8> {
    let mut stream = dial(stage, to);
    stream.write_all(bytes).unwrap();
    let mut all = Vec::new();
    let ended = stream.read_to_end(&mut all);
    assert!(ended.is_ok(), "{bytes:?}: the end is an end, not {ended:?}");
    all
}

/// One byte a second until the other side ends it; how long that took.
fn trickle(stage: &Stage, to: &str, bytes: &[u8]) -> Duration {
    let mut stream = dial(stage, to);
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let started = Instant::now();
    for byte in bytes.iter().cycle() {
        if stream.write_all(&[*byte]).is_err() {
            break;
        }
        match stream.read(&mut [0; 64]) {
            Ok(0) => break,
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => break,
            _ => {}
        }
        assert!(started.elapsed() < Duration::from_secs(25), "{to} is patient with everybody");
    }
    started.elapsed()
}

pub(crate) fn malformed(stage: &Stage) {
    let hello = [5, 1, 0];
    let reply = |request: &[u8]| {
        let all = said(stage, SOCKS, &[&hello[..], request].concat());
        assert_eq!(all[..2], [5, 0]);
        all[2..].to_vec()
    };
    let code = |code| vec![5, code, 0, 1, 0, 0, 0, 0, 0, 0];
    assert_eq!(reply(&[5, 2, 0, 1, 1, 2, 3, 4, 0, 80]), code(7), "BIND");
    assert_eq!(reply(&[5, 1, 0, 9, 1, 2, 3, 4, 0, 80]), code(8), "an unknown kind of address");
    assert_eq!(reply(&[4, 1, 0, 1, 1, 2, 3, 4, 0, 80]), code(1), "another version");
    assert_eq!(reply(&[5, 1, 0, 3, 2, 0xff, 0xff, 0, 80]), code(4), "no name");
    assert_eq!(reply(&[5, 1, 0, 1, 203, 0, 113, 2, 0, 25]), code(2), "the exit's policy");
    assert_eq!(said(stage, SOCKS, &[5, 1, 1]), [5, 0xff], "no method that is spoken");
    assert_eq!(said(stage, SOCKS, &[5, 1, 2, 7]), [5, 2, 1, 1], "a login of no version");
    let html = said(stage, SOCKS, b"GET / HTTP/1.1\r\n\r\n");
    assert!(html.starts_with(b"HTTP/1.0 501 "), "a browser is told what this is");
    let status = |text: &str| {
        let all = said(stage, HTTP, text.as_bytes());
        String::from_utf8(all).unwrap()[9..12].to_owned()
    };
    assert_eq!(status("\x05\x01\x00\r\n\r\n"), "400");
    assert_eq!(status("GET / HTTP/1.1\r\n\r\n"), "400");
    assert_eq!(status("GET ftp://web.example/ HTTP/1.1\r\n\r\n"), "501");
    assert_eq!(status("CONNECT no.example:80 HTTP/1.1\r\n\r\n"), "502");
    assert_eq!(status("CONNECT 203.0.113.2:25 HTTP/1.1\r\n\r\n"), "403");
    assert_eq!(status(&format!("GET http://a.b/{} HTTP/1.1\r\n\r\n", "x".repeat(20_000))), "431");
    std::thread::scope(|scope| {
        let slow: [(&str, &[u8]); 3] =
            [(SOCKS, &[5, 200, 0]), (SOCKS, b""), (HTTP, b"GET http://web.example/")];
        let all: Vec<_> = slow
            .into_iter()
            .filter(|(_, bytes)| !bytes.is_empty())
            .map(|(to, bytes)| (to, scope.spawn(move || trickle(stage, to, bytes))))
            .collect();
        for (to, slow) in all {
            let took = slow.join().unwrap();
            assert!((8..16).contains(&took.as_secs()), "{to} waited {took:?}");
        }
    });
}

/// One more than `most` of one source is turned away, and served again when there is room.
pub(crate) fn too_many(stage: &Stage, most: usize) {
    // Connections of earlier conversations that are still ending have seats, too.
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let status = stage.status().to_string();
        let (all, idle) = (status.matches("\"open\":"), status.matches("\"open\":0,"));
        if all.count() == idle.count() && status.contains("\"open\":") {
            break;
        }
        assert!(Instant::now() < deadline, "connections stay open: {status}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut held: Vec<TcpStream> = (0..most).map(|_| dial(stage, SOCKS)).collect();
    // The last one is served: so all were taken.
    let greet = |stream: &mut TcpStream| {
        let sent = stream.write_all(&[5, 1, 0]);
        let mut answer = [0; 2];
        sent.and_then(|()| stream.read_exact(&mut answer)).map(|()| answer)
    };
    assert_eq!(greet(held.last_mut().unwrap()).unwrap(), [5, 0]);
    assert!(greet(&mut dial(stage, SOCKS)).is_err(), "{most} is the limit");
    held.clear();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(greet(&mut dial(stage, SOCKS)).unwrap(), [5, 0]);
}
