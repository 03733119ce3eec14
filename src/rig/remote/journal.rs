//! The order of a boot, read from the journal.
//!
//! In: machines that have to be locked. Out: promises. Called by: rig::remote.

use anyhow::{Context, Result, ensure};

use super::{
    Field,
    hosts::{Hosts, Machine},
};
use crate::rig::promise::Evidence;

/// Each locked machine was locked before its network came up.
pub(super) fn boots(field: &mut Field<'_>) {
    for machine in field.hosts.machines.iter().filter(|machine| machine.lockdown) {
        field.promise(format!("{} was locked before its network came up", machine.name), |hosts| {
            locked_first(hosts, machine)
        });
    }
}

fn locked_first(hosts: &Hosts, machine: &Machine) -> Result<Evidence> {
    let said =
        machine.sh(hosts, "systemctl show -P ActiveEnterTimestampMonotonic cepa-lockdown")?;
    let locked: f64 = said.trim().parse::<f64>().context("reading when it was locked")? / 1e6;
    ensure!(locked > 0.0, "the lockdown is not active");
    // systemd-networkd and NetworkManager say so themselves; the kernel names only some cards.
    let journal = machine.sh(
        hosts,
        "journalctl -b -o short-monotonic -u systemd-networkd -u NetworkManager --no-pager",
    )?;
    let up = journal
        .lines()
        .filter(|line| line.contains("Link UP") || line.contains("carrier: link connected"))
        .filter(|line| !line.contains(" lo: "))
        .find_map(monotonic)
        .context("the journal does not say when a link came up")?;
    ensure!(locked < up, "locked at {locked:.2} s, but a link was up at {up:.2} s");
    let margin = up - locked;
    Ok(Evidence::new(format!(
        "locked at {locked:.2} s, link up at {up:.2} s: {margin:.2} s before"
    ))
    .with("margin_s", margin))
}

/// The seconds of `[   12.345678] host unit: text`.
fn monotonic(line: &str) -> Option<f64> {
    line.strip_prefix('[')?.split(']').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        assert_eq!(monotonic("[   12.500000] pi systemd-networkd[9]: in0: Link UP"), Some(12.5));
        assert_eq!(monotonic("-- Boot --"), None);
    }
}
