//! Kernel settings that an exit or a gateway changes, and puts back.
//!
//! In: names and values. Out: the old values, restored on drop, and kept in a file meanwhile, so
//! that the start after a kill still knows them. Called by: capture::nat, node::gateway.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use super::{CaptureError, Result};

/// Settings that were changed.
#[derive(Debug)]
pub struct Sysctls {
    memo: Option<PathBuf>,
    old: BTreeMap<String, String>,
}

impl Sysctls {
    /// Nothing changed; `memo` is where old values are kept. If the file is there, the process
    /// before this one was killed, and its values are the ones to restore.
    pub fn new(memo: Option<&Path>) -> Self {
        let old = memo
            .and_then(|memo| fs::read_to_string(memo).ok())
            .map(|text| {
                text.lines()
                    .filter_map(|line| line.split_once('='))
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .collect()
            })
            .unwrap_or_default();
        Self { memo: memo.map(Path::to_owned), old }
    }

    /// Changes a setting, named by its path below `/proc/sys/`.
    ///
    /// # Errors
    /// When the kernel does not have it or the privilege is missing.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let wrap = |source: io::Error| {
            CaptureError::step(format!("set {name} to {value}"), "CAP_NET_ADMIN", source)
        };
        let present = get(name).map_err(wrap)?;
        if present == value {
            return Ok(());
        }
        self.old.entry(name.to_owned()).or_insert(present);
        self.remember();
        fs::write(path(name), value).map_err(wrap)
    }

    /// Lets IPv4 packets pass between these interfaces, and no others.
    ///
    /// # Errors
    /// As [`Self::set`].
    pub fn forward_v4(&mut self, interfaces: &[&str]) -> Result<()> {
        for name in interfaces {
            self.set(&format!("net/ipv4/conf/{name}/forwarding"), "1")?;
        }
        Ok(())
    }

    /// Lets IPv6 packets pass. There is one switch for all interfaces, which also stops a host from
    /// listening to router advertisements, so that is kept on where it was on.
    ///
    /// # Errors
    /// As [`Self::set`].
    pub fn forward_v6(&mut self) -> Result<()> {
        for entry in fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten() {
            let name = entry.file_name();
            let accept = format!("net/ipv6/conf/{}/accept_ra", name.to_string_lossy());
            if name != "all" && name != "default" && get(&accept).is_ok_and(|now| now == "1") {
                self.set(&accept, "2")?;
            }
        }
        self.set("net/ipv6/conf/all/forwarding", "1")
    }

    fn remember(&self) {
        let Some(memo) = &self.memo else { return };
        let text: String =
            self.old.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        if let Err(error) = fs::write(memo, text) {
            log::warn!(event = "sysctl"; "cannot note the old kernel settings in {}: {error}", memo.display());
        }
    }
}

impl Drop for Sysctls {
    fn drop(&mut self) {
        for (name, value) in &self.old {
            if let Err(error) = fs::write(path(name), value) {
                // Settings of an interface vanish with it.
                log::debug!("{name} stays changed: {error}");
            }
        }
        if let Some(memo) = &self.memo {
            let _ = fs::remove_file(memo);
        }
    }
}

/// What a setting is now.
///
/// # Errors
/// When the kernel does not have it.
pub fn get(name: &str) -> io::Result<String> {
    Ok(fs::read_to_string(path(name))?.trim().to_owned())
}

fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}
