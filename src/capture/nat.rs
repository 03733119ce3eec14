//! The kernel's NAT for an exit: a table of its own, and forwarding switched on.
//!
//! In: the exit's TUN interface, its pool and the interface packets leave by. Out: rules, removed
//! on drop; what a killed exit left is replaced at the next start. Called by: node's exit.
//!
//! The table also says what never happens: packets of the pool leave by the exit interface and no
//! other, and only answers come in. A firewall of the host that drops forwarded packets stays in
//! force (in nftables a drop in any table is final): it has to accept the two interfaces itself.

use std::{
    fs, io,
    io::Write,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{
    CaptureError, Result, conntrack, route,
    sysctl::{self, Sysctls},
};

/// What the rules are made of.
#[derive(Clone, Debug)]
pub struct NatOptions {
    /// The exit's TUN interface.
    pub tun: String,
    /// The interface packets leave by.
    pub interface: String,
    /// The pool's networks.
    pub pool: Vec<(IpAddr, u8)>,
    /// Where old kernel settings are kept while they are changed.
    pub memo: Option<PathBuf>,
}

/// NAT that is in force until dropped.
#[derive(Debug)]
pub struct ExitNat {
    table: String,
    _sysctls: Sysctls,
}

impl ExitNat {
    /// Replaces the exit's table and switches forwarding on.
    ///
    /// # Errors
    /// Without `nft`, the privilege, or one of the interfaces.
    pub fn start(options: &NatOptions) -> Result<Self> {
        for name in [&options.tun, &options.interface] {
            route::interface(name)?;
        }
        let mut sysctls = Sysctls::new(options.memo.as_deref());
        switch_forwarding_on(options, &mut sysctls)?;
        let table = table_name(&options.tun);
        nft(&ruleset(&table, options))?;
        Ok(Self { table, _sysctls: sysctls })
    }

    /// Forgets what the kernel tracks for an address of the pool.
    ///
    /// # Errors
    /// See [`conntrack::flush`].
    pub fn forget(&self, address: IpAddr) -> Result<()> {
        conntrack::flush(address)
    }
}

impl Drop for ExitNat {
    fn drop(&mut self) {
        if let Err(error) = nft(&format!("delete table inet {}\n", self.table)) {
            log::warn!("the table {} stays: {error}", self.table);
        }
    }
}

/// Only what is needed: IPv4 forwarding is set for the two interfaces. IPv6 has one switch for
/// all, which also stops a host from listening to router advertisements, so that is kept on where
/// it was on.
fn switch_forwarding_on(options: &NatOptions, sysctls: &mut Sysctls) -> Result<()> {
    if options.pool.iter().any(|(ip, _)| ip.is_ipv4()) {
        for name in [&options.tun, &options.interface] {
            sysctls.set(&format!("net/ipv4/conf/{name}/forwarding"), "1")?;
        }
    }
    if options.pool.iter().any(|(ip, _)| ip.is_ipv6()) {
        for entry in fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten() {
            let name = entry.file_name();
            let accept = format!("net/ipv6/conf/{}/accept_ra", name.to_string_lossy());
            if name != "all"
                && name != "default"
                && sysctl::get(&accept).is_ok_and(|now| now == "1")
            {
                sysctls.set(&accept, "2")?;
            }
        }
        sysctls.set("net/ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// One table per TUN interface, so that two exits on one host do not replace each other's.
fn table_name(tun: &str) -> String {
    let plain = |character: char| if character.is_ascii_alphanumeric() { character } else { '_' };
    format!("cepa_exit_{}", tun.chars().map(plain).collect::<String>())
}

fn ruleset(table: &str, options: &NatOptions) -> String {
    let NatOptions { tun, interface, pool, .. } = options;
    let masquerade: String = pool
        .iter()
        .map(|(ip, prefix)| {
            let family = if ip.is_ipv4() { "ip" } else { "ip6" };
            format!("    {family} saddr {ip}/{prefix} oifname \"{interface}\" masquerade\n")
        })
        .collect();
    format!(
        "table inet {table}
delete table inet {table}
table inet {table} {{
  chain leaving {{
    type nat hook postrouting priority srcnat; policy accept;
{masquerade}  }}
  chain passing {{
    type filter hook forward priority filter; policy accept;
    iifname \"{tun}\" oifname \"{interface}\" accept
    iifname \"{interface}\" oifname \"{tun}\" ct state established,related accept
    iifname \"{tun}\" drop
    oifname \"{tun}\" drop
  }}
  chain arriving {{
    type filter hook input priority filter; policy accept;
    iifname \"{tun}\" drop
  }}
}}
"
    )
}

/// Hands rules to `nft`.
fn nft(rules: &str) -> Result<()> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => CaptureError::NoProgram { program: "nft", package: "nftables" },
        _ => CaptureError::step("set NAT rules with nft", "CAP_NET_ADMIN", source),
    };
    // Daemons have short search paths; Debian keeps nft in sbin.
    let program = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .unwrap_or("nft");
    let mut child = Command::new(program)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(rules.as_bytes()).map_err(failed)?;
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(if said.contains("Operation not permitted") {
        let source = io::Error::from_raw_os_error(libc::EPERM);
        CaptureError::Privilege {
            what: "set NAT rules".into(),
            capability: "CAP_NET_ADMIN",
            source,
        }
    } else {
        CaptureError::Io {
            what: "setting NAT rules with nft".into(),
            source: io::Error::other(said),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_interfaces_become_names_of_tables() {
        assert_eq!(table_name("cepa-exit.0"), "cepa_exit_cepa_exit_0");
    }

    #[test]
    fn the_rules_name_pool_and_interfaces() {
        let rules = ruleset(
            "t",
            &NatOptions {
                tun: "tun9".into(),
                interface: "eth0".into(),
                pool: vec![("100.65.0.0".parse().unwrap(), 16), ("fd63::".parse().unwrap(), 64)],
                memo: None,
            },
        );
        assert!(rules.contains("ip saddr 100.65.0.0/16 oifname \"eth0\" masquerade"), "{rules}");
        assert!(rules.contains("ip6 saddr fd63::/64 oifname \"eth0\" masquerade"), "{rules}");
    }

    #[test]
    fn old_settings_survive_in_the_memo() {
        let dir = tempfile::tempdir().unwrap();
        let memo = dir.path().join("memo");
        fs::write(&memo, "net/ipv4/conf/gone/forwarding=0\n").unwrap();
        let sysctls = Sysctls::new(Some(&memo));
        assert!(memo.exists());
        drop(sysctls);
        assert!(!memo.exists());
    }
}
