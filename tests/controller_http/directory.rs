//! Registration, the directory and the queries, when all goes well.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use cepa::{
    directory::{ClientError, Directory, DirectoryCache, DirectoryError, PathRules, choose_path},
    keys::StateDir,
    model::Role,
};
use jiff::Timestamp;

use crate::stage::{Node, Stage, identity};

#[tokio::test]
async fn a_node_registers_and_everyone_can_ask_for_it() {
    let stage = Stage::open().await;
    let node = Node::join(&stage, 1).await;
    let registered = node.register(&stage, None).await.unwrap();
    assert_eq!(registered.id, identity(1).id());
    assert!(registered.reachable, "the probe was answered at once");
    assert_eq!(registered.renew_in_s, 10);
    assert_eq!(stage.wait_for(1).await, ["n1"]);

    // The promise: asked for a node, the controller answers its public IP and public key.
    let answer = stage.get("/nodes/n1").await;
    assert_eq!(answer.status, 200);
    let json = answer.json();
    assert_eq!(json["public_ip"], "127.0.0.1");
    assert_eq!(json["port"], node.addr.port());
    assert_eq!(json["public_key"], identity(1).public().to_pem());
    for key in [
        "id",
        "name",
        "onion_key",
        "roles",
        "exit_policy",
        "suites",
        "last_seen",
        "descriptor",
        "entry",
    ] {
        assert!(!json[key].is_null(), "{key}");
    }
    let id = identity(1).id().to_string();
    for path in [format!("/nodes/{id}"), format!("/nodes/{}", &id[..8])] {
        assert_eq!(stage.get(&path).await.json()["id"], id.as_str());
    }
    let answer = stage.client().node("n1").await.unwrap();
    let entry = answer.entry.verify(&stage.link.fingerprint()).unwrap();
    assert_eq!((entry.id, entry.addrs[0]), (identity(1).id(), node.addr));
    assert!(answer.entry.verify(&identity(0).id()).is_err());

    let list = stage.client().nodes(Some(Role::Exit), None).await.unwrap();
    assert_eq!(list.nodes[0].name, "n1");
    assert!(stage.client().nodes(Some(Role::Tracker), None).await.unwrap().nodes.is_empty());
    assert!(stage.client().nodes(None, Some("n2")).await.unwrap().nodes.is_empty());
    assert_eq!(stage.get("/nodes?name=n1").await.json()["nodes"][0]["id"], id.as_str());

    // A renewal is 200, the first registration was 201.
    let body = serde_json::to_string(&node.signed()).unwrap();
    assert_eq!(stage.post(body).await.status, 200);
    let other = Node::join(&stage, 2).await;
    let body = serde_json::to_string(&other.signed()).unwrap();
    assert_eq!(stage.post(body).await.status, 201);
}

#[tokio::test]
async fn a_client_builds_paths_from_the_signed_directory() {
    let stage = Stage::open().await;
    let mut nodes = Vec::new();
    for index in 1..5 {
        let node = Node::join(&stage, index).await;
        node.register(&stage, None).await.unwrap();
        nodes.push(node);
    }
    assert_eq!(stage.wait_for(4).await, ["n1", "n2", "n3", "n4"]);
    let directory = stage.directory().await;
    assert!(directory.skipped().is_empty());
    let mut rng = rand::rng();
    let lab = PathRules { lab: true, ..PathRules::default() };
    let path = choose_path(&directory, &lab, &mut rng).unwrap();
    assert_eq!(path.len(), 3);
    assert!(choose_path(&directory, &PathRules::default(), &mut rng).is_err(), "one network");
}

#[tokio::test]
async fn a_node_whose_port_does_not_answer_is_not_listed() {
    let stage = Stage::open().await;
    // It answers only probes of its own controller, and knows another one.
    let node = Node::of(1, identity(7).public().clone()).await;
    let registered = node.register(&stage, None).await.unwrap();
    assert!(!registered.reachable);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(stage.directory().await.nodes().is_empty());
    let answer = stage.get("/nodes/n1").await;
    assert_eq!(answer.status, 404);
    let detail = answer.problem().detail;
    assert!(detail.contains("UDP port has not answered"), "{detail}");
}

#[tokio::test]
async fn a_node_at_another_nodes_address_is_not_listed() {
    let stage = Stage::open().await;
    let honest = Node::join(&stage, 1).await;
    honest.register(&stage, None).await.unwrap();
    let impostor = crate::stage::descriptor(2, honest.addr);
    let signed = cepa::directory::SignedDescriptor::sign(&impostor, identity(2)).unwrap();
    let registered = stage.client().register(&signed, None).await.unwrap();
    assert!(!registered.reachable);
    assert_eq!(stage.wait_for(1).await, ["n1"]);
}

#[tokio::test]
async fn a_silent_node_leaves_the_directory_and_comes_back() {
    let stage = Stage::with(|settings| settings.down_after = Duration::from_secs(1)).await;
    let node = Node::join(&stage, 1).await;
    node.register(&stage, None).await.unwrap();
    stage.wait_for(1).await;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        node.register(&stage, None).await.unwrap();
        assert_eq!(stage.directory().await.nodes().len(), 1);
    }
    stage.wait_for(0).await;
    let detail = stage.get("/nodes/n1").await.problem().detail;
    assert!(detail.contains("has not renewed since"), "{detail}");
    // Back, but deaf: not listed. Then with its port open again.
    node.awake.store(false, Relaxed);
    assert!(!node.register(&stage, None).await.unwrap().reachable);
    assert!(stage.directory().await.nodes().is_empty());
    node.awake.store(true, Relaxed);
    tokio::time::sleep(Duration::from_secs(3)).await;
    node.register(&stage, None).await.unwrap();
    stage.wait_for(1).await;
}

#[tokio::test]
async fn unchanged_directories_are_not_sent_again() {
    let stage = Stage::open().await;
    let answer = stage.get("/directory").await;
    let version = stage.directory().await.version();
    assert_eq!(answer.headers["etag"], format!("\"{version}\"").as_str());
    let client = stage.client();
    assert!(client.directory(Some(version), false).await.unwrap().is_none());
    assert!(client.directory(Some(version - 1), false).await.unwrap().is_some());
    // Whoever knows a later version learns at once that this one is older.
    let asked = client.directory(Some(version + 1000), true);
    let signed = tokio::time::timeout(Duration::from_secs(2), asked).await.unwrap().unwrap();
    let pin = stage.link.fingerprint();
    let now = Timestamp::now();
    let error = Directory::open(&signed.unwrap(), &pin, now, Some(version + 1000)).unwrap_err();
    assert!(matches!(error, DirectoryError::RolledBack { .. }), "{error}");
}

#[tokio::test]
async fn a_long_poll_ends_when_the_directory_changes() {
    let stage = Stage::open().await;
    let node = Node::join(&stage, 1).await;
    let version = stage.directory().await.version();
    let client = stage.client();
    let begun = std::time::Instant::now();
    let poll = tokio::spawn(async move { client.directory(Some(version), true).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!poll.is_finished());
    node.register(&stage, None).await.unwrap();
    let signed = poll.await.unwrap().unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let pin = stage.link.fingerprint();
    let newer = Directory::open(&signed, &pin, Timestamp::now(), Some(version)).unwrap();
    assert_eq!(newer.nodes().len(), 1);
    assert!(newer.version() > version);
}

#[tokio::test]
async fn the_directory_is_signed_anew_in_time() {
    let stage = Stage::with(|settings| settings.sign_every = Duration::from_secs(1)).await;
    let first = stage.directory().await;
    tokio::time::sleep(Duration::from_millis(2600)).await;
    let later = stage.directory().await;
    assert!(later.version() > first.version());
    assert!(later.valid_until() > first.valid_until());
}

#[tokio::test]
async fn a_cached_directory_is_used_until_it_expires_and_no_longer() {
    let stage = Stage::with(|settings| {
        settings.valid_for = Duration::from_secs(2);
        settings.sign_every = Duration::from_secs(1);
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let dir = StateDir::open(&folder.path().join("client")).unwrap();
    let mut cache = DirectoryCache::open(&dir, &stage.link, Timestamp::now()).unwrap();
    let signed = stage.client().directory(None, false).await.unwrap().unwrap();
    cache.accept(signed.clone(), Timestamp::now()).unwrap();
    let mut cache = DirectoryCache::open(&dir, &stage.link, Timestamp::now()).unwrap();
    cache.current(Timestamp::now()).unwrap();
    tokio::time::sleep(Duration::from_millis(2200)).await;
    let error = cache.current(Timestamp::now()).unwrap_err();
    assert!(matches!(error, DirectoryError::Expired { .. }), "{error}");
    assert!(cache.accept(signed, Timestamp::now()).is_err());
    // The controller still runs and has signed anew.
    let signed = stage.client().directory(cache.version(), false).await.unwrap().unwrap();
    cache.accept(signed, Timestamp::now()).unwrap();
    cache.current(Timestamp::now()).unwrap();
}

#[tokio::test]
async fn the_small_questions_are_answered() {
    let stage = Stage::with(|settings| settings.metrics = None).await;
    let json = stage.get("/whoami").await.json();
    assert_eq!(json["ip"], "127.0.0.1");
    assert!(json["port"].as_u64().unwrap() > 0);
    assert_eq!(stage.client().whoami().await.unwrap().to_string(), "127.0.0.1");
    assert_eq!(stage.get("/healthz").await.json()["status"], "ok");
    assert_eq!(stage.get("/readyz").await.json()["status"], "ready");
    let metrics = String::from_utf8(stage.get("/metrics").await.body).unwrap();
    assert!(metrics.contains("cepa_controller_nodes_registered 0\n"), "{metrics}");
}

#[tokio::test]
async fn metrics_are_for_this_machine_only() {
    let stage = Stage::with(|settings| settings.listen = "0.0.0.0:0".parse().unwrap()).await;
    let own = std::net::UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    let Ok(own) = own else { return };
    if own.ip().is_loopback() {
        return;
    }
    let url = format!("http://{}:{}/metrics", own.ip(), stage.addr.port());
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let response = http.get(url).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 403);
}

#[tokio::test]
async fn an_absent_controller_is_unreachable() {
    let mut stage = Stage::open().await;
    stage.stop().await;
    let error = stage.client().whoami().await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    assert!(error.is_temporary());
    assert!(error.to_string().contains("check that it runs"), "{error}");
}

#[tokio::test]
async fn something_else_at_the_controllers_place_is_named_so() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for answer in [
            "HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\n<ht>",
            "HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\nconnection: close\r\n\r\n<ht>",
            "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        ] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
            let _ = stream.shutdown().await;
        }
    });
    let link = cepa::directory::ControllerLink::new("127.0.0.1", addr.port(), identity(0).id());
    let client = cepa::directory::ControllerClient::new(&link.unwrap(), None).unwrap();
    for _ in 0..3 {
        let error = client.whoami().await.unwrap_err();
        assert!(matches!(error, ClientError::BadAnswer { .. }), "{error}");
        assert!(!error.is_temporary());
    }
}
