//! What a process holds in memory, as a core dump would show it.
//!
//! In: a process. Out: a file with its writable private memory, and places of bytes in it.
//! Called by: rig::scenario::memory.

use std::{
    fs::File,
    io::{BufWriter, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// A process's memory at one moment.
#[derive(Debug)]
pub struct Image {
    bytes: Vec<u8>,
    /// Where it was written.
    pub path: PathBuf,
}

impl Image {
    /// Reads a process's writable private memory and writes it to a file.
    ///
    /// # Errors
    /// Without the privilege, or when the process is gone.
    pub fn take(pid: u32, path: &Path) -> Result<Self> {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let memory =
            File::open(format!("/proc/{pid}/mem")).context("opening a process's memory")?;
        let mut bytes = Vec::new();
        for (start, end) in maps.lines().filter_map(writable) {
            let at = bytes.len();
            bytes.resize(at + (end - start) as usize, 0);
            // A guard page or a region that went in the meantime reads as zeros.
            let _ = memory.read_exact_at(&mut bytes[at..], start);
        }
        let mut file = BufWriter::new(File::create(path)?);
        file.write_all(&bytes)?;
        file.flush()?;
        Ok(Self { bytes, path: path.to_owned() })
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Where these bytes stand.
    pub fn find(&self, needle: &[u8]) -> Vec<usize> {
        let Some(first) = needle.first() else { return Vec::new() };
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(next) = self.bytes[at..].iter().position(|byte| byte == first) {
            at += next;
            if self.bytes[at..].starts_with(needle) {
                found.push(at);
            }
            at += 1;
        }
        found
    }

    /// The bytes around a place, for a person to judge.
    pub fn around(&self, at: usize) -> String {
        let range = at.saturating_sub(16)..(at + 24).min(self.bytes.len());
        self.bytes[range].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The range of a line of `/proc/PID/maps`, if a core dump would contain it.
fn writable(line: &str) -> Option<(u64, u64)> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let kept = words.next()?.starts_with("rw-p") && !line.ends_with("[vvar]");
    let hex = |text| u64::from_str_radix(text, 16).ok();
    Some((hex(start)?, hex(end)?)).filter(|_| kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_holds_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let secret: Vec<u8> = (0..32u8).map(|byte| byte.wrapping_mul(77) ^ 0x5a).collect();
        let image = Image::take(std::process::id(), &dir.path().join("image")).unwrap();
        let places = image.find(&secret);
        assert!(!places.is_empty());
        assert!(image.around(places[0]).contains("5a17"));
        assert!(image.find(&[]).is_empty());
    }
}
