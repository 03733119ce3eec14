//! A state directory in one file: a tar archive whose first entry lists the others with their
//! lengths and SHA-256.
//!
//! In: a directory, an archive. Out: the other one. Called by: backup, restore.
//!
//! The archive holds private keys: it is written with mode 0600, and nothing of it is used before
//! all of it was checked against the list.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufReader, BufWriter, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use aws_lc_rs::digest;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

const MANIFEST: &str = "manifest.json";
const SCHEMA: &str = "cepa.backup/1";
/// Of a list that is read; entries are about 150 bytes.
const LONGEST_MANIFEST: u64 = 8 << 20;
/// What a running daemon makes anew.
const PASSING: [&str; 2] = ["control.sock", "lock"];

/// What an archive holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    schema: String,
    /// The role whose state it is.
    pub(super) role: String,
    /// The version of the program that wrote it.
    pub(super) version: String,
    /// When it was written.
    pub(super) created: Timestamp,
    /// The files, in the order in which they follow.
    pub(super) files: Vec<Listed>,
}

/// One file of an archive.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Listed {
    /// Its place in the state directory.
    pub(super) path: PathBuf,
    /// Its length in bytes.
    pub(super) len: u64,
    /// Its permissions, such as 0600 in octal.
    mode: String,
    sha256: String,
}

impl Manifest {
    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.len).sum()
    }
}

/// Writes the state of a role to a new file, and reads that again to check it.
pub(super) fn write(role: &str, state: &Path, to: &Path) -> Result<Manifest> {
    let mut files = Vec::new();
    list(state, Path::new(""), &mut files)?;
    ensure!(!files.is_empty(), "{}: expected files, got none", state.display());
    let manifest = Manifest {
        schema: SCHEMA.to_owned(),
        role: role.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        created: Timestamp::now(),
        files,
    };
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
    let file = file.with_context(|| format!("making {}", to.display()))?;
    let written = fill(&manifest, state, file)
        .and_then(|()| {
            let back = read(to, None)?;
            ensure!(back == manifest, "the archive does not read as it was written");
            Ok(())
        })
        .with_context(|| format!("writing {}", to.display()));
    if written.is_err() {
        // What is half there must not pass for a backup.
        let _ = fs::remove_file(to);
    }
    written.map(|()| manifest)
}

fn list(state: &Path, inside: &Path, files: &mut Vec<Listed>) -> Result<()> {
    let folder = state.join(inside);
    let entries = fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut names: Vec<_> = entries.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
    names.sort();
    for name in names {
        let path = inside.join(&name);
        let full = state.join(&path);
        let found = fs::symlink_metadata(&full)?;
        let text = name.to_string_lossy();
        let passing = PASSING.contains(&&*text) && inside.as_os_str().is_empty()
            || text.starts_with('.') && text.ends_with(".new");
        if passing {
            continue;
        }
        if found.is_dir() {
            list(state, &path, files)?;
            continue;
        }
        ensure!(
            found.is_file(),
            "{}: expected a file, got something else; move it away",
            full.display()
        );
        let mode = found.permissions().mode() & 0o777;
        let (sha256, len) =
            hash(File::open(&full)?).with_context(|| format!("reading {}", full.display()))?;
        files.push(Listed { path, len, mode: format!("{mode:04o}"), sha256 });
    }
    Ok(())
}

fn hash(mut from: impl Read) -> Result<(String, u64)> {
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 64 << 10];
    let mut len = 0;
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok((in_hex(hash.finish().as_ref()), len));
        }
        hash.update(&buffer[..count]);
        len += count as u64;
    }
}

fn in_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn fill(manifest: &Manifest, state: &Path, file: File) -> Result<()> {
    let mut archive = tar::Builder::new(BufWriter::new(file));
    let json = serde_json::to_vec_pretty(manifest)?;
    archive.append_data(&mut header(json.len() as u64, 0o600), MANIFEST, json.as_slice())?;
    for listed in &manifest.files {
        let file = File::open(state.join(&listed.path))?;
        let mode = u32::from_str_radix(&listed.mode, 8)?;
        // A file that grows meanwhile is cut; the check of the written archive tells.
        let file = file.take(listed.len);
        archive.append_data(&mut header(listed.len, mode), &listed.path, file)?;
    }
    let mut out = archive.into_inner()?;
    out.flush()?;
    Ok(out.get_ref().sync_all()?)
}

fn header(len: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(len);
    header.set_mode(mode);
    header.set_mtime(u64::try_from(Timestamp::now().as_second()).unwrap_or(0));
    header
}

/// Reads an archive and checks every byte of it; with `into` its files are written there, into a
/// directory that is empty.
pub(super) fn read(from: &Path, into: Option<&Path>) -> Result<Manifest> {
    let mut file = File::open(from).with_context(|| format!("opening {}", from.display()))?;
    if into.is_some() {
        // Nothing is written before everything was checked.
        unpack(&mut file, None).with_context(|| damaged(from))?;
        file.rewind()?;
    }
    unpack(&mut file, into).with_context(|| damaged(from))
}

fn damaged(from: &Path) -> String {
    format!("{} is no whole backup of cepa", from.display())
}

fn unpack(file: &mut File, into: Option<&Path>) -> Result<Manifest> {
    let mut archive = tar::Archive::new(BufReader::new(file));
    let mut entries = archive.entries()?;
    let first = entries.next().context("expected a list of files, got nothing")??;
    ensure!(
        first.path()?.as_os_str() == MANIFEST && first.size() <= LONGEST_MANIFEST,
        "expected a list of files first, got {}",
        first.path()?.display()
    );
    let manifest: Manifest = serde_json::from_reader(first).context("reading the list of files")?;
    ensure!(
        manifest.schema == SCHEMA,
        "expected {SCHEMA}, got {}; restore it with the version that wrote it ({})",
        manifest.schema,
        manifest.version
    );
    for listed in &manifest.files {
        let name = listed.path.display();
        let entry = entries.next().with_context(|| format!("expected {name}, got the end"))??;
        ensure!(entry.path()? == listed.path, "expected {name}, got another file");
        ensure!(entry.header().entry_type().is_file(), "{name}: expected a file");
        let is_inside = |part| matches!(part, Component::Normal(_));
        ensure!(listed.path.components().all(is_inside), "{name} leads out of the directory");
        let (sha256, len) = match into {
            None => hash(entry)?,
            Some(dir) => hash(Copying::new(entry, &dir.join(&listed.path), &listed.mode)?)?,
        };
        ensure!(len == listed.len, "{name}: expected {} bytes, got {len}", listed.len);
        ensure!(sha256 == listed.sha256, "{name} is not what was backed up");
    }
    if let Some(extra) = entries.next() {
        bail!("expected the end, got {}", extra?.path()?.display());
    }
    Ok(manifest)
}

/// Writes what is read from it to a new file.
struct Copying<R> {
    from: R,
    to: File,
}

impl<R: Read> Copying<R> {
    fn new(from: R, path: &Path, mode: &str) -> Result<Self> {
        if let Some(folder) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let mode = u32::from_str_radix(mode, 8).context("reading a mode")? & 0o700;
        let to = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
        Ok(Self { from, to: to.with_context(|| format!("making {}", path.display()))? })
    }
}

impl<R: Read> Read for Copying<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.to.write_all(&buffer[..count])?;
        if count == 0 {
            self.to.sync_all()?;
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        fs::create_dir_all(state.join("deeper")).unwrap();
        for (name, text, mode) in [
            ("identity.pem", "a key", 0o600),
            ("deeper/list", "more", 0o400),
            ("control.sock", "passing", 0o600),
            ("lock", "", 0o600),
            (".identity.pem.new", "half", 0o600),
            ("empty", "", 0o600),
        ] {
            fs::write(state.join(name), text).unwrap();
            fs::set_permissions(state.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        (folder, state)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_written_is_read_with_its_modes() {
        let (folder, state) = state();
        let file = folder.path().join("backup.tar");
        let manifest = write("node", &state, &file).unwrap();
        assert_eq!(mode(&file), 0o600);
        let names: Vec<_> = manifest.files.iter().map(|file| file.path.to_str().unwrap()).collect();
        assert_eq!(names, ["deeper/list", "empty", "identity.pem"]);
        assert_eq!(manifest.bytes(), 9);
        assert!(write("node", &state, &file).is_err(), "a backup is not overwritten");
        let back = folder.path().join("back");
        fs::create_dir(&back).unwrap();
        assert_eq!(read(&file, Some(&back)).unwrap(), manifest);
        assert_eq!(fs::read(back.join("identity.pem")).unwrap(), b"a key");
        assert_eq!(
            (mode(&back.join("identity.pem")), mode(&back.join("deeper/list"))),
            (0o600, 0o400)
        );
        assert_eq!(mode(&back.join("deeper")), 0o700);
        assert!(!back.join("lock").exists() && !back.join("control.sock").exists());
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_noticed_before_anything_is_written() {
        let (folder, state) = state();
        let file = folder.path().join("backup.tar");
        write("node", &state, &file).unwrap();
        let whole = fs::read(&file).unwrap();
        let back = folder.path().join("back");
        fs::create_dir(&back).unwrap();
        // Of each file's content, and of the list.
        let places = [b"a key".as_slice(), b"more", b"identity.pem\"", b"sha256"];
        for needle in places {
            let at = whole.windows(needle.len()).position(|bytes| bytes == needle).unwrap();
            let mut changed = whole.clone();
            changed[at] ^= 1;
            fs::write(&file, changed).unwrap();
            let error = format!("{:#}", read(&file, Some(&back)).unwrap_err());
            assert!(error.contains("no whole backup"), "{error}");
        }
        for cut in (0..whole.len() - 1024).step_by(97) {
            fs::write(&file, &whole[..cut]).unwrap();
            assert!(read(&file, Some(&back)).is_err(), "cut at {cut}");
        }
        assert_eq!(fs::read_dir(&back).unwrap().count(), 0, "nothing was written");
    }

    #[test]
    fn an_archive_cannot_write_outside() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("evil.tar");
        let listed = Listed {
            path: "../evil".into(),
            len: 1,
            mode: "0600".to_owned(),
            sha256: hash(b"x".as_slice()).unwrap().0,
        };
        let manifest = Manifest {
            schema: SCHEMA.to_owned(),
            role: "node".to_owned(),
            version: "0".to_owned(),
            created: Timestamp::UNIX_EPOCH,
            files: vec![listed],
        };
        let mut archive = tar::Builder::new(File::create(&file).unwrap());
        let json = serde_json::to_vec(&manifest).unwrap();
        archive.append_data(&mut header(json.len() as u64, 0o600), MANIFEST, &*json).unwrap();
        let mut evil = header(1, 0o600);
        evil.as_gnu_mut().unwrap().name[..7].copy_from_slice(b"../evil");
        evil.set_cksum();
        archive.append(&evil, b"x".as_slice()).unwrap();
        archive.into_inner().unwrap();
        let back = folder.path().join("back");
        fs::create_dir(&back).unwrap();
        let error = format!("{:#}", read(&file, Some(&back)).unwrap_err());
        assert!(error.contains("leads out") || error.contains("another file"), "{error}");
        assert!(!folder.path().join("evil").exists());
    }
}
