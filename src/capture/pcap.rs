//! Capture files that other tools read (pcap, microseconds), and a device that writes one.
//!
//! In: packets. Out: a file. Called by: the rig, node when asked for a capture.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    os::fd::RawFd,
    path::Path,
    time::{Duration, SystemTime},
};

use super::PacketDevice;
use crate::model::PacketBatch;

/// What a file's packets start with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkType {
    /// An Ethernet header.
    Ethernet = 1,
    /// An IP header.
    Raw = 101,
}

/// A capture file being written.
#[derive(Debug)]
pub struct PcapWriter {
    file: BufWriter<File>,
    packets: u64,
}

impl PcapWriter {
    /// Starts a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(path: &Path, link: LinkType) -> io::Result<Self> {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        file.write_all(&0xa1b2_c3d4u32.to_le_bytes())?;
        file.write_all(&[2, 0, 4, 0])?;
        file.write_all(&[0; 8])?;
        file.write_all(&262_144u32.to_le_bytes())?;
        file.write_all(&(link as u32).to_le_bytes())?;
        Ok(Self { file, packets: 0 })
    }

    /// Appends a packet, of which `bytes` may be the beginning only.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn write(&mut self, at: SystemTime, bytes: &[u8], len: usize) -> io::Result<()> {
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let mut header = [0; 16];
        header[..4].copy_from_slice(&(since.as_secs() as u32).to_le_bytes());
        header[4..8].copy_from_slice(&since.subsec_micros().to_le_bytes());
        header[8..12].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
        header[12..].copy_from_slice(&(len as u32).to_le_bytes());
        self.file.write_all(&header)?;
        self.file.write_all(bytes)?;
        self.packets += 1;
        Ok(())
    }

    /// How many packets were written.
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// Hands everything to the system.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The packets of a capture file, one after the other.
#[derive(Debug)]
pub struct PcapReader<'a> {
    rest: &'a [u8],
    link: LinkType,
}

impl<'a> PcapReader<'a> {
    /// Reads a file's header; `None` if it is not one that [`PcapWriter`] writes.
    pub fn new(file: &'a [u8]) -> Option<Self> {
        let (header, rest) = file.split_at_checked(24)?;
        let link = match (u32_at(header, 0)?, u32_at(header, 20)?) {
            (0xa1b2_c3d4, 1) => LinkType::Ethernet,
            (0xa1b2_c3d4, 101) => LinkType::Raw,
            _ => return None,
        };
        Some(Self { rest, link })
    }

    /// What the packets start with.
    pub fn link(&self) -> LinkType {
        self.link
    }
}

impl<'a> Iterator for PcapReader<'a> {
    type Item = (Duration, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (header, rest) = self.rest.split_at_checked(16)?;
        let at =
            Duration::new(u64::from(u32_at(header, 0)?), u32_at(header, 4)?.checked_mul(1000)?);
        let (packet, rest) = rest.split_at_checked(u32_at(header, 8)? as usize)?;
        self.rest = rest;
        Some((at, packet))
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

/// A device that writes what passes into a file.
#[derive(Debug)]
pub struct PcapTap<D> {
    device: D,
    file: PcapWriter,
}

impl<D: PacketDevice> PcapTap<D> {
    /// Wraps a device.
    pub fn new(device: D, file: PcapWriter) -> Self {
        Self { device, file }
    }

    fn note(&mut self, batch: &PacketBatch, from: usize) {
        let now = SystemTime::now();
        for packet in batch.iter().skip(from) {
            if let Err(error) = self.file.write(now, packet, packet.len()) {
                log::warn!("the capture of {} lacks packets: {error}", self.device.name());
                return;
            }
        }
    }
}

impl<D: PacketDevice> PacketDevice for PcapTap<D> {
    fn recv(&mut self, batch: &mut PacketBatch) -> io::Result<usize> {
        let before = batch.len();
        let count = self.device.recv(batch)?;
        self.note(batch, before);
        Ok(count)
    }

    fn send(&mut self, batch: &PacketBatch) -> io::Result<usize> {
        self.note(batch, 0);
        self.device.send(batch)
    }

    fn raw_fd(&self) -> RawFd {
        self.device.raw_fd()
    }

    fn name(&self) -> &str {
        self.device.name()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.pcap");
        let at = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_000);
        let mut writer = PcapWriter::create(&path, LinkType::Ethernet).unwrap();
        writer.write(at, b"first", 5).unwrap();
        writer.write(at, b"", 0).unwrap();
        writer.write(at, b"third", 1500).unwrap();
        assert_eq!(writer.packets(), 3);
        writer.flush().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let reader = PcapReader::new(&bytes).unwrap();
        assert_eq!(reader.link(), LinkType::Ethernet);
        let packets: Vec<_> = reader.collect();
        assert_eq!(
            packets.iter().map(|(_, bytes)| *bytes).collect::<Vec<_>>(),
            [b"first".as_slice(), b"", b"third"]
        );
        assert_eq!(packets[0].0, Duration::new(1_700_000_000, 123_456_000));
        assert!(PcapReader::new(&bytes[..20]).is_none());
        assert_eq!(
            PcapReader::new(&bytes[..bytes.len() - 1]).unwrap().count(),
            2,
            "a cut file ends early"
        );
    }
}
