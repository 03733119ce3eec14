//! What the operator does while the controller runs.

use std::time::Duration;

use cepa::{
    controller::{Administration, Controller, ControllerError, KEY_OVERLAP},
    directory::{ClientError, Directory, DirectoryCache},
    keys::StateDir,
};
use jiff::{SignedDuration, Timestamp};

use crate::stage::{Node, Stage, identity};

#[tokio::test]
async fn a_revoked_node_is_out_at_once() {
    let stage = Stage::open().await;
    let (one, two) = (Node::join(&stage, 1).await, Node::join(&stage, 2).await);
    one.register(&stage, None).await.unwrap();
    two.register(&stage, None).await.unwrap();
    stage.wait_for(2).await;
    let begun = std::time::Instant::now();
    let revoked = stage.admin().revoke_node("n1", Timestamp::now()).unwrap();
    assert_eq!(revoked.id, identity(1).id());
    assert_eq!(stage.wait_for(1).await, ["n2"]);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let error = one.register(&stage, None).await.unwrap_err();
    let ClientError::NotAdmitted { problem } = error else { panic!("{error}") };
    assert_eq!(problem.status, 403);
    assert!(problem.detail.contains("new identity"), "{}", problem.detail);
    let error = stage.admin().revoke_node("n1", Timestamp::now()).unwrap_err();
    assert!(matches!(error, ControllerError::Unknown { .. }), "{error}");
    let who = identity(2).id().short();
    stage.admin().revoke_node(&who, Timestamp::now()).unwrap();
    stage.wait_for(0).await;
}

#[tokio::test]
async fn the_key_changes_while_nodes_and_clients_go_on() {
    let mut stage = Stage::open().await;
    let node = Node::join(&stage, 1).await;
    node.register(&stage, None).await.unwrap();
    stage.wait_for(1).await;
    let folder = tempfile::tempdir().unwrap();
    let dir = StateDir::open(&folder.path().join("client")).unwrap();
    let old_link = stage.link.clone();
    let mut cache = DirectoryCache::open(&dir, &old_link, Timestamp::now()).unwrap();
    let signed = stage.client().directory(None, false).await.unwrap().unwrap();
    let first = cache.accept(signed, Timestamp::now()).unwrap();

    let new_link = stage.admin().rotate_key(Timestamp::now(), KEY_OVERLAP).unwrap();
    assert_ne!(new_link.fingerprint(), old_link.fingerprint());
    assert_eq!(new_link.authority(), old_link.authority());
    let signed = stage.client().directory(Some(first.version()), true).await.unwrap().unwrap();
    // Who knows the old key follows; who has the new link needs nothing; others are refused.
    let now = Timestamp::now();
    let followed = cache.accept(signed.clone(), now).unwrap();
    assert_eq!(followed.controller().id(), new_link.fingerprint());
    assert_eq!(followed.nodes().len(), 1);
    Directory::open(&signed, &new_link.fingerprint(), now, None).unwrap();
    assert!(Directory::open(&signed, &identity(5).id(), now, None).is_err());
    // The overlap is over.
    let late = now + KEY_OVERLAP + SignedDuration::from_hours(1);
    assert!(Directory::open(&signed, &old_link.fingerprint(), late, None).is_err());
    let entry = stage.client().node("n1").await.unwrap().entry;
    entry.verify(&new_link.fingerprint()).unwrap();

    stage.stop().await;
    stage.restart().await;
    assert_eq!(stage.link, new_link);
    let again = stage.client().directory(None, false).await.unwrap().unwrap();
    Directory::open(&again, &old_link.fingerprint(), Timestamp::now(), None).unwrap();
}

#[tokio::test]
async fn a_link_and_a_token_can_be_made_before_the_first_start() {
    let mut stage = Stage::open().await;
    stage.stop().await;
    let folder = tempfile::tempdir().unwrap();
    let mut settings = stage.settings.clone();
    settings.state = folder.path().join("fresh");
    settings.public = Some("ctl.example:5000".to_owned());
    let error = Administration::open_existing(&settings).unwrap_err();
    assert!(matches!(error, ControllerError::NoState { .. }), "{error}");
    let link = Administration::open(&settings).unwrap().link().unwrap();
    assert_eq!(link.authority(), "ctl.example:5000");
    let controller = Controller::start(settings).await.unwrap();
    assert_eq!(*controller.link(), link);
}

#[tokio::test]
async fn the_running_controller_answers_status() {
    use cepa::telemetry::{
        Status,
        control::{Place, Request, ask, command},
    };
    let stage = Stage::open().await;
    Node::join(&stage, 1).await.register(&stage, None).await.unwrap();
    stage.wait_for(1).await;
    let state = stage.settings.state.clone();
    let answer = tokio::task::spawn_blocking(move || {
        let place = Place::new("controller", Some(&state));
        ask(&place, &Request::plain(command::STATUS), Duration::from_secs(5))
    });
    let Status::Controller(status) =
        serde_json::from_value(answer.await.unwrap().unwrap()).unwrap()
    else {
        panic!("another role");
    };
    assert_eq!((status.registered, status.directory.nodes, status.directory.exits), (1, 1, 1));
    assert_eq!(status.listen, stage.addr.to_string());
    assert!(status.directory.expires_in_s > 23 * 3600);
    assert_eq!(status.admission, "open");
}
