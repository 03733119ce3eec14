//! The words of `cepa status`.
//!
//! In: a snapshot, and the one a second before for rates. Out: lines for people. Called by: status.

use std::fmt::Write as _;

use super::table::{bytes, count, round_trip, seconds};
use crate::telemetry::{
    CircuitInfo, CircuitState, ClientState, ClientStatus, ControllerContact, ControllerStatus,
    DirectoryStatus, Drops, NodeState, NodeStatus, ProxyStatus, Status, TrackerStatus, Traffic,
};

/// A directory that expires in less than this needs a look.
const EXPIRES_SOON_S: u64 = 3600;

/// The lines of one daemon; `before` is its snapshot one second ago.
pub(super) fn of(status: &Status, before: Option<&Status>) -> String {
    match (status, before) {
        (Status::Client(status), Some(Status::Client(before))) => client(status, Some(before)),
        (Status::Client(status), _) => client(status, None),
        (Status::Node(status), Some(Status::Node(before))) => node(status, Some(before)),
        (Status::Node(status), _) => node(status, None),
        (Status::Controller(status), _) => controller(status),
        (Status::Tracker(status), _) => tracker(status),
    }
}

/// Lines of `name  value`, names in a column.
struct Lines(String);

impl Lines {
    fn title(text: &str) -> Self {
        Self(format!("{text}\n"))
    }

    fn line(&mut self, name: &str, value: &str) {
        // Writing into a string cannot fail.
        let _ = writeln!(self.0, "  {name:<11}{value}");
    }

    fn end(mut self, next_step: Option<&str>) -> String {
        if let Some(step) = next_step {
            self.line("next", step);
        }
        self.0
    }
}

fn lab(lab: bool) -> &'static str {
    if lab { ", lab rules" } else { "" }
}

fn client(status: &ClientStatus, before: Option<&ClientStatus>) -> String {
    let mut title = format!("client: {}", status.state.words());
    if let Some(reason) = &status.reason {
        let _ = write!(title, ": {reason}");
    }
    title.push_str(lab(status.lab));
    let mut lines = Lines::title(&title);
    match status.circuits.iter().find(|circuit| circuit.state == CircuitState::Active) {
        Some(circuit) => lines.line("path", &path(circuit)),
        None => lines.line("path", "none: no circuit is open"),
    }
    lines.line("circuits", &circuits(&status.circuits));
    if !status.tun.is_empty() {
        let routes =
            if status.routes.is_empty() { "none".to_owned() } else { status.routes.join(" ") };
        lines.line("routes", &format!("{routes} through {}", status.tun));
    }
    for proxy in &status.proxies {
        lines.line("proxy", &proxy_text(proxy));
    }
    if let Some(lockdown) = &status.lockdown {
        let value = if lockdown.on {
            format!(
                "{}, {} leaked, {} held back",
                lockdown.words(),
                count(lockdown.leaked_packets as usize, "packet"),
                lockdown.blocked_own + lockdown.blocked_lan
            )
        } else {
            "off: what does not go through the circuit leaves in clear".to_owned()
        };
        lines.line("lockdown", &value);
    }
    lines.line("traffic", &inner_traffic(&status.traffic));
    if let Some(before) = before {
        lines.line("rate", &rate(&status.traffic, &before.traffic));
    }
    contact(&mut lines, &status.controller);
    directory(&mut lines, &status.directory);
    drops(&mut lines, &status.drops);
    lines.line("running", &format!("{}, version {}", seconds(status.uptime_s), status.version));
    lines.end(client_next(status).as_deref())
}

/// One proxy: what it speaks, where, and what passed.
fn proxy_text(proxy: &ProxyStatus) -> String {
    let (kind, things) = match proxy.kind.as_str() {
        "socks5" => ("SOCKS5", "connections"),
        "http" => ("HTTP", "connections"),
        "dns" => ("DNS", "questions"),
        other => (other, "connections"),
    };
    let refused = match proxy.refused {
        0 => String::new(),
        refused => format!(", {refused} refused"),
    };
    format!(
        "{kind} on {}: {} open, {} {things} so far{refused}",
        proxy.listen, proxy.open, proxy.total
    )
}

/// The one thing to do about a client.
fn client_next(status: &ClientStatus) -> Option<String> {
    let own = || {
        match status.state {
            ClientState::Blocked => {
                return Some(
                    "packets are held back; see the reason above and the client's log".to_owned(),
                );
            }
            ClientState::Connected if status.routes.is_empty() && status.proxies.is_empty() => {
                return Some(
                    "nothing uses the circuit; give the client --route 0.0.0.0/0 or --socks"
                        .to_owned(),
                );
            }
            _ => {}
        }
        contact_next(&status.controller, &status.directory)
    };
    status.next_step.clone().or_else(own)
}

fn node(status: &NodeStatus, before: Option<&NodeStatus>) -> String {
    let mut lines =
        Lines::title(&format!("node {}: {}{}", status.name, status.state.words(), lab(status.lab)));
    lines.line("id", &status.id);
    let public = status.public_address.as_deref().unwrap_or("not known yet");
    lines.line("address", &format!("{public} (listens on {})", status.listen));
    lines.line("circuits", &format!("{} of at most {}", status.circuits, status.max_circuits));
    match &status.exit {
        Some(exit) => {
            lines.line(
                "exit",
                &format!(
                    "through {}: {}, {}",
                    exit.interface,
                    count(exit.circuits, "circuit"),
                    count(exit.connections, "connection")
                ),
            );
            lines.line("policy", &exit.policy);
        }
        None => lines.line("exit", "no: it relays only"),
    }
    let traffic = &status.traffic;
    lines.line("cells", &format!("{} in, {} out", traffic.cells_in, traffic.cells_out));
    if let Some(before) = before {
        let (cells_in, cells_out) = (
            traffic.cells_in.saturating_sub(before.traffic.cells_in),
            traffic.cells_out.saturating_sub(before.traffic.cells_out),
        );
        lines.line("rate", &format!("{cells_in} cells/s in, {cells_out} cells/s out"));
    }
    contact(&mut lines, &status.controller);
    directory(&mut lines, &status.directory);
    drops(&mut lines, &status.drops);
    lines.line("running", &format!("{}, version {}", seconds(status.uptime_s), status.version));
    lines.end(node_next(status).as_deref())
}

/// The one thing to do about a node.
fn node_next(status: &NodeStatus) -> Option<String> {
    let own = || match status.state {
        NodeState::NotAdmitted => Some(
            "make a token on the controller (cepa controller token new --role node) and give it \
             with --join"
                .to_owned(),
        ),
        _ => contact_next(&status.controller, &status.directory),
    };
    status.next_step.clone().or_else(own)
}

fn controller(status: &ControllerStatus) -> String {
    let mut lines = Lines::title(&format!("controller: answers on {}", status.listen));
    lines.line("admission", &status.admission);
    lines.line("registered", &count(status.registered, "node"));
    directory(&mut lines, &status.directory);
    lines.line("running", &format!("{}, version {}", seconds(status.uptime_s), status.version));
    lines.end(status.next_step.as_deref())
}

fn tracker(status: &TrackerStatus) -> String {
    let mut lines = Lines::title(&format!("tracker {}: {}", status.name, status.state.words()));
    lines.line("id", &status.id);
    lines.line("listens", &status.listen);
    let shared = format!(
        "{}, {}, {}",
        count(status.circuits, "circuit"),
        count(status.files, "file"),
        count(status.sessions, "session")
    );
    lines.line("knows", &shared);
    directory(&mut lines, &status.directory);
    lines.line("running", &format!("{}, version {}", seconds(status.uptime_s), status.version));
    lines.end(status.next_step.as_deref())
}

/// `you > otter 0.41 ms > lynx 1.20 ms > destination`.
fn path(circuit: &CircuitInfo) -> String {
    let mut path = "you".to_owned();
    for hop in &circuit.hops {
        let _ = write!(path, " > {}", hop.name);
        if hop.rtt_ms.is_some() {
            let _ = write!(path, " {}", round_trip(hop.rtt_ms));
        }
    }
    path.push_str(" > destination");
    path
}

fn circuits(circuits: &[CircuitInfo]) -> String {
    let states = [
        CircuitState::Active,
        CircuitState::Spare,
        CircuitState::Isolated,
        CircuitState::Extra,
        CircuitState::Stalled,
        CircuitState::Building,
        CircuitState::Draining,
        CircuitState::Closing,
    ];
    let parts: Vec<_> = states
        .into_iter()
        .filter_map(|state| {
            let number = circuits.iter().filter(|circuit| circuit.state == state).count();
            (number > 0).then(|| format!("{number} {}", state.word()))
        })
        .collect();
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}

fn inner_traffic(traffic: &Traffic) -> String {
    format!(
        "up {} in {}, down {} in {}",
        bytes(traffic.bytes_up),
        count(usize::try_from(traffic.packets_up).unwrap_or(usize::MAX), "packet"),
        bytes(traffic.bytes_down),
        count(usize::try_from(traffic.packets_down).unwrap_or(usize::MAX), "packet"),
    )
}

fn rate(traffic: &Traffic, before: &Traffic) -> String {
    format!(
        "up {}/s, down {}/s",
        bytes(traffic.bytes_up.saturating_sub(before.bytes_up)),
        bytes(traffic.bytes_down.saturating_sub(before.bytes_down))
    )
}

fn contact(lines: &mut Lines, contact: &ControllerContact) {
    let mut text = contact.address.clone();
    match (contact.reachable, contact.last_answer_s) {
        (true, Some(ago)) => {
            let _ = write!(text, ", answered {} ago", seconds(ago));
        }
        (true, None) => text.push_str(", reachable"),
        (false, ago) => {
            text.push_str(", unreachable");
            if let Some(ago) = ago {
                let _ = write!(text, " for {}", seconds(ago));
            }
            if let Some(error) = &contact.last_error {
                let _ = write!(text, ": {error}");
            }
            if let Some(retry) = contact.retry_in_s {
                let _ = write!(text, "; next attempt in {}", seconds(retry));
            }
        }
    }
    lines.line("controller", &text);
}

fn contact_next(contact: &ControllerContact, directory: &DirectoryStatus) -> Option<String> {
    if contact.reachable {
        return None;
    }
    Some(match (directory.version, directory.expires_in_s) {
        (0, _) => format!("see that the controller runs and {} is reachable", contact.address),
        (_, left) if left < EXPIRES_SOON_S => format!(
            "see that the controller at {} runs: the cached directory expires in {}",
            contact.address,
            seconds(left)
        ),
        (_, left) => format!(
            "nothing for now: the cached directory serves for {}; then the controller at {} is \
             needed",
            seconds(left),
            contact.address
        ),
    })
}

fn directory(lines: &mut Lines, directory: &DirectoryStatus) {
    if directory.version == 0 {
        lines.line("directory", "none yet");
        return;
    }
    lines.line(
        "directory",
        &format!(
            "version {}: {}, {}, valid for {}",
            directory.version,
            count(directory.nodes, "node"),
            count(directory.exits, "exit"),
            seconds(directory.expires_in_s)
        ),
    );
}

fn drops(lines: &mut Lines, drops: &Drops) {
    let mut reasons: Vec<_> = drops.0.iter().collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let parts: Vec<_> = reasons
        .iter()
        .map(|(reason, count)| format!("{count} {}", reason.replace('_', " ")))
        .collect();
    let text = if parts.is_empty() { "nothing".to_owned() } else { parts.join(", ") };
    lines.line("dropped", &text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::HopInfo;

    fn connected() -> ClientStatus {
        let hop = |name: &str, rtt| HopInfo {
            name: name.to_owned(),
            rtt_ms: Some(rtt),
            ..HopInfo::default()
        };
        ClientStatus {
            state: ClientState::Connected,
            tun: "cepa0".to_owned(),
            routes: vec!["0.0.0.0/0".to_owned()],
            circuits: vec![
                CircuitInfo {
                    number: 1,
                    state: CircuitState::Active,
                    hops: vec![hop("otter", 0.41), hop("heron", 0.9), hop("lynx", 12.3)],
                    ..CircuitInfo::default()
                },
                CircuitInfo { state: CircuitState::Spare, ..CircuitInfo::default() },
            ],
            controller: ControllerContact {
                address: "10.77.0.2:5000".to_owned(),
                reachable: true,
                last_answer_s: Some(4),
                ..ControllerContact::default()
            },
            directory: DirectoryStatus { version: 3, nodes: 6, exits: 3, expires_in_s: 86_400 },
            traffic: Traffic { bytes_up: 1_234_567, packets_up: 1, ..Traffic::default() },
            drops: Drops([("replay".to_owned(), 2), ("bad_tag".to_owned(), 7)].into()),
            ..ClientStatus::default()
        }
    }

    #[test]
    fn a_connected_client() {
        let mut later = connected();
        later.traffic.bytes_up += 2_000_000;
        let text = of(&Status::Client(later), Some(&Status::Client(connected())));
        for line in [
            "client: connected\n",
            "  path       you > otter 0.41 ms > heron 0.90 ms > lynx 12 ms > destination\n",
            "  circuits   1 active, 1 spare\n",
            "  routes     0.0.0.0/0 through cepa0\n",
            "  traffic    up 3.2 MB in 1 packet, down 0 B in 0 packets\n",
            "  rate       up 2.0 MB/s, down 0 B/s\n",
            "  controller 10.77.0.2:5000, answered 4 s ago\n",
            "  directory  version 3: 6 nodes, 3 exits, valid for 1 d\n",
            "  dropped    7 bad tag, 2 replay\n",
        ] {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
        assert!(!text.contains("next"), "nothing is wrong:\n{text}");
    }

    #[test]
    fn what_is_wrong_comes_with_one_next_step() {
        let mut status = connected();
        status.controller.reachable = false;
        status.controller.last_error = Some("connection refused".to_owned());
        status.controller.retry_in_s = Some(8);
        let text = of(&Status::Client(status.clone()), None);
        assert!(text.contains("unreachable for 4 s: connection refused; next attempt in 8 s"));
        assert!(text.contains("next       nothing for now: the cached directory serves for 1 d"));
        status.directory.expires_in_s = 60;
        assert!(client_next(&status).is_some_and(|step| step.contains("expires in 1 min")));
        status.state = ClientState::Blocked;
        status.reason = Some("2 live nodes, 3 are needed".to_owned());
        let text = of(&Status::Client(status.clone()), None);
        assert!(text.contains("client: blocked: 2 live nodes, 3 are needed"), "{text}");
        assert_eq!(text.matches("  next ").count(), 1);
        status.next_step = Some("start a node".to_owned());
        assert_eq!(client_next(&status).as_deref(), Some("start a node"));
    }

    #[test]
    fn a_node_that_is_not_admitted() {
        let status = NodeStatus { state: NodeState::NotAdmitted, ..NodeStatus::default() };
        let text = of(&Status::Node(status), None);
        assert!(text.contains("not admitted") && text.contains("token new"), "{text}");
    }
}
