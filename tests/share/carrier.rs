//! A whole circuit over HTTP, from a peer that nobody can reach.

use std::time::Duration;

use cepa::{model::Carrier, node::ShareEvent};

use crate::{
    bridge::{echo, file, next, opened, receive, request},
    stage::Stage,
};

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn a_three_hop_circuit_over_http_carries_a_bridge() {
    let Some(mut stage) = Stage::up() else { return };
    // The downloader's side drops every UDP datagram: nothing but HTTP passes.
    let status = stage
        .on("sender")
        .args(["nft", "add table inet no_udp; add chain inet no_udp out { type filter hook output priority 0; }; add rule inet no_udp out ip protocol udp drop"])
        .status()
        .unwrap();
    assert!(status.success(), "nft");
    stage.carrier = Carrier::Http;
    let stage = stage;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            stage.peer("stranger", "up", &["n1", "n2", "n4"], |net, mut events| async move {
                net.announce(vec![file("borat")]).await;
                let bridge = opened(&net, &mut events).await;
                tokio::spawn(echo(bridge.socket));
                loop {
                    if let ShareEvent::Closed { .. } = next(&mut events).await {
                        return;
                    }
                }
            });
        });
        stage.peer("sender", "down", &["n2", "n3", "n5"], |net, mut events| async move {
            request(&net, file("borat").id).await;
            let bridge = opened(&net, &mut events).await;
            for number in 0..20u8 {
                bridge.socket.try_send(&[number; 1000], 1000).unwrap();
                let received = tokio::time::timeout(PATIENCE, receive(&bridge.socket));
                assert_eq!(received.await.expect("an echo in time")[0], [number; 1000]);
            }
            // The last words of a peer that ends travel over HTTP, too.
            net.stop();
            net.ended().await;
        });
    });
}
