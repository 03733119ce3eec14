//! Opening the SQLite database of the state directory, and refusing what is damaged.
//!
//! In: a state directory. Out: a checked connection. Called by: the store thread, administration.
//!
//! A database that is damaged, lost or of another program is refused and left as it is.

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use crate::{
    controller::{ControllerError, keyring::key_files},
    keys::StateDir,
};

pub(crate) const DATABASE: &str = "controller.db";

/// `cepa`, so that another program's database is not taken for ours.
const APPLICATION_ID: i32 = 0x6365_7061;
const SCHEMA_VERSION: i32 = 1;
const SCHEMA: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE nodes (
    id BLOB PRIMARY KEY, name TEXT NOT NULL, descriptor BLOB NOT NULL, signature BLOB NOT NULL,
    allowed TEXT NOT NULL, label TEXT, admitted INTEGER NOT NULL, last_seen INTEGER NOT NULL,
    revoked INTEGER
) STRICT;
CREATE UNIQUE INDEX node_names ON nodes (name) WHERE revoked IS NULL;
CREATE TABLE tokens (
    id TEXT PRIMARY KEY, secret BLOB, role TEXT NOT NULL, label TEXT, created INTEGER NOT NULL,
    expires INTEGER NOT NULL, used_by BLOB, revoked INTEGER
) STRICT;
CREATE TABLE directory (
    only INTEGER PRIMARY KEY CHECK (only = 1), version INTEGER NOT NULL, signed TEXT NOT NULL
) STRICT;
CREATE TABLE key_changes (
    number INTEGER PRIMARY KEY, change BLOB NOT NULL, signature BLOB NOT NULL
) STRICT;
";

/// One connection to the database.
#[derive(Debug)]
pub(crate) struct Database {
    pub(super) connection: Connection,
    pub(super) path: PathBuf,
}

pub(super) type Result<T> = std::result::Result<T, ControllerError>;

impl Database {
    /// Opens the database of a state directory, or makes it where nothing was set up before.
    pub(crate) fn open(dir: &StateDir) -> Result<Self> {
        let path = dir.file(DATABASE);
        let has_key = !key_files(dir.path())?.is_empty();
        match fs::metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if has_key {
                    return Err(ControllerError::DatabaseMissing { path });
                }
                make_file(&path)?;
            }
            Err(cause) => {
                return Err(ControllerError::Io { action: "open the database", cause });
            }
            Ok(found) if found.len() == 0 && has_key => {
                return Err(ControllerError::Damaged { path, got: "an empty file".to_owned() });
            }
            Ok(found) => {
                dir.check_private(DATABASE)?;
                check_length(&path, found.len())?;
            }
        }
        Self::connect(path)
    }

    /// Makes an empty database beside keys whose database was lost.
    pub(crate) fn make(dir: &StateDir) -> Result<Self> {
        let path = dir.file(DATABASE);
        make_file(&path)?;
        Self::connect(path)
    }

    fn connect(path: PathBuf) -> Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&path, flags)
            .map_err(|cause| database_error(&path, "open", cause))?;
        let mut database = Self { connection, path };
        database.set_up()?;
        Ok(database)
    }

    fn set_up(&mut self) -> Result<()> {
        let failed = |cause| database_error(&self.path, "open", cause);
        let connection = &mut self.connection;
        connection.busy_timeout(Duration::from_secs(5)).map_err(failed)?;
        let (application, version, tables): (i32, i32, i64) = connection
            .query_row(
                "SELECT a.application_id, v.user_version, (SELECT count(*) FROM sqlite_schema)
                 FROM pragma_application_id AS a, pragma_user_version AS v",
                [],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )
            .map_err(failed)?;
        let damaged = |got: String| ControllerError::Damaged { path: self.path.clone(), got };
        match (application, version, tables) {
            (0, 0, 0) => {
                connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
                let transaction = connection
                    .transaction_with_behavior(TransactionBehavior::Immediate)
                    .map_err(failed)?;
                transaction
                    .execute_batch(SCHEMA)
                    .and_then(|()| {
                        transaction.pragma_update(None, "application_id", APPLICATION_ID)
                    })
                    .and_then(|()| transaction.pragma_update(None, "user_version", SCHEMA_VERSION))
                    .and_then(|()| transaction.commit())
                    .map_err(failed)?;
            }
            (APPLICATION_ID, SCHEMA_VERSION, _) => {
                let check: String = connection
                    .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
                    .map_err(failed)?;
                if check != "ok" {
                    return Err(damaged(check));
                }
            }
            (APPLICATION_ID, version, _) => {
                return Err(damaged(format!(
                    "one of schema {version}, where this version of cepa knows {SCHEMA_VERSION}"
                )));
            }
            _ => return Err(damaged("another program's database".to_owned())),
        }
        connection
            .pragma_update(None, "synchronous", "FULL")
            .and_then(|()| connection.pragma_update(None, "secure_delete", true))
            .map_err(failed)
    }

    pub(super) fn failed(
        &self,
        action: &'static str,
    ) -> impl Fn(rusqlite::Error) -> ControllerError + use<> {
        let path = self.path.clone();
        move |cause| database_error(&path, action, cause)
    }
}

fn database_error(path: &Path, action: &'static str, cause: rusqlite::Error) -> ControllerError {
    let damaged = match &cause {
        rusqlite::Error::FromSqlConversionFailure(..) | rusqlite::Error::InvalidColumnType(..) => {
            true
        }
        other => matches!(
            other.sqlite_error_code(),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
        ),
    };
    let path = path.to_owned();
    if damaged {
        return ControllerError::Damaged { path, got: cause.to_string() };
    }
    ControllerError::Database { path, action, cause }
}

fn make_file(path: &Path) -> Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(|cause| ControllerError::Io { action: "make the database", cause })
}

/// Compares the file's length with the number of pages in its header, which SQLite itself takes
/// on trust. With a log beside it, pages may be missing here and wait there.
fn check_length(path: &Path, len: u64) -> Result<()> {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    if len == 0 || fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
        return Ok(());
    }
    let mut header = [0; 32];
    let read = fs::File::open(path).and_then(|mut file| file.read_exact(&mut header));
    let damaged = |got: String| ControllerError::Damaged { path: path.to_owned(), got };
    if read.is_err() {
        return Err(damaged(format!("{len} bytes")));
    }
    let page = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65_536,
        size => u64::from(size),
    };
    let pages = u32::from_be_bytes([header[28], header[29], header[30], header[31]]);
    let whole = page * u64::from(pages);
    if len < whole {
        return Err(damaged(format!("{len} of {whole} bytes")));
    }
    Ok(())
}
