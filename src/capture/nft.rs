//! The `nft` program: tables replaced in one transaction, and read back.
//!
//! In: rules as text. Out: rules in force, or tables as JSON.
//! Called by: capture::nat, node's lockdown and gateway.
//!
//! One call is one transaction: the kernel takes all of it or nothing, and no packet sees a state in
//! between.

use std::{
    io::{self, Write},
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

use super::{CaptureError, Result};

/// Hands rules to the kernel; `what` says what they are, for errors.
///
/// # Errors
/// Without `nft` or the privilege, or when the kernel refuses the rules.
pub fn apply(rules: &str, what: &str) -> Result<()> {
    let mut child = program()
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(what, error))?;
    let written = child.stdin.take().map(|mut stdin| stdin.write_all(rules.as_bytes()));
    let output = child.wait_with_output().map_err(|error| failed(what, error))?;
    check(&output, what)?;
    written.transpose().map_err(|error| failed(what, error))?;
    Ok(())
}

/// What is in a table of the family `inet` or `netdev`: the list under `nftables` of `nft -j`. None
/// if there is no such table.
///
/// # Errors
/// Without `nft` or the privilege.
pub fn list(family: &str, table: &str) -> Result<Option<Vec<Value>>> {
    let what = format!("list the table {table}");
    let output = program()
        .args(["-j", "list", "table", family, table])
        .output()
        .map_err(|error| failed(&what, error))?;
    if String::from_utf8_lossy(&output.stderr).contains("No such file or directory") {
        return Ok(None);
    }
    check(&output, &what)?;
    let mut value: Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| failed(&what, io::Error::other(error)))?;
    match value["nftables"].take() {
        Value::Array(items) => Ok(Some(items)),
        _ => Err(failed(&what, io::Error::other("expected a list under nftables"))),
    }
}

/// The same as text, for people.
///
/// # Errors
/// Without `nft` or the privilege.
pub fn text(family: &str, table: &str) -> Result<String> {
    let what = format!("list the table {table}");
    let output = program()
        .args(["list", "table", family, table])
        .output()
        .map_err(|error| failed(&what, error))?;
    check(&output, &what)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether the program is there.
pub fn is_installed() -> bool {
    program().arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Daemons have short search paths; Debian keeps nft in sbin.
fn program() -> Command {
    let path = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"];
    Command::new(path.into_iter().find(|path| Path::new(path).exists()).unwrap_or("nft"))
}

fn failed(what: &str, source: io::Error) -> CaptureError {
    match source.kind() {
        io::ErrorKind::NotFound => CaptureError::NoProgram { program: "nft", package: "nftables" },
        _ => CaptureError::step(format!("{what} with nft"), "CAP_NET_ADMIN", source),
    }
}

fn check(output: &Output, what: &str) -> Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(if said.contains("Operation not permitted") {
        CaptureError::Privilege {
            what: what.to_owned(),
            capability: "CAP_NET_ADMIN",
            source: io::Error::from_raw_os_error(libc::EPERM),
        }
    } else {
        CaptureError::Io { what: format!("{what} with nft"), source: io::Error::other(said) }
    })
}
