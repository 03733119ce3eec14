//! The database: what survives, what is refused.

use std::fs;

use jiff::{SignedDuration, Timestamp};
use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    controller::{keyring, store::TokenRole},
    directory::{
        ControllerLink, JoinToken,
        test_network::{at, descriptor, sign, signed_directory},
    },
    keys::{StateDir, test_keys::identity},
};

fn state() -> (tempfile::TempDir, StateDir) {
    let folder = tempfile::tempdir().unwrap();
    let dir = StateDir::open(&folder.path().join("state")).unwrap();
    (folder, dir)
}

fn node(index: usize) -> NodeRecord {
    NodeRecord {
        id: identity(index).id(),
        name: descriptor(index).name,
        signed: sign(index),
        allowed: TokenRole::Node,
        label: Some("otter".to_owned()),
        admitted: at(1),
        last_seen: at(2),
        revoked: None,
    }
}

fn token(seed: u64, expires: Timestamp) -> TokenRecord {
    let link = ControllerLink::new("192.0.2.1", 5000, identity(0).id()).unwrap();
    let token = JoinToken::generate(link, &mut StdRng::seed_from_u64(seed));
    TokenRecord {
        id: token.id,
        secret: Some(token.secret),
        role: TokenRole::Tracker,
        label: Some("otter".to_owned()),
        created: at(0),
        expires,
        used_by: None,
        revoked: None,
    }
}

/// A database with something of everything, closed.
fn filled(dir: &StateDir) {
    let mut database = Database::open(dir).unwrap();
    dir.write_identity(&keyring::key_file(identity(0).id()), identity(0)).unwrap();
    assert!(database.set_current_key(identity(0).id(), None).unwrap());
    database.add_token(&token(1, at(100))).unwrap();
    for index in 1..8 {
        assert_eq!(database.admit(&node(index), None, at(5)).unwrap(), Admitted::New);
    }
    let signed = signed_directory(7, &[sign(1)]);
    database.publish(7, &serde_json::to_string(&signed).unwrap()).unwrap();
}

#[test]
fn everything_survives_a_restart() {
    let (_folder, dir) = state();
    filled(&dir);
    let mut database = Database::open(&dir).unwrap();
    assert_eq!(keyring::current(&dir, &mut database).unwrap().id(), identity(0).id());
    let remembered = database.load().unwrap();
    assert_eq!(remembered.key, identity(0).id());
    assert_eq!(remembered.nodes.len(), 7);
    let first = &remembered.nodes[0];
    assert_eq!((first.id, first.name.as_str()), (identity(1).id(), "n1"));
    assert_eq!((first.admitted, first.last_seen, first.revoked), (at(1), at(2), None));
    assert_eq!((first.allowed, first.label.as_deref()), (TokenRole::Node, Some("otter")));
    assert_eq!(first.signed, sign(1));
    let (version, signed) = remembered.directory.unwrap();
    assert_eq!((version, signed), (7, signed_directory_bytes(&database)));
    let kept = database.token(token(1, at(100)).id).unwrap().unwrap();
    assert_eq!(kept.secret.unwrap().as_bytes(), token(1, at(100)).secret.unwrap().as_bytes());
    assert_eq!((kept.role, kept.expires), (TokenRole::Tracker, at(100)));
}

fn signed_directory_bytes(database: &Database) -> SignedDirectory {
    database.load().unwrap().directory.unwrap().1
}

#[test]
fn a_token_lets_one_node_in() {
    let (_folder, dir) = state();
    let mut database = Database::open(&dir).unwrap();
    let id = token(1, at(100)).id;
    assert_eq!(database.admit(&node(1), Some(id), at(5)).unwrap(), Admitted::TokenGone("unknown"));
    database.add_token(&token(1, at(100))).unwrap();
    assert_eq!(
        database.admit(&node(1), Some(id), at(101)).unwrap(),
        Admitted::TokenGone("expired")
    );
    assert_eq!(database.admit(&node(1), Some(id), at(100)).unwrap(), Admitted::New);
    assert_eq!(database.admit(&node(2), Some(id), at(5)).unwrap(), Admitted::TokenGone("used"));
    assert_eq!(database.admit(&node(1), Some(id), at(5)).unwrap(), Admitted::Known);
    let used = database.token(id).unwrap().unwrap();
    assert_eq!(used.used_by, Some(identity(1).id()));
    assert!(used.secret.is_none(), "a used secret is forgotten");
    assert!(!database.revoke_token(id, at(6)).unwrap());

    database.add_token(&token(2, at(100))).unwrap();
    let id = token(2, at(100)).id;
    assert!(database.revoke_token(id, at(6)).unwrap());
    assert_eq!(database.admit(&node(2), Some(id), at(7)).unwrap(), Admitted::TokenGone("revoked"));
    assert_eq!(database.nodes().unwrap().len(), 1);
}

#[test]
fn a_refused_name_leaves_the_token_unused() {
    let (_folder, dir) = state();
    let mut database = Database::open(&dir).unwrap();
    database.admit(&node(1), None, at(5)).unwrap();
    database.add_token(&token(1, at(100))).unwrap();
    let id = token(1, at(100)).id;
    let twin = NodeRecord { name: "n1".to_owned(), ..node(2) };
    assert_eq!(
        database.admit(&twin, Some(id), at(5)).unwrap(),
        Admitted::NameTaken(identity(1).id())
    );
    assert_eq!(database.admit(&node(2), Some(id), at(5)).unwrap(), Admitted::New);
    assert_eq!(database.update(&[twin]).unwrap(), Some(identity(1).id()));
    let renamed = NodeRecord { name: "other".to_owned(), ..node(2) };
    assert_eq!(database.update(&[renamed]).unwrap(), None);
    assert_eq!(database.nodes().unwrap()[1].name, "other");
}

#[test]
fn a_revoked_node_stays_out_and_frees_its_name() {
    let (_folder, dir) = state();
    let mut database = Database::open(&dir).unwrap();
    database.admit(&node(1), None, at(5)).unwrap();
    assert!(database.revoke_node(identity(1).id(), at(6)).unwrap());
    assert!(!database.revoke_node(identity(1).id(), at(6)).unwrap());
    assert_eq!(database.admit(&node(1), None, at(7)).unwrap(), Admitted::Revoked);
    let heir = NodeRecord { name: "n1".to_owned(), ..node(2) };
    assert_eq!(database.admit(&heir, None, at(7)).unwrap(), Admitted::New);
    database.update(&[NodeRecord { last_seen: at(99), ..node(1) }]).unwrap();
    let revoked = database.nodes().unwrap().into_iter().find(|node| node.revoked.is_some());
    assert_eq!(revoked.unwrap().last_seen, at(2));
}

#[test]
fn ended_secrets_are_forgotten() {
    let (_folder, dir) = state();
    let mut database = Database::open(&dir).unwrap();
    database.add_token(&token(1, at(-10))).unwrap();
    database.add_token(&token(2, at(100))).unwrap();
    let secrets: Vec<bool> =
        database.tokens().unwrap().iter().map(|token| token.secret.is_some()).collect();
    assert_eq!(secrets.iter().filter(|has| **has).count(), 1);
}

#[test]
fn another_connection_is_noticed() {
    let (_folder, dir) = state();
    let mut one = Database::open(&dir).unwrap();
    let before = one.data_version().unwrap();
    one.admit(&node(1), None, at(5)).unwrap();
    assert_eq!(one.data_version().unwrap(), before, "one's own changes do not count");
    let mut other = Database::open(&dir).unwrap();
    other.revoke_node(identity(1).id(), at(6)).unwrap();
    assert_ne!(one.data_version().unwrap(), before);
}

#[test]
fn a_key_change_is_one_step() {
    let (_folder, dir) = state();
    filled(&dir);
    let mut database = Database::open(&dir).unwrap();
    let overlap = SignedDuration::from_hours(1);
    let new = keyring::rotate(&dir, &mut database, at(0), overlap).unwrap();
    assert_eq!(keyring::current(&dir, &mut database).unwrap().id(), new.id());
    assert_eq!(keyring::key_files(dir.path()).unwrap().len(), 1, "the old key is removed");
    let changes = database.load().unwrap().key_changes;
    let (old, newer, _) = changes[0].verify().unwrap();
    assert_eq!((old.id(), newer.id()), (identity(0).id(), new.id()));
    // Someone else changed it in the meantime.
    let change = (identity(0).id(), &changes[0]);
    assert!(!database.set_current_key(identity(5).id(), Some(change)).unwrap());
    assert_eq!(database.load().unwrap().key_changes.len(), 1);
}

#[test]
fn a_cut_database_is_refused_at_every_length_and_left_alone() {
    let (_folder, dir) = state();
    filled(&dir);
    let path = dir.file(DATABASE);
    let whole = fs::read(&path).unwrap();
    assert!(!dir.file("controller.db-wal").exists(), "a closed database is one file");
    let mut lengths: Vec<usize> = (0..whole.len()).step_by(1021).collect();
    lengths.extend([1, 15, 16, 99, 100, 4095, 4096, whole.len() / 2, whole.len() - 1]);
    for len in lengths {
        fs::write(&path, &whole[..len]).unwrap();
        let error = Database::open(&dir).unwrap_err();
        assert!(matches!(error, ControllerError::Damaged { .. }), "{len}: {error}");
        assert!(error.to_string().contains("key adopt"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), &whole[..len], "{len}");
    }
    fs::write(&path, &whole).unwrap();
    Database::open(&dir).unwrap();
}

#[test]
fn damaged_and_foreign_databases_are_refused() {
    let (_folder, dir) = state();
    filled(&dir);
    let path = dir.file(DATABASE);
    let whole = fs::read(&path).unwrap();
    let mut scribbled = whole.clone();
    for byte in &mut scribbled[whole.len() / 3..whole.len() / 2] {
        *byte = 0x5a;
    }
    for bytes in [scribbled, vec![0; whole.len()], b"hello".repeat(2000)] {
        fs::write(&path, &bytes).unwrap();
        let error = Database::open(&dir).unwrap_err();
        assert!(matches!(error, ControllerError::Damaged { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
    fs::remove_file(&path).unwrap();
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE x (y)").unwrap();
    drop(other);
    let error = StateDir::open(dir.path()).map(|dir| Database::open(&dir)).unwrap().unwrap_err();
    assert!(error.to_string().contains("chmod 600"), "{error}");
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let error = Database::open(&dir).unwrap_err().to_string();
    assert!(error.contains("another program's"), "{error}");
}

#[test]
fn a_lost_database_is_not_replaced_silently_but_a_key_can_be_adopted() {
    let (_folder, dir) = state();
    filled(&dir);
    fs::remove_file(dir.file(DATABASE)).unwrap();
    let error = Database::open(&dir).unwrap_err();
    assert!(matches!(error, ControllerError::DatabaseMissing { .. }), "{error}");
    assert_eq!(keyring::adopt(&dir).unwrap().id(), identity(0).id());
    let mut database = Database::open(&dir).unwrap();
    assert_eq!(keyring::current(&dir, &mut database).unwrap().id(), identity(0).id());
    assert!(database.nodes().unwrap().is_empty());
    let error = keyring::adopt(&dir).unwrap_err();
    assert!(matches!(error, ControllerError::CannotAdopt { .. }), "{error}");
}

#[test]
fn a_lost_key_is_not_replaced_silently() {
    let (_folder, dir) = state();
    filled(&dir);
    fs::remove_file(dir.file(&keyring::key_file(identity(0).id()))).unwrap();
    let mut database = Database::open(&dir).unwrap();
    let error = keyring::current(&dir, &mut database).unwrap_err();
    assert!(matches!(error, ControllerError::KeyMissing { .. }), "{error}");
    // Another key under its name is not it.
    dir.write_identity(&keyring::key_file(identity(0).id()), identity(3)).unwrap();
    assert!(keyring::current(&dir, &mut database).is_err());
}

#[test]
fn a_first_start_that_was_interrupted_goes_on() {
    let (_folder, dir) = state();
    drop(Database::open(&dir).unwrap());
    let mut database = Database::open(&dir).unwrap();
    let first = keyring::current(&dir, &mut database).unwrap().id();
    assert_eq!(keyring::current(&dir, &mut database).unwrap().id(), first);
}

#[tokio::test]
async fn a_closed_store_is_one_whole_file_and_answers_no_more() {
    let (_folder, dir) = state();
    filled(&dir);
    let store = SqliteStore::start(Database::open(&dir).unwrap()).unwrap();
    assert_eq!(store.load().await.unwrap().nodes.len(), 7);
    store.update(vec![node(1)]).await.unwrap();
    assert!(dir.file("controller.db-wal").exists());
    store.close().await.unwrap();
    assert!(!dir.file("controller.db-wal").exists());
    let error = store.load().await.unwrap_err();
    assert!(matches!(error, ControllerError::Busy { .. }), "{error}");
}

#[test]
fn a_database_cut_beside_a_log_is_whole_again_or_refused() {
    let (_folder, dir) = state();
    filled(&dir);
    // As after a kill: what was written last is in the log only.
    let mut open = Database::open(&dir).unwrap();
    open.revoke_node(identity(1).id(), at(50)).unwrap();
    let (path, log) = (dir.file(DATABASE), dir.file("controller.db-wal"));
    let (whole, tail) = (fs::read(&path).unwrap(), fs::read(&log).unwrap());
    assert!(!tail.is_empty());
    let folder = tempfile::tempdir().unwrap();
    let copy = StateDir::open(&folder.path().join("copy")).unwrap();
    copy.write(&keyring::key_file(identity(0).id()), b"any").unwrap();
    for len in (0..=whole.len()).step_by(2048) {
        copy.write(DATABASE, &whole[..len]).unwrap();
        copy.write("controller.db-wal", &tail).unwrap();
        let _ = fs::remove_file(copy.file("controller.db-shm"));
        match Database::open(&copy) {
            Ok(database) => {
                let revoked = database.nodes().unwrap().into_iter().filter(|n| n.revoked.is_some());
                assert_eq!(revoked.count(), 1, "{len}: something was lost silently");
                assert_eq!(database.nodes().unwrap().len(), 7, "{len}");
            }
            Err(error) => assert!(matches!(error, ControllerError::Damaged { .. }), "{error}"),
        }
    }
}
