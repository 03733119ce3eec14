//! The checks of `cepa doctor`.
//!
//! In: the client's settings. Out: findings. Called by: doctor, each on a thread of its own.

use std::{net::IpAddr, path::Path, time::Duration};

use jiff::Timestamp;

use super::{Finding, Verdict};
use crate::{
    capture::{nft, policy, process, route, sysctl},
    client::probe::NOWHERE,
    config::{ClientConfig, Settings},
    directory::{DirectoryCache, Guard},
    keys::StateDir,
    node::{gateway, lock},
    telemetry::{
        CircuitState, ClientState, ClientStatus, Status,
        control::{Place, Request, ask, command},
    },
};

/// A check: what it is called, and what it finds.
type Check = (&'static str, fn(&ClientConfig) -> Vec<Finding>);

/// All of them, in the order of the report.
pub(super) const ALL: [Check; 7] = [
    ("privilege", privilege),
    ("programs", programs),
    ("state", state),
    ("lockdown", lockdown),
    ("client", client),
    ("routes", routes),
    ("inside", inside),
];

const ASK: Duration = Duration::from_secs(3);

fn one(check: &'static str, verdict: Verdict, found: impl Into<String>) -> Finding {
    Finding::new(check, verdict, found)
}

fn privilege(_: &ClientConfig) -> Vec<Finding> {
    if process::effective_user() == 0 {
        return vec![one("privilege", Verdict::Ok, "root: everything can be looked at")];
    }
    let found = one("privilege", Verdict::Warn, "not root: some checks cannot look");
    vec![found.fix("sudo cepa doctor")]
}

fn programs(_: &ClientConfig) -> Vec<Finding> {
    let nft = if nft::is_installed() {
        one("nft", Verdict::Ok, "installed")
    } else {
        one("nft", Verdict::Fail, "not installed: no lockdown, no gateway")
            .fix("sudo apt install nftables")
    };
    let tun = match std::fs::File::options().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => one("tun driver", Verdict::Ok, "/dev/net/tun opens"),
        Err(error) => one("tun driver", Verdict::Fail, format!("/dev/net/tun: {error}"))
            .fix("sudo modprobe tun"),
    };
    vec![nft, tun]
}

/// Keys, directory, guard and clock, as they are on disk.
fn state(config: &ClientConfig) -> Vec<Finding> {
    if !config.state.exists() {
        let found = format!("{} does not exist yet", config.state.display());
        return vec![one("state", Verdict::Warn, found).fix("start the client once")];
    }
    let dir = match StateDir::open_existing(&config.state) {
        Ok(dir) => dir,
        Err(error) => {
            let fix = format!(
                "sudo chown -R {} {path} && sudo chmod 700 {path}",
                config.user,
                path = config.state.display()
            );
            return vec![one("state", Verdict::Fail, error.to_string()).fix(fix)];
        }
    };
    let mut findings = vec![one("state", Verdict::Ok, "private and readable")];
    match Guard::load(&dir) {
        Ok(Some(_)) => findings.push(one("guard", Verdict::Ok, "pinned")),
        Ok(None) => findings.push(one("guard", Verdict::Skip, "none pinned yet")),
        Err(error) => findings.push(one("guard", Verdict::Fail, error.to_string())),
    }
    let Some(link) = &config.controller else {
        let found = one("controller", Verdict::Fail, "no link in the settings");
        findings.push(found.fix("cepa controller link prints it; set controller in client.toml"));
        return findings;
    };
    if link.host().parse::<IpAddr>().is_err() {
        let found = one("controller", Verdict::Fail, "the link names it by a name");
        findings.push(found.fix("use its IP address: no name can be resolved during a lockdown"));
    }
    let now = Timestamp::now();
    match DirectoryCache::open(&dir, link, now) {
        Err(error) => findings.push(one("directory", Verdict::Fail, error.to_string())),
        Ok(cache) => match cache.newest() {
            None => findings.push(
                one("directory", Verdict::Warn, "none fetched yet")
                    .fix("start the client where it can reach the controller"),
            ),
            Some(directory) => {
                findings.push(match directory.check_time(now) {
                    Ok(()) => {
                        let left = directory.valid_until().duration_since(now).as_mins();
                        let found = format!(
                            "version {}, valid for {left} min more, {} nodes",
                            directory.version(),
                            directory.nodes().len()
                        );
                        one("directory", Verdict::Ok, found)
                    }
                    Err(error) => one("directory", Verdict::Fail, error.to_string()).fix(
                        "compare the clock (date -u) with the controller's, and see that it runs",
                    ),
                });
                let exits = directory.nodes().iter().filter(|member| member.is_exit()).count();
                let nodes = directory.nodes().len();
                let wanted = usize::from(config.hops);
                findings.push(if nodes >= wanted && exits > 0 {
                    one("nodes", Verdict::Ok, format!("{nodes} live, {exits} of them exits"))
                } else {
                    one("nodes", Verdict::Fail, format!("{nodes} live, {exits} of them exits"))
                        .fix(format!("start nodes: {wanted} are needed, one of them with --exit"))
                });
            }
        },
    }
    findings
}

fn lockdown(config: &ClientConfig) -> Vec<Finding> {
    let status = match lock::status() {
        Ok(status) => status,
        Err(error) => {
            let found = one("lockdown", Verdict::Fail, error.to_string());
            return vec![found.fix("sudo cepa doctor")];
        }
    };
    if !status.on {
        let found = "off: what does not go through the circuit leaves in clear";
        return vec![one("lockdown", Verdict::Fail, found).fix("sudo cepa lockdown on")];
    }
    let mut findings = vec![match status.unlocked_for_s {
        None => one("lockdown", Verdict::Ok, "on"),
        Some(left) => one("lockdown", Verdict::Warn, format!("unlocked for {left} s more"))
            .fix("sudo cepa lockdown on"),
    }];
    let mut leaks = if status.leaked_packets == 0 {
        one("leaks", Verdict::Ok, "none since the lockdown began")
    } else {
        let found = format!("{} packets left in clear", status.leaked_packets);
        one("leaks", Verdict::Fail, found).fix(
            "an unlock lets packets out; if there was none: nft list ruleset, and report it. \
             A reboot starts the count anew",
        )
    };
    leaks.leak = status.leaked_packets > 0;
    findings.push(leaks);
    let planned = lock::plan(config);
    findings.push(match (status.uid, status.endpoints) {
        (None, _) => one("endpoints", Verdict::Fail, "nobody may send")
            .fix(format!("make the user {}: sudo systemd-sysusers", config.user)),
        (_, 0) => one("endpoints", Verdict::Fail, "there is nobody to send to")
            .fix("set the controller's link, then: sudo cepa lockdown on"),
        (uid, _) if uid != planned.plan.uid || status.lan != planned.plan.lan => {
            one("endpoints", Verdict::Warn, "the rules are of other settings than these")
                .fix("sudo cepa lockdown on")
        }
        (Some(uid), count) => one("endpoints", Verdict::Ok, format!("{count}, for user {uid}")),
    });
    findings
}

fn status_of(config: &ClientConfig) -> Result<Box<ClientStatus>, String> {
    let own = (config.state != ClientConfig::default().state).then_some(&*config.state);
    let place = Place::new(ClientConfig::ROLE, own);
    let answer = ask(&place, &Request::plain(command::STATUS), ASK).map_err(|e| e.to_string())?;
    match serde_json::from_value(answer) {
        Ok(Status::Client(status)) => Ok(Box::new(status)),
        Ok(_) => Err("expected a client, got another role's daemon".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// The running client: does it run, is it connected, by what path, to whom.
fn client(config: &ClientConfig) -> Vec<Finding> {
    let status = match status_of(config) {
        Ok(status) => status,
        Err(why) => {
            let fix =
                "sudo systemctl start cepa-client; journalctl -u cepa-client says why it ended";
            return vec![one("client", Verdict::Fail, why).fix(fix)];
        }
    };
    let mut findings = vec![if status.version == env!("CARGO_PKG_VERSION") {
        one("client", Verdict::Ok, format!("runs, version {}", status.version))
    } else {
        let found =
            format!("runs version {}, this is {}", status.version, env!("CARGO_PKG_VERSION"));
        one("client", Verdict::Warn, found).fix("sudo systemctl restart cepa-client")
    }];
    findings.push(if status.controller.reachable {
        one("contact", Verdict::Ok, "the controller answers")
    } else {
        let why = status.controller.last_error.clone().unwrap_or_else(|| "no answer".to_owned());
        let fix = "check cable, Wi-Fi and address (ip address), and that the controller runs; \
                   circuits go on with the cached directory until it expires";
        one("contact", Verdict::Warn, why).fix(fix)
    });
    let active = status.circuits.iter().find(|circuit| circuit.state == CircuitState::Active);
    findings.push(match (status.state, active) {
        (ClientState::Connected, Some(circuit)) => {
            let rtt = circuit.hops.last().and_then(|hop| hop.rtt_ms);
            let rtt = rtt.map_or_else(|| "not measured yet".to_owned(), |ms| format!("{ms:.1} ms"));
            let found = format!("{} hops, round trip {rtt}", circuit.hops.len());
            one("circuit", Verdict::Ok, found)
        }
        (state, _) => {
            let reason = status.reason.clone().unwrap_or_default();
            one("circuit", Verdict::Fail, format!("{}: {reason}", state.words()))
                .fix("packets are held back until there is one; cepa nodes shows who is live")
        }
    });
    if status.lab {
        let found =
            one("lab", Verdict::Warn, "the rules of a lab: short paths, one subnet allowed");
        findings.push(found.fix("remove lab = true from client.toml"));
    }
    findings
}

/// Whether the system's routes lead into the TUN.
fn routes(config: &ClientConfig) -> Vec<Finding> {
    let Ok(tun) = route::interface(&config.tun) else {
        let found = one("routes", Verdict::Skip, format!("no interface {}", config.tun));
        return vec![found];
    };
    NOWHERE
        .iter()
        .zip(["routes IPv4", "routes IPv6"])
        .map(|(to, name)| {
            let wanted = config.route.iter().any(|network| network.contains(*to));
            let way = route::way_to(*to).ok().map(|way| way.interface);
            match (wanted, way) {
                (true, Some(index)) if index == tun.index => {
                    one(name, Verdict::Ok, format!("lead into {}", tun.name))
                }
                (true, Some(_)) => {
                    one(name, Verdict::Fail, format!("do not lead into {}", tun.name))
                        .fix("sudo systemctl restart cepa-client")
                }
                (true, None) => one(name, Verdict::Ok, "lead nowhere"),
                (false, _) => {
                    one(name, Verdict::Skip, "this machine's own packets are not captured")
                }
            }
        })
        .collect()
}

/// The gateway: interfaces, forwarding, the one way, who gives addresses.
fn inside(config: &ClientConfig) -> Vec<Finding> {
    let inside = config.inside();
    if inside.is_empty() {
        return vec![one("inside", Verdict::Skip, "no gateway: lan is not set")];
    }
    let mut findings = Vec::new();
    for name in &inside {
        findings.push(inside_interface(name));
    }
    findings.push(match gateway::devices() {
        Ok(Some(devices)) => one("devices", Verdict::Ok, format!("{} seen", devices.len())),
        Ok(None) => one("devices", Verdict::Fail, "the gateway's rules are not there")
            .fix("sudo systemctl restart cepa-client"),
        Err(error) => one("devices", Verdict::Fail, error.to_string()).fix("sudo cepa doctor"),
    });
    let forwards = |name: &str| sysctl::get(name).is_ok_and(|value| value == "1");
    let v4 = config
        .lan
        .iter()
        .chain([&config.tun])
        .all(|name| forwards(&format!("net/ipv4/conf/{name}/forwarding")));
    findings.push(if v4 && forwards("net/ipv6/conf/all/forwarding") {
        one("forwarding", Verdict::Ok, "on")
    } else {
        one("forwarding", Verdict::Fail, "off").fix("sudo systemctl restart cepa-client")
    });
    if let Some(name) = &config.capture_interface {
        let found = format!(
            "{name} is captured raw: IPv4 addresses are given by hand, IPv6 works by router \
             advertisements; no DHCP, no list of devices, one circuit for all"
        );
        findings.push(
            one("captured", Verdict::Skip, found)
                .fix("to have these, give the interface an address and name it in lan"),
        );
    }
    if config.lan.is_empty() {
        return findings;
    }
    let dhcp = std::fs::read_to_string("/proc/net/udp").unwrap_or_default();
    // Port 67 as the kernel writes it.
    findings.push(if dhcp.lines().any(|line| line.contains(":0043 ")) {
        one("DHCP", Verdict::Ok, "a server listens")
    } else {
        one("DHCP", Verdict::Warn, "no server listens: devices need addresses given by hand").fix(
            "cepa lan dnsmasq | sudo tee /etc/dnsmasq.d/cepa.conf; sudo systemctl restart dnsmasq",
        )
    });
    findings
}

fn inside_interface(name: &str) -> Finding {
    let interface = match route::interface(name) {
        Ok(interface) if interface.up => interface,
        Ok(_) => {
            return one("inside", Verdict::Fail, format!("{name} is down"))
                .fix(format!("sudo ip link set dev {name} up"));
        }
        Err(error) => {
            return one("inside", Verdict::Fail, error.to_string())
                .fix("correct lan in client.toml");
        }
    };
    if route::default_interface().is_ok_and(|found| found.is_some_and(|found| found.name == name)) {
        return one("inside", Verdict::Fail, format!("{name} is this machine's way out"))
            .fix("name the interface of your devices in lan, not the one of the modem");
    }
    let networks = route::networks_of(name).unwrap_or_default();
    let Some((address, _)) = networks.iter().find(|(address, _)| address.is_ipv4()) else {
        return one("inside", Verdict::Fail, format!("{name} has no IPv4 address"))
            .fix(format!("sudo ip address add 192.168.77.1/24 dev {name}"));
    };
    let way = neighbour(*address)
        .map(|source| policy::way_of_inside(interface.index, source, NOWHERE[0]));
    let is_up = Path::new("/sys/class/net").join(name).join("carrier");
    let carrier = std::fs::read_to_string(is_up).is_ok_and(|text| text.trim() == "1");
    match way {
        Some(Ok(Some(index)))
            if route::interfaces().is_ok_and(|all| {
                all.iter().any(|found| found.index == index && found.name.starts_with("cepa"))
            }) =>
        {
            one("inside", Verdict::Ok, format!("{name} leads into the circuit"))
        }
        Some(Ok(None)) => one("inside", Verdict::Ok, format!("{name} leads nowhere: no client")),
        _ if !carrier => {
            one("inside", Verdict::Warn, format!("{name} has no cable")).fix("plug it in")
        }
        _ => one("inside", Verdict::Fail, format!("{name} does not lead into the circuit"))
            .fix("sudo systemctl restart cepa-client"),
    }
}

/// An address beside this one.
fn neighbour(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => Some(IpAddr::V4((v4.to_bits() ^ 3).into())),
        IpAddr::V6(_) => None,
    }
}
