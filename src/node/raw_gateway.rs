//! A gateway whose inside is captured raw (`--capture-interface`): a thread of its own carries frames.
//!
//! In: settings. Out: a running thread, ended when dropped. Called by: the client's service.
//!
//! The TUN that it fills counts as an interface of the inside, so rules, routes and device counts are
//! the gateway's, and the kernel's stack never sees the captured interface.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use super::NodeError;
use crate::{capture::raw_inside::RawInside, config::ClientConfig};

/// A capture that runs until it is dropped.
pub(super) struct RawGateway {
    over: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

/// Starts the capture that the settings ask for.
pub(super) fn start(config: &ClientConfig) -> Result<Option<RawGateway>, NodeError> {
    let Some(interface) = &config.capture_interface else { return Ok(None) };
    let networks: Vec<(IpAddr, u8)> =
        config.capture_address.iter().map(|found| (found.address, found.prefix)).collect();
    let mut inside = RawInside::open(interface, ClientConfig::CAPTURE_TUN, &networks)?;
    let over = Arc::new(AtomicBool::new(false));
    let is_over = Arc::clone(&over);
    let name = interface.clone();
    let thread = thread::Builder::new()
        .name("inside".to_owned())
        .spawn(move || {
            if let Err(error) = inside.run(|| is_over.load(Ordering::Relaxed)) {
                log::error!(event = "inside"; "{name} is no longer captured: {error}");
            }
            log::debug!("{name}: {:?}", inside.carried());
        })
        .map_err(NodeError::Thread)?;
    log::info!(event = "inside"; "{interface} is captured");
    Ok(Some(RawGateway { over, thread: Some(thread) }))
}

impl Drop for RawGateway {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It looks up within a second; what it had to say is in the log.
            let _ = thread.join();
        }
    }
}
