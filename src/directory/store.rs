//! What a client or node keeps of the directory across restarts: the last one, and its guard.
//!
//! In: signed directories, the wall clock, the state directory. Out: the newest one accepted.
//! Called by: node, cli.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{ControllerLink, Directory, DirectoryError, SignedDirectory};
use crate::{keys::StateDir, model::NodeId};

const CACHE_FILE: &str = "directory.json";
const CACHE_SCHEMA: &str = "cepa.directory-cache/1";
const GUARD_FILE: &str = "guard.json";
const GUARD_SCHEMA: &str = "cepa.guard/1";

/// The newest accepted directory and the key its controller is known by, kept in a file.
#[derive(Debug)]
pub struct DirectoryCache {
    dir: StateDir,
    link: NodeId,
    pinned: NodeId,
    current: Option<Arc<Directory>>,
}

#[derive(Serialize, Deserialize)]
struct CacheFile {
    schema: String,
    /// The fingerprint of the link that led here.
    link: NodeId,
    /// The fingerprint of the key that signs: another one than the link's after a key change.
    pinned: NodeId,
    signed: SignedDirectory,
}

impl DirectoryCache {
    /// Loads the cache of the controller behind `link`; that of another controller is passed over.
    ///
    /// # Errors
    /// [`DirectoryError::Damaged`] or [`DirectoryError::File`].
    pub fn open(
        dir: &StateDir,
        link: &ControllerLink,
        now: Timestamp,
    ) -> Result<Self, DirectoryError> {
        let link = link.fingerprint();
        let mut cache = Self { dir: dir.clone(), link, pinned: link, current: None };
        let loss = "the directory is then fetched again";
        let Some(file) = load::<CacheFile>(dir, CACHE_FILE, "a cached directory", loss)? else {
            return Ok(cache);
        };
        if file.schema != CACHE_SCHEMA {
            return Err(damaged(dir, CACHE_FILE, "a cached directory", "another schema", loss));
        }
        if file.link == link {
            let directory =
                Directory::open_at_any_time(&file.signed, &file.pinned, now).map_err(|error| {
                    damaged(dir, CACHE_FILE, "a cached directory", &error.to_string(), loss)
                })?;
            cache.pinned = file.pinned;
            cache.current = Some(Arc::new(directory));
        }
        Ok(cache)
    }

    /// Takes a directory from the controller, if it checks and is not older than the present one,
    /// and keeps it.
    ///
    /// # Errors
    /// Why it is refused; the present one then stays. [`DirectoryError::File`] when it cannot be
    /// kept; it is then in use until the next start.
    pub fn accept(
        &mut self,
        signed: SignedDirectory,
        now: Timestamp,
    ) -> Result<Arc<Directory>, DirectoryError> {
        let directory = Arc::new(Directory::open(&signed, &self.pinned, now, self.version())?);
        self.pinned = directory.controller().id();
        self.current = Some(Arc::clone(&directory));
        let file = CacheFile {
            schema: CACHE_SCHEMA.to_owned(),
            link: self.link,
            pinned: self.pinned,
            signed,
        };
        save(&self.dir, CACHE_FILE, &file)?;
        Ok(directory)
    }

    /// The directory to use at `now`.
    ///
    /// # Errors
    /// [`DirectoryError::Missing`], [`DirectoryError::Expired`] or
    /// [`DirectoryError::NotYetValid`].
    pub fn current(&self, now: Timestamp) -> Result<&Arc<Directory>, DirectoryError> {
        let current = self.current.as_ref().ok_or(DirectoryError::Missing)?;
        current.check_time(now)?;
        Ok(current)
    }

    /// The newest directory whatever its validity.
    pub const fn newest(&self) -> Option<&Arc<Directory>> {
        self.current.as_ref()
    }

    /// The version of the newest directory.
    pub fn version(&self) -> Option<u64> {
        self.current.as_ref().map(|directory| directory.version())
    }

    /// The fingerprint that the controller is known by.
    pub const fn pinned(&self) -> NodeId {
        self.pinned
    }
}

/// The node that stands first in every path of a client.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Guard {
    schema: String,
    /// The node.
    pub id: NodeId,
    /// Its name, for people.
    pub name: String,
    /// When it was chosen.
    pub chosen: Timestamp,
}

impl Guard {
    /// A new guard.
    pub fn new(id: NodeId, name: &str, chosen: Timestamp) -> Self {
        Self { schema: GUARD_SCHEMA.to_owned(), id, name: name.to_owned(), chosen }
    }

    /// Loads the guard; none if none was chosen yet.
    ///
    /// # Errors
    /// [`DirectoryError::Damaged`] or [`DirectoryError::File`].
    pub fn load(dir: &StateDir) -> Result<Option<Self>, DirectoryError> {
        let loss = "a new guard is then chosen";
        let guard: Option<Self> = load(dir, GUARD_FILE, "the pinned guard", loss)?;
        match guard {
            Some(guard) if guard.schema != GUARD_SCHEMA => {
                Err(damaged(dir, GUARD_FILE, "the pinned guard", "another schema", loss))
            }
            other => Ok(other),
        }
    }

    /// Keeps the guard.
    ///
    /// # Errors
    /// [`DirectoryError::File`].
    pub fn save(&self, dir: &StateDir) -> Result<(), DirectoryError> {
        save(dir, GUARD_FILE, self)
    }
}

fn load<T: DeserializeOwned>(
    dir: &StateDir,
    name: &str,
    expected: &'static str,
    loss: &'static str,
) -> Result<Option<T>, DirectoryError> {
    let Some(bytes) = dir.read(name)? else { return Ok(None) };
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(Some(value)),
        Err(error) => {
            let got = format!("{} bytes that are no such JSON ({error})", bytes.len());
            Err(damaged(dir, name, expected, &got, loss))
        }
    }
}

fn save(dir: &StateDir, name: &str, value: &impl Serialize) -> Result<(), DirectoryError> {
    let json = serde_json::to_vec(value).map_err(|error| DirectoryError::Malformed {
        expected: "state that can be written",
        got: error.to_string(),
    })?;
    Ok(dir.write(name, &json)?)
}

fn damaged(
    dir: &StateDir,
    name: &str,
    expected: &'static str,
    got: &str,
    loss: &'static str,
) -> DirectoryError {
    DirectoryError::Damaged { path: dir.file(name), expected, got: got.to_owned(), loss }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        directory::{
            DirectoryBody, SignedKeyChange,
            test_network::{DAY, at, sign, signed_directory},
        },
        keys::test_keys::identity,
    };

    fn state() -> (tempfile::TempDir, StateDir) {
        let folder = tempfile::tempdir().unwrap();
        let dir = StateDir::open(&folder.path().join("state")).unwrap();
        (folder, dir)
    }

    fn link(index: usize) -> ControllerLink {
        ControllerLink::new("192.0.2.1", 5000, identity(index).id()).unwrap()
    }

    #[test]
    fn the_newest_directory_survives_a_restart_until_it_expires() {
        let (_folder, dir) = state();
        let mut cache = DirectoryCache::open(&dir, &link(0), at(0)).unwrap();
        assert!(matches!(cache.current(at(0)), Err(DirectoryError::Missing)));
        cache.accept(signed_directory(5, &[sign(1)]), at(0)).unwrap();
        let error = cache.accept(signed_directory(4, &[]), at(0)).unwrap_err();
        assert!(matches!(error, DirectoryError::RolledBack { newest: 5, got: 4 }), "{error}");

        let mut cache = DirectoryCache::open(&dir, &link(0), at(DAY)).unwrap();
        assert_eq!(cache.current(at(DAY)).unwrap().nodes().len(), 1);
        assert!(matches!(cache.current(at(DAY + 1)), Err(DirectoryError::Expired { .. })));
        assert!(cache.accept(signed_directory(4, &[]), at(0)).is_err(), "versions are remembered");
        assert_eq!(cache.version(), Some(5));
    }

    #[test]
    fn a_changed_controller_key_is_remembered() {
        let (_folder, dir) = state();
        let mut cache = DirectoryCache::open(&dir, &link(7), at(0)).unwrap();
        let mut signed = signed_directory(1, &[]);
        let new = identity(0).public();
        signed.key_changes = vec![SignedKeyChange::sign(identity(7), new, at(0), at(100)).unwrap()];
        cache.accept(signed, at(0)).unwrap();
        // Long after the change has ended.
        let mut cache = DirectoryCache::open(&dir, &link(7), at(2 * DAY)).unwrap();
        assert_eq!(cache.pinned(), identity(0).id());
        let body = DirectoryBody::new(2, at(2 * DAY), at(3 * DAY), Vec::new());
        let signed = SignedDirectory::sign(&body, identity(0), Vec::new()).unwrap();
        cache.accept(signed, at(2 * DAY)).unwrap();
    }

    #[test]
    fn another_controllers_directory_is_not_used() {
        let (_folder, dir) = state();
        let mut cache = DirectoryCache::open(&dir, &link(0), at(0)).unwrap();
        cache.accept(signed_directory(5, &[]), at(0)).unwrap();
        let cache = DirectoryCache::open(&dir, &link(3), at(0)).unwrap();
        assert!(cache.newest().is_none());
    }

    #[test]
    fn damaged_files_are_refused_and_kept() {
        let (_folder, dir) = state();
        let mut cache = DirectoryCache::open(&dir, &link(0), at(0)).unwrap();
        cache.accept(signed_directory(5, &[sign(1)]), at(0)).unwrap();
        let whole = dir.read(CACHE_FILE).unwrap().unwrap();
        let mut flipped = String::from_utf8(whole.to_vec()).unwrap();
        let at_byte = flipped.find("\"directory\":\"").unwrap() + 60;
        let other = if flipped.as_bytes()[at_byte] == b'A' { "B" } else { "A" };
        flipped.replace_range(at_byte..=at_byte, other);
        for bytes in [&whole[..0], &whole[..whole.len() / 2], flipped.as_bytes()] {
            dir.write(CACHE_FILE, bytes).unwrap();
            let error = DirectoryCache::open(&dir, &link(0), at(0)).unwrap_err();
            assert!(error.to_string().contains("delete it"), "{error}");
            assert_eq!(&**dir.read(CACHE_FILE).unwrap().unwrap(), bytes);
        }
    }

    #[test]
    fn the_guard_survives_a_restart() {
        let (_folder, dir) = state();
        assert_eq!(Guard::load(&dir).unwrap(), None);
        let guard = Guard::new(identity(1).id(), "n1", at(0));
        guard.save(&dir).unwrap();
        assert_eq!(Guard::load(&dir).unwrap(), Some(guard));
        dir.write(GUARD_FILE, b"{\"schema\":\"cepa.guard/1\",\"id\":\"ab").unwrap();
        let error = Guard::load(&dir).unwrap_err().to_string();
        assert!(error.contains("a new guard is then chosen"), "{error}");
    }
}
