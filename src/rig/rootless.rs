//! The rig without root: it starts itself again as root of a user namespace of its own.
//!
//! In: a command line. Out: the same, with a private network, mounts and `/run`.
//! Called by: `cepa rig`, before anything else.

use std::{fs::File, io, os::unix::process::CommandExt, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::capture::{CaptureError, netns::NetNs};

/// Set in the process that was started again.
pub const MARK: &str = "RIG_ROOTLESS";

/// Returns if this process may make network namespaces; otherwise starts the program again with
/// the same arguments in a user namespace, and does not return.
///
/// # Errors
/// When neither is possible, with what to grant.
pub fn ensure_privilege() -> Result<()> {
    tun_is_open()?;
    let denied = match NetNs::new() {
        Ok(_) => return Ok(()),
        Err(error) => error,
    };
    if std::env::var_os(MARK).is_some() || denied.kind() != io::ErrorKind::PermissionDenied {
        return Err(no_namespaces(denied));
    }
    let program = std::env::current_exe().context("finding this program's file")?;
    // /run is where named namespaces live, and belongs to root outside.
    let error = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--mount", "--"])
        .args(["sh", "-c", "mount -t tmpfs tmpfs /run && exec \"$0\" \"$@\""])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(MARK, "1")
        .exec();
    Err(no_namespaces(error))
}

fn no_namespaces(source: io::Error) -> anyhow::Error {
    CaptureError::Privilege {
        what: "make network namespaces; without root this needs user namespaces \
               (kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)"
            .to_owned(),
        capability: "CAP_SYS_ADMIN",
        source,
    }
    .into()
}

fn tun_is_open() -> Result<()> {
    let path = Path::new("/dev/net/tun");
    match File::options().read(true).write(true).open(path) {
        Ok(_) => Ok(()),
        Err(source) => Err(CaptureError::TunFile { source }.into()),
    }
}
