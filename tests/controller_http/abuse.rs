//! Hostile callers: oversize, slow, garbled, too many. The controller answers clearly and goes on.

use std::{net::SocketAddr, time::Duration};

use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::stage::{Node, Stage, unchecked_body};

/// Sends bytes and returns everything that comes back until the connection ends.
async fn exchange(addr: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let _ = tokio::time::timeout(Duration::from_secs(20), read).await.expect("an open end");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn unknown_things_get_a_hint() {
    let stage = Stage::open().await;
    Node::join(&stage, 1).await.register(&stage, None).await.unwrap();
    let answer = stage.get("/nodes/m1").await;
    assert_eq!(answer.status, 404);
    let detail = answer.problem().detail;
    assert!(detail.contains("did you mean n1?"), "{detail}");
    let detail = stage.get("/nodes/abcdef").await.problem().detail;
    assert!(detail.contains("GET /nodes lists them"), "{detail}");
    for path in ["/", "/node", "/nodes/", "/nodes/a/b", "/../etc/passwd", "/%00"] {
        let answer = stage.get(path).await;
        assert_eq!(answer.status, 404, "{path}");
        answer.problem();
    }
    let answer = stage.raw("DELETE", "/nodes/n1", "").await;
    assert_eq!((answer.status, answer.problem().status), (405, 405));
    for (path, field) in [
        ("/nodes?role=oracle", Some("role")),
        ("/nodes?rule=exit", Some("rule")),
        ("/directory?after=soon", Some("after")),
        ("/directory?after=-1", Some("after")),
        ("/nodes?role=exit&role=relay&role", None),
    ] {
        let answer = stage.get(path).await;
        if let Some(field) = field {
            assert_eq!(answer.status, 400, "{path}");
            assert_eq!(answer.problem().field.as_deref(), Some(field), "{path}");
        }
    }
}

#[tokio::test]
async fn oversize_bodies_are_refused_early() {
    let stage = Stage::open().await;
    let answer = stage.post(vec![b'x'; 64 * 1024 + 1]).await;
    assert_eq!(answer.status, 413);
    answer.problem();
    // Announced or not: the length is not taken on trust.
    let announced = exchange(
        stage.addr,
        b"POST /nodes HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert!(announced.starts_with("HTTP/1.1 413 "), "{announced}");
    let mut chunked =
        b"POST /nodes HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n".to_vec();
    for _ in 0..70 {
        chunked.extend_from_slice(b"400\r\n");
        chunked.extend_from_slice(&[b'x'; 1024]);
        chunked.extend_from_slice(b"\r\n");
    }
    let answer = exchange(stage.addr, &chunked).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    let head = format!("GET /whoami HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(20_000));
    let answer = exchange(stage.addr, head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

#[tokio::test]
async fn slow_senders_time_out() {
    let stage = Stage::with(|settings| {
        settings.limits.head_timeout = Duration::from_millis(400);
        settings.limits.body_timeout = Duration::from_millis(400);
    })
    .await;
    // A head that never ends, one byte at a time.
    let mut stream = TcpStream::connect(stage.addr).await.unwrap();
    let begun = std::time::Instant::now();
    let mut ended = false;
    for byte in b"GET /whoami HTTP/1.1\r\nhost: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
        .iter()
        .cycle()
    {
        let mut buffer = [0; 64];
        if stream.write_all(&[*byte]).await.is_err() {
            ended = true;
            break;
        }
        let read = tokio::time::timeout(Duration::from_millis(50), stream.read(&mut buffer)).await;
        if matches!(read, Ok(Ok(0) | Err(_))) {
            ended = true;
            break;
        }
        if begun.elapsed() > Duration::from_secs(5) {
            break;
        }
    }
    assert!(ended, "a slow head holds its connection");
    // Nothing at all.
    let begun = std::time::Instant::now();
    exchange(stage.addr, b"").await;
    assert!(begun.elapsed() < Duration::from_secs(5));
    // A body that stops.
    let answer = exchange(
        stage.addr,
        b"POST /nodes HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\nconnection: close\r\n\r\n{\"descriptor\"",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("problem:too-slow"), "{answer}");
    assert_eq!(stage.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn a_source_has_a_rate_and_a_number_of_connections() {
    let stage = Stage::with(|settings| {
        settings.limits.requests_per_s = 2.0;
        settings.limits.request_burst = 5.0;
        settings.limits.connections_per_source = 4;
    })
    .await;
    for _ in 0..5 {
        assert_eq!(stage.get("/whoami").await.status, 200);
    }
    let answer = stage.get("/whoami").await;
    assert_eq!(answer.status, 429);
    assert!(answer.problem().detail.contains("come again"));
    let wait: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=2).contains(&wait), "{wait}");
    let error = stage.client().whoami().await.unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(wait)));
    assert!(error.is_temporary());
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(stage.get("/whoami").await.status, 200);

    tokio::time::sleep(Duration::from_millis(600)).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(TcpStream::connect(stage.addr).await.unwrap());
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(exchange(stage.addr, b"GET /whoami HTTP/1.1\r\nhost: x\r\n\r\n").await, "");
    drop(held);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(stage.get("/whoami").await.status, 200);
}

#[tokio::test]
async fn a_connection_does_not_live_for_ever() {
    let stage =
        Stage::with(|settings| settings.limits.connection_life = Duration::from_millis(500)).await;
    let mut stream = TcpStream::connect(stage.addr).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    tokio::time::timeout(Duration::from_secs(5), read).await.expect("an open end").unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_stop_ends_long_polls() {
    let mut stage = Stage::open().await;
    let version = stage.directory().await.version();
    let client = stage.client();
    let poll = tokio::spawn(async move { client.directory(Some(version), true).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let begun = std::time::Instant::now();
    stage.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let answer = tokio::time::timeout(Duration::from_secs(5), poll).await.expect("an open end");
    assert!(answer.unwrap().unwrap().is_none(), "nothing new");
}

/// Runs a property against one controller that all cases share.
fn against_a_controller<S: Strategy>(
    cases: u32,
    strategy: S,
    check: impl AsyncFn(&Stage, S::Value) -> Result<(), TestCaseError>,
) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let stage = runtime.block_on(Stage::with(|settings| {
        settings.limits.requests_per_s = 1e6;
        settings.limits.request_burst = 1e6;
        settings.limits.head_timeout = Duration::from_millis(300);
        settings.limits.body_timeout = Duration::from_millis(300);
    }));
    let mut runner = prop::test_runner::TestRunner::new(ProptestConfig::with_cases(cases));
    let checked = runner.run(&strategy, |value| {
        runtime.block_on(async {
            check(&stage, value).await?;
            prop_assert_eq!(stage.get("/healthz").await.status, 200);
            Ok(())
        })
    });
    if let Err(error) = checked {
        panic!("{error}");
    }
}

#[test]
fn random_bytes_do_no_harm() {
    let bytes = prop::collection::vec(any::<u8>(), 0..600);
    let lines = "(GET|POST|PUT|\\PC{1,5}) /[a-z/%?=&0-9.]{0,20} HTTP/1.[019]\r\n([a-z-]{1,16}: \\PC{0,30}\r\n){0,4}\r\n\\PC{0,200}";
    let either = prop_oneof![bytes, lines.prop_map(String::into_bytes)];
    against_a_controller(64, either, async |stage, bytes| {
        let mut stream = TcpStream::connect(stage.addr).await.unwrap();
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let ended = tokio::time::timeout(Duration::from_secs(3), read).await.is_ok();
        prop_assert!(ended, "a connection stays open");
        Ok(())
    });
}

#[test]
fn changed_registrations_are_refused_or_taken_and_do_no_harm() {
    let whole = unchecked_body(1, |_| ());
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4);
    against_a_controller(200, changes, async |stage, changes| {
        let mut bytes = whole.clone().into_bytes();
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        let answer = stage.post(bytes).await;
        if answer.status >= 300 {
            prop_assert!([400, 401, 409].contains(&answer.status), "{}", answer.status);
            answer.problem();
        }
        Ok(())
    });
}

#[test]
fn any_path_gets_an_answer() {
    against_a_controller(150, "/[ -~]{0,60}", async |stage, path: String| {
        let path = path.replace([' ', '#'], "");
        let answer = stage.get(&path).await;
        prop_assert!(answer.status < 500, "{path}: {}", answer.status);
        if answer.status >= 400 {
            answer.problem();
        }
        Ok(())
    });
}
