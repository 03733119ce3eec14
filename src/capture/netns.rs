//! Network namespaces without a name: each vanishes with its last user.
//!
//! In: closures. Out: their results, from a thread inside the namespace.
//! Called by: the rig, the namespace tests.

#![expect(unsafe_code, reason = "unshare and setns have no safe wrapper here")]

use std::{fs::File, io, os::fd::AsRawFd, path::Path};

/// A network namespace.
#[derive(Debug)]
pub struct NetNs {
    file: File,
}

impl NetNs {
    /// Makes an empty one, with its loopback down.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN.
    pub fn new() -> io::Result<Self> {
        let made = std::thread::spawn(|| {
            // SAFETY: unshare takes no pointers; only this thread, which ends at once, moves.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                return Err(io::Error::last_os_error());
            }
            File::open("/proc/thread-self/ns/net")
        });
        let file = made.join().map_err(|_| io::Error::other("the unsharing thread panicked"))??;
        Ok(Self { file })
    }

    /// Opens an existing one, such as `/run/netns/NAME` or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::open(path)? })
    }

    /// A path by which other programs find it while this process runs, such as `ip link set ... netns`.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Runs `work` on a thread inside the namespace; sockets that it opens stay there.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    ///
    /// # Panics
    /// When `work` does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                // SAFETY: the descriptor is open for the call and setns takes no pointers; only
                // this thread moves.
                if unsafe { libc::setns(self.file.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(work())
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}
