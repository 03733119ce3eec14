//! What must not be found anywhere between two peers: marks in the files, names, hashes.
//!
//! In: captures, directories. Out: how much was searched, or where something was found.
//! Called by: the scenario of file sharing.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    capture::pcap::PcapReader,
    model::CID_LEN,
    rig::{captures::CaptureFile, frame::Frame, network::Network},
};

/// A mark stands in a file so often that any cell with a piece of it would show one.
const EVERY: usize = 256;

/// What to search for.
pub(super) struct Needles {
    mark: [u8; 16],
}

impl Needles {
    /// Draws a mark that nothing else has.
    pub(super) fn draw() -> Self {
        Self { mark: rand::random() }
    }

    /// A file's bytes: without order, with the mark in them.
    pub(super) fn content(&self, name: &str, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut bytes);
        for block in bytes.chunks_exact_mut(EVERY) {
            block[..self.mark.len()].copy_from_slice(&self.mark);
        }
        bytes
    }

    fn search(&self, bytes: &[u8], names: &[impl AsRef<str>], place: &Path) -> Result<()> {
        let marks = std::iter::once((self.mark.as_slice(), "the bytes of a file"));
        let names = names.iter().map(|name| (name.as_ref().as_bytes(), name.as_ref()));
        for (needle, what) in marks.chain(names) {
            if let Some(at) = find(bytes, needle) {
                bail!("{what} at byte {at} of {}", place.display());
            }
        }
        Ok(())
    }

    /// Searches captures; how many frames and bytes.
    ///
    /// # Errors
    /// Where something was found.
    pub(super) fn search_captures(
        &self,
        files: &[CaptureFile],
        names: &[impl AsRef<str>],
    ) -> Result<(u64, u64)> {
        let (mut frames, mut bytes) = (0, 0);
        for file in files {
            ensure!(file.lost == 0, "{} frames of {} were lost", file.lost, file.host);
            let capture = fs::read(&file.path)?;
            self.search(&capture, names, &file.path)?;
            frames += file.frames;
            bytes += capture.len() as u64;
        }
        Ok((frames, bytes))
    }

    /// Searches every file under a directory; how many bytes.
    ///
    /// # Errors
    /// Where something was found.
    pub(super) fn search_dir(&self, dir: &Path, names: &[impl AsRef<str>]) -> Result<u64> {
        let mut searched = 0;
        for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
            let path = entry?.path();
            let kind = fs::symlink_metadata(&path)?.file_type();
            if kind.is_dir() {
                searched += self.search_dir(&path, names)?;
            } else if kind.is_file() {
                let bytes = fs::read(&path)?;
                self.search(&bytes, names, &path)?;
                searched += bytes.len() as u64;
            }
        }
        Ok(searched)
    }
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    let first = needle.first()?;
    let mut at = 0;
    loop {
        at += bytes[at..].iter().position(|byte| byte == first)?;
        if bytes[at..].starts_with(needle) {
            return Some(at);
        }
        at += 1;
    }
}

/// Cells of the busiest link between two hosts: circuits of others that pass both send echoes there.
///
/// # Errors
/// When a capture cannot be read.
pub(super) fn busiest_link(
    network: &Network,
    files: &[CaptureFile],
    one: &str,
    other: &str,
) -> Result<u64> {
    let address = |name: &str| network.host(name).map(|host| host.plan.v4());
    let pair = [address(one)?, address(other)?].map(std::net::IpAddr::V4);
    let file = files.iter().find(|file| file.host == one && file.segment == "switch");
    let file = fs::read(&file.context("expected a capture of that cable")?.path)?;
    let mut links: BTreeMap<&[u8], u64> = BTreeMap::new();
    for (_, packet) in PcapReader::new(&file).context("expected a capture file")? {
        let Some(datagram) = Frame::parse(packet).and_then(Frame::udp) else { continue };
        let ends = [datagram.from.ip(), datagram.to.ip()];
        if (ends == pair || ends == [pair[1], pair[0]])
            && let Some(cid) = datagram.payload.get(..CID_LEN)
        {
            *links.entry(cid).or_default() += 1;
        }
    }
    Ok(links.into_values().max().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hidden_nowhere_is_found() {
        let needles = Needles::draw();
        let content = needles.content("x", 3000);
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("deep")).unwrap();
        fs::write(dir.path().join("deep/one"), &content[700..1200]).unwrap();
        assert!(needles.search_dir(dir.path(), &["name"]).is_err(), "a piece of the file");
        fs::write(dir.path().join("deep/one"), b"the name of it").unwrap();
        assert!(needles.search_dir(dir.path(), &["name"]).is_err());
        assert_eq!(needles.search_dir(dir.path(), &["other"]).unwrap(), 14);
    }
}
