//! Two peers find each other through the tracker and exchange datagrams through a bridge.

use std::{
    io::{self, IoSliceMut},
    sync::Arc,
    time::{Duration, Instant},
};

use cepa::{
    capture::BridgeSocket,
    node::{Bridge, FileRequest, ShareEvent, ShareNet},
    wire::share::{FileId, ListedFile, ShareRole, Via},
};
use tokio::sync::mpsc;

use crate::stage::Stage;

const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn file(name: &str) -> ListedFile {
    ListedFile { size: 5, key: Some([7; 32]), ..ListedFile::named(name) }
}

pub(crate) async fn next(events: &mut mpsc::Receiver<ShareEvent>) -> ShareEvent {
    tokio::time::timeout(PATIENCE, events.recv()).await.expect("an event in time").unwrap()
}

/// The next bridge that stands; what is asked meanwhile is accepted.
pub(crate) async fn opened(net: &ShareNet, events: &mut mpsc::Receiver<ShareEvent>) -> Bridge {
    loop {
        match next(events).await {
            ShareEvent::Asked { session, note, .. } => {
                assert_eq!(note, b"from the downloader");
                net.accept(session, [3; 32], b"from the uploader".to_vec()).await;
            }
            ShareEvent::Opened(bridge) => return bridge,
            ShareEvent::Closed { reason, .. } => panic!("closed: {}", reason.words()),
            ShareEvent::CircuitChanged { .. } | ShareEvent::Tracker { .. } => {}
        }
    }
}

/// Asks until somebody offers the file.
pub(crate) async fn request(net: &ShareNet, file: FileId) {
    request_via(net, file, Via::Bridge).await;
}

async fn request_via(net: &ShareNet, file: FileId, via: Via) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let request = FileRequest {
            file,
            key: [1; 32],
            sources: 1,
            avoid: Vec::new(),
            via,
            note: b"from the downloader".to_vec(),
        };
        match net.request(request).await {
            Ok(ticket) if ticket.asked > 0 => return,
            other => assert!(Instant::now() < deadline, "{other:?} {:?}", net.status()),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

pub(crate) async fn receive(socket: &BridgeSocket) -> Vec<Vec<u8>> {
    try_receive(socket).await.unwrap()
}

async fn try_receive(socket: &BridgeSocket) -> io::Result<Vec<Vec<u8>>> {
    let mut buffer = vec![0; 65_536];
    std::future::poll_fn(|cx| {
        let mut buffers = [IoSliceMut::new(&mut buffer)];
        let mut lengths = [(0, 0)];
        socket.poll_recv(cx, &mut buffers, &mut lengths).map(|result| {
            result.map(|_| {
                let (length, segment) = lengths[0];
                buffers[0][..length].chunks(segment.max(1)).map(<[u8]>::to_vec).collect()
            })
        })
    })
    .await
}

/// Sends every datagram back until the bridge falls.
pub(crate) async fn echo(socket: Arc<BridgeSocket>) {
    while !socket.is_closed() {
        let received = tokio::time::timeout(PATIENCE, try_receive(&socket)).await;
        let Ok(Ok(datagrams)) = received else { return };
        for datagram in datagrams {
            let _ = socket.try_send(&datagram, datagram.len());
        }
    }
}

#[test]
fn datagrams_cross_a_bridge_both_ways_and_the_catalogue_shows_the_file() {
    let Some(stage) = Stage::up() else { return };
    cross(&stage, Via::Bridge, "borat");
    // The same by tracking code: two relays stand between the exits.
    cross(&stage, Via::Code, "titanic");
}

fn cross(stage: &Stage, via: Via, name: &str) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            stage.peer("stranger", "up", &["n1", "n2", "n4"], |net, mut events| async move {
                net.announce(vec![file(name)]).await;
                let bridge = opened(&net, &mut events).await;
                assert_eq!(bridge.role, ShareRole::Uploader);
                assert_eq!(bridge.peer_key, [1; 32]);
                tokio::spawn(echo(bridge.socket));
                loop {
                    if let ShareEvent::Closed { .. } = next(&mut events).await {
                        return;
                    }
                }
            });
        });
        stage.peer("sender", "down", &["n2", "n3", "n5"], |net, mut events| async move {
            request_via(&net, file(name).id, via).await;
            let entries = net.catalogue(&name[..3].to_uppercase()).await.unwrap();
            assert_eq!(entries.len(), 1);
            assert_eq!((entries[0].name.as_str(), entries[0].sources), (name, 1));
            let started = Instant::now();
            let bridge = opened(&net, &mut events).await;
            assert_eq!(bridge.role, ShareRole::Downloader);
            assert_eq!((bridge.peer_key, bridge.note), ([3; 32], b"from the uploader".to_vec()));
            assert_ne!(bridge.exits[0], bridge.exits[1]);
            eprintln!("{via:?} opened after {:?}", started.elapsed());
            let mut back = 0;
            for number in 0..200u32 {
                let datagram: Vec<u8> =
                    number.to_be_bytes().into_iter().cycle().take(1284).collect();
                bridge.socket.try_send(&datagram, datagram.len()).unwrap();
                if number % 10 == 9 {
                    while back <= number {
                        let received = tokio::time::timeout(PATIENCE, receive(&bridge.socket));
                        for datagram in received.await.expect("echoes in time") {
                            assert_eq!(datagram.len(), 1284);
                            assert_eq!(datagram[..4], back.to_be_bytes());
                            back += 1;
                        }
                    }
                }
            }
        });
    });
}
