//! A leak test on this machine's outside interfaces.
//!
//! In: the interfaces of the inside. Out: what left in clear. Called by: cli (leaktest, doctor).

use std::{io, thread, time::Duration};

use crate::{
    capture::{CaptureError, nft, process, route},
    client::{
        leaktest::{self, CONTROL, CONTROL_KIND, PROBES, TABLE},
        probe::NOWHERE,
    },
    telemetry::LeakReport,
};

/// How long a packet may take from the socket to the interface.
const SETTLE: Duration = Duration::from_millis(200);

/// Sends every probe by the routes there are, and once more bound to each outside interface, and
/// looks at what the interfaces took. `inside` and the TUN are not outside.
///
/// # Errors
/// Without root or `nft`, or when the counters do not count.
pub fn run(inside: &[String], tun: &str) -> Result<LeakReport, CaptureError> {
    let interfaces: Vec<String> = route::interfaces()?
        .into_iter()
        .filter(|found| found.up && !found.loopback && found.name != tun)
        .filter(|found| !inside.contains(&found.name))
        .map(|found| found.name)
        .collect();
    nft::apply(&leaktest::rules(&interfaces), "count packets")?;
    let _table = Table;
    for to in CONTROL {
        CONTROL_KIND.fire(to, None).map_err(privilege)?;
    }
    let mut tried = 0;
    for to in NOWHERE {
        for kind in PROBES {
            for device in [None].into_iter().chain(interfaces.iter().map(|name| Some(&**name))) {
                tried += 1;
                // That a packet is refused is what is wanted; without the right to try it nothing
                // is shown. Root has that right, and is refused by the lockdown only.
                if let Err(error) = kind.fire(to, device)
                    && error.kind() == io::ErrorKind::PermissionDenied
                    && process::effective_user() != 0
                {
                    return Err(privilege(error));
                }
            }
        }
    }
    thread::sleep(SETTLE);
    let items = nft::list("netdev", TABLE)?.unwrap_or_default();
    let (counts, probes) = leaktest::read(&items);
    if !counts {
        return Err(CaptureError::Io {
            what: "counting packets to this machine itself, as a control".to_owned(),
            source: io::Error::other(
                "the kernel did not count them, so it would count no leak; it needs the netfilter \
                 egress hook (CONFIG_NETFILTER_EGRESS, Linux 5.16)",
            ),
        });
    }
    let leaked = probes.iter().map(|probe| probe.leaked).sum();
    Ok(LeakReport { interfaces, tried, leaked, probes })
}

fn privilege(source: io::Error) -> CaptureError {
    CaptureError::step("send packets of every kind", "CAP_NET_RAW", source)
}

/// Counters that go with the test.
struct Table;

impl Drop for Table {
    fn drop(&mut self) {
        if let Err(error) = nft::apply(&leaktest::removal(), "remove counters") {
            log::warn!(event = "leaktest"; "the counters of the leak test stay: {error}");
        }
    }
}
