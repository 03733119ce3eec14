//! The kernel's NAT for an exit: a table of its own, and forwarding switched on.
//!
//! In: the exit's TUN interface, its pool and the interface packets leave by. Out: rules, removed
//! on drop; what a killed exit left is replaced at the next start. Called by: node's exit.
//!
//! The table also says what never happens: packets of the pool leave by the exit interface and no
//! other, and only answers come in. A firewall of the host that drops forwarded packets stays in
//! force (in nftables a drop in any table is final): it has to accept the two interfaces itself.

use std::{net::IpAddr, path::PathBuf};

use super::{Result, conntrack, nft, route, sysctl::Sysctls};

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
        let has = |v4: bool| options.pool.iter().any(|(ip, _)| ip.is_ipv4() == v4);
        if has(true) {
            sysctls.forward_v4(&[&options.tun, &options.interface])?;
        }
        if has(false) {
            sysctls.forward_v6()?;
        }
        let table = table_name(&options.tun);
        nft::apply(&ruleset(&table, options), "set NAT rules")?;
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
        if let Err(error) =
            nft::apply(&format!("delete table inet {}\n", self.table), "remove NAT rules")
        {
            log::warn!(event = "nat"; "the table {} stays: {error}", self.table);
        }
    }
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

#[cfg(test)]
mod tests {
    use std::fs;

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
