//! Captures on every cable, at the switch's end.
//!
//! In: a network. Out: one file per cable. Called by: the scenarios.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::SystemTime,
};

use anyhow::{Context, Result};

use super::network::Network;
use crate::capture::{
    pcap::{LinkType, PcapWriter},
    raw::Sniffer,
};

/// One cable's file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CaptureFile {
    /// The host at the other end of the cable.
    pub host: &'static str,
    /// The segment it is plugged into.
    pub segment: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Frames in it.
    pub frames: u64,
    /// Frames that the kernel dropped because the disk was too slow.
    pub lost: u64,
}

/// Captures that run.
#[derive(Debug)]
pub struct Captures {
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<Result<CaptureFile>>>,
}

impl Captures {
    /// Starts on every cable of a network.
    ///
    /// # Errors
    /// Without the privilege, or when a file cannot be made.
    pub fn start(network: &Network, dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut workers = Vec::new();
        for plan in &network.plan.hosts {
            for port in &plan.ports {
                let plug = plan.plug(port);
                let sniffer = network.switch.netns.run(|| Sniffer::open(&plug))??;
                let path = dir.join(format!("{plug}.pcap"));
                let writer = PcapWriter::create(&path, LinkType::Ethernet)?;
                let file = CaptureFile {
                    host: plan.name,
                    segment: port.segment,
                    path,
                    frames: 0,
                    lost: 0,
                };
                let stop = stop.clone();
                workers.push(std::thread::spawn(move || record(sniffer, writer, file, &stop)));
            }
        }
        Ok(Self { stop, workers })
    }

    /// Stops them all.
    ///
    /// # Errors
    /// When the disk was full.
    pub fn stop(mut self) -> Result<Vec<CaptureFile>> {
        self.stop.store(true, Ordering::Relaxed);
        let workers = std::mem::take(&mut self.workers);
        workers
            .into_iter()
            .map(|worker| {
                worker.join().map_err(|_| anyhow::anyhow!("a capture's thread panicked"))?
            })
            .collect()
    }
}

impl Drop for Captures {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn record(
    mut sniffer: Sniffer,
    mut writer: PcapWriter,
    mut file: CaptureFile,
    stop: &AtomicBool,
) -> Result<CaptureFile> {
    let mut number = 0u32;
    loop {
        match sniffer.next_frame()? {
            Some(frame) => writer.write(SystemTime::now(), frame, frame.len())?,
            // Nothing more is waiting, so everything from before the stop is written.
            None if stop.load(Ordering::Relaxed) => break,
            None => {}
        }
        number = number.wrapping_add(1);
        if number.is_multiple_of(1024) {
            file.lost += u64::from(sniffer.lost());
        }
    }
    file.lost += u64::from(sniffer.lost());
    file.frames = writer.packets();
    writer.flush()?;
    Ok(file)
}
