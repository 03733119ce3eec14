//! What survives a stop, and what keeps the controller from starting.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use cepa::{
    config::Admission,
    controller::{ControllerError, TokenRole},
    telemetry::control::ControlError,
};
use jiff::{SignedDuration, Timestamp};

use crate::stage::{Node, Stage};

#[tokio::test]
async fn a_restart_keeps_key_nodes_tokens_and_versions() {
    let mut stage = Stage::with(|settings| settings.admission = Admission::Token).await;
    let ttl = SignedDuration::from_hours(1);
    let mut admin = stage.admin();
    let (used, _) =
        admin.new_token(TokenRole::Node, ttl, None, Timestamp::now(), &mut rand::rng()).unwrap();
    let (unused, _) =
        admin.new_token(TokenRole::Node, ttl, None, Timestamp::now(), &mut rand::rng()).unwrap();
    let node = Node::join(&stage, 1).await;
    node.register(&stage, Some(&used)).await.unwrap();
    stage.wait_for(1).await;
    let before = stage.directory().await;

    stage.stop().await;
    stage.restart().await;
    let after = stage.directory().await;
    assert_eq!(after.controller().id(), before.controller().id());
    assert!(after.version() > before.version());
    assert_eq!(after.nodes().len(), 1, "listed nodes stay listed over a restart");
    node.register(&stage, None).await.unwrap();
    let other = Node::join(&stage, 2).await;
    assert!(other.register(&stage, Some(&used)).await.is_err());
    other.register(&stage, Some(&unused)).await.unwrap();
    stage.wait_for(2).await;
    assert!(stage.get("/nodes/n1").await.json()["last_seen"].is_string());
}

#[tokio::test]
async fn a_node_that_does_not_come_back_after_a_restart_goes_down() {
    let mut stage = Stage::with(|settings| settings.down_after = Duration::from_secs(2)).await;
    let node = Node::join(&stage, 1).await;
    node.register(&stage, None).await.unwrap();
    stage.wait_for(1).await;
    stage.stop().await;
    stage.restart().await;
    assert_eq!(stage.directory().await.nodes().len(), 1);
    stage.wait_for(0).await;
    node.register(&stage, None).await.unwrap();
    stage.wait_for(1).await;
}

#[tokio::test]
async fn a_database_cut_in_half_is_refused_and_kept() {
    let mut stage = Stage::open().await;
    Node::join(&stage, 1).await.register(&stage, None).await.unwrap();
    stage.wait_for(1).await;
    stage.stop().await;
    let path = stage.state("controller.db");
    let whole = fs::read(&path).unwrap();
    let half = &whole[..whole.len() / 2];
    fs::write(&path, half).unwrap();
    let error = Stage::start(stage.settings.clone()).await.err().unwrap();
    assert!(matches!(error, ControllerError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("restore it from a backup"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), half, "left as it is");
    fs::write(&path, &whole).unwrap();
    stage.restart().await;
    assert_eq!(stage.directory().await.nodes().len(), 1);
}

#[tokio::test]
async fn a_cut_or_open_key_file_is_refused_and_kept() {
    let mut stage = Stage::open().await;
    stage.stop().await;
    let key = fs::read_dir(&stage.settings.state)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|extension| extension == "pem"))
        .unwrap();
    let whole = fs::read(&key).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let error = Stage::start(stage.settings.clone()).await.err().unwrap().to_string();
    assert!(error.contains("chmod 600"), "{error}");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&key, &whole[..whole.len() / 2]).unwrap();
    let error = Stage::start(stage.settings.clone()).await.err().unwrap().to_string();
    assert!(error.contains("damaged"), "{error}");
    assert_eq!(fs::read(&key).unwrap(), &whole[..whole.len() / 2]);
    fs::set_permissions(&stage.settings.state, fs::Permissions::from_mode(0o755)).unwrap();
    let error = Stage::start(stage.settings.clone()).await.err().unwrap().to_string();
    assert!(error.contains("700"), "{error}");
}

#[tokio::test]
async fn a_taken_port_is_named_with_the_way_out() {
    let stage = Stage::open().await;
    let folder = tempfile::tempdir().unwrap();
    let mut settings = stage.settings.clone();
    settings.listen = stage.addr;
    settings.state = folder.path().join("other");
    let error = Stage::start(settings.clone()).await.err().unwrap();
    assert!(matches!(error, ControllerError::Listen { .. }), "{error}");
    assert!(error.to_string().contains("--listen"), "{error}");
    settings.listen = "192.0.2.1:5000".parse().unwrap();
    let error = Stage::start(settings).await.err().unwrap().to_string();
    assert!(error.contains("no such address"), "{error}");
}

#[tokio::test]
async fn two_controllers_cannot_share_a_state_directory() {
    let stage = Stage::open().await;
    let error = Stage::start(stage.settings.clone()).await.err().unwrap();
    let running = matches!(error, ControllerError::Control(ControlError::AlreadyRuns { .. }));
    assert!(running, "{error}");
    assert_eq!(stage.get("/healthz").await.status, 200);
}
