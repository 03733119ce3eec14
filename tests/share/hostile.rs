//! Strangers at the HTTP doors, and a tracker that dies in the middle.

use std::time::Duration;

use cepa::node::ShareEvent;

use crate::{
    bridge::{echo, file, next, opened, receive, request},
    stage::{Stage, TRACKER_ADDR},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Posts a body from the stranger's host; the status and the answer.
fn post(stage: &Stage, to: &str, body: &str) -> (u16, String) {
    let file = stage.dir.join("body.json");
    std::fs::write(&file, body).unwrap();
    let output = stage
        .on("stranger")
        .args(["curl", "-s", "-m", "10", "-w", "\n%{http_code}", "--data-binary"])
        .arg(format!("@{}", file.display()))
        .arg(format!("http://{to}/"))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (answer, status) = text.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), answer.to_owned())
}

#[test]
fn strangers_are_refused_and_transfers_outlive_the_tracker() {
    let Some(mut stage) = Stage::up() else { return };
    refuse_strangers(&stage);
    let (ready, wait) = std::sync::mpsc::channel();
    let (resume, go_on) = tokio::sync::oneshot::channel();
    std::thread::scope(|scope| {
        let (uploader, downloader) = (stage.handle(), stage.handle());
        scope.spawn(move || {
            uploader.peer("stranger", "up", &["n1", "n2", "n4"], |net, mut events| async move {
                net.announce(vec![file("borat")]).await;
                let mut closed = 0;
                while closed < 2 {
                    let bridge = opened(&net, &mut events).await;
                    tokio::spawn(echo(bridge.socket));
                    loop {
                        if let ShareEvent::Closed { .. } = next(&mut events).await {
                            closed += 1;
                            break;
                        }
                    }
                }
            });
        });
        scope.spawn(move || {
            downloader.peer("sender", "down", &["n2", "n3", "n5"], |net, mut events| async move {
                request(&net, file("borat").id).await;
                let bridge = opened(&net, &mut events).await;
                ready.send(()).unwrap();
                go_on.await.unwrap();
                // The tracker was killed and is back: the bridge has not noticed.
                for number in 0..10u8 {
                    bridge.socket.try_send(&[number; 500], 500).unwrap();
                    let received = tokio::time::timeout(PATIENCE, receive(&bridge.socket));
                    assert_eq!(received.await.expect("an echo in time")[0], [number; 500]);
                }
                drop(bridge);
                // And new sessions come to be.
                request(&net, file("borat").id).await;
                drop(opened(&net, &mut events).await);
                tokio::time::sleep(Duration::from_millis(500)).await;
            });
        });
        wait.recv_timeout(Duration::from_secs(60)).unwrap();
        stage.kill_tracker();
        std::thread::sleep(Duration::from_millis(500));
        stage.start_tracker(None);
        stage.wait_answering();
        resume.send(()).unwrap();
    });
    // What the exits and the tracker wrote down names no file.
    for (host, name) in [("n4", "node"), ("n5", "node"), ("stranger", "tracker")] {
        assert!(!stage.log(host, name).contains("borat"), "{host}");
    }
}

fn refuse_strangers(stage: &Stage) {
    let node = "10.77.0.14:5000";
    let zeros = "0".repeat(32);
    let ids = "1".repeat(64);
    let order = format!(
        r#"{{"type":"make_bridge","session":"{zeros}","CID":"35ce8f75-6b57-4824-8597-dd756c75a9c5","bridge_CID":"35ce8f75-6b57-4824-8597-dd756c75a9c5","to":"{ids}","node":"{ids}","tracker":"{ids}","seq":1,"exp":2000000000,"token":"{zeros}","sig":"{}"}}"#,
        "2".repeat(128)
    );
    let huge = format!(
        r#"{{"CID":"35ce8f75-6b57-4824-8597-dd756c75a9c5","payload":"{}"}}"#,
        "A".repeat(200_000)
    );
    let unknown = r#"{"CID":"35ce8f75-6b57-4824-8597-dd756c75a9c5","payload":"AAAA"}"#;
    for (to, body, status, word) in [
        (
            node,
            format!(r#"{{"CID":"control","payload":{order}}}"#),
            403,
            "tracker of the directory",
        ),
        (node, unknown.to_owned(), 404, "known CID"),
        (node, "[".repeat(50_000), 400, "CID"),
        (node, huge.clone(), 413, "expected at most"),
        (
            node,
            r#"{"CID":"35ce8f75-6b57-4824-8597-dd756c75a9c5","payload":"%%"}"#.into(),
            400,
            "base64",
        ),
        (TRACKER_ADDR, format!(r#"{{"CID":"control","payload":{order}}}"#), 403, "only exits"),
        (TRACKER_ADDR, unknown.to_owned(), 400, "frame"),
        (TRACKER_ADDR, huge, 413, "expected at most"),
    ] {
        let (got, answer) = post(stage, to, &body);
        assert_eq!(got, status, "{answer}");
        assert!(answer.contains(word) && answer.contains("urn:cepa:problem:"), "{answer}");
    }
}
