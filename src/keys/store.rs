//! The state directory and the key files in it.
//!
//! In: paths, the wall clock, a random source. Out: identities and onion keys, kept across restarts.
//! Called by: directory (its own files), controller, node, cli.
//!
//! The directory is 0700 and its files 0600: wider ones are refused. A file is replaced by writing
//! another one beside it, syncing and renaming, so it is whole at any moment. A damaged file is
//! refused and left as it is.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::{SignedDuration, Timestamp};
use rand::Rng;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::{Identity, KeyError, OnionKey};

/// How long an onion key is used.
pub const ONION_KEY_LIFE: SignedDuration = SignedDuration::from_hours(24);
/// How long the previous onion key is still accepted.
pub const ONION_KEY_GRACE: SignedDuration = SignedDuration::from_hours(1);

const PRIVATE_DIR: u32 = 0o700;
const PRIVATE_FILE: u32 = 0o600;
/// The largest private file that is read, in bytes; a cached directory is the largest one.
const MAX_FILE_LEN: u64 = 32 * 1024 * 1024;
const ONION_FILE: &str = "onion-keys.json";
const ONION_SCHEMA: &str = "cepa.onion-keys/1";
const PEM_BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const PEM_END: &str = "-----END PRIVATE KEY-----";

/// A directory that only its owner can enter.
#[derive(Clone, Debug)]
pub struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// Opens the directory, and makes it if it is not there.
    ///
    /// # Errors
    /// [`KeyError::Permissions`] when others can enter it, [`KeyError::File`] when it cannot be
    /// made.
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        let failed = |action| file_error(action, path);
        match fs::metadata(path) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(PRIVATE_DIR)
                    .create(path)
                    .map_err(failed("make the state directory"))?;
            }
            Err(error) => return Err(failed("open the state directory")(error)),
        }
        Self::open_existing(path)
    }

    /// Opens the directory, which must be there.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_existing(path: &Path) -> Result<Self, KeyError> {
        let found = fs::metadata(path).map_err(file_error("open the state directory", path))?;
        if !found.is_dir() {
            let error = std::io::Error::from(ErrorKind::NotADirectory);
            return Err(file_error("open the state directory", path)(error));
        }
        check_mode(path, found.permissions().mode(), PRIVATE_DIR)?;
        Ok(Self { path: path.to_owned() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where a file in it is.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Reads a private file; none if it is not there.
    ///
    /// # Errors
    /// [`KeyError::Permissions`] when others can read it, [`KeyError::File`] otherwise.
    pub fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, KeyError> {
        let path = self.file(name);
        let failed = |error| file_error("read", &path)(error);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let found = file.metadata().map_err(failed)?;
        check_mode(&path, found.permissions().mode(), PRIVATE_FILE)?;
        if found.len() > MAX_FILE_LEN {
            return Err(KeyError::Damaged {
                path,
                expected: "at most 32 MiB",
                got: format!("{} bytes", found.len()),
            });
        }
        let len = usize::try_from(found.len()).unwrap_or(0);
        let mut bytes = Zeroizing::new(Vec::with_capacity(len + 1));
        file.take(MAX_FILE_LEN).read_to_end(&mut bytes).map_err(failed)?;
        Ok(Some(bytes))
    }

    /// Writes a private file, whole or not at all.
    ///
    /// # Errors
    /// [`KeyError::File`].
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), KeyError> {
        let path = self.file(name);
        let beside = self.file(&format!(".{name}.new"));
        let failed = |error| file_error("write", &path)(error);
        // A rest of an interrupted write may have any mode.
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(PRIVATE_FILE)
            .open(&beside)
            .map_err(failed)?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&beside, &path).map_err(failed)?;
        File::open(&self.path).and_then(|folder| folder.sync_all()).map_err(failed)
    }

    /// Checks that a file, which another library reads, is private.
    ///
    /// # Errors
    /// [`KeyError::Permissions`] when others can read it, [`KeyError::File`] otherwise.
    pub fn check_private(&self, name: &str) -> Result<(), KeyError> {
        let path = self.file(name);
        let found = fs::metadata(&path).map_err(file_error("read", &path))?;
        check_mode(&path, found.permissions().mode(), PRIVATE_FILE)
    }

    /// Loads the identity in the file `name`, or draws one and keeps it there.
    ///
    /// # Errors
    /// [`KeyError::Damaged`], [`KeyError::Permissions`] or [`KeyError::File`].
    pub fn identity(&self, name: &str) -> Result<Identity, KeyError> {
        if let Some(identity) = self.existing_identity(name)? {
            return Ok(identity);
        }
        let identity = Identity::generate()?;
        self.write_identity(name, &identity)?;
        Ok(identity)
    }

    /// Loads the identity in the file `name`; none if it is not there.
    ///
    /// # Errors
    /// As [`Self::identity`].
    pub fn existing_identity(&self, name: &str) -> Result<Option<Identity>, KeyError> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        let damaged = |got: String| KeyError::Damaged {
            path: self.file(name),
            expected: "an RSA private key (PEM, PKCS#8)",
            got,
        };
        let der = from_pem(&bytes)
            .ok_or_else(|| damaged(format!("{} bytes that are no whole PEM", bytes.len())))?;
        match Identity::from_pkcs8(&der) {
            Ok(identity) => Ok(Some(identity)),
            Err(KeyError::PrivateKey { got }) => Err(damaged(got)),
            Err(other) => Err(other),
        }
    }

    /// Keeps an identity in the file `name`.
    ///
    /// # Errors
    /// [`KeyError::File`].
    pub fn write_identity(&self, name: &str, identity: &Identity) -> Result<(), KeyError> {
        self.write(name, to_pem(&identity.to_pkcs8()?).as_bytes())
    }
}

fn file_error(action: &'static str, path: &Path) -> impl Fn(std::io::Error) -> KeyError + Copy {
    move |cause| KeyError::File { action, path: path.to_owned(), cause }
}

fn check_mode(path: &Path, mode: u32, wanted: u32) -> Result<(), KeyError> {
    let mode = mode & 0o777;
    if mode & !wanted == 0 {
        return Ok(());
    }
    Err(KeyError::Permissions { path: path.to_owned(), mode, wanted })
}

fn to_pem(der: &[u8]) -> Zeroizing<String> {
    let text = Zeroizing::new(STANDARD.encode(der));
    let mut pem = Zeroizing::new(String::with_capacity(text.len() * 2));
    pem.push_str(PEM_BEGIN);
    for (at, character) in text.chars().enumerate() {
        if at % 64 == 0 {
            pem.push('\n');
        }
        pem.push(character);
    }
    pem.push('\n');
    pem.push_str(PEM_END);
    pem.push('\n');
    pem
}

fn from_pem(bytes: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let inner = text.trim().strip_prefix(PEM_BEGIN)?.strip_suffix(PEM_END)?;
    let joined: Zeroizing<String> = Zeroizing::new(
        inner.chars().filter(|character| !character.is_ascii_whitespace()).collect(),
    );
    STANDARD.decode(joined.as_bytes()).ok().map(Zeroizing::new)
}

/// A node's onion keys: the one in its descriptor, and the previous one for an hour.
#[derive(Debug)]
pub struct OnionKeys {
    dir: StateDir,
    current: (OnionKey, Timestamp),
    previous: Option<(OnionKey, Timestamp)>,
}

#[derive(Serialize, Deserialize)]
struct StoredKeys {
    schema: String,
    current: StoredKey,
    /// Its time is that of its retirement.
    previous: Option<StoredKey>,
}

#[derive(Serialize, Deserialize)]
struct StoredKey {
    secret: String,
    since: Timestamp,
}

impl Drop for StoredKey {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl StoredKey {
    fn of((key, since): &(OnionKey, Timestamp)) -> Self {
        Self { secret: STANDARD.encode(key.secret()), since: *since }
    }

    fn open(&self) -> Option<(OnionKey, Timestamp)> {
        let bytes = Zeroizing::new(STANDARD.decode(&self.secret).ok()?);
        let key = OnionKey::from_secret(bytes.as_slice().try_into().ok()?).ok()?;
        Some((key, self.since))
    }
}

impl OnionKeys {
    /// Loads the onion keys, or draws a first one.
    ///
    /// # Errors
    /// [`KeyError::Damaged`], [`KeyError::Permissions`] or [`KeyError::File`].
    pub fn open(dir: &StateDir, now: Timestamp, rng: &mut impl Rng) -> Result<Self, KeyError> {
        let Some(bytes) = dir.read(ONION_FILE)? else {
            let current = (OnionKey::generate(rng)?, now);
            Self::save(dir, &current, None)?;
            return Ok(Self { dir: dir.clone(), current, previous: None });
        };
        let damaged = |got: String| KeyError::Damaged {
            path: dir.file(ONION_FILE),
            expected: "onion keys (JSON, schema cepa.onion-keys/1)",
            got,
        };
        // The parser's own message could quote a secret.
        let stored: StoredKeys = serde_json::from_slice(&bytes).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            damaged(format!("an error at line {line}, column {column}"))
        })?;
        if stored.schema != ONION_SCHEMA {
            return Err(damaged("another schema".to_owned()));
        }
        let no_key = || damaged("a key that is not 32 bytes".to_owned());
        let current = stored.current.open().ok_or_else(no_key)?;
        let previous = match &stored.previous {
            Some(previous) => Some(previous.open().ok_or_else(no_key)?),
            None => None,
        };
        Ok(Self { dir: dir.clone(), current, previous })
    }

    fn save(
        dir: &StateDir,
        current: &(OnionKey, Timestamp),
        previous: Option<StoredKey>,
    ) -> Result<(), KeyError> {
        let current = StoredKey::of(current);
        let stored = StoredKeys { schema: ONION_SCHEMA.to_owned(), current, previous };
        let json = Zeroizing::new(serde_json::to_vec(&stored).map_err(|error| {
            let cause = std::io::Error::other(error.to_string());
            KeyError::File { action: "write", path: dir.file(ONION_FILE), cause }
        })?);
        dir.write(ONION_FILE, &json)
    }

    /// The key that belongs in the descriptor.
    pub const fn current(&self) -> &OnionKey {
        &self.current.0
    }

    /// When the current key was drawn.
    pub const fn since(&self) -> Timestamp {
        self.current.1
    }

    /// The keys that are accepted at `now`, the current one first.
    pub fn accepted(&self, now: Timestamp) -> impl Iterator<Item = &OnionKey> {
        let previous = self.previous.as_ref();
        let previous =
            previous.filter(|(_, retired)| now.duration_since(*retired) < ONION_KEY_GRACE);
        std::iter::once(&self.current.0).chain(previous.map(|(key, _)| key))
    }

    /// The key with this id, if it is accepted at `now`.
    pub fn find(&self, id: &[u8; 8], now: Timestamp) -> Option<&OnionKey> {
        self.accepted(now).find(|key| key.id() == *id)
    }

    /// Draws a new key when the current one is a day old, and forgets a previous one that is no
    /// longer accepted. Returns whether the descriptor must be made anew.
    ///
    /// # Errors
    /// [`KeyError::File`]; the keys are then unchanged.
    pub fn rotate_if_due(&mut self, now: Timestamp, rng: &mut impl Rng) -> Result<bool, KeyError> {
        if now.duration_since(self.current.1) >= ONION_KEY_LIFE {
            self.rotate(now, rng)?;
            return Ok(true);
        }
        let over = self
            .previous
            .as_ref()
            .is_some_and(|(_, retired)| now.duration_since(*retired) >= ONION_KEY_GRACE);
        if over {
            Self::save(&self.dir, &self.current, None)?;
            self.previous = None;
        }
        Ok(false)
    }

    /// Draws a new key at once.
    ///
    /// # Errors
    /// [`KeyError::File`]; the keys are then unchanged.
    pub fn rotate(&mut self, now: Timestamp, rng: &mut impl Rng) -> Result<(), KeyError> {
        let fresh = (OnionKey::generate(rng)?, now);
        let mut retired = StoredKey::of(&self.current);
        retired.since = now;
        Self::save(&self.dir, &fresh, Some(retired))?;
        let (retired, _) = std::mem::replace(&mut self.current, fresh);
        self.previous = Some((retired, now));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::keys::test_keys::identity;

    fn state() -> (tempfile::TempDir, StateDir) {
        let folder = tempfile::tempdir().unwrap();
        let dir = StateDir::open(&folder.path().join("a/b")).unwrap();
        (folder, dir)
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn at(hours: i64) -> Timestamp {
        let begin: Timestamp = "2025-06-01T12:00:00Z".parse().unwrap();
        begin + SignedDuration::from_hours(hours)
    }

    #[test]
    fn a_state_directory_is_private_or_refused() {
        let (_folder, dir) = state();
        assert_eq!(mode(dir.path()), 0o700);
        chmod(dir.path(), 0o750);
        let error = StateDir::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("got 0750") && error.contains("chmod 700 "), "{error}");
        chmod(dir.path(), 0o500);
        assert!(StateDir::open(dir.path()).is_ok(), "narrower is fine");
        chmod(dir.path(), 0o700);
        assert!(StateDir::open_existing(&dir.file("none")).is_err());
        dir.write("file", b"x").unwrap();
        assert!(StateDir::open(&dir.file("file")).is_err());
    }

    #[test]
    fn private_files_are_written_whole() {
        let (_folder, dir) = state();
        assert!(dir.read("x").unwrap().is_none());
        dir.write("x", b"one").unwrap();
        assert_eq!(mode(&dir.file("x")), 0o600);
        // The rest of an interrupted write is no obstacle, whatever its mode.
        fs::write(dir.file(".x.new"), "half").unwrap();
        chmod(&dir.file(".x.new"), 0o644);
        dir.write("x", b"two").unwrap();
        assert_eq!(**dir.read("x").unwrap().unwrap(), *b"two");
        assert_eq!(mode(&dir.file("x")), 0o600);
        assert!(!dir.file(".x.new").exists());
        chmod(&dir.file("x"), 0o640);
        let error = dir.read("x").unwrap_err().to_string();
        assert!(error.contains("chmod 600 "), "{error}");
    }

    #[test]
    fn an_identity_is_drawn_once_and_readable_by_others_tools() {
        use rsa::pkcs8::DecodePrivateKey;
        let (_folder, dir) = state();
        assert!(dir.existing_identity("identity.pem").unwrap().is_none());
        dir.write_identity("identity.pem", identity(1)).unwrap();
        assert_eq!(dir.identity("identity.pem").unwrap().id(), identity(1).id());
        let text = fs::read_to_string(dir.file("identity.pem")).unwrap();
        rsa::RsaPrivateKey::from_pkcs8_pem(&text).unwrap();
        let fresh = dir.identity("other.pem").unwrap().id();
        assert_eq!(dir.identity("other.pem").unwrap().id(), fresh);
    }

    #[test]
    fn a_cut_identity_is_refused_and_kept() {
        let (_folder, dir) = state();
        dir.write_identity("identity.pem", identity(1)).unwrap();
        let whole = fs::read(dir.file("identity.pem")).unwrap();
        for len in [0, 1, 30, whole.len() / 2, whole.len() - 5] {
            dir.write("identity.pem", &whole[..len]).unwrap();
            let error = dir.identity("identity.pem").unwrap_err();
            assert!(matches!(error, KeyError::Damaged { .. }), "{error}");
            assert!(error.to_string().contains("restore it from a backup"), "{error}");
            assert_eq!(fs::read(dir.file("identity.pem")).unwrap(), &whole[..len]);
        }
        chmod(&dir.file("identity.pem"), 0o644);
        assert!(matches!(dir.identity("identity.pem"), Err(KeyError::Permissions { .. })));
    }

    #[test]
    fn onion_keys_rotate_daily_with_an_hour_of_grace() {
        let (_folder, dir) = state();
        let mut rng = StdRng::seed_from_u64(1);
        let mut keys = OnionKeys::open(&dir, at(0), &mut rng).unwrap();
        let first = keys.current().id();
        assert!(!keys.rotate_if_due(at(23), &mut rng).unwrap());
        assert!(keys.rotate_if_due(at(24), &mut rng).unwrap());
        let second = keys.current().id();
        assert_ne!(first, second);
        let mut keys = OnionKeys::open(&dir, at(24), &mut rng).unwrap();
        assert_eq!(keys.current().id(), second);
        let half_past = at(24) + SignedDuration::from_mins(30);
        assert_eq!(keys.find(&first, half_past).unwrap().id(), first);
        assert_eq!(keys.find(&second, half_past).unwrap().id(), second);
        assert!(keys.find(&[0; 8], half_past).is_none());
        assert!(keys.find(&first, at(25)).is_none());
        assert!(!keys.rotate_if_due(at(25), &mut rng).unwrap());
        let stored = fs::read_to_string(dir.file(ONION_FILE)).unwrap();
        assert!(stored.contains("\"previous\":null"), "an old key is forgotten");
        // A long sleep, and a clock that went backwards.
        assert!(keys.rotate_if_due(at(100), &mut rng).unwrap());
        assert!(!keys.rotate_if_due(at(0), &mut rng).unwrap());
    }

    #[test]
    fn keys_stay_as_they_are_when_they_cannot_be_saved() {
        let (_folder, dir) = state();
        let mut rng = StdRng::seed_from_u64(1);
        let mut keys = OnionKeys::open(&dir, at(0), &mut rng).unwrap();
        let first = keys.current().id();
        // A folder in the way of the new file fails for root, too.
        fs::create_dir(dir.file(&format!(".{ONION_FILE}.new"))).unwrap();
        assert!(keys.rotate(at(1), &mut rng).is_err());
        assert_eq!(keys.current().id(), first);
        assert_eq!(keys.since(), at(0));
        assert_eq!(OnionKeys::open(&dir, at(1), &mut rng).unwrap().current().id(), first);
    }

    #[test]
    fn damaged_onion_keys_are_refused_without_showing_them() {
        let (_folder, dir) = state();
        let mut rng = StdRng::seed_from_u64(1);
        let keys = OnionKeys::open(&dir, at(0), &mut rng).unwrap();
        let secret = STANDARD.encode(keys.current().secret());
        let whole = fs::read_to_string(dir.file(ONION_FILE)).unwrap();
        let short = whole.replace(&secret, &secret[..20]);
        let other = whole.replace("keys/1", "keys/9");
        for text in ["", "{}", &whole[..whole.len() / 2], &short, &other] {
            dir.write(ONION_FILE, text.as_bytes()).unwrap();
            let error = OnionKeys::open(&dir, at(0), &mut rng).unwrap_err();
            assert!(matches!(error, KeyError::Damaged { .. }), "{error}");
            assert!(!error.to_string().contains(&secret[..10]), "{error}");
            assert_eq!(fs::read_to_string(dir.file(ONION_FILE)).unwrap(), text);
        }
    }
}
