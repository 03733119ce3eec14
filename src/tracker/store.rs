//! What a tracker keeps over a restart: legs, files, sessions, in SQLite (WAL).
//!
//! In: changes. Out: all of them again, at the start. Called by: node.
//!
//! One thread owns the database; changes reach it through a bounded queue and are written in
//! batches. Nothing waits for them: a change lost in a crash is announced again by its peer.

use std::{
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::JoinHandle,
};

use rusqlite::{Connection, Transaction, params};

use super::{Change, SessionRecord, TrackerError};
use crate::{
    keys::StateDir,
    model::{Cid, NodeId},
    wire::share::{FileId, ListedFile, Session},
};

const DATABASE: &str = "tracker.sqlite";
/// Changes that wait for the thread; further ones are dropped and counted.
const QUEUE: usize = 4_096;
/// Changes of one transaction.
const BATCH: usize = 512;

const SCHEMA: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = NORMAL;
    CREATE TABLE IF NOT EXISTS legs (cid BLOB PRIMARY KEY, exit BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS files (
        cid BLOB NOT NULL, id BLOB NOT NULL, name TEXT NOT NULL, size INTEGER NOT NULL, key BLOB,
        PRIMARY KEY (cid, id)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS sessions (
        session BLOB PRIMARY KEY, uploader BLOB NOT NULL, downloader BLOB NOT NULL,
        bridge BLOB NOT NULL, file BLOB NOT NULL) WITHOUT ROWID;
    PRAGMA user_version = 1;
";

/// The database of a tracker.
pub struct TrackerStore {
    connection: Connection,
}

/// The way to the thread that writes.
pub struct TrackerWriter {
    changes: Option<SyncSender<Change>>,
    thread: Option<JoinHandle<()>>,
    lost: u64,
}

impl TrackerStore {
    /// Opens the database of a state directory, or makes it.
    ///
    /// # Errors
    /// When it is damaged, of a newer program, or cannot be written.
    pub fn open(dir: &StateDir) -> Result<Self, TrackerError> {
        let connection = Connection::open(dir.file(DATABASE))?;
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version > 1 {
            return Err(TrackerError::NewerStore { got: version });
        }
        connection.execute_batch(SCHEMA)?;
        Ok(Self { connection })
    }

    /// Everything that was kept, in an order that can be taken over.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn load(&self) -> Result<Vec<Change>, TrackerError> {
        let mut changes = Vec::new();
        let mut legs = self.connection.prepare("SELECT cid, exit FROM legs")?;
        for leg in legs.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))? {
            let (cid, exit) = leg?;
            changes.push(Change::Leg(Cid::from_bytes(cid), NodeId::from_bytes(exit)));
        }
        let mut files =
            self.connection.prepare("SELECT cid, id, name, size, key FROM files ORDER BY cid")?;
        let mut rows = files.query([])?;
        let mut of_leg: Option<([u8; 16], Vec<ListedFile>)> = None;
        while let Some(row) = rows.next()? {
            let cid: [u8; 16] = row.get(0)?;
            let file = ListedFile {
                id: FileId(row.get(1)?),
                name: row.get(2)?,
                size: row.get::<_, i64>(3)?.cast_unsigned(),
                key: row.get(4)?,
            };
            match &mut of_leg {
                Some((known, files)) if *known == cid => files.push(file),
                _ => {
                    if let Some((cid, files)) = of_leg.replace((cid, vec![file])) {
                        changes.push(Change::Files(Cid::from_bytes(cid), files));
                    }
                }
            }
        }
        if let Some((cid, files)) = of_leg {
            changes.push(Change::Files(Cid::from_bytes(cid), files));
        }
        let mut sessions = self
            .connection
            .prepare("SELECT session, uploader, downloader, bridge, file FROM sessions")?;
        for record in sessions.query_map([], |row| {
            Ok(SessionRecord {
                session: Session(row.get(0)?),
                uploader: Cid::from_bytes(row.get(1)?),
                downloader: Cid::from_bytes(row.get(2)?),
                bridge: Cid::from_bytes(row.get(3)?),
                file: FileId(row.get(4)?),
            })
        })? {
            changes.push(Change::Session(record?));
        }
        Ok(changes)
    }

    /// Writes changes in one transaction.
    ///
    /// # Errors
    /// When the disk is full or the database is damaged; nothing is changed then.
    pub fn write(&mut self, changes: &[Change]) -> Result<(), TrackerError> {
        let transaction = self.connection.transaction()?;
        for change in changes {
            apply(&transaction, change)?;
        }
        Ok(transaction.commit()?)
    }

    /// Starts the thread that writes; it ends with the writer.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn into_writer(self) -> std::io::Result<TrackerWriter> {
        let (changes, queue) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("tracker-store".to_owned())
            .spawn(move || write_all(self, &queue))?;
        Ok(TrackerWriter { changes: Some(changes), thread: Some(thread), lost: 0 })
    }
}

impl TrackerWriter {
    /// Keeps a change.
    pub fn keep(&mut self, change: Change) {
        let sent = self.changes.as_ref().is_some_and(|changes| changes.try_send(change).is_ok());
        if !sent {
            self.lost += 1;
            if self.lost.is_power_of_two() {
                log::warn!(event = "store_slow"; "{} changes were not kept: the disk is slow", self.lost);
            }
        }
    }
}

impl Drop for TrackerWriter {
    fn drop(&mut self) {
        // The thread writes what waits, then ends.
        drop(self.changes.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn write_all(mut store: TrackerStore, queue: &Receiver<Change>) {
    let mut batch = Vec::new();
    while let Ok(first) = queue.recv() {
        batch.push(first);
        while batch.len() < BATCH
            && let Ok(change) = queue.try_recv()
        {
            batch.push(change);
        }
        if let Err(error) = store.write(&batch) {
            log::error!(event = "store"; "{} changes were not kept: {error}", batch.len());
        }
        batch.clear();
    }
}

fn apply(transaction: &Transaction<'_>, change: &Change) -> Result<(), TrackerError> {
    let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| {
        transaction.prepare_cached(sql)?.execute(values)
    };
    match change {
        Change::Leg(cid, exit) => {
            run(
                "INSERT OR REPLACE INTO legs VALUES (?1, ?2)",
                params![cid.as_bytes(), exit.as_bytes()],
            )?;
        }
        Change::LegGone(cid) => {
            run("DELETE FROM legs WHERE cid = ?1", params![cid.as_bytes()])?;
            run("DELETE FROM files WHERE cid = ?1", params![cid.as_bytes()])?;
        }
        Change::Files(cid, files) => {
            run("DELETE FROM files WHERE cid = ?1", params![cid.as_bytes()])?;
            for file in files {
                run(
                    "INSERT OR REPLACE INTO files VALUES (?1, ?2, ?3, ?4, ?5)",
                    params![
                        cid.as_bytes(),
                        file.id.0,
                        file.name,
                        file.size.cast_signed(),
                        file.key
                    ],
                )?;
            }
        }
        Change::Session(record) => {
            run(
                "INSERT OR REPLACE INTO sessions VALUES (?1, ?2, ?3, ?4, ?5)",
                params![
                    record.session.0,
                    record.uploader.as_bytes(),
                    record.downloader.as_bytes(),
                    record.bridge.as_bytes(),
                    record.file.0
                ],
            )?;
        }
        Change::SessionGone(session) => {
            run("DELETE FROM sessions WHERE session = ?1", params![session.0])?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let dir = StateDir::open(&folder.path().join("state")).unwrap();
        let (one, two) = (Cid::from_bytes([1; 16]), Cid::from_bytes([2; 16]));
        let exit = NodeId::from_bytes([9; 32]);
        let file = |name: &str| ListedFile {
            size: u64::MAX,
            key: Some([4; 32]),
            ..ListedFile::named(name)
        };
        let record = SessionRecord {
            session: Session([5; 16]),
            uploader: one,
            downloader: two,
            bridge: Cid::from_bytes([6; 16]),
            file: FileId([7; 32]),
        };
        let mut writer = TrackerStore::open(&dir).unwrap().into_writer().unwrap();
        for change in [
            Change::Leg(one, exit),
            Change::Leg(two, exit),
            Change::Files(one, vec![file("a"), file("b")]),
            Change::Files(two, vec![file("c")]),
            Change::Files(one, vec![file("d"), file("ünï")]),
            Change::Session(record),
            Change::LegGone(two),
        ] {
            writer.keep(change);
        }
        drop(writer);
        let store = TrackerStore::open(&dir).unwrap();
        let changes = store.load().unwrap();
        let mut names: Vec<String> = changes
            .iter()
            .filter_map(|change| match change {
                Change::Files(cid, files) if *cid == one => Some(files),
                _ => None,
            })
            .flatten()
            .map(|file| format!("{} {}", file.name, file.size))
            .collect();
        names.sort();
        assert_eq!(names, [format!("d {}", u64::MAX), format!("ünï {}", u64::MAX)]);
        assert!(changes.iter().any(|change| matches!(change, Change::Session(r) if *r == record)));
        assert_eq!(changes.iter().filter(|change| matches!(change, Change::Leg(..))).count(), 1);
    }
}
